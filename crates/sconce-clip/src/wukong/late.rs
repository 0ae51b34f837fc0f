//! FILIP's late interaction: every token of a picture is compared with every token of a text (Yao et al. 2021,
//! arXiv:2111.07783, equations 3 to 5).

use crate::{Pairing, loss::two_way_cross_entropy};
use candle_core::{D, DType, Result, Tensor, bail};
use sconce_ops::matmul;

/// Unit-length token embeddings of texts.
#[derive(Clone, Debug)]
pub struct TextTokens {
    /// `(B, L, E)`.
    pub features: Tensor,
    /// 1 at the tokens of the text, 0 at padding: `(B, L)`, `u8`.
    pub valid: Tensor,
}

impl TextTokens {
    /// Some of the texts: `count` of them from `start`.
    ///
    /// # Errors
    /// When there are not that many.
    pub fn narrow(&self, start: usize, count: usize) -> Result<Self> {
        Ok(Self { features: self.features.narrow(0, start, count)?, valid: self.valid.narrow(0, start, count)? })
    }
}

/// What the padding of a text is in the comparison.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Padding {
    /// Not there.
    #[default]
    Excluded,
    /// A token with similarity 0 to everything, as in Wukong's released evaluation: an image token that is dissimilar to every
    /// word is then worth 0. From text to image there is no difference.
    Zeroed,
}

/// Options of [`late_interaction`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LateInteraction {
    /// What padding counts for.
    pub padding: Padding,
    /// Similarities of tokens that are computed at once: the memory of the comparison when nothing is trained. A block holds at
    /// least one picture and one text.
    pub block: usize,
}

impl Default for LateInteraction {
    fn default() -> Self {
        Self { padding: Padding::Excluded, block: 1 << 24 }
    }
}

/// Similarities of pictures and texts, one for each direction; both have a row for each picture.
#[derive(Clone, Debug)]
pub struct Similarity {
    /// Of each picture to the texts: mean over image tokens of the best text token, `(B, B')`.
    pub image_to_text: Tensor,
    /// Of each text to the pictures: mean over text tokens of the best image token, `(B, B')`.
    pub text_to_image: Tensor,
}

impl Similarity {
    /// The symmetric contrastive loss: the mean of the cross entropies of both directions, each over its own similarities times
    /// `scale`.
    ///
    /// # Errors
    /// When there are not as many texts as pictures; those of the pairing.
    pub fn loss(&self, scale: &Tensor, pairing: &Pairing) -> Result<Tensor> {
        let per_image = self.image_to_text.broadcast_mul(scale)?;
        let per_text = self.text_to_image.broadcast_mul(scale)?.t()?.contiguous()?;
        two_way_cross_entropy(&per_image, &per_text, pairing)
    }
}

/// Compares pictures with texts, token by token.
///
/// With one token on each side both directions are the cosine, CLIP's comparison. Of equally similar tokens the first takes the
/// gradient. Costs `B B' N L` products of width `E`; in training as many similarities are kept for the backward pass, otherwise
/// [`LateInteraction::block`] of them at a time.
///
/// # Shapes
/// images `(B, N, E)`, texts `(B', L, E)`, all tokens of unit length
///
/// # Errors
/// When shapes do not agree, and for a text without a valid token.
pub fn late_interaction(images: &Tensor, texts: &TextTokens, options: &LateInteraction) -> Result<Similarity> {
    let (pictures, patches, width) = images.dims3()?;
    let (count, length, text_width) = texts.features.dims3()?;
    if width != text_width || texts.valid.dims() != [count, length] {
        bail!(
            "late interaction of pictures {:?}, texts {:?} and valid tokens {:?}",
            images.dims(),
            texts.features.dims(),
            texts.valid.dims()
        );
    }
    if pictures * patches * count * length == 0 {
        bail!("late interaction needs pictures, texts and tokens of both, got {:?} and {:?}", images.dims(), texts);
    }
    // Half precision counts tokens exactly, but does not divide by their number exactly.
    let wide = if images.dtype() == DType::F64 { DType::F64 } else { DType::F32 };
    let valid = texts.valid.to_dtype(wide)?;
    let tokens = valid.sum(1)?; // (B')
    if tokens.to_dtype(DType::F32)?.min(0)?.to_scalar::<f32>()? < 1.0 {
        bail!("late interaction: a text has no token");
    }
    let pair = Pair {
        length,
        patches,
        // Padding never wins against a cosine.
        bias: match options.padding {
            Padding::Excluded => ((&valid - 1.0)? * 1e4)?,
            Padding::Zeroed => valid.zeros_like()?,
        },
        share: valid.broadcast_div(&tokens.unsqueeze(1)?)?.to_dtype(images.dtype())?, // (B', L)
        texts: match options.padding {
            Padding::Excluded => texts.features.clone(),
            Padding::Zeroed => texts.features.broadcast_mul(&valid.to_dtype(images.dtype())?.unsqueeze(2)?)?,
        },
    };
    let one = patches * length;
    let text_block = (options.block / one).clamp(1, count);
    let image_block = (options.block / one / text_block).clamp(1, pictures);
    let (mut columns_i2t, mut columns_t2i) = (Vec::new(), Vec::new());
    for from in (0..count).step_by(text_block) {
        let part = pair.narrow(from, text_block.min(count - from))?;
        let (mut rows_i2t, mut rows_t2i) = (Vec::new(), Vec::new());
        for start in (0..pictures).step_by(image_block) {
            let (i2t, t2i) = part.compare(&images.narrow(0, start, image_block.min(pictures - start))?)?;
            rows_i2t.push(i2t);
            rows_t2i.push(t2i);
        }
        columns_i2t.push(Tensor::cat(&rows_i2t, 0)?);
        columns_t2i.push(Tensor::cat(&rows_t2i, 0)?);
    }
    Ok(Similarity { image_to_text: Tensor::cat(&columns_i2t, 1)?, text_to_image: Tensor::cat(&columns_t2i, 1)? })
}

