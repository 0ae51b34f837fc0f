//! ConvMixer: patches mixed by large depthwise convolutions alone, Trockman and Kolter 2022 (`arXiv:2201.09792`).

mod block;
mod config;
mod keys;
mod model;
mod records;

pub use block::{Block, ConvActNorm};
pub use config::Config;
pub use keys::LocuslabKeys;
pub use model::ConvMixer;
pub(crate) use records::models;
