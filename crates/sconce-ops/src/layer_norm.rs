//! Layer normalisation.

use candle_core::{D, Result, Tensor};

use crate::check;

/// Layer normalisation over the last dimension, Ba et al. 2016: `(x - mean) / sqrt(var + eps) * weight + bias`, with the
/// biased variance.
///
/// # Shapes
/// - `xs`: `(*, C)`; `weight`, `bias`: `(C)`
/// - output: as `xs`
///
/// # Errors
/// When shapes or types do not fit.
pub fn layer_norm(xs: &Tensor, weight: Option<&Tensor>, bias: Option<&Tensor>, eps: f64) -> Result<Tensor> {
    let op = "layer_norm";
    check::float(op, xs)?;
    check::epsilon(op, eps)?;
    let c = check::last_dim(op, xs)?;
    check::parameter(op, "weight", weight, c, xs)?;
    check::parameter(op, "bias", bias, c, xs)?;
    reference(xs, weight, bias, eps)
}

/// The same by candle's own operations; differentiable.
pub(crate) fn reference(xs: &Tensor, weight: Option<&Tensor>, bias: Option<&Tensor>, eps: f64) -> Result<Tensor> {
    if xs.elem_count() == 0 {
        return Ok(xs.clone());
    }
    let wide = xs.to_dtype(check::wide(xs.dtype()))?;
    let centred = wide.broadcast_sub(&wide.mean_keepdim(D::Minus1)?)?;
    let var = centred.sqr()?.mean_keepdim(D::Minus1)?;
    let normal = centred.broadcast_div(&(var + eps)?.sqrt()?)?;
    affine(&normal, weight, bias)?.to_dtype(xs.dtype())
}

/// `xs * weight + bias` along the last dimension, computed in the type of `xs`.
pub(crate) fn affine(xs: &Tensor, weight: Option<&Tensor>, bias: Option<&Tensor>) -> Result<Tensor> {
    let mut ys = xs.clone();
    if let Some(weight) = weight {
        ys = ys.broadcast_mul(&weight.to_dtype(xs.dtype())?)?;
    }
    if let Some(bias) = bias {
        ys = ys.broadcast_add(&bias.to_dtype(xs.dtype())?)?;
    }
    Ok(ys)
}

#[cfg(test)]
mod tests {
    use candle_core::DType;

    use super::*;
    use crate::testing::{Draw, check_gradients};

    #[test]
    fn gradients_are_exact() -> Result<()> {
        let mut draw = Draw::new(1);
        let xs = draw.normal(&[2, 3, 5], DType::F64)?;
        let (w, b) = (draw.normal(&[5], DType::F64)?, draw.normal(&[5], DType::F64)?);
        check_gradients(&[xs, w, b], |t| layer_norm(&t[0], Some(&t[1]), Some(&t[2]), 1e-5));
        Ok(())
    }
}