/// What a block of texts is compared with.
struct Pair {
    texts: Tensor,
    bias: Tensor,
    share: Tensor,
    length: usize,
    patches: usize,
}

impl Pair {
    fn narrow(&self, start: usize, count: usize) -> Result<Self> {
        let part = |xs: &Tensor| xs.narrow(0, start, count);
        let (texts, bias, share) = (part(&self.texts)?, part(&self.bias)?, part(&self.share)?);
        Ok(Self { texts, bias, share, ..*self })
    }

    /// `(B, N, E)` to two times `(B, B')`.
    fn compare(&self, images: &Tensor) -> Result<(Tensor, Tensor)> {
        let (pictures, count) = (images.dim(0)?, self.texts.dim(0)?);
        let scores = matmul(&images.flatten_to(1)?, &self.texts.flatten_to(1)?.t()?)?; // (B N, B' L)
        if self.patches * self.length == 1 {
            return Ok((scores.clone(), scores));
        }
        // `max` would give the whole gradient to each of several equal tokens.
        let by_word = scores.reshape((pictures * self.patches, count, self.length))?;
        let known = by_word.detach().to_dtype(self.bias.dtype())?.broadcast_add(&self.bias)?;
        let best = by_word.gather(&known.argmax_keepdim(D::Minus1)?, D::Minus1)?; // (B N, B', 1)
        let image_to_text = best.reshape((pictures, self.patches, count))?.mean(1)?;

        let by_patch = scores.reshape((pictures, self.patches, count * self.length))?;
        let best = by_patch.gather(&by_patch.detach().argmax_keepdim(1)?, 1)?; // (B, 1, B' L)
        let best = best.reshape((pictures, count, self.length))?;
        Ok((image_to_text, best.broadcast_mul(&self.share)?.sum(D::Minus1)?))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::{Device, Var};
    use sconce_ops::{Generator, l2_normalize};

    fn tokens(shape: (usize, usize, usize), seed: u64) -> Tensor {
        let noise = Generator::new(seed).normal(0.0, 1.0, shape, DType::F64, &Device::Cpu).unwrap();
        l2_normalize(&noise, D::Minus1, 1e-12).unwrap()
    }

    fn valid() -> Tensor {
        Tensor::new(&[[1u8, 1, 1, 0], [1, 1, 0, 0], [1, 1, 1, 1]], &Device::Cpu).unwrap()
    }

    fn texts(seed: u64) -> TextTokens {
        TextTokens { features: tokens((3, 4, 6), seed), valid: valid() }
    }

    fn values(xs: &Tensor) -> Vec<f64> {
        xs.to_dtype(DType::F64).unwrap().flatten_all().unwrap().to_vec1().unwrap()
    }

    fn far(a: &Tensor, b: &Tensor) -> f64 {
        values(a).iter().zip(values(b)).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max)
    }

    #[test]
    fn both_directions_by_hand_in_blocks_of_any_size() -> Result<()> {
        let (images, texts) = (tokens((5, 7, 6), 1), texts(2));
        let (x, y, v) = (images.to_vec3::<f64>()?, texts.features.to_vec3::<f64>()?, texts.valid.to_vec2::<u8>()?);
        let dot = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>();
        for (padding, block) in [(Padding::Excluded, 1), (Padding::Excluded, 60), (Padding::Zeroed, 1 << 20)] {
            let found = late_interaction(&images, &texts, &LateInteraction { padding, block })?;
            for (i, x) in x.iter().enumerate() {
                for (j, (y, v)) in y.iter().zip(&v).enumerate() {
                    let words: Vec<&Vec<f64>> = y.iter().zip(v).filter(|(_, v)| **v == 1).map(|(y, _)| y).collect();
                    let floor = if padding == Padding::Zeroed && words.len() < 4 { 0.0 } else { f64::MIN };
                    let best = |patch: &Vec<f64>| words.iter().map(|w| dot(patch, w)).fold(floor, f64::max);
                    let i2t = x.iter().map(best).sum::<f64>() / 7.0;
                    let nearest = |word: &&Vec<f64>| x.iter().map(|p| dot(p, word)).fold(f64::MIN, f64::max);
                    let t2i = words.iter().map(nearest).sum::<f64>() / words.len() as f64;
                    let [a, b] = [&found.image_to_text, &found.text_to_image];
                    assert!((a.get(i)?.get(j)?.to_scalar::<f64>()? - i2t).abs() < 1e-9);
                    assert!((b.get(i)?.get(j)?.to_scalar::<f64>()? - t2i).abs() < 1e-9);
                }
            }
        }
        Ok(())
    }

