//! Layers, initialisers, parameter stores and checkpoint reading for vision models on candle.

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
pub use init::{Fan, Init};
pub use layers::*;
pub use load::{LoadOptions, LoadReport, Mismatch};
pub use pattern::matches;
pub use save::{SaveOptions, save_tensors};
pub use sconce_ops::{Activation, Generator};
pub use store::{Param, ParamKind, ParamStore, Snapshot};
