//! Tensor operations for vision models on candle: differentiable, exact, fast on CPU.
//!
//! Candle lacks these operations, cuts their gradients silently, or runs them slowly. Each function here works on f32, f64,
//! f16 and bf16 (computed in f32), on tensors of any strides, and passes gradients to every argument that can take one. On the
//! CPU a fused kernel does the work; on other devices a composition of candle's operations.
//!
//! Results on the CPU have the same bits for any number of threads.

mod activation;
mod argsort;
mod attention;
mod banded;
mod batch_norm;
mod check;
mod conv;
mod cross_entropy;
mod dropout;
mod error;
mod exp;
mod gamma;
mod group_norm;
pub mod hamming;
pub mod kernel;
mod l2_normalize;
mod lanes;
mod layer_norm;
mod linear;
mod macs;
mod mapped;
mod philox;
mod pinv;
mod pool;
mod product;
pub mod random;
mod resize;
mod rms_norm;
mod shared;
mod sign;
mod softmax;
#[cfg(test)]
mod testing;
mod unfold;
mod window;

pub use activation::{Activation, gelu, gelu_quick, gelu_tanh, relu, relu6, silu};
pub use argsort::argsort;
pub use attention::{AttentionOptions, Mask, attention, attention_packed, attention_weights};
pub use batch_norm::{BatchNormOutput, batch_norm, batch_norm_train};
pub use conv::{ConvOptions, conv1d, conv2d, conv3d};
pub use cross_entropy::{cross_entropy, cross_entropy_soft};
pub use dropout::{drop_path, dropout};
pub use error::Error;
pub use exp::exp;
pub use group_norm::group_norm;
pub use l2_normalize::l2_normalize;
pub use layer_norm::layer_norm;
pub use linear::{linear, matmul};
pub use macs::count_macs;
pub use mapped::map_file;
pub use pinv::{pinv, pinv_each};
pub use pool::{PoolOptions, adaptive_avg_pool1d, adaptive_avg_pool2d, avg_pool2d, global_avg_pool, max_pool2d};
pub use random::{Generator, GeneratorState};
pub use resize::{ResizeMode, ResizeOptions, ResizeTo, resize};
pub use rms_norm::rms_norm;
pub use sign::sign_ste;
pub use softmax::{log_softmax, softmax};
pub use unfold::{fold, unfold};
