//! Convolutional X-formers: convolutions in place of position embeddings, linear attention in place of the quadratic one,
//! Jeevan and Sethi 2022 (`arXiv:2201.10271`).

mod block;
mod config;
mod model;
mod records;

pub use block::{ChannelNorm, FeedForward, Layer};
pub use config::{Config, Mixer};
pub use model::Cxv;
pub(crate) use records::models;
