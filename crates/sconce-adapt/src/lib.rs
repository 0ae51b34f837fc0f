//! Heads that fit a frozen dual encoder to a task with a few labelled pictures.
//!
//! | head | learns | paper |
//! | --- | --- | --- |
//! | [`CoOp`] | the words around the class name, as embeddings | Zhou et al. 2022, `arXiv:2109.01134` |
//! | [`CoCoOp`] | the same, shifted by each picture | Zhou et al. 2022, `arXiv:2203.05557` |
//! | [`ClipAdapter`] | a small residual network on the features | Gao et al. 2021, `arXiv:2110.04544` |
//! | [`Dapl`] | a context for all domains and one for each, from pictures without labels too | Ge et al. 2022, `arXiv:2202.06687` |
//! | [`q16::Q16`] | a point in the space of the features for each class | Schramowski et al. 2022, `arXiv:2202.06675` |
//! | [`TipAdapter`] | nothing, or the keys of a cache of the labelled pictures | Zhang et al. 2022, `arXiv:2111.03930` |
//!
//! The dual encoder stays as it is: load it with [`Bundle::load`](sconce_clip::Bundle::load), whose tensors are no
//! variables, and put a head's parameters into a [`ParamStore`](sconce_nn::ParamStore) of their own. Gradients then flow
//! through the text tower and stop at the head. Features of the pictures never change: [`features`]
//! computes them once and keeps them on disk. [`protocol`] says who is trained on what: splits, shots, base and new classes.

mod checkpoint;
mod clip_adapter;
mod cocoop;
mod coop;
mod dapl;
mod error;
pub mod features;
mod fit;
mod prompt;
pub mod protocol;
pub mod q16;
pub mod templates;
mod tip_adapter;
mod words;

pub use checkpoint::{load_head, load_options};
pub use clip_adapter::{Adapter, ClipAdapter, ClipAdapterConfig};
pub use cocoop::CoCoOp;
pub use coop::CoOp;
pub use dapl::{Dapl, DaplConfig, DaplData, DaplLoss, Denominator, PseudoLabels};
pub use error::{Error, Result};
pub use fit::{
    EpochStats, FitConfig, FitOptimizer, FitOptions, FitReport, FitSchedule, Validation, accuracy, fit, fit_batches,
};
pub use prompt::{ClassPosition, PromptConfig, Prompts};
pub use tip_adapter::{Grid, TipAdapter, TipConfig, TipSearch};
pub use words::nearest_words;
