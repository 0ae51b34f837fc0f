//! Swin transformers: attention within shifted windows, on maps that shrink from stage to stage.

mod block;
mod broad;
mod config;
mod keys;
mod merging;
mod model;
mod records;
#[cfg(test)]
mod tests;

pub use block::{Block, Content};
pub use broad::{Broad, BroadStages, StageBroad};
pub use config::Config;
pub use keys::TimmKeys;
pub use merging::PatchMerging;
pub use model::{Stage, SwinTransformer};

pub(crate) use records::models;
