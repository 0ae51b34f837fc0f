//! Checks of arguments that all operations share.

use candle_core::{DType, Result, Tensor};

use crate::Error;

/// Accepts the types that have kernels: f32, f64, f16, bf16.
pub(crate) fn float(op: &'static str, xs: &Tensor) -> Result<()> {
    match xs.dtype() {
        DType::F32 | DType::F64 | DType::F16 | DType::BF16 => Ok(()),
        found => Err(Error::dtype(op, "xs", "f32, f64, f16 or bf16", found).into()),
    }
}

/// Accepts a per-channel parameter `(len)` of the input's type, or none.
pub(crate) fn parameter(
    op: &'static str,
    arg: &'static str,
    parameter: Option<&Tensor>,
    len: usize,
    xs: &Tensor,
) -> Result<()> {
    let Some(parameter) = parameter else {
        return Ok(());
    };
    if parameter.dims() != [len] {
        return Err(Error::shape(op, arg, format!("({len})"), parameter.shape()).into());
    }
    if parameter.dtype() != xs.dtype() {
        let expected = format!("{:?} like the input", xs.dtype());
        return Err(Error::dtype(op, arg, expected, parameter.dtype()).into());
    }
    Ok(())
}

/// The size of the last dimension; a tensor without dimensions has none.
pub(crate) fn last_dim(op: &'static str, xs: &Tensor) -> Result<usize> {
    let missing = || Error::shape(op, "xs", "at least one dimension", xs.shape());
    Ok(*xs.dims().last().ok_or_else(missing)?)
}

/// The size of dimension 1 of `(B, C, *)`.
pub(crate) fn channels(op: &'static str, xs: &Tensor) -> Result<usize> {
    let missing = || Error::shape(op, "xs", "(B, C, *)", xs.shape());
    Ok(*xs.dims().get(1).ok_or_else(missing)?)
}

/// Accepts a finite number that is not negative.
pub(crate) fn epsilon(op: &'static str, eps: f64) -> Result<()> {
    match eps >= 0. && eps.is_finite() {
        true => Ok(()),
        false => Err(Error::value(op, "eps", "finite and not negative", eps).into()),
    }
}

/// The type to compute in: half precision is computed in f32.
pub(crate) fn wide(dtype: DType) -> DType {
    if dtype == DType::F64 { DType::F64 } else { DType::F32 }
}

/// Weight and bias, or ones and zeros in their place, which take no gradient.
pub(crate) fn affine(
    xs: &Tensor,
    len: usize,
    weight: Option<&Tensor>,
    bias: Option<&Tensor>,
) -> Result<(Tensor, Tensor)> {
    let weight = weight.cloned().map_or_else(|| Tensor::ones(len, xs.dtype(), xs.device()), Ok)?;
    let bias = bias.cloned().map_or_else(|| Tensor::zeros(len, xs.dtype(), xs.device()), Ok)?;
    Ok((weight, bias))
}

/// Applies `f`, which works along the last dimension, along another: the result is a permuted view.
pub(crate) fn along(xs: &Tensor, dim: usize, f: impl FnOnce(&Tensor) -> Result<Tensor>) -> Result<Tensor> {
    let last = xs.rank() - 1;
    if dim == last {
        return f(xs);
    }
    let order: Vec<usize> = (0..=last).filter(|&d| d != dim).chain([dim]).collect();
    let mut back = vec![0; last + 1];
    for (position, &d) in order.iter().enumerate() {
        back[d] = position;
    }
    f(&xs.permute(order)?)?.permute(back)
}
