//! CSWin transformers.

mod block;
mod config;
mod model;
mod records;

pub use block::{Block, Content};
pub use config::Config;
pub use model::{CSWinTransformer, MergeBlock, Stage, Stem};
pub(crate) use records::models;
