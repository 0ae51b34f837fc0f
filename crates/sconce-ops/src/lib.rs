//! Tensor operations for vision models on candle: differentiable, exact, fast on CPU.

mod banded;
mod conv;
mod pool;
mod resize;
mod unfold;
mod window;

pub use conv::{ConvOptions, conv1d, conv2d, conv3d};
pub use pool::{
    PoolOptions, adaptive_avg_pool1d, adaptive_avg_pool2d, avg_pool2d, global_avg_pool, max_pool2d,
};
pub use resize::{ResizeMode, ResizeOptions, ResizeTo, resize};
pub use unfold::{fold, unfold};
