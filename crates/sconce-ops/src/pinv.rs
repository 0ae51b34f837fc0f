//! Iterated pseudo-inverse.

use candle_core::{D, Result, Tensor};

use crate::{Error, check};

/// Moore-Penrose inverse by the iteration of Razavi et al. 2014 as used in Nystromformer (Xiong et al. 2021, eq. 11), of sixth
/// order: `Z <- Z (13 I - AZ (15 I - AZ (7 I - AZ))) / 4`, from `A^T` over the product of the largest absolute row
/// and column sums, each taken over the whole batch. Six iterations do for softmax matrices. Differentiable; half precision is
/// computed in f32.
///
/// # Shapes
/// - `xs`: `(*, N, N)`, at least two dimensions
/// - output: as `xs`
///
/// # Errors
/// When the matrices are not square or the type is not floating-point.
pub fn pinv(xs: &Tensor, iterations: usize) -> Result<Tensor> {
    let op = "pinv";
    check::float(op, xs)?;
    let n = match *xs.dims() {
        [.., n, m] if n == m => n,
        _ => return Err(Error::shape(op, "xs", "(*, N, N)", xs.shape()).into()),
    };
    if xs.elem_count() == 0 {
        return Ok(xs.clone());
    }
    let dtype = check::wide(xs.dtype());
    let a = xs.to_dtype(dtype)?.reshape(((), n, n))?; // (B, N, N)
    let abs = a.abs()?;
    let largest = |dim: D| abs.sum(dim)?.flatten_all()?.max(0);
    let scale = (largest(D::Minus1)? * largest(D::Minus2)?)?;
    let identity = Tensor::eye(n, dtype, xs.device())?;
    let minus = |factor: f64, t: &Tensor| (&identity * factor)?.broadcast_sub(t);
    let mut z = a.t()?.broadcast_div(&scale)?.contiguous()?;
    for _ in 0..iterations {
        let az = a.matmul(&z)?;
        let inner = minus(7., &az)?;
        let inner = minus(15., &az.matmul(&inner)?)?;
        let inner = minus(13., &az.matmul(&inner)?)?;
        z = (z.matmul(&inner)? * 0.25)?;
    }
    z.reshape(xs.shape())?.to_dtype(xs.dtype())
}
