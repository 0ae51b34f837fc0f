//! Nystromformer: softmax attention rebuilt from landmarks.

mod function;
mod mixer;

pub use function::{NystromMatrices, NystromOptions, nystrom_attention, nystrom_matrices};
pub use mixer::{NystromAttention, NystromConfig};
