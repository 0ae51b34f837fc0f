//! Metrics of vision models.
//!
//! Every metric says what it does with ties and with classes that do not occur, and returns an error
//! for input that it cannot be computed from: never a silent NaN.

mod classification;
mod error;
mod rank;
mod retrieval;

pub use classification::{Confusion, TopK, top_k_accuracy};
pub use error::{Error, Result};
pub use rank::Ties;
pub use retrieval::{CrossRetrieval, Ranks};
