//! A frozen model and its features, computed once.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use indicatif::{ProgressBar, ProgressStyle};
use sconce::adapt::features::{CacheOptions, Digest, FeatureCache, Source, Views};
use sconce::candle::{DType, Device, Tensor};
use sconce::clip::Bundle;
use sconce::data::{Compose, Filter, HorizontalFlip, Picture, RandomResizedCrop};
use sconce::train::{Interrupt, StepError};

use crate::Error;

/// Pictures in memory or on disk.
#[derive(Debug, Clone)]
pub enum Pictures {
    /// Decoded.
    Memory(Vec<Picture>),
    /// Paths.
    Files(Vec<PathBuf>),
}

impl Pictures {
    fn sources(&self) -> Vec<Source<'_>> {
        match self {
            Self::Memory(pictures) => pictures.iter().map(Source::Picture).collect(),
            Self::Files(paths) => paths.iter().map(|path| Source::File(path)).collect(),
        }
    }

    /// What files are known by without reading them: length and time of the last change.
    #[must_use]
    pub fn described(&self) -> String {
        let Self::Files(paths) = self else { return String::new() };
        let described = |path: &PathBuf| {
            let found = std::fs::metadata(path).ok();
            let seen = found.map(|found| (found.len(), found.modified().ok()));
            format!("{} {seen:?}\n", path.display())
        };
        paths.iter().map(described).collect()
    }

    /// The pictures with these numbers.
    #[must_use]
    pub fn some(&self, indices: &[usize]) -> Self {
        match self {
            Self::Memory(pictures) => Self::Memory(indices.iter().map(|&i| pictures[i].clone()).collect()),
            Self::Files(paths) => Self::Files(indices.iter().map(|&i| paths[i].clone()).collect()),
        }
    }
}

/// A frozen model with the cache of its features.
#[derive(Debug)]
pub struct Model {
    /// The model, its preprocessing and its tokenizer.
    pub bundle: Bundle,
    /// What it is known by.
    pub digest: String,
    cache: FeatureCache,
    quiet: bool,
}

impl Model {
    /// Loads a model; features go to `cache`.
    ///
    /// # Errors
    /// A model that is not there or cannot be loaded; a folder that cannot be made.
    pub fn load(
        path: &Path,
        cache: &Path,
        device: &Device,
        interrupt: &Interrupt,
        quiet: bool,
    ) -> Result<Self, StepError> {
        let named = |error: &dyn std::fmt::Display| {
            Error::new(format!("the model {} cannot be loaded: {error}", path.display()))
        };
        if !path.exists() {
            return Err(Error::new(format!("no model at {}", path.display())).into());
        }
        let bundle = Bundle::load(path, DType::F32, device).map_err(|error| named(&error))?;
        let digest = Digest::of_model(&bundle, path).map_err(|error| named(&error))?;
        let bar = if quiet { ProgressBar::hidden() } else { ProgressBar::new(0) };
        let style = ProgressStyle::with_template("{msg} {pos}/{len} [{bar:30}] {eta}");
        bar.set_style(style.map_err(|error| Error::new(error.to_string()))?.progress_chars("=> "));
        bar.set_message("features");
        let progress = move |done: usize, all: usize| {
            bar.set_length(all as u64);
            bar.set_position(done as u64);
            if done == all {
                bar.reset();
            }
        };
        let options =
            CacheOptions { interrupt: interrupt.clone(), progress: Some(Arc::new(progress)), ..Default::default() };
        let cache = FeatureCache::new(cache, digest, options)?;
        Ok(Self { bundle, digest: digest.hex(), cache, quiet })
    }

    /// Side of the model's input.
    fn side(&self) -> u32 {
        self.bundle.pretrained.preprocess.size.width
    }

    /// Features of pictures, as the tower gives them: `(N, E)`.
    ///
    /// # Errors
    /// A picture that cannot be read; see [`FeatureCache::pictures`].
    pub fn features(&self, pictures: &Pictures) -> Result<Tensor, StepError> {
        let found = self.cache.pictures(&self.bundle, &pictures.sources())?;
        if !self.quiet && found.computed > 0 {
            eprintln!("features  {} computed, {} known", found.computed, found.known);
        }
        Ok(found.rows)
    }

    /// Features of the pictures and of random views of each: `(N, V + 1, E)`, or `(N, E)` without views.
    ///
    /// # Errors
    /// As [`Self::features`].
    pub fn views(&self, pictures: &Pictures, count: u32, least_area: f64, seed: u64) -> Result<Tensor, StepError> {
        let own = self.features(pictures)?;
        if count == 0 {
            return Ok(own);
        }
        if !(least_area > 0.0 && least_area <= 1.0) {
            return Err(Error::new(format!("a view cannot show at least {least_area} of a picture")).into());
        }
        let crop = RandomResizedCrop::new(self.side(), Filter::Bicubic).with_scale(least_area, 1.0);
        let transforms = Compose::new().then(crop).then(HorizontalFlip::default());
        let views = self.cache.views(&self.bundle, &pictures.sources(), &Views { transforms, seed }, count)?;
        let all = Tensor::cat(&[own.unsqueeze(0)?, views.rows], 0)?; // (V + 1, N, E)
        Ok(all.transpose(0, 1)?.contiguous()?)
    }
}
