//! Maximum pooling.

use candle_core::{D, Result, Tensor};

use super::PoolOptions;
use super::max_kernel::Max;
use crate::check;
use crate::window::{Window, from_5d, to_5d};

/// Maximum over each window; padding never wins.
///
/// The gradient goes to the first maximum of a window, in row-major order, as in PyTorch; a NaN wins over every number.
///
/// # Shapes
/// - `xs` `(B, C, H, W)`
/// - output `(B, C, oH, oW)` with `o = (n + 2 padding - kernel) / stride + 1`, rounded down, or up with `ceil_mode`
///
/// # Errors
/// When `xs` is not a float tensor of four axes, a kernel or stride is zero, the padding is more than half of the
/// kernel, or the window is larger than the padded input.
pub fn max_pool2d(xs: &Tensor, options: &PoolOptions) -> Result<Tensor> {
    let window = options.window("max_pool2d", xs)?;
    if !xs.device().is_cpu() {
        return reference(&window, xs);
    }
    let wide = xs.to_dtype(check::wide(xs.dtype()))?.contiguous()?;
    wide.apply_op1(Max(window))?.to_dtype(xs.dtype())
}

/// The same from plain candle operations: gathers each window's first maximum.
pub(super) fn reference(window: &Window, xs: &Tensor) -> Result<Tensor> {
    let views = window.tap_views(&to_5d(xs)?, f64::NEG_INFINITY)?;
    let taps = Tensor::stack(&views, D::Minus1)?.contiguous()?; // (B, C, 1, oH, oW, taps)
    let first = taps.detach().argmax_keepdim(D::Minus1)?; // (B, C, 1, oH, oW, 1)
    from_5d(&taps.gather(&first, D::Minus1)?.squeeze(D::Minus1)?, 4)
}
