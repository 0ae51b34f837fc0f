//! Fully connected layers and plain matrix products.

pub(crate) mod epilogue;
mod kernel;
mod reference;
#[cfg(test)]
mod tests;

use candle_core::{Result, Tensor, bail};

use crate::{Activation, Error, check, macs};

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
    let rows = xs.dims()[..xs.rank() - 1].iter().product::<usize>();
    macs::add(&[rows, inputs, outputs]);
    if !xs.device().is_cpu() {
        return reference::linear(xs, weight, bias, act);
    }
    let wide = check::wide(xs.dtype());
    let bias = bias.map(|bias| bias.to_dtype(wide)).transpose()?;
    let x = reshape(xs.to_dtype(wide)?, &[rows, inputs])?; // (*, in) -> (rows, in)
    let y = kernel::linear(&x, &weight.to_dtype(wide)?, bias.as_ref(), act.unwrap_or(Activation::Identity))?;
    let mut dims = xs.dims().to_vec();
    dims[xs.rank() - 1] = outputs;
    y.reshape(dims)?.to_dtype(xs.dtype()) // (rows, out) -> (*, out)
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
    let (m, k, n) = (a.dims()[ra - 2], a.dims()[ra - 1], b.dims()[rb - 1]);
    let batch: usize = a.dims()[..ra - 2].iter().product();
    macs::add(&[batch, m, k, n]);
    if !a.device().is_cpu() {
        return reference::matmul(a, b);
    }
    let mut dims = a.dims().to_vec();
    dims[ra - 1] = n;
    let wide = check::wide(a.dtype());
    let (x, y) = (a.to_dtype(wide)?, b.to_dtype(wide)?);
    let (x, y) = if rb == 2 {
        (reshape(x, &[batch * m, k])?, y) // (*, M, K) -> (batch M, K)
    } else {
        (reshape(x, &[batch, m, k])?, reshape(y, &[batch, k, n])?) // (*, M, K) -> (batch, M, K)
    };
    kernel::product(&x, &y)?.reshape(dims)?.to_dtype(a.dtype()) // -> (*, M, N)
}

/// `reshape`, which would copy a strided tensor even when its shape is the one asked for.
fn reshape(xs: Tensor, dims: &[usize]) -> Result<Tensor> {
    if xs.dims() == dims { Ok(xs) } else { xs.reshape(dims) }
}

fn same_device<'a>(op: &str, xs: &Tensor, others: impl IntoIterator<Item = &'a Tensor>) -> Result<()> {
    match others.into_iter().all(|other| other.device().same_device(xs.device())) {
        true => Ok(()),
        false => bail!("{op}: arguments are on different devices"),
    }
}
