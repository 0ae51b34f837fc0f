//! From a picture to the model's input, for training and for evaluation.

use clap::{Args, ValueEnum};
use image::RgbImage;
use sconce::data::augment::Warp;
use sconce::data::transform::{HALF, IMAGENET};
use sconce::data::{
    Compose, CropOffset, Dataset, ErasingMode, Filter, Generator, HorizontalFlip, MixMode, Mixup, Normalize, Pipeline,
    RandAugment, RandAugmentBins, RandomCrop, RandomErasing, RandomResizedCrop, Result as DataResult, Size, Transform,
    TrivialAugmentWide, center_crop, resize,
};
use serde::{Deserialize, Serialize};

use super::data::Labelled;
use crate::Error;

/// How pictures are changed in training, and how they are brought to the model's size.
#[derive(Debug, Clone, PartialEq, Args, Serialize, Deserialize)]
pub struct AugmentOptions {
    /// How pictures get the model's size. [default: pad for idx arrays, else resize]
    #[arg(long, value_enum)]
    pub fit: Option<Fit>,
    /// Mean and deviation that values are normalised by.
    #[arg(long, value_enum, default_value_t = Statistics::Data)]
    pub normalize: Statistics,
    /// Pixels by which pictures are shifted at most.
    #[arg(long, default_value_t = 0)]
    pub crop_padding: u32,
    /// Crop at least this share of the area and resize it, for photographs.
    #[arg(long, value_name = "SHARE")]
    pub random_resized_crop: Option<f64>,
    /// Mirror half of the pictures left to right.
    #[arg(long)]
    pub flip: bool,
    /// Automatic augmentation: timm's words (rand-m9-mstd0.5-inc1), torchvision's randaugment or randaugment-2-9 (operations,
    /// strength of 31), or trivial (TrivialAugmentWide).
    #[arg(long, value_name = "POLICY")]
    #[serde(default)]
    pub auto_augment: Option<String>,
    /// Probability of erasing rectangles.
    #[arg(long, default_value_t = 0.0)]
    pub erasing: f64,
    /// What is put in their place.
    #[arg(long, value_enum, default_value_t = Erased::Zero)]
    #[serde(default)]
    pub erasing_mode: Erased,
    /// Most rectangles.
    #[arg(long, default_value_t = 1)]
    #[serde(default = "one")]
    pub erasing_count: usize,
    /// Parameter of mixup; 0 for none.
    #[arg(long, default_value_t = 0.0)]
    pub mixup: f64,
    /// Parameter of CutMix; 0 for none.
    #[arg(long, default_value_t = 0.0)]
    pub cutmix: f64,
    /// Probability of mixing a batch.
    #[arg(long, default_value_t = 1.0)]
    pub mix_probability: f64,
    /// Probability of CutMix where both are on.
    #[arg(long, default_value_t = 0.5)]
    pub switch_probability: f64,
    /// What shares the random numbers of mixing.
    #[arg(long, value_enum, default_value_t = Mode::Batch)]
    pub mix_mode: Mode,
}

/// How a picture gets the model's size.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Fit {
    /// Set on black where it is smaller in both directions, else as resize.
    Pad,
    /// The shorter side gets the model's length, then the middle is cut out.
    Resize,
}

/// Where mean and deviation come from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Statistics {
    /// The training pictures, at most 2,000 of them.
    Data,
    /// ImageNet.
    Imagenet,
    /// 0.5 and 0.5: values from -1 to 1.
    Half,
}

/// [`ErasingMode`] on the command line.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Erased {
    /// The mean colour.
    #[default]
    Zero,
    /// A random colour.
    Channel,
    /// Noise.
    Pixel,
}

fn one() -> usize {
    1
}

/// [`MixMode`] on the command line.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Mode {
    /// The whole batch.
    Batch,
    /// A picture and its partner.
    Pair,
    /// Each picture.
    Elem,
}

