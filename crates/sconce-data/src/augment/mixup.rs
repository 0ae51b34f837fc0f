//! Mixing the pictures of a batch and their labels: mixup and CutMix, with timm's laws.

use crate::{Error, Generator, Result};
use candle_core::{Device, Tensor};
use serde::{Deserialize, Serialize};

/// For how many pictures one set of random numbers is drawn.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum MixMode {
    /// The whole batch.
    #[default]
    Batch,
    /// A picture and its partner.
    Pair,
    /// Each picture.
    Elem,
}

/// Mixup (Zhang et al. 2018, `arXiv:1710.09412`) and CutMix (Yun et al. 2019, `arXiv:1905.04899`) as in timm.
///
/// Picture `i` of a batch is mixed with picture `B - 1 - i`: as a whole with weights `lam` and `1 - lam`, or by taking a
/// rectangle of about `1 - lam` of the area from its partner. `lam` is a beta number. Labels are mixed likewise, after
/// smoothing.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Mixup {
    /// Parameter of mixup's beta law; 0 turns mixup off.
    pub mixup_alpha: f64,
    /// Parameter of CutMix's beta law; 0 turns CutMix off.
    pub cutmix_alpha: f64,
    /// Probability of mixing at all.
    pub probability: f64,
    /// Probability of CutMix where both are on.
    pub switch_probability: f64,
    /// What shares random numbers.
    pub mode: MixMode,
    /// Label smoothing: the weight that all classes share.
    pub label_smoothing: f64,
    /// Number of classes.
    pub num_classes: usize,
}

impl Default for Mixup {
    /// The recipe of DeiT and its descendants: mixup 0.8, CutMix 1, one of them for every batch, half of the time each,
    /// smoothing 0.1, 1000 classes.
    fn default() -> Self {
        Self {
            mixup_alpha: 0.8,
            cutmix_alpha: 1.0,
            probability: 1.0,
            switch_probability: 0.5,
            mode: MixMode::Batch,
            label_smoothing: 0.1,
            num_classes: 1000,
        }
    }
}

/// What happens to one picture.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Mix {
    /// Its own weight.
    Blend(f64),
    /// Rows and columns that its partner replaces: top, bottom, left, right.
    Paste([usize; 4]),
}

impl Mixup {
    /// Mixes a batch. The type of the pictures is that of the targets too.
    ///
    /// # Shapes
    /// - `images` `(B, C, H, W)`, of a floating-point type, on any device; `labels` `(B)`, `u32`
    /// - outputs `(B, C, H, W)` and `(B, num_classes)`, rows of which sum to 1
    ///
    /// # Errors
    /// [`Error::Invalid`] for settings without a meaning, shapes that do not fit and labels that are no class.
    pub fn apply(&self, images: &Tensor, labels: &Tensor, generator: &Generator) -> Result<(Tensor, Tensor)> {
        self.check()?;
        let (batch, _, height, width) = images.dims4()?;
        if !images.dtype().is_float() {
            return Err(Error::invalid("images", format!("{:?}, not a floating-point type", images.dtype())));
        }
        let labels = labels.to_vec1::<u32>()?;
        if labels.len() != batch {
            return Err(Error::invalid("labels", format!("{} for {batch} pictures", labels.len())));
        }
        let mixes = self.draw(batch, [height, width], generator)?;
        let targets = self.targets(&labels, &mixes, height * width)?.to_device(images.device())?;
        let targets = targets.to_dtype(images.dtype())?;
        if batch == 0 || mixes.iter().all(|mix| *mix == Mix::Blend(1.0)) {
            return Ok((images.clone(), targets));
        }
        // The weight of the picture itself at each place.
        let weights = if mixes.iter().all(|mix| matches!(mix, Mix::Blend(_))) {
            let own = mixes.iter().map(|mix| mix.share(1) as f32).collect();
            Tensor::from_vec(own, (batch, 1, 1, 1), &Device::Cpu)?
        } else {
            let own = mixes.iter().flat_map(|mix| mix.weights(height, width)).collect();
            Tensor::from_vec(own, (batch, 1, height, width), &Device::Cpu)?
        };
        let weights = weights.to_device(images.device())?.to_dtype(images.dtype())?;
        let partners = images.flip(&[0])?; // (B, C, H, W)
        let rest = weights.affine(-1.0, 1.0)?;
        let mixed = (images.broadcast_mul(&weights)? + partners.broadcast_mul(&rest)?)?;
        Ok((mixed, targets))
    }

