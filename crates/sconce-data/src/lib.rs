//! Images to tensors: decoding, Pillow-exact resizing, transforms, data sets and a prefetching loader.
//!
//! The path of a picture, and the module of each step:
//!
//! 1. [`Picture`] decodes png, jpeg and webp under limits, with the modes Pillow would give it ([`decode`]);
//! 2. [`Preprocess`] resizes, crops and normalises it for a pretrained model, bit for bit as the official
//!    pipelines do ([`preprocess`], on top of [`resize`] and [`crop`]); for training a [`Pipeline`] of
//!    [`Transform`]s takes its place ([`transform`], [`augment`]);
//! 3. a [`Dataset`] gives samples by index: [`ImageFolder`], [`WebDataset`], [`IdxArray`], [`InMemory`];
//! 4. [`DataLoader`] shuffles, augments and batches them on worker threads, in an order that depends on the
//!    seed alone.
//!
//! # Conventions
//! Sizes are [`Size`] (named fields, so width and height cannot be swapped); images are interleaved `u8` rows;
//! tensors are `(C, H, W)` `f32` on the CPU. Whatever is random takes a [`Generator`]: the same seed gives the
//! same bits on every machine and with any number of threads.
//!
//! ```
//! use sconce_data::{DataLoader, Dataset, InMemory, LoaderOptions};
//!
//! let squares = InMemory::new((0u32..10).collect()).map(|x, _generator| Ok((x, x * x)));
//! let loader = DataLoader::new(squares, LoaderOptions { batch_size: 4, ..Default::default() })?;
//! for batch in loader.epoch(0) {
//!     let (x, y) = batch?; // two u32 tensors of (B)
//!     assert_eq!((&x * &x)?.to_vec1::<u32>()?, y.to_vec1::<u32>()?);
//! }
//! # Ok::<(), sconce_data::Error>(())
//! ```

pub mod augment;
pub mod crop;
pub mod dataset;
pub mod decode;
mod error;
pub mod folder;
pub mod idx;
pub mod loader;
pub mod prefetch;
pub mod preprocess;
mod report;
pub mod resize;
pub mod tar;
pub mod transform;
pub mod webdataset;

pub use augment::{
    ColorJitter, DinoCrops, ErasingMode, GaussianBlur, Grayscale, HorizontalFlip, MixMode, Mixup, RandAugment,
    RandAugmentBins, RandomCrop, RandomErasing, RandomResizedCrop, Solarize, TrivialAugmentWide,
};
pub use crop::{CropOffset, center_crop, pad_to_square};
pub use dataset::{Dataset, InMemory, Map, Subset};
pub use decode::{DecodeLimits, Picture};
pub use error::{Error, Result};
pub use folder::{ImageFolder, image_files};
pub use idx::IdxArray;
pub use loader::{Collate, DataLoader, Epoch, LoaderOptions, OnError};
pub use prefetch::{OrderedMap, batched, ordered_map, shuffle_buffer};
pub use preprocess::{Preprocess, ResizeMode, RgbConversion};
pub use report::{ReadFailure, ReadReport, ReportHandle};
pub use resize::{Filter, PassOrder, ResizeOptions, Size};
pub use sconce_ops::Generator;
pub use transform::{Compose, Normalize, Pipeline, RandomApply, Transform};
pub use webdataset::{Sample, SampleStream, WebDataset, WebDatasetOptions};