impl AugmentOptions {
    /// What mixes the pictures of a batch, if anything does.
    #[must_use]
    pub fn mix(&self, num_classes: usize, label_smoothing: f64) -> Option<Mixup> {
        let mixup = Mixup {
            mixup_alpha: self.mixup,
            cutmix_alpha: self.cutmix,
            probability: self.mix_probability,
            switch_probability: self.switch_probability,
            mode: match self.mix_mode {
                Mode::Batch => MixMode::Batch,
                Mode::Pair => MixMode::Pair,
                Mode::Elem => MixMode::Elem,
            },
            label_smoothing,
            num_classes,
        };
        (self.mixup != 0.0 || self.cutmix != 0.0).then_some(mixup)
    }

    /// The statistics to normalise by; those of the data are measured on pictures spread over `indices`.
    ///
    /// # Errors
    /// A picture that cannot be read.
    pub fn statistics(&self, pictures: &Labelled, indices: &[usize]) -> DataResult<Normalize> {
        match self.normalize {
            Statistics::Imagenet => Ok(IMAGENET),
            Statistics::Half => Ok(HALF),
            Statistics::Data => measure(pictures, indices),
        }
    }

    fn frame(&self, size: Size, idx: bool) -> Frame {
        let fit = self.fit.unwrap_or(if idx { Fit::Pad } else { Fit::Resize });
        Frame { size, fit }
    }

    /// The automatic augmentation, if there is one; `fill` is the colour that warps uncover.
    fn policy(&self, fill: [u8; 3]) -> Result<Option<Box<dyn Transform>>, Error> {
        let Some(text) = &self.auto_augment else {
            return Ok(None);
        };
        let wrong = || {
            let known = "rand-m9-mstd0.5-inc1 and its like, randaugment, randaugment-OPERATIONS-STRENGTH, trivial";
            Error::new(format!("--auto-augment {text}: there are {known}"))
        };
        let warp = Warp { fill, ..Default::default() };
        if text == "trivial" {
            return Ok(Some(Box::new(TrivialAugmentWide { warp, ..Default::default() })));
        }
        if let Some(numbers) = text.strip_prefix("randaugment") {
            let mut policy = RandAugmentBins { warp, ..Default::default() };
            if !numbers.is_empty() {
                let (ops, strength) = numbers.strip_prefix('-').and_then(|n| n.split_once('-')).ok_or_else(wrong)?;
                policy.num_ops = ops.parse().map_err(|_| wrong())?;
                policy.magnitude = strength.parse().map_err(|_| wrong())?;
            }
            return Ok(Some(Box::new(policy)));
        }
        let policy: RandAugment = text.parse().map_err(|error| Error::new(format!("{}: {error}", wrong())))?;
        Ok(Some(Box::new(RandAugment { fill, ..policy })))
    }

    /// What happens to a picture in training.
    ///
    /// # Errors
    /// Words for an automatic augmentation that there is not.
    pub fn training(&self, size: Size, idx: bool, normalize: Normalize) -> Result<Pipeline, Error> {
        let mut transforms = match self.random_resized_crop {
            Some(least) => {
                let crop = RandomResizedCrop { size, ..RandomResizedCrop::new(1, Filter::Bicubic) };
                Compose::new().then(crop.with_scale(least, 1.0))
            }
            None => Compose::new().then(self.frame(size, idx)),
        };
        if self.crop_padding > 0 {
            transforms = transforms.then(RandomCrop { size, padding: self.crop_padding, fill: [0; 3] });
        }
        if self.flip {
            transforms = transforms.then(HorizontalFlip::default());
        }
        let mean = normalize.mean.map(|mean| (255.0 * mean).round() as u8);
        if let Some(policy) = self.policy(mean)? {
            transforms = transforms.then(policy);
        }
        let erasing = RandomErasing {
            probability: self.erasing,
            mode: match self.erasing_mode {
                Erased::Zero => ErasingMode::Zero,
                Erased::Channel => ErasingMode::Channel,
                Erased::Pixel => ErasingMode::Pixel,
            },
            count: [1, self.erasing_count],
            ..Default::default()
        };
        Ok(Pipeline { erasing: (self.erasing > 0.0).then_some(erasing), ..Pipeline::new(transforms, normalize) })
    }

