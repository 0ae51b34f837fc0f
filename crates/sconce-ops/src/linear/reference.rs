//! The same by candle's own operations: for other devices, and to test against.

use candle_core::{Result, Tensor};

use crate::{Activation, check};

pub(super) fn linear(xs: &Tensor, weight: &Tensor, bias: Option<&Tensor>, act: Option<Activation>) -> Result<Tensor> {
    let (outputs, inputs) = weight.dims2()?;
    let rows = xs.elem_count().checked_div(inputs).unwrap_or_else(|| xs.dims()[..xs.rank() - 1].iter().product());
    let mut dims = xs.dims().to_vec();
    if let Some(last) = dims.last_mut() {
        *last = outputs;
    }
    let x = xs.reshape((rows, inputs))?; // (*, in) -> (rows, in)
    let mut y = matmul(&x, &weight.t()?)?;
    if let Some(bias) = bias {
        y = y.broadcast_add(bias)?;
    }
    let y = y.reshape(dims)?; // (rows, out) -> (*, out)
    match act {
        Some(act) => act.forward(&y),
        None => Ok(y),
    }
}

pub(super) fn matmul(a: &Tensor, b: &Tensor) -> Result<Tensor> {
    let (ra, rb) = (a.rank(), b.rank());
    let (m, k, n) = (a.dims()[ra - 2], a.dims()[ra - 1], b.dims()[rb - 1]);
    let mut dims = a.dims().to_vec();
    dims[ra - 1] = n;
    if dims.iter().product::<usize>() * k == 0 {
        return Tensor::zeros(dims, a.dtype(), a.device());
    }
    let dtype = a.dtype();
    // bf16 has no product of its own on the CPU.
    let compute = if a.device().is_cpu() { check::wide(dtype) } else { dtype };
    let (a, b) = (a.to_dtype(compute)?, b.to_dtype(compute)?);
    let batch: usize = dims[..ra - 2].iter().product();
    let a = a.reshape((batch, m, k))?; // (*, M, K) -> (batch, M, K)
    let c = if rb == 2 { a.reshape((batch * m, k))?.matmul(&b)? } else { a.matmul(&b.reshape((batch, k, n))?)? };
    c.reshape(dims)?.to_dtype(dtype) // (batch, M, N) -> (*, M, N)
}
