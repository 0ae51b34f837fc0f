//! Metrics of vision models.
//!
//! Every metric says what it does with ties and with classes that do not occur, and returns an error
//! for input that it cannot be computed from: never a silent NaN.

mod binary;
mod classification;
mod clustering;
mod error;
mod image;
mod rank;
mod ranking;
mod retrieval;
mod segmentation;

pub use binary::{BinaryScores, Counts, RocPoint};
pub use classification::{Confusion, TopK, top_k_accuracy};
pub use clustering::{Contingency, EntropyMean};
pub use error::{Error, Result};
pub use image::{ImageOptions, psnr, ssim};
pub use rank::Ties;
pub use ranking::{Denominator, RadiusPoint, Ranking};
pub use retrieval::{CrossRetrieval, Ranks};
pub use segmentation::{MaskScores, mask_scores, mean_mask_scores};
