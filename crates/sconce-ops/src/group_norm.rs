//! Group normalisation.

use candle_core::{D, Result, Tensor};

use crate::{Error, check};

/// Group normalisation, Wu and He 2018: each sample's channels in `groups` runs, each run normalised by its own mean and biased
/// variance, then `weight` and `bias` for each channel.
///
/// # Shapes
/// - `xs`: `(B, C, *)`, `C` a multiple of `groups`; `weight`, `bias`: `(C)`
/// - output: as `xs`
///
/// # Errors
/// When shapes or types do not fit.
pub fn group_norm(
    xs: &Tensor,
    groups: usize,
    weight: Option<&Tensor>,
    bias: Option<&Tensor>,
    eps: f64,
) -> Result<Tensor> {
    let op = "group_norm";
    check::float(op, xs)?;
    check::epsilon(op, eps)?;
    let c = check::channels(op, xs)?;
    if groups == 0 || c % groups != 0 {
        return Err(Error::value(op, "groups", format!("a divisor of {c} channels"), groups).into());
    }
    check::parameter(op, "weight", weight, c, xs)?;
    check::parameter(op, "bias", bias, c, xs)?;
    reference(xs, groups, weight, bias, eps)
}

/// The same by candle's own operations; differentiable.
pub(crate) fn reference(
    xs: &Tensor,
    groups: usize,
    weight: Option<&Tensor>,
    bias: Option<&Tensor>,
    eps: f64,
) -> Result<Tensor> {
    if xs.elem_count() == 0 {
        return Ok(xs.clone());
    }
    let (b, c) = (xs.dim(0)?, xs.dim(1)?);
    let wide = xs.to_dtype(check::wide(xs.dtype()))?.reshape((b, groups, ()))?; // (B, groups, C / groups * N)
    let centred = wide.broadcast_sub(&wide.mean_keepdim(D::Minus1)?)?;
    let var = centred.sqr()?.mean_keepdim(D::Minus1)?;
    let normal = centred.broadcast_div(&(var + eps)?.sqrt()?)?.reshape((b, c, ()))?; // (B, C, N)
    channel_affine(&normal, weight, bias)?.reshape(xs.shape())?.to_dtype(xs.dtype())
}

/// `xs * weight + bias` along dimension 1 of `(B, C, N)`, computed in the type of `xs`.
pub(crate) fn channel_affine(xs: &Tensor, weight: Option<&Tensor>, bias: Option<&Tensor>) -> Result<Tensor> {
    let column = |t: &Tensor| t.to_dtype(xs.dtype())?.reshape((1, t.elem_count(), 1));
    let mut ys = xs.clone();
    if let Some(weight) = weight {
        ys = ys.broadcast_mul(&column(weight)?)?;
    }
    if let Some(bias) = bias {
        ys = ys.broadcast_add(&column(bias)?)?;
    }
    Ok(ys)
}
