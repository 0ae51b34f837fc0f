//! Contrastive losses over a batch of images and texts.

use crate::ClipOutput;
use candle_core::{D, DType, Result, Tensor, bail};
use sconce_ops::{cross_entropy, log_softmax};

/// Which texts of a batch describe which images.
#[derive(Clone, Debug, Default)]
pub enum Pairing {
    /// Text `i` describes image `i` and no other.
    #[default]
    Diagonal,
    /// `u32` labels `(B)`: a text describes every image with the label of its own image, and they share the probability evenly
    /// (Yang et al. 2022, "Unified contrastive learning", eq. 2 and 3). For small data, where captions repeat within a batch.
    Labels(Tensor),
    /// As [`Pairing::Diagonal`], but other texts with the same `u32` label `(B)` are left out of the comparison instead of
    /// counting as wrong.
    Distinct(Tensor),
}

/// The symmetric InfoNCE loss of CLIP (Radford et al. 2021, figure 3): the mean of the cross entropies from image to text and
/// from text to image.
///
/// # Errors
/// When there are not as many texts as images, or the labels are not `(B)`.
pub fn contrastive_loss(output: &ClipOutput, pairing: &Pairing) -> Result<Tensor> {
    let logits = output.logits_per_image()?; // (B, B)
    symmetric_cross_entropy(&logits, pairing)
}

/// [`contrastive_loss`] of logits already at hand, `(B, B)`, a row for each image.
///
/// # Errors
/// As [`contrastive_loss`].
pub fn symmetric_cross_entropy(logits: &Tensor, pairing: &Pairing) -> Result<Tensor> {
    two_way_cross_entropy(logits, &logits.t()?.contiguous()?, pairing)
}

/// The mean of the cross entropies of two directions that are scored apart: `per_image` has a row for each image, `per_text` one
/// for each text, both `(B, B)`.
///
/// # Errors
/// As [`contrastive_loss`].
pub fn two_way_cross_entropy(per_image: &Tensor, per_text: &Tensor, pairing: &Pairing) -> Result<Tensor> {
    let (batch, texts) = per_image.dims2()?;
    if batch != texts || per_text.dims() != [batch, batch] {
        bail!("the contrastive loss needs a text for each image, got {batch} images and {texts} texts");
    }
    // Ends of both directions are joined by a plain mean, whatever the pairing.
    let both = |one: &dyn Fn(&Tensor) -> Result<Tensor>| (one(per_image)? + one(per_text)?)? * 0.5;
    let (dtype, device) = (per_image.dtype(), per_image.device());
    let diagonal = || Tensor::arange(0, batch as u32, device);
    match pairing {
        Pairing::Diagonal => {
            let targets = diagonal()?;
            both(&|l| cross_entropy(l, &targets, 0.0))
        }
        Pairing::Labels(labels) => {
            let same = same_label(labels, batch)?.to_dtype(dtype)?; // (B, B)
            let targets = same.broadcast_div(&same.sum_keepdim(D::Minus1)?)?;
            both(&|l| (log_softmax(l, D::Minus1)? * &targets)?.sum_all()? * (-1.0 / batch as f64))
        }
        Pairing::Distinct(labels) => {
            let targets = diagonal()?;
            let own = Tensor::eye(batch, DType::U8, device)?;
            let others = (same_label(labels, batch)? - own)?; // 1 at other texts with the same label
            let hidden = Tensor::new(-1e9f32, device)?.to_dtype(dtype)?.broadcast_as((batch, batch))?;
            both(&|l| cross_entropy(&others.where_cond(&hidden, l)?, &targets, 0.0))
        }
    }
}

/// 1 where two rows have the same label: `(B)` to `(B, B)`, `u8`.
fn same_label(labels: &Tensor, batch: usize) -> Result<Tensor> {
    if labels.dims() != [batch] {
        bail!("labels of shape {:?} for {batch} images", labels.shape());
    }
    let rows = labels.unsqueeze(1)?.broadcast_as((batch, batch))?;
    rows.eq(&labels.unsqueeze(0)?.broadcast_as((batch, batch))?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::{Device, Var};

    fn logits() -> Result<Var> {
        Var::new(&[[2.0f64, 0.5, -1.0], [0.1, 1.5, 0.3], [1.0, -0.5, 0.7]], &Device::Cpu)
    }

    fn value(pairing: Pairing) -> Result<f64> {
        symmetric_cross_entropy(logits()?.as_tensor(), &pairing)?.to_scalar()
    }

    #[test]
    fn distinct_labels_are_all_the_same() -> Result<()> {
        let labels = Tensor::new(&[4u32, 7, 9], &Device::Cpu)?;
        let plain = value(Pairing::Diagonal)?;
        assert!((value(Pairing::Labels(labels.clone()))? - plain).abs() < 1e-9);
        assert!((value(Pairing::Distinct(labels))? - plain).abs() < 1e-9);
        Ok(())
    }

    #[test]
    fn repeated_labels_by_hand() -> Result<()> {
        let labels = Tensor::new(&[1u32, 1, 2], &Device::Cpu)?;
        let x = [[2.0f64, 0.5, -1.0], [0.1, 1.5, 0.3], [1.0, -0.5, 0.7]];
        let direction = |at: &dyn Fn(usize, usize) -> f64, share: bool| -> f64 {
            let row = |i: usize| {
                let keep = |j: usize| share || !(i < 2 && j < 2 && i != j);
                let total: f64 = (0..3).filter(|j| keep(*j)).map(|j| at(i, j).exp()).sum::<f64>().ln();
                let own = if share && i < 2 { (at(i, 0) + at(i, 1)) / 2.0 } else { at(i, i) };
                total - own
            };
            (0..3).map(row).sum::<f64>() / 3.0
        };
        for (pairing, share) in [(Pairing::Labels(labels.clone()), true), (Pairing::Distinct(labels), false)] {
            let expected = (direction(&|i, j| x[i][j], share) + direction(&|i, j| x[j][i], share)) / 2.0;
            assert!((value(pairing)? - expected).abs() < 1e-9);
        }
        Ok(())
    }

    #[test]
    fn every_pairing_trains() -> Result<()> {
        let labels = Tensor::new(&[1u32, 1, 2], &Device::Cpu)?;
        for pairing in [Pairing::Diagonal, Pairing::Labels(labels.clone()), Pairing::Distinct(labels)] {
            let logits = logits()?;
            let grads = symmetric_cross_entropy(logits.as_tensor(), &pairing)?.backward()?;
            let sum = grads.get(&logits).map(|g| g.abs()?.sum_all()?.to_scalar::<f64>()).transpose()?;
            assert!(sum.is_some_and(|s| s.is_finite() && s > 0.0));
        }
        Ok(())
    }
}
