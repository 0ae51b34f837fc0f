//! BViT: a vision transformer whose output also attends over all of its blocks at once.
//!
//! The connection needs nothing but the queries, keys and values of the blocks, so any stack can have it; here a ViT:
//!
//! ```
//! use candle_core::{DType, Device, Tensor};
//! use sconce_attention::BroadConnection;
//! use sconce_backbones::{Backbone, VisionTransformer, vit};
//! use sconce_nn::{Module, ParamStore};
//!
//! let store = ParamStore::new(0, DType::F32, &Device::Cpu);
//! let model = VisionTransformer::new(&vit::Config::test_vit(), store.vb())?;
//! let picture = Tensor::zeros((1, 3, 32, 32), DType::F32, &Device::Cpu)?;
//!
//! let (mut xs, layout) = model.embed(&picture, false)?;
//! let mut layers = vec![];
//! for block in &model.blocks {
//!     let (ys, qkv) = block.forward_qkv(&xs, layout, false)?;
//!     layers.extend(qkv);
//!     xs = ys;
//! }
//! let mut tokens = BroadConnection::default().forward(&xs, &layers)?; // (B, N, C)
//! if let Some(norm) = &model.norm {
//!     tokens = norm.forward(&tokens)?;
//! }
//! assert_eq!(model.forward_head(&tokens, false, false)?.dims(), [1, 10]);
//! # Ok::<(), candle_core::Error>(())
//! ```

mod attention;
mod config;
mod model;
mod records;

pub use attention::Attention;
pub use config::{Config, Pool};
pub use model::BViT;
pub(crate) use records::models;
