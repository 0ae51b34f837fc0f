//! Fully connected layers and plain matrix products.

mod reference;
#[cfg(test)]
mod tests;

use candle_core::{Result, Tensor, bail};

use crate::{Activation, Error, check};

/// `act(x W^T + b)`, in one pass over the result.
///
/// # Shapes
/// - `xs` `(*, in)`, any strides
/// - `weight` `(out, in)`, `bias` `(out)`
/// - output `(*, out)`, contiguous
///
/// # Errors
/// When shapes, types or devices do not agree.
pub fn linear(xs: &Tensor, weight: &Tensor, bias: Option<&Tensor>, act: Option<Activation>) -> Result<Tensor> {
    const OP: &str = "linear";
    check::float(OP, xs)?;
    let inputs = check::last_dim(OP, xs)?;
    let outputs = match *weight.dims() {
        [outputs, found] if found == inputs => outputs,
        _ => return Err(Error::shape(OP, "weight", format!("(out, {inputs})"), weight.shape()).into()),
    };
    if weight.dtype() != xs.dtype() {
        return Err(Error::dtype(OP, "weight", format!("{:?} like the input", xs.dtype()), weight.dtype()).into());
    }
    check::parameter(OP, "bias", bias, outputs, xs)?;
    same_device(OP, xs, std::iter::once(weight).chain(bias))?;
    reference::linear(xs, weight, bias, act)
}

/// Batched matrix product.
///
/// # Shapes
/// - `a` `(*, M, K)`, `b` `(*, K, N)`, any strides; the leading dimensions are equal, or `b` has none
/// - output `(*, M, N)`, contiguous
///
/// # Errors
/// When shapes, types or devices do not agree.
pub fn matmul(a: &Tensor, b: &Tensor) -> Result<Tensor> {
    const OP: &str = "matmul";
    check::float(OP, a)?;
    let (ra, rb) = (a.rank(), b.rank());
    let fits = ra >= 2
        && rb >= 2
        && a.dims()[ra - 1] == b.dims()[rb - 2]
        && (rb == 2 || a.dims()[..ra - 2] == b.dims()[..rb - 2]);
    if !fits {
        let expected = format!("(*, K, N) for a of shape {:?}", a.shape());
        return Err(Error::shape(OP, "b", expected, b.shape()).into());
    }
    if a.dtype() != b.dtype() {
        return Err(Error::dtype(OP, "b", format!("{:?} like a", a.dtype()), b.dtype()).into());
    }
    same_device(OP, a, [b])?;
    reference::matmul(a, b)
}

fn same_device<'a>(op: &str, xs: &Tensor, others: impl IntoIterator<Item = &'a Tensor>) -> Result<()> {
    match others.into_iter().all(|other| other.device().same_device(xs.device())) {
        true => Ok(()),
        false => bail!("{op}: arguments are on different devices"),
    }
}
