//! What trainings of dual encoders on the emoji share: options, augmentation, captions, optimiser and schedule.

use std::path::PathBuf;

use image::RgbImage;
use sconce::data::transform::CLIP;
use sconce::data::{
    ColorJitter, Compose, Filter, Generator, Grayscale, Pipeline, RandomApply, RandomCrop, RandomResizedCrop,
    Result as DataResult, Size, Transform,
};
use sconce::nn::ParamStore;
use sconce::train::schedule::Warmup;
use sconce::train::{
    AdamW, AdamWConfig, CheckpointFolder, Clip as GradClip, CsvLog, ParamGroups, Progress, Result, TensorBoardLog,
    Trainer,
};
use serde::Serialize;

use crate::interrupt;

/// Side of the pictures.
pub const SIDE: u32 = 64;

/// What a training depends on.
#[derive(Debug, Clone, Serialize)]
pub struct Options {
    /// Passes over the pictures.
    pub epochs: u64,
    /// Pictures in a step.
    pub batch_size: usize,
    /// Highest learning rate.
    pub lr: f64,
    /// Decoupled weight decay of matrices and kernels.
    pub weight_decay: f64,
    /// Steps of linear warm-up.
    pub warmup: u64,
    /// Seed of weights, order, augmentation and captions.
    pub seed: u64,
    /// Worker threads that augment.
    #[serde(skip)]
    pub workers: usize,
    /// Folder for checkpoints, logs and the result.
    #[serde(skip)]
    pub out: PathBuf,
    /// Continue from the latest checkpoint in `out`.
    #[serde(skip)]
    pub resume: bool,
    /// Evaluate every so many epochs.
    #[serde(skip)]
    pub evaluate_every: u64,
    /// Draw progress bars.
    #[serde(skip)]
    pub progress: bool,
}

impl Options {
    /// AdamW on the parameters of `store` with a cosine schedule over `steps`, checkpoints, and a log with these columns.
    /// Continues from the latest checkpoint where the options say so.
    ///
    /// # Errors
    /// Files that cannot be read or written.
    pub fn trainer(&self, store: &ParamStore, steps: u64, columns: &[&str]) -> Result<Trainer<AdamW>> {
        let groups = ParamGroups::builder(store.parameters()).exclude_vit().exclude(&["logit_scale"]).build()?;
        let adamw = AdamWConfig { beta2: 0.98, weight_decay: self.weight_decay, ..Default::default() };
        let optimizer = AdamW::new(groups, adamw).with_clip(GradClip::GlobalNorm(1.0));
        let mut trainer = Trainer::new(store.clone(), optimizer, Generator::new(self.seed).fork("train"))
            .with_lr(Warmup::timm(self.lr, self.lr * 0.01, steps, self.warmup.min(steps / 2), 0.0))
            .with_checkpoints(CheckpointFolder::new(self.out.join("checkpoints"), 2)?, None)
            .with_log(CsvLog::append(self.out.join("log.csv"), columns)?)
            .with_log(TensorBoardLog::create(self.out.join("events"))?)
            .with_interrupt(interrupt())
            .with_progress(if self.progress { Progress::Auto } else { Progress::Off });
        if self.resume && trainer.resume()? {
            eprintln!("continuing after epoch {}", trainer.position().epoch);
        }
        Ok(trainer)
    }
}

/// A picture moved, scaled, and recoloured: what changes between drawing styles, and not what is drawn. No flips: arrows and
/// clocks have a direction.
#[must_use]
pub fn augmentation() -> Pipeline {
    let white = [255; 3];
    let zoom = RandomResizedCrop { ratio: [0.85, 1.18], ..RandomResizedCrop::new(SIDE, Filter::Bilinear) };
    let shift = RandomCrop { size: Size::square(SIDE), padding: 8, fill: white };
    let transforms = Compose::new()
        .then(shift)
        .then(zoom.with_scale(0.6, 1.0))
        .then(ColorJitter::new(0.4, 0.4, 0.6, 0.08))
        .then(RandomApply { probability: 0.1, transform: ShuffleChannels })
        .then(RandomApply { probability: 0.15, transform: Grayscale });
    Pipeline::new(transforms, CLIP)
}

/// Exchanges red, green and blue: another palette for the same drawing.
#[derive(Debug, Clone, Copy)]
struct ShuffleChannels;

impl Transform for ShuffleChannels {
    fn apply(&self, mut image: RgbImage, generator: &Generator) -> DataResult<RgbImage> {
        let mut order = [0, 1, 2];
        generator.shuffle(&mut order);
        image.pixels_mut().for_each(|pixel| pixel.0 = order.map(|channel| pixel.0[channel]));
        Ok(image)
    }
}

/// A caption of a picture: its name, alone or followed by some of its keywords.
///
/// The name alone is what pictures are asked by later; keywords tie it to other words.
#[must_use]
pub fn caption(name: &str, keywords: &[String], most: usize, generator: &Generator) -> String {
    if generator.f64() < 0.4 {
        return name.to_owned();
    }
    let mut words = keywords.to_vec();
    generator.shuffle(&mut words);
    words.truncate(most);
    format!("{name} {}", words.join(" "))
}

/// Numbers equal texts equally, in order of first appearance.
pub fn numbered<'a>(texts: impl Iterator<Item = &'a str>) -> Vec<u32> {
    let mut known = std::collections::HashMap::new();
    texts
        .map(|text| {
            let next = known.len() as u32;
            *known.entry(text).or_insert(next)
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_follow_first_appearance() {
        assert_eq!(numbered(["b", "a", "b", "c"].into_iter()), [0, 1, 0, 2]);
    }

    #[test]
    fn captions_begin_with_the_name() {
        let keywords = ["x".to_owned(), "y".to_owned(), "z".to_owned()];
        let generator = Generator::new(1);
        let drawn: Vec<String> = (0..40).map(|_| caption("name", &keywords, 2, &generator)).collect();
        assert!(drawn.iter().all(|text| text.starts_with("name") && text.split(' ').count() <= 3));
        assert!(drawn.iter().any(|text| text == "name") && drawn.iter().any(|text| text.contains('z')));
    }
}
