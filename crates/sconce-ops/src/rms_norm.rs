//! Root-mean-square normalisation.

use candle_core::{D, Result, Tensor};

use crate::{check, layer_norm::affine};

/// Root-mean-square normalisation over the last dimension, Zhang and Sennrich 2019: `x / sqrt(mean(x^2) + eps) * weight`.
///
/// # Shapes
/// - `xs`: `(*, C)`; `weight`: `(C)`
/// - output: as `xs`
///
/// # Errors
/// When shapes or types do not fit.
pub fn rms_norm(xs: &Tensor, weight: Option<&Tensor>, eps: f64) -> Result<Tensor> {
    let op = "rms_norm";
    check::float(op, xs)?;
    check::epsilon(op, eps)?;
    let c = check::last_dim(op, xs)?;
    check::parameter(op, "weight", weight, c, xs)?;
    reference(xs, weight, eps)
}

/// The same by candle's own operations; differentiable.
pub(crate) fn reference(xs: &Tensor, weight: Option<&Tensor>, eps: f64) -> Result<Tensor> {
    if xs.elem_count() == 0 {
        return Ok(xs.clone());
    }
    let wide = xs.to_dtype(check::wide(xs.dtype()))?;
    let square = wide.sqr()?.mean_keepdim(D::Minus1)?;
    let normal = wide.broadcast_div(&(square + eps)?.sqrt()?)?;
    affine(&normal, weight, None)?.to_dtype(xs.dtype())
}
