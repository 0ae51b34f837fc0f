//! Features of a frozen model, computed once and kept on disk.
//!
//! A file of the cache belongs to one model, one preprocessing and one view, and holds a row for each picture ever asked for:
//! a picture is known by its bytes, not by its name, so files may move and lists may change. Only what is not known goes
//! through the model. What cannot be trusted (torn, changed, of another model) is told and computed anew.
//!
//! View 0 is the model's own preprocessing. Methods that augment get further views, each a seeded draw for each picture: with
//! `V` of them kept, training on a random one in each epoch costs no forward pass of the image tower.
//!
//! Rows go through the type they are kept in before they are handed out, so that the first run and the second see the same
//! bits.

mod digest;
mod file;

use std::collections::HashMap;
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use candle_core::{DType, Device, Tensor};
use sconce_clip::Bundle;
use sconce_data::transform::Normalize;
use sconce_data::{Compose, Filter, HorizontalFlip, Picture, RandomResizedCrop, Transform};
use sconce_nn::Generator;
use sconce_train::Interrupt;

use crate::{Error, Result};
pub use digest::Digest;
use file::Rows;

/// Called with the rows that are done and those that there are to do.
pub type OnProgress = Arc<dyn Fn(usize, usize) + Send + Sync>;

/// How features are computed and kept.
#[derive(Clone)]
pub struct CacheOptions {
    /// Type of the kept rows; [`DType::F16`] takes half the space of [`DType::F32`], the default.
    pub dtype: DType,
    /// Pictures or texts that go through the model at once.
    pub batch_size: usize,
    /// Looked at between batches: what is done is then written.
    pub interrupt: Interrupt,
    /// Told of each batch.
    pub progress: Option<OnProgress>,
}

impl Default for CacheOptions {
    fn default() -> Self {
        Self { dtype: DType::F32, batch_size: 64, interrupt: Interrupt::new(), progress: None }
    }
}

impl fmt::Debug for CacheOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { dtype, batch_size, interrupt, progress } = self;
        f.debug_struct("CacheOptions")
            .field("dtype", dtype)
            .field("batch_size", batch_size)
            .field("interrupt", interrupt)
            .field("progress", &progress.is_some())
            .finish()
    }
}