    fn check(&self) -> Result<()> {
        for (name, alpha) in [("mixup_alpha", self.mixup_alpha), ("cutmix_alpha", self.cutmix_alpha)] {
            if !(alpha >= 0.0 && alpha.is_finite()) {
                return Err(Error::invalid(name, format!("{alpha} is not a positive number or 0")));
            }
        }
        for (name, probability) in [
            ("probability", self.probability),
            ("switch_probability", self.switch_probability),
            ("label_smoothing", self.label_smoothing),
        ] {
            if !(0.0..=1.0).contains(&probability) {
                return Err(Error::invalid(name, format!("{probability} is not between 0 and 1")));
            }
        }
        if self.num_classes == 0 {
            return Err(Error::invalid("num_classes", "zero"));
        }
        Ok(())
    }

    /// What happens to each picture of a batch.
    fn draw(&self, batch: usize, size: [usize; 2], generator: &Generator) -> Result<Vec<Mix>> {
        let draws = match self.mode {
            MixMode::Batch => 1,
            MixMode::Pair => batch.div_ceil(2),
            MixMode::Elem => batch,
        };
        let drawn = (0..draws).map(|_| self.draw_one(size, generator)).collect::<Result<Vec<_>>>()?;
        let place = |i: usize| match self.mode {
            MixMode::Batch => 0,
            MixMode::Pair => i.min(batch - 1 - i),
            MixMode::Elem => i,
        };
        Ok((0..batch).map(|i| drawn[place(i)]).collect())
    }

    fn draw_one(&self, [height, width]: [usize; 2], generator: &Generator) -> Result<Mix> {
        let (mixup, cutmix) = (self.mixup_alpha > 0.0, self.cutmix_alpha > 0.0);
        if !(mixup || cutmix) || generator.f64() >= self.probability {
            return Ok(Mix::Blend(1.0));
        }
        let paste = cutmix && (!mixup || generator.f64() < self.switch_probability);
        let alpha = if paste { self.cutmix_alpha } else { self.mixup_alpha };
        let lam = generator.beta(alpha, alpha)?;
        if !paste {
            return Ok(Mix::Blend(lam));
        }
        let side = (1.0 - lam).sqrt();
        // A rectangle about a centre that is anywhere, cut off at the edges of the picture.
        let range = |len: usize| {
            let half = (len as f64 * side) as usize / 2;
            let centre = generator.index(len);
            (centre.saturating_sub(half), (centre + half).min(len))
        };
        let (top, bottom) = range(height);
        let (left, right) = range(width);
        Ok(Mix::Paste([top, bottom, left, right]))
    }

    /// Mixed labels.
    fn targets(&self, labels: &[u32], mixes: &[Mix], area: usize) -> Result<Tensor> {
        let classes = self.num_classes;
        if let Some((i, label)) = labels.iter().enumerate().find(|(_, label)| **label as usize >= classes) {
            return Err(Error::invalid("labels", format!("{label} at {i} is not one of {classes} classes")));
        }
        let every = self.label_smoothing / classes as f64;
        let mut targets = vec![every; labels.len() * classes];
        for (i, (row, mix)) in targets.chunks_exact_mut(classes).zip(mixes).enumerate() {
            let own = mix.share(area) * (1.0 - self.label_smoothing);
            row[labels[i] as usize] += own;
            row[labels[labels.len() - 1 - i] as usize] += 1.0 - self.label_smoothing - own;
        }
        Ok(Tensor::from_vec(targets, (labels.len(), classes), &Device::Cpu)?)
    }
}

impl Mix {
    /// The share of its own label: after CutMix that of the area which is left.
    fn share(&self, area: usize) -> f64 {
        match self {
            Self::Blend(lam) => *lam,
            Self::Paste([top, bottom, left, right]) => {
                1.0 - ((bottom - top) * (right - left)) as f64 / area.max(1) as f64
            }
        }
    }

    /// Its own weight at every place.
    fn weights(self, height: usize, width: usize) -> impl Iterator<Item = f32> {
        (0..height).flat_map(move |y| {
            (0..width).map(move |x| match self {
                Self::Blend(lam) => lam as f32,
                Self::Paste([top, bottom, left, right]) => {
                    f32::from(u8::from(!((top..bottom).contains(&y) && (left..right).contains(&x))))
                }
            })
        })
    }
}
