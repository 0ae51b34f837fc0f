//! Vision models on [candle]: operations that train, layers, data, optimisers, backbones and dual encoders
//! behind one name.
//!
//! Each module is a crate of its own; depend on this one to have them all, or on the one that you need.
//!
//! ```
//! use sconce::candle::{DType, Tensor};
//! use sconce::nn::ParamStore;
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let device = sconce::device("cpu")?;
//! let store = ParamStore::new(0, DType::F32, &device);
//! let model = sconce::backbones::create("test_vit", store.vb())?;
//! let image = Tensor::zeros((1, 3, 32, 32), DType::F32, &device)?;
//! let features = model.forward_features(&image, false)?;
//! assert_eq!(features.dim(0)?, 1);
//! # Ok(())
//! # }
//! ```
//!
//! [candle]: https://github.com/huggingface/candle

mod device;
#[cfg(feature = "hub")]
pub mod hub;
#[cfg(feature = "plot")]
pub mod plot;

pub use candle_core as candle;
pub use candle_nn;
pub use device::{DeviceError, device};
pub use sconce_adapt as adapt;
pub use sconce_attention as attention;
pub use sconce_backbones as backbones;
pub use sconce_clip as clip;
pub use sconce_data as data;
pub use sconce_hash as hash;
pub use sconce_metrics as metrics;
pub use sconce_nn as nn;
pub use sconce_ops as ops;
pub use sconce_train as train;
