//! Vision transformers: ViT, DeiT and the backbones of DINO.

mod block;
mod config;
mod keys;
mod model;
mod pos;
mod records;

pub use block::Block;
pub use config::{Config, InitScheme, Pool, PosResample};
pub use keys::{HuggingFaceConfig, HuggingFaceKeys};
pub use model::VisionTransformer;
pub(crate) use records::models;
