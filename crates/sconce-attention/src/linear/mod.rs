//! Attention whose cost grows linearly with the number of tokens.
//!
//! Softmax attention needs every pair of `N` tokens. Three ways around it live here, each as functions on queries, keys and
//! values `(B, heads, N, D)` and as [`TokenMixer`](crate::TokenMixer)s under the names of the code that made it known:
//!
//! | mixer | idea | cost |
//! | --- | --- | --- |
//! | [`EluAttention`] | the weight of a pair is `phi(q) . phi(k)` with `phi = elu + 1`, so keys and values sum up first | `O(N D^2)` |
//! | [`PerformerAttention`] | the same with `m` random features, whose products average to the softmax's exponentials | `O(N m D)` |
//! | [`EfficientAttention`], [`ImageLinearAttention`] | queries and keys each pass a softmax of their own | `O(N D^2)` |
//! | [`NystromAttention`] | the matrix of weights is rebuilt from its rows and columns at `L` landmarks | `O(N L D)` |

mod efficient;
mod elu;
mod image;
mod kernel;
mod nystrom;
mod performer;
mod projections;

pub use efficient::{EfficientAttention, efficient_attention};
pub use elu::{EluAttention, elu_attention, elu_features};
pub use image::{ImageLinearAttention, ImageLinearConfig};
pub use kernel::{Epsilon, kernel_attention};
pub use nystrom::{
    NystromAttention, NystromConfig, NystromMatrices, NystromOptions, nystrom_attention, nystrom_matrices,
};
pub use performer::{
    OrthogonalScaling, PerformerAttention, PerformerConfig, PerformerKernel, PerformerOptions, RandomProjection,
    Redrawer, Side, Stabilizer, default_features, generalized_features, orthogonal_features, performer_attention,
    softmax_features,
};
pub use projections::{LinearAttentionConfig, Projections};

use candle_core::DType;

/// The type to compute in: exponentials and long sums of half precision are taken in f32.
fn wide(dtype: DType) -> DType {
    if dtype == DType::F64 { DType::F64 } else { DType::F32 }
}
