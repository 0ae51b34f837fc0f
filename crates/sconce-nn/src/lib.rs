//! Layers, initialisers, parameter stores and checkpoint reading for vision models on candle.
//!
//! - Layers follow candle's idiom (`linear(in, out, vb)`, [`Module`], [`ModuleT`]) on the differentiable operations of `sconce-ops`:
//!   every parameter receives its gradient.
//! - [`ParamStore`] holds what is trained: seeded, named as in the official checkpoint, frozen and grouped by pattern.
//! - [`Checkpoint`] reads `.safetensors` and PyTorch files without running any code of theirs; loading compares all names and shapes
//!   and returns a [`LoadReport`].
//!
//! ```
//! use candle_core::{DType, Device, Tensor};
//! use sconce_nn::{Activation, LoadOptions, Checkpoint, Module, ParamStore, layer_norm, linear};
//!
//! let store = ParamStore::new(42, DType::F32, &Device::Cpu);
//! let vb = store.vb();
//! let norm = layer_norm(8, 1e-6, vb.pp("norm"))?;
//! let head = linear(8, 2, vb.pp("head"))?.with_activation(Activation::Gelu);
//! let ys = Tensor::ones((4, 8), DType::F32, &Device::Cpu)?.apply(&norm)?.apply(&head)?;
//! assert_eq!(ys.dims(), [4, 2]);
//!
//! let path = std::env::temp_dir().join("sconce-nn-example.safetensors");
//! store.save(&path)?;
//! let report = store.load(&Checkpoint::open(&path)?, &LoadOptions::default())?;
//! assert_eq!(report.loaded, ["norm.weight", "norm.bias", "head.weight", "head.bias"]);
//! # std::fs::remove_file(&path).ok();
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

pub mod fs;
pub mod init;
pub mod pos_embed;

mod checkpoint;
mod error;
mod layers;
mod load;
mod pattern;
mod save;
mod store;

pub use candle_nn::{Module, ModuleT, VarBuilder};
pub use checkpoint::{Checkpoint, KeyMap, Source};
pub use error::{Error, Result};
pub use init::{CustomInit, Fan, Init};
pub use layers::*;
pub use load::{LoadOptions, LoadReport, Mismatch};
pub use pattern::matches;
pub use save::{SaveOptions, save_tensors};
pub use sconce_ops::{Activation, Generator};
pub use store::{Param, ParamKind, ParamStore, Snapshot};
