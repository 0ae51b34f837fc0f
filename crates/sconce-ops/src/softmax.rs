//! Softmax and its logarithm.

use candle_core::{Result, Tensor, shape::Dim};

use crate::check;

/// `exp(x) / sum(exp(x))` along one dimension; sums to 1 there. A slice that holds minus infinity alone gives NaN.
///
/// # Shapes
/// - output: as `xs`
///
/// # Errors
/// When the dimension does not exist or the type is not floating-point.
pub fn softmax(xs: &Tensor, dim: impl Dim) -> Result<Tensor> {
    let op = "softmax";
    let dim = dim.to_index(xs.shape(), op)?;
    check::float(op, xs)?;
    reference(xs, dim)
}

/// The logarithm of [`softmax`], without its underflow: `x - log(sum(exp(x)))`.
///
/// # Shapes
/// - output: as `xs`
///
/// # Errors
/// When the dimension does not exist or the type is not floating-point.
pub fn log_softmax(xs: &Tensor, dim: impl Dim) -> Result<Tensor> {
    let op = "log_softmax";
    let dim = dim.to_index(xs.shape(), op)?;
    check::float(op, xs)?;
    reference_log(xs, dim)
}

/// [`softmax`] by candle's own operations; differentiable.
pub(crate) fn reference(xs: &Tensor, dim: usize) -> Result<Tensor> {
    if xs.elem_count() == 0 {
        return Ok(xs.clone());
    }
    let wide = xs.to_dtype(check::wide(xs.dtype()))?;
    let exp = wide.broadcast_sub(&wide.max_keepdim(dim)?.detach())?.exp()?;
    exp.broadcast_div(&exp.sum_keepdim(dim)?)?.to_dtype(xs.dtype())
}

/// [`log_softmax`] by candle's own operations; differentiable.
pub(crate) fn reference_log(xs: &Tensor, dim: usize) -> Result<Tensor> {
    if xs.elem_count() == 0 {
        return Ok(xs.clone());
    }
    let wide = xs.to_dtype(check::wide(xs.dtype()))?;
    let shifted = wide.broadcast_sub(&wide.max_keepdim(dim)?.detach())?;
    shifted.broadcast_sub(&shifted.exp()?.sum_keepdim(dim)?.log()?)?.to_dtype(xs.dtype())
}
