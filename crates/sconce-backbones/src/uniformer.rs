//! UniFormer: convolution in the early stages, self-attention in the late ones; for pictures, clips and dense prediction.

mod block;
mod config;
mod embed;
mod load;
mod model;
mod records;
mod windows;

pub use block::{Block, CBlock, ConvMlp, SaBlock, SplitSaBlock};
pub use config::{Config, Windows};
pub use embed::{ConvNorm, GridConv, PatchEmbed};
pub use load::{from_image, inflate, trunk};
pub use model::UniFormer;
pub(crate) use records::models;
pub use windows::{merge, partition};
