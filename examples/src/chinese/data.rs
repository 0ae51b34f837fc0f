//! What a step of training gets: augmented pictures, or tokens that a locked tower has made of them beforehand.

use std::path::Path;

use sconce::candle::{DType, Device, Tensor};
use sconce::clip::wukong::{Bundle, ImageTower};
use sconce::data::{DataLoader, Dataset, Generator, InMemory, LoaderOptions, Picture};
use sconce::nn::{Checkpoint, SaveOptions, save_tensors};
use sconce::train::StepError;

use crate::Error;
use crate::contrastive::{Options, augmentation};
use crate::emoji::Emoji;

/// Pictures that go through a tower at once.
const BATCH: usize = 128;
/// Augmented views do not depend on the seed of a training: trainings with several seeds share them.
const VIEW_SEED: u64 = 1;

/// A batch: input of the image side, and which pictures it is of.
pub type Batch = (Tensor, Tensor);
/// What is left of an epoch.
pub type Epoch = Box<dyn Iterator<Item = Result<Batch, StepError>>>;

/// Batches by epoch.
pub struct Batches {
    /// All batches of an epoch from one on.
    epoch: Box<dyn Fn(u64, usize) -> Epoch>,
    /// Batches in an epoch.
    pub count: usize,
}

impl Batches {
    /// The batches of an epoch, from `first` on.
    pub fn epoch_from(&self, epoch: u64, first: usize) -> Epoch {
        (self.epoch)(epoch, first)
    }

    /// Pictures, augmented anew in each epoch.
    ///
    /// # Errors
    /// Options that do not fit.
    pub fn pictures(emoji: &[Emoji], options: &Options) -> Result<Self, StepError> {
        let pipeline = augmentation();
        let pictures = emoji.iter().enumerate().map(|(i, e)| (e.picture.clone(), i as u32)).collect();
        let dataset = InMemory::new(pictures)
            .map(move |(picture, index), generator| Ok((pipeline.apply(picture, generator)?, index)));
        let loader = DataLoader::new(dataset, loader_options(emoji.len(), options))?;
        let count = loader.batches();
        let epoch = move |epoch, first| -> Epoch {
            Box::new(loader.epoch_from(epoch, first).map(|batch| batch.map_err(Into::into)))
        };
        Ok(Self { epoch: Box::new(epoch), count })
    }

    /// Tokens of one of the views of each picture, another one in each epoch: `tokens` is `(pictures, views, N, C)`.
    ///
    /// # Errors
    /// Options that do not fit.
    pub fn tokens(tokens: &Tensor, options: &Options) -> Result<Self, StepError> {
        let (pictures, views, count, width) = tokens.dims4()?;
        let rows = tokens.reshape((pictures * views, count, width))?;
        let indices = InMemory::new((0..pictures as u32).collect());
        let dataset =
            indices.map(move |index, generator| Ok((index * views as u32 + generator.index(views) as u32, index)));
        let loader = DataLoader::new(dataset, loader_options(pictures, options))?;
        let count = loader.batches();
        let epoch = move |epoch, first| -> Epoch {
            let rows = rows.clone();
            let pick = move |(places, indices): Batch| -> Result<Batch, StepError> {
                Ok((rows.index_select(&places, 0)?.to_dtype(DType::F32)?, indices))
            };
            Box::new(loader.epoch_from(epoch, first).map(move |batch| pick(batch?)))
        };
        Ok(Self { epoch: Box::new(epoch), count })
    }
}

fn loader_options(pictures: usize, options: &Options) -> LoaderOptions {
    LoaderOptions {
        batch_size: options.batch_size.min(pictures),
        shuffle: true,
        drop_last: true,
        workers: options.workers,
        seed: options.seed,
        ..Default::default()
    }
}

/// What the image tower makes of the pictures as they are: `(pictures, N, C)`.
///
/// # Errors
/// Those of the tower.
pub fn tokens(bundle: &Bundle, emoji: &[Emoji]) -> Result<Tensor, StepError> {
    let part = |emoji: &[Emoji]| -> Result<Tensor, StepError> {
        let pictures: Vec<Picture> = emoji.iter().map(|e| Picture::from(e.picture.clone())).collect();
        let images = bundle.preprocess(&pictures)?;
        Ok(bundle.model.visual.tokens(&images, &bundle.model.config.variant, false)?.detach())
    };
    Ok(Tensor::cat(&emoji.chunks(BATCH).map(part).collect::<Result<Vec<_>, _>>()?, 0)?)
}

/// What a locked tower makes of each picture as it is and of augmented views: `(pictures, views, N, C)` in half precision. Kept
/// in `file`, and read from there when it is of the same tower and the same pictures.
///
/// # Errors
/// A file that cannot be written; those of the tower.
pub fn views(bundle: &Bundle, emoji: &[Emoji], views: usize, file: &Path) -> Result<Tensor, StepError> {
    let ImageTower::Locked { .. } = &bundle.model.visual else {
        return Err(Error::new("only a locked tower's tokens can be kept").into());
    };
    let vision = serde_json::to_string(&bundle.pretrained.model.vision)?;
    let what = format!("{vision}, {views} views of {} pictures", emoji.len());
    if let Ok(kept) = Checkpoint::open(file)
        && kept.metadata().get("what") == Some(&what)
    {
        return Ok(kept.tensor("tokens", &Device::Cpu)?);
    }
    let pipeline = augmentation();
    let mut all = vec![tokens(bundle, emoji)?.to_dtype(DType::F16)?];
    for view in 1..views {
        let generator = Generator::new(VIEW_SEED).fork(&format!("view {view}"));
        for batch in emoji.chunks(BATCH) {
            let images = batch.iter().map(|e| pipeline.apply(e.picture.clone(), &generator));
            let images = Tensor::stack(&images.collect::<Result<Vec<_>, _>>()?, 0)?;
            let images = images.to_device(bundle.model.logit_scale.device())?;
            let tokens = bundle.model.visual.tokens(&images, &bundle.model.config.variant, false)?;
            all.push(tokens.to_dtype(DType::F16)?);
        }
        eprintln!("view {view} of {} is encoded", views - 1);
    }
    let (_, count, width) = all[0].dims3()?;
    let tokens = Tensor::cat(&all, 0)?.reshape((views, emoji.len(), count, width))?;
    let tokens = tokens.transpose(0, 1)?.contiguous()?.to_device(&Device::Cpu)?; // (pictures, views, N, C)
    if let Some(folder) = file.parent() {
        std::fs::create_dir_all(folder)?;
    }
    save_tensors(file, [("tokens".to_owned(), tokens.clone())], &SaveOptions::default().with_metadata("what", what))?;
    Ok(tokens)
}