    #[test]
    fn gradients_agree_with_central_differences() -> Result<()> {
        let [images, features] = [tokens((3, 4, 6), 3), tokens((3, 4, 6), 4)].map(|xs| Var::from_tensor(&xs).unwrap());
        let scale = Var::new(3.0f64, &Device::Cpu)?;
        let loss = || -> Result<Tensor> {
            let texts = TextTokens { features: features.as_tensor().clone(), valid: valid() };
            late_interaction(&images, &texts, &LateInteraction { block: 40, ..Default::default() })?
                .loss(&scale, &Pairing::Diagonal)
        };
        let grads = loss()?.backward()?;
        for var in [&images, &features, &scale] {
            let (start, shape) = (values(var), var.dims().to_vec());
            let slopes = (0..start.len()).map(|i| {
                let at = |step: f64| {
                    let mut moved = start.clone();
                    moved[i] += step;
                    var.set(&Tensor::from_vec(moved, shape.as_slice(), &Device::Cpu)?)?;
                    loss()?.to_scalar::<f64>()
                };
                Ok((at(1e-6)? - at(-1e-6)?) / 2e-6)
            });
            let slopes = slopes.collect::<Result<Vec<f64>>>()?;
            var.set(&Tensor::from_vec(start, shape.as_slice(), &Device::Cpu)?)?;
            let grad = grads.get(var).map(values).unwrap_or_default();
            assert_eq!(grad.len(), slopes.len());
            for (grad, slope) in grad.iter().zip(&slopes) {
                assert!((grad - slope).abs() < 1e-7, "{grad} {slope}");
            }
        }
        Ok(())
    }

    #[test]
    fn of_equal_tokens_one_takes_the_gradient() -> Result<()> {
        let word = Tensor::new(&[[[1f64, 0.0], [1.0, 0.0]]], &Device::Cpu)?;
        let images = Var::from_tensor(&word)?;
        let features = Var::from_tensor(&word)?;
        let texts = TextTokens {
            features: features.as_tensor().clone(),
            valid: Tensor::ones((1, 2), DType::U8, &Device::Cpu)?,
        };
        let found = late_interaction(&images, &texts, &LateInteraction::default())?;
        let grads = (found.image_to_text + found.text_to_image)?.sum_all()?.backward()?;
        // Each direction is one mean: its weights sum to 1, however many tokens are equal.
        for var in [&images, &features] {
            let sum: f64 = grads.get(var).map(values).unwrap_or_default().iter().sum();
            assert!((sum - 2.0).abs() < 1e-12, "{sum}");
        }
        Ok(())
    }

    #[test]
    fn padding_takes_no_part() -> Result<()> {
        let (images, texts) = (tokens((2, 3, 6), 5), texts(6));
        let expected = late_interaction(&images, &texts, &LateInteraction::default())?;
        let noise = tokens((3, 4, 6), 7);
        let keep = texts.valid.unsqueeze(2)?.broadcast_as((3, 4, 6))?;
        let other = TextTokens { features: keep.where_cond(&texts.features, &noise)?, ..texts.clone() };
        let found = late_interaction(&images, &other, &LateInteraction::default())?;
        assert_eq!(far(&found.image_to_text, &expected.image_to_text), 0.0);
        assert_eq!(far(&found.text_to_image, &expected.text_to_image), 0.0);
        Ok(())
    }

    #[test]
    fn wrong_inputs_are_errors() -> Result<()> {
        let options = LateInteraction::default();
        let images = tokens((2, 3, 6), 5);
        let none = TextTokens { valid: Tensor::zeros((3, 4), DType::U8, &Device::Cpu)?, ..texts(6) };
        assert!(late_interaction(&images, &none, &options).is_err());
        let short = TextTokens { valid: Tensor::ones((3, 3), DType::U8, &Device::Cpu)?, ..texts(6) };
        assert!(late_interaction(&images, &short, &options).is_err());
        assert!(late_interaction(&tokens((2, 3, 5), 1), &texts(6), &options).is_err());
        assert!(late_interaction(&images.narrow(0, 0, 0)?, &texts(6), &options).is_err());
        let found = late_interaction(&images, &texts(6), &options)?;
        assert!(found.loss(&Tensor::new(1f64, &Device::Cpu)?, &Pairing::Diagonal).is_err());
        Ok(())
    }
}
