//! Performer: softmax attention through random features.

mod features;
mod mixer;
mod random;

pub use features::{
    PerformerKernel, PerformerOptions, Side, Stabilizer, generalized_features, performer_attention, softmax_features,
};
pub use mixer::{PerformerAttention, PerformerConfig};
pub use random::{OrthogonalScaling, RandomProjection, Redrawer, default_features, orthogonal_features};