    /// What happens to a picture in evaluation.
    #[must_use]
    pub fn evaluation(&self, size: Size, idx: bool, normalize: Normalize) -> Pipeline {
        Pipeline::new(Compose::new().then(self.frame(size, idx)), normalize)
    }
}

/// Brings pictures to a size.
#[derive(Debug, Clone, Copy)]
struct Frame {
    size: Size,
    fit: Fit,
}

impl Transform for Frame {
    fn apply(&self, image: RgbImage, _generator: &Generator) -> DataResult<RgbImage> {
        let (from, to) = (Size::of(&image), self.size);
        if from == to {
            return Ok(image);
        }
        let offset = CropOffset::RoundHalfEven;
        if self.fit == Fit::Pad && from.width <= to.width && from.height <= to.height {
            return center_crop(&image, to, offset);
        }
        // The scale at which the picture covers the size.
        let scale = (f64::from(to.width) / f64::from(from.width)).max(f64::from(to.height) / f64::from(from.height));
        let side = |len: u32, least: u32| ((f64::from(len) * scale).round() as u32).max(least);
        let whole = Size::new(side(from.width, to.width), side(from.height, to.height));
        center_crop(&resize::resize(&image, whole, Filter::Bicubic)?, to, offset)
    }
}

/// Mean and deviation of each channel.
fn measure(pictures: &Labelled, indices: &[usize]) -> DataResult<Normalize> {
    const MOST: usize = 2000;
    let generator = Generator::new(0);
    let (mut count, mut sums, mut squares) = (0u64, [0u64; 3], [0u64; 3]);
    let looked_at = indices.len().min(MOST);
    for i in 0..looked_at {
        let (picture, _) = pictures.get(indices[i * indices.len() / looked_at], &generator)?;
        count += u64::from(picture.width()) * u64::from(picture.height());
        for pixel in picture.pixels() {
            for (channel, value) in pixel.0.map(u64::from).into_iter().enumerate() {
                sums[channel] += value;
                squares[channel] += value * value;
            }
        }
    }
    let count = count.max(1) as f64;
    let mean = sums.map(|sum| sum as f64 / count);
    // Pictures of one colour have no deviation to divide by.
    let deviation = |c: usize| (squares[c] as f64 / count - mean[c] * mean[c]).max(1.0).sqrt();
    Ok(Normalize {
        mean: mean.map(|mean| (mean / 255.0) as f32),
        std: std::array::from_fn(|c| (deviation(c) / 255.0) as f32),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use image::Rgb;

    #[test]
    fn pictures_are_padded_or_resized_to_the_models_size() {
        let picture = RgbImage::from_pixel(28, 28, Rgb([200; 3]));
        let apply = |fit, size, image: &RgbImage| Frame { size, fit }.apply(image.clone(), &Generator::new(0)).unwrap();
        let padded = apply(Fit::Pad, Size::square(32), &picture);
        assert_eq!((padded.get_pixel(1, 5).0, padded.get_pixel(2, 2).0), ([0; 3], [200; 3]));
        let resized = apply(Fit::Resize, Size::square(32), &picture);
        assert!(resized.pixels().all(|pixel| pixel.0 == [200; 3]));
        for (width, height) in [(100, 33), (33, 100), (10, 300), (1, 1)] {
            let picture = RgbImage::new(width, height);
            for fit in [Fit::Pad, Fit::Resize] {
                assert_eq!(apply(fit, Size::new(40, 24), &picture).dimensions(), (40, 24));
            }
        }
    }
}