/// Where a picture comes from.
#[derive(Clone, Copy, Debug)]
pub enum Source<'a> {
    /// A file, known by its bytes.
    File(&'a Path),
    /// A picture in memory, known by its pixels.
    Picture(&'a Picture),
}

/// Random views of pictures.
#[derive(Debug)]
pub struct Views {
    /// What is done to the RGB picture; it decides the size.
    pub transforms: Compose,
    /// Seed of the draws. A view of a picture depends on it, the view's number and the picture, on nothing else.
    pub seed: u64,
}

impl Views {
    /// CoOp's: a crop of 8 to 100 per cent of the area, resized to `side`, flipped half of the time.
    pub fn coop(side: u32, seed: u64) -> Self {
        Self::crop(side, 0.08, seed)
    }

    /// Tip-Adapter's, for the mean over ten views: the same with at least half of the area.
    pub fn tip_adapter(side: u32, seed: u64) -> Self {
        Self::crop(side, 0.5, seed)
    }

    fn crop(side: u32, least: f64, seed: u64) -> Self {
        let crop = RandomResizedCrop::new(side, Filter::Bicubic).with_scale(least, 1.0);
        Self { transforms: Compose::new().then(crop).then(HorizontalFlip::default()), seed }
    }
}

/// What a cache gave.
#[derive(Clone, Debug)]
pub struct Features {
    /// A row for each input, in order.
    pub rows: Tensor,
    /// Rows that came from disk.
    pub known: usize,
    /// Rows that went through the model.
    pub computed: usize,
    /// Why the file that was there was not used.
    pub rejected: Option<String>,
}

/// Features of one frozen model in a folder.
///
/// Several processes may share a folder; of two that write one file at once the last one wins, and what the other one had
/// computed is computed again when it is next asked for.
#[derive(Clone, Debug)]
pub struct FeatureCache {
    folder: PathBuf,
    model: Digest,
    options: CacheOptions,
}

impl FeatureCache {
    /// A cache in `folder`, which is made when it is not there, for the model with this digest ([`Digest::of_model`]).
    ///
    /// # Errors
    /// [`Error::Io`], [`Error::Config`] for a type that holds no fractions or a batch of nothing.
    pub fn new(folder: impl Into<PathBuf>, model: Digest, options: CacheOptions) -> Result<Self> {
        let folder = folder.into();
        if !options.dtype.is_float() || options.batch_size == 0 {
            let reason = format!("features kept as {:?}, {} at once", options.dtype, options.batch_size);
            return Err(Error::Config(reason));
        }
        std::fs::create_dir_all(&folder).map_err(|source| Error::Io { path: folder.clone(), source })?;
        Ok(Self { folder, model, options })
    }

    /// Features of pictures as the model's own preprocessing shows them, as the tower gives them.
    ///
    /// # Shapes
    /// - rows `(N, E)`, of the model's type and on its device
    ///
    /// # Errors
    /// Without pictures; a picture that cannot be read, named; those of the image tower; [`Error::Io`] of the cache's file;
    /// [`Error::Interrupted`].
    pub fn pictures(&self, bundle: &Bundle, sources: &[Source]) -> Result<Features> {
        let preprocess = &bundle.pretrained.preprocess;
        let identity = format!("view 0 of {}", json(preprocess)?);
        self.images(bundle, sources, &identity, |picture, _| Ok(preprocess.tensor(&picture, &Device::Cpu)?))
    }

    /// Features of one random view of each picture; `number` tells the views from each other and counts from 1.
    ///
    /// # Shapes
    /// - rows `(N, E)`, of the model's type and on its device
    ///
    /// # Errors
    /// As [`FeatureCache::pictures`]; for the number 0, which is no random view.
    pub fn view(&self, bundle: &Bundle, sources: &[Source], views: &Views, number: u32) -> Result<Features> {
        if number == 0 {
            return Err(Error::Config("view 0 is the model's own preprocessing; random views count from 1".into()));
        }
        let Normalize { mean, std } = bundle.pretrained.preprocess.normalize;
        let Views { transforms, seed } = views;
        let identity = format!("view {number} of {transforms:?} seed {seed} mean {mean:?} std {std:?}");
        let generator = Generator::new(*seed).fork(&format!("view/{number}"));
        self.images(bundle, sources, &identity, |picture, digest| {
            let image = transforms.apply(picture.into_rgb(), &generator.fork(&digest.hex()))?;
            Ok(bundle.pretrained.preprocess.normalize.tensor(&image, &Device::Cpu)?)
        })
    }

    /// Features of the views `1..=count` together; see [`FeatureCache::view`].
    ///
    /// # Shapes
    /// - rows `(V, N, E)`
    ///
    /// # Errors
    /// As [`FeatureCache::view`]; for no views.
    pub fn views(&self, bundle: &Bundle, sources: &[Source], views: &Views, count: u32) -> Result<Features> {
        let (mut rows, mut known, mut computed, mut rejected) = (Vec::new(), 0, 0, None);
        for number in 1..=count {
            let view = self.view(bundle, sources, views, number)?;
            rows.push(view.rows);
            known += view.known;
            computed += view.computed;
            rejected = rejected.or(view.rejected);
        }
        if rows.is_empty() {
            return Err(Error::Config("no views are asked for".into()));
        }
        Ok(Features { rows: Tensor::stack(&rows, 0)?, known, computed, rejected })
    }

    /// Features of texts as the tower gives them. A text is known by its tokens.
    ///
    /// # Shapes
    /// - rows `(N, E)`, of the model's type and on its device
    ///
    /// # Errors
    /// Without texts; texts that the tokenizer refuses; otherwise as [`FeatureCache::pictures`].
    pub fn texts<S: AsRef<str>>(&self, bundle: &Bundle, texts: &[S]) -> Result<Features> {
        let texts: Vec<&str> = texts.iter().map(AsRef::as_ref).collect();
        let device = bundle.model.logit_scale.device();
        let ids = bundle.tokenizer.tokenize(&texts, &Device::Cpu)?; // (N, L)
        let digest = |row: Vec<u32>| {
            let bytes: Vec<u8> = row.into_iter().flat_map(u32::to_le_bytes).collect();
            Digest::of(&[&bytes])
        };
        let digests: Vec<Digest> = ids.to_vec2::<u32>()?.into_iter().map(digest).collect();
        let features = self.rows("texts", &digests, |indices| {
            let indices: Vec<u32> = indices.iter().map(|i| *i as u32).collect();
            let ids = ids.index_select(&Tensor::new(indices, &Device::Cpu)?, 0)?;
            Ok(bundle.model.encode_text(&ids.to_device(device)?)?)
        })?;
        on(bundle, features)
    }

    fn images(
        &self,
        bundle: &Bundle,
        sources: &[Source],
        identity: &str,
        prepare: impl Fn(Picture, &Digest) -> Result<Tensor>,
    ) -> Result<Features> {
        let digests = sources.iter().map(Digest::of_source).collect::<Result<Vec<_>>>()?;
        let scale = &bundle.model.logit_scale;
        let features = self.rows(identity, &digests, |indices| {
            let image = |&i: &usize| prepare(digest::open(&sources[i], &digests[i])?, &digests[i]);
            let images = Tensor::stack(&indices.iter().map(image).collect::<Result<Vec<_>>>()?, 0)?; // (B, 3, H, W)
            let images = images.to_device(scale.device())?.to_dtype(scale.dtype())?;
            Ok(bundle.model.encode_image(&images)?)
        })?;
        on(bundle, features)
    }

    /// The core, for models and inputs of any kind: rows for inputs with these digests. `encode` gets the indices of inputs
    /// that are not known, a batch at a time, and gives a row for each; `identity` says in words what else the rows depend on.
    ///
    /// # Shapes
    /// - `encode` gives `(B, E)`; rows `(N, E)` on the CPU, of the type that they are kept in
    ///
    /// # Errors
    /// [`Error::Data`] without inputs and for rows that are not finite or not of one width; those of `encode`; [`Error::Io`];
    /// [`Error::Interrupted`] after what is done was written.
    pub fn rows(
        &self,
        identity: &str,
        digests: &[Digest],
        mut encode: impl FnMut(&[usize]) -> Result<Tensor>,
    ) -> Result<Features> {
        if digests.is_empty() {
            return Err(Error::Data("there is nothing to compute features of".into()));
        }
        let dtype = self.options.dtype;
        let key = Digest::of(&[b"sconce features 1", &self.model.0, identity.as_bytes(), dtype.as_str().as_bytes()]);
        let path = self.folder.join(format!("{}.safetensors", &key.hex()[..24]));
        let (mut rows, rejected) = match Rows::read(&path, &key, dtype) {
            Ok(rows) => (rows, None),
            Err(reason) => {
                tracing::warn!("{}: {reason}; its features are computed anew", path.display());
                (Rows::default(), Some(reason))
            }
        };
        let mut seen = HashMap::new();
        let unknown =
            |(i, digest): (usize, &Digest)| (!rows.contains(digest) && seen.insert(*digest, i).is_none()).then_some(i);
        let missing: Vec<usize> = digests.iter().enumerate().filter_map(unknown).collect();

        let (mut done, mut unsaved) = (0, 0);
        for batch in missing.chunks(self.options.batch_size) {
            if self.options.interrupt.is_requested() {
                if unsaved > 0 {
                    rows.write(&path, &key, identity)?;
                }
                return Err(Error::Interrupted);
            }
            let found = encode(batch)?.detach().to_device(&Device::Cpu)?.to_dtype(dtype)?;
            rows.add(batch.iter().map(|&i| digests[i]), found)?;
            done += batch.len();
            unsaved += batch.len();
            if let Some(progress) = &self.options.progress {
                progress(done, missing.len());
            }
            // A file is written as a whole: not too often once it is large.
            if unsaved >= 1024.max(rows.len() / 4) {
                rows.write(&path, &key, identity)?;
                unsaved = 0;
            }
        }
        if unsaved > 0 {
            rows.write(&path, &key, identity)?;
        }
        let known = digests.len() - missing.len();
        Ok(Features { rows: rows.select(digests)?, known, computed: missing.len(), rejected })
    }
}

/// The rows where the model is, of its type.
fn on(bundle: &Bundle, features: Features) -> Result<Features> {
    let scale = &bundle.model.logit_scale;
    let rows = features.rows.to_device(scale.device())?.to_dtype(scale.dtype())?;
    Ok(Features { rows, ..features })
}

fn json(value: &impl serde::Serialize) -> Result<String> {
    serde_json::to_string(value).map_err(|error| Error::Data(error.to_string()))
}

#[cfg(test)]
mod tests;
