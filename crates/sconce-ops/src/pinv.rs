//! Iterated pseudo-inverse.

use candle_core::{D, Result, Tensor};

use crate::{Error, check, matmul};

/// Moore-Penrose inverse by the iteration of Razavi et al. 2014 as used in Nystromformer (Xiong et al. 2021, eq. 11), of sixth
/// order: `Z <- Z (13 I - AZ (15 I - AZ (7 I - AZ))) / 4`, from `A^T` over the product of the largest absolute row
/// and column sums. Six iterations do for softmax matrices. Differentiable; half precision is computed in f32.
///
/// The largest sums are taken over the whole batch, as the official models do: what comes out for one matrix depends on the
/// others. [`pinv_each`] is free of that.
///
/// # Shapes
/// - `xs`: `(*, N, N)`, at least two dimensions
/// - output: as `xs`
///
/// # Errors
/// When the matrices are not square or the type is not floating-point.
pub fn pinv(xs: &Tensor, iterations: usize) -> Result<Tensor> {
    iterate("pinv", xs, iterations, false)
}

/// [`pinv`] with the largest sums taken for each matrix by itself: better conditioned, and independent of the batch.
///
/// # Shapes
/// - `xs`: `(*, N, N)`, at least two dimensions
/// - output: as `xs`
///
/// # Errors
/// When the matrices are not square or the type is not floating-point.
pub fn pinv_each(xs: &Tensor, iterations: usize) -> Result<Tensor> {
    iterate("pinv_each", xs, iterations, true)
}

fn iterate(op: &'static str, xs: &Tensor, iterations: usize, each: bool) -> Result<Tensor> {
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
    // One of equal sums takes the gradient; candle's `max` would give it to each of them in full.
    let largest = |dim: D| {
        let sums = abs.sum(dim)?; // (B, N)
        let sums = if each { sums } else { sums.reshape((1, ()))? };
        sums.gather(&sums.argmax_keepdim(1)?, 1)?.unsqueeze(2) // (B or 1, 1, 1)
    };
    let scale = (largest(D::Minus1)? * largest(D::Minus2)?)?;
    let identity = Tensor::eye(n, dtype, xs.device())?;
    let minus = |factor: f64, t: &Tensor| (&identity * factor)?.broadcast_sub(t);
    let mut z = a.t()?.broadcast_div(&scale)?;
    for _ in 0..iterations {
        let az = matmul(&a, &z)?;
        let inner = minus(7., &az)?;
        let inner = minus(15., &matmul(&az, &inner)?)?;
        let inner = minus(13., &matmul(&az, &inner)?)?;
        z = (matmul(&z, &inner)? * 0.25)?;
    }
    z.reshape(xs.shape())?.to_dtype(xs.dtype())
}

#[cfg(test)]
mod tests {
    use candle_core::{DType, Device};

    use super::*;
    use crate::{
        softmax,
        testing::{Draw, assert_close, check_gradients},
    };

    #[test]
    fn inverts_well_conditioned_matrices() -> Result<()> {
        let eye = Tensor::eye(5, DType::F64, &Device::Cpu)?;
        let a = (Draw::new(1).normal(&[2, 3, 5, 5], DType::F64)? * 0.1)?.broadcast_add(&eye)?;
        let product = a.matmul(&pinv(&a, 12)?)?;
        assert_close(&product, &eye.broadcast_as((2, 3, 5, 5))?.contiguous()?, 1e-9);
        Ok(())
    }

    #[test]
    fn no_iteration_leaves_the_scaled_transpose() -> Result<()> {
        let a = Tensor::new(&[[1f64, -2.], [3., 4.]], &Device::Cpu)?;
        assert_close(&pinv(&a, 0)?, &(a.t()? / 42.)?, 1e-12);
        Ok(())
    }

    #[test]
    fn gradients_are_exact() -> Result<()> {
        let logits = Draw::new(2).normal(&[2, 3, 3], DType::F64)?;
        check_gradients(std::slice::from_ref(&logits), |t| pinv(&softmax(&t[0], 2)?, 3));
        check_gradients(&[logits], |t| pinv(&t[0], 2));
        Ok(())
    }

    #[test]
    fn each_matrix_by_itself_does_not_see_the_others() -> Result<()> {
        let a = Draw::new(4).normal(&[3, 4, 4], DType::F64)?;
        let scaled = a.broadcast_mul(&Tensor::new(&[[[1f64]], [[100.]], [[0.01]]], &Device::Cpu)?)?;
        let together = pinv_each(&scaled, 5)?;
        for i in 0..3 {
            assert_close(&together.narrow(0, i, 1)?, &pinv(&scaled.narrow(0, i, 1)?, 5)?, 1e-12);
        }
        check_gradients(&[a], |t| pinv_each(&t[0], 2));
        Ok(())
    }

    #[test]
    fn wrong_input_is_refused_and_half_precision_is_computed_in_single() -> Result<()> {
        let dev = Device::Cpu;
        assert!(pinv(&Tensor::zeros((2, 3), DType::F32, &dev)?, 6).is_err());
        assert!(pinv(&Tensor::zeros(3, DType::F32, &dev)?, 6).is_err());
        assert!(pinv(&Tensor::zeros((3, 3), DType::U8, &dev)?, 6).is_err());
        assert_eq!(pinv(&Tensor::zeros((0, 3, 3), DType::F32, &dev)?, 6)?.dims(), [0, 3, 3]);
        let a = softmax(&Draw::new(3).normal(&[4, 4], DType::F32)?, 1)?;
        for dtype in [DType::F16, DType::BF16] {
            let half = a.to_dtype(dtype)?;
            let want = pinv(&half.to_dtype(DType::F32)?, 6)?;
            assert_close(&pinv(&half, 6)?, &want, crate::testing::tolerance(dtype));
        }
        Ok(())
    }
}
