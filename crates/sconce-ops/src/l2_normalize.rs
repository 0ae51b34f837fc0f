//! Vectors scaled to unit length.

use candle_core::{Result, Tensor, shape::Dim};

use crate::check;

/// `x / max(|x|, eps)` along one dimension, `|x|` being the Euclidean norm.
///
/// # Shapes
/// - output: as `xs`
///
/// # Errors
/// When the dimension does not exist, the type is not floating-point, or `eps` is negative.
pub fn l2_normalize(xs: &Tensor, dim: impl Dim, eps: f64) -> Result<Tensor> {
    let op = "l2_normalize";
    let dim = dim.to_index(xs.shape(), op)?;
    check::float(op, xs)?;
    check::epsilon(op, eps)?;
    reference(xs, dim, eps)
}

/// The same by candle's own operations; differentiable.
pub(crate) fn reference(xs: &Tensor, dim: usize, eps: f64) -> Result<Tensor> {
    if xs.elem_count() == 0 {
        return Ok(xs.clone());
    }
    let wide = xs.to_dtype(check::wide(xs.dtype()))?;
    // The limit is put on the square: the root's slope at 0 is infinite and would make the gradient NaN.
    let norm = wide.sqr()?.sum_keepdim(dim)?.maximum((eps * eps).max(f64::MIN_POSITIVE))?.sqrt()?;
    wide.broadcast_div(&norm)?.to_dtype(xs.dtype())
}
