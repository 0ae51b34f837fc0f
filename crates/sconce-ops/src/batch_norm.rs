//! Batch normalisation.

use candle_core::{Result, Tensor};

use crate::{Error, check, group_norm::channel_affine};

/// Batch normalisation with given statistics, Ioffe and Szegedy 2015, as in evaluation:
/// `(x - running_mean) / sqrt(running_var + eps) * weight + bias` for each channel. Differentiable in all tensors.
///
/// # Shapes
/// - `xs`: `(B, C, *)`; all others `(C)`
/// - output: as `xs`
///
/// # Errors
/// When shapes or types do not fit.
pub fn batch_norm(
    xs: &Tensor,
    weight: Option<&Tensor>,
    bias: Option<&Tensor>,
    running_mean: &Tensor,
    running_var: &Tensor,
    eps: f64,
) -> Result<Tensor> {
    let op = "batch_norm";
    let c = check_arguments(op, xs, weight, bias, eps)?;
    check::parameter(op, "running_mean", Some(running_mean), c, xs)?;
    check::parameter(op, "running_var", Some(running_var), c, xs)?;
    reference(xs, weight, bias, running_mean, running_var, eps)
}

/// What [`batch_norm_train`] gives.
#[derive(Debug, Clone)]
pub struct BatchNormOutput {
    /// The normalised input.
    pub output: Tensor,
    /// Mean of each channel `(C)`, detached.
    pub mean: Tensor,
    /// Unbiased variance of each channel `(C)`, to be tracked, detached. With one value in a channel it is 0.
    pub var_unbiased: Tensor,
}

/// Batch normalisation with the statistics of the batch, as in training: normalises by the biased variance, through which
/// gradients flow, and reports the statistics to track.
///
/// # Shapes
/// - `xs`: `(B, C, *)`; `weight`, `bias`: `(C)`
///
/// # Errors
/// When shapes or types do not fit, or there is nothing to take statistics of.
pub fn batch_norm_train(
    xs: &Tensor,
    weight: Option<&Tensor>,
    bias: Option<&Tensor>,
    eps: f64,
) -> Result<BatchNormOutput> {
    let op = "batch_norm_train";
    check_arguments(op, xs, weight, bias, eps)?;
    if xs.elem_count() == 0 {
        return Err(Error::shape(op, "xs", "at least one value in each channel", xs.shape()).into());
    }
    reference_train(xs, weight, bias, eps)
}

fn check_arguments(
    op: &'static str,
    xs: &Tensor,
    weight: Option<&Tensor>,
    bias: Option<&Tensor>,
    eps: f64,
) -> Result<usize> {
    check::float(op, xs)?;
    check::epsilon(op, eps)?;
    let c = check::channels(op, xs)?;
    check::parameter(op, "weight", weight, c, xs)?;
    check::parameter(op, "bias", bias, c, xs)?;
    Ok(c)
}

/// [`batch_norm`] by candle's own operations; differentiable.
pub(crate) fn reference(
    xs: &Tensor,
    weight: Option<&Tensor>,
    bias: Option<&Tensor>,
    mean: &Tensor,
    var: &Tensor,
    eps: f64,
) -> Result<Tensor> {
    if xs.elem_count() == 0 {
        return Ok(xs.clone());
    }
    let (b, c) = (xs.dim(0)?, xs.dim(1)?);
    let dtype = check::wide(xs.dtype());
    let wide = xs.to_dtype(dtype)?.reshape((b, c, ()))?; // (B, C, N)
    let mean = mean.to_dtype(dtype)?.reshape((1, c, 1))?;
    let std = (var.to_dtype(dtype)?.reshape((1, c, 1))? + eps)?.sqrt()?;
    let normal = wide.broadcast_sub(&mean)?.broadcast_div(&std)?;
    channel_affine(&normal, weight, bias)?.reshape(xs.shape())?.to_dtype(xs.dtype())
}

/// [`batch_norm_train`] by candle's own operations; differentiable.
pub(crate) fn reference_train(
    xs: &Tensor,
    weight: Option<&Tensor>,
    bias: Option<&Tensor>,
    eps: f64,
) -> Result<BatchNormOutput> {
    let (b, c) = (xs.dim(0)?, xs.dim(1)?);
    let wide = xs.to_dtype(check::wide(xs.dtype()))?.reshape((b, c, ()))?; // (B, C, N)
    let count = (b * wide.dim(2)?) as f64;
    let mean = (wide.sum_keepdim((0, 2))? / count)?; // (1, C, 1)
    let centred = wide.broadcast_sub(&mean)?;
    let var = (centred.sqr()?.sum_keepdim((0, 2))? / count)?;
    let normal = centred.broadcast_div(&(&var + eps)?.sqrt()?)?;
    let output = channel_affine(&normal, weight, bias)?.reshape(xs.shape())?.to_dtype(xs.dtype())?;
    let tracked = |t: &Tensor| t.detach().flatten_all()?.to_dtype(xs.dtype());
    let var_unbiased = tracked(&(var * (count / (count - 1.).max(1.)))?)?;
    Ok(BatchNormOutput { output, mean: tracked(&mean)?, var_unbiased })
}
