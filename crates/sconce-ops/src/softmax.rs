//! Softmax and its logarithm.

use candle_core::{
    CpuStorage, CustomOp1, Error, Layout, Result, Shape, Tensor, WithDType, backend::BackendStorage, shape::Dim,
};

use crate::{
    check,
    kernel::{Element, Math, Real, Rows, Scratch, Uninit, cpu_slice, fill, fill_rows, parallel::rows_per_block, simd},
    with_float,
};

/// `exp(x) / sum(exp(x))` along one dimension; sums to 1 there. A slice that holds minus infinity alone gives NaN.
///
/// # Shapes
/// - output: as `xs`
///
/// # Errors
/// When the dimension does not exist or the type is not floating-point.
pub fn softmax(xs: &Tensor, dim: impl Dim) -> Result<Tensor> {
    let op = "softmax";
    let dim = dim.to_index(xs.shape(), op)?;
    check::float(op, xs)?;
    match xs.device().is_cpu() {
        true => check::along(xs, dim, |xs| xs.apply_op1(Softmax::<false>)),
        false => reference(xs, dim),
    }
}

/// The logarithm of [`softmax`], without its underflow: `x - log(sum(exp(x)))`.
///
/// # Shapes
/// - output: as `xs`
///
/// # Errors
/// When the dimension does not exist or the type is not floating-point.
pub fn log_softmax(xs: &Tensor, dim: impl Dim) -> Result<Tensor> {
    let op = "log_softmax";
    let dim = dim.to_index(xs.shape(), op)?;
    check::float(op, xs)?;
    match xs.device().is_cpu() {
        true => check::along(xs, dim, |xs| xs.apply_op1(Softmax::<true>)),
        false => reference_log(xs, dim),
    }
}

/// [`softmax`] by candle's own operations; differentiable.
pub(crate) fn reference(xs: &Tensor, dim: usize) -> Result<Tensor> {
    if xs.elem_count() == 0 {
        return Ok(xs.clone());
    }
    let wide = xs.to_dtype(check::wide(xs.dtype()))?;
    let exp = wide.broadcast_sub(&wide.max_keepdim(dim)?.detach())?.exp()?;
    exp.broadcast_div(&exp.sum_keepdim(dim)?)?.to_dtype(xs.dtype())
}

/// [`log_softmax`] by candle's own operations; differentiable.
pub(crate) fn reference_log(xs: &Tensor, dim: usize) -> Result<Tensor> {
    if xs.elem_count() == 0 {
        return Ok(xs.clone());
    }
    let wide = xs.to_dtype(check::wide(xs.dtype()))?;
    let shifted = wide.broadcast_sub(&wide.max_keepdim(dim)?.detach())?;
    shifted.broadcast_sub(&shifted.exp()?.sum_keepdim(dim)?.log()?)?.to_dtype(xs.dtype())
}

/// Along the last dimension.
struct Softmax<const LOG: bool>;

impl<const LOG: bool> CustomOp1 for Softmax<LOG> {
    fn name(&self) -> &'static str {
        if LOG { "log_softmax" } else { "softmax" }
    }

    fn cpu_fwd(&self, storage: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let storage = with_float!(storage.dtype(), self.name(), T => {
            let rows = Rows::<T>::last(T::cpu_storage_as_slice(storage)?, layout);
            let n = rows.len();
            let out = fill_rows(rows.count(), n, |range, out| {
                let mut scratch = Scratch::default();
                let xs = rows.wide(range, &mut scratch);
                T::produce(out, |out| if LOG { log_block(xs, n, out) } else { block(xs, n, out) })
            });
            Ok::<_, Error>(T::to_cpu_storage_owned(out))
        })?;
        Ok((storage, layout.shape().clone()))
    }

    fn bwd(&self, xs: &Tensor, ys: &Tensor, grad: &Tensor) -> Result<Option<Tensor>> {
        match xs.track_op() {
            true => with_float!(xs.dtype(), self.name(), T => backward::<T, LOG>(ys, grad)).map(Some),
            false => Ok(None),
        }
    }
}

fn block<'a, A: Real>(xs: &[A], n: usize, out: Uninit<'a, A>) -> &'a mut [A] {
    A::dispatch(
        #[inline(always)]
        |m| {
            out.rows(
                n,
                #[inline(always)]
                |i, out| {
                    let row = &xs[i * n..(i + 1) * n];
                    let top = simd::max(row);
                    let out = out.map(
                        row,
                        #[inline(always)]
                        |x| m.exp(x - top),
                    );
                    let scale = simd::sum(out).recip();
                    for y in out.iter_mut() {
                        *y *= scale;
                    }
                    out
                },
            )
        },
    )
}

fn log_block<'a, A: Real>(xs: &[A], n: usize, out: Uninit<'a, A>) -> &'a mut [A] {
    A::dispatch(
        #[inline(always)]
        |m| {
            out.rows(
                n,
                #[inline(always)]
                |i, out| {
                    let row = &xs[i * n..(i + 1) * n];
                    let (top, sum) = exp_sum(m, row);
                    let log = sum.ln();
                    out.map(
                        row,
                        #[inline(always)]
                        |x| x - top - log,
                    )
                },
            )
        },
    )
}

/// The largest element, and the sum of `exp(x - largest)`.
#[inline(always)]
pub(crate) fn exp_sum<A: Real>(m: Math, row: &[A]) -> (A, A) {
    let top = simd::max(row);
    let sum = simd::fold(
        row,
        A::zero(),
        #[inline(always)]
        |sum, x| sum + m.exp(x - top),
        #[inline(always)]
        |a, b| a + b,
    );
    (top, sum)
}

/// From the result, not the input: `y (dy - sum(y dy))`, or for the logarithm `dy - exp(y) sum(dy)`.
fn backward<T: Element, const LOG: bool>(ys: &Tensor, grad: &Tensor) -> Result<Tensor> {
    let ((ys_storage, ys_layout), (grad_storage, grad_layout)) = (ys.storage_and_layout(), grad.storage_and_layout());
    let ys_rows = Rows::<T>::last(cpu_slice(&ys_storage)?, ys_layout);
    let grad_rows = Rows::<T>::last(cpu_slice(&grad_storage)?, grad_layout);
    let n = ys_rows.len();
    let (dx, _) = fill(ys_rows.count(), n, rows_per_block(2 * n), |range, out| {
        let (mut ys_scratch, mut grad_scratch) = (Scratch::default(), Scratch::default());
        let ys = ys_rows.wide(range.clone(), &mut ys_scratch);
        let grad = grad_rows.wide(range, &mut grad_scratch);
        (T::produce(out, |out| backward_block::<_, LOG>(ys, grad, n, out)), ())
    });
    Tensor::from_vec(dx, ys.shape(), ys.device())
}

fn backward_block<'a, A: Real, const LOG: bool>(ys: &[A], grad: &[A], n: usize, out: Uninit<'a, A>) -> &'a mut [A] {
    A::dispatch(
        #[inline(always)]
        |m| {
            out.rows(
                n,
                #[inline(always)]
                |i, out| {
                    let (y, dy) = (&ys[i * n..(i + 1) * n], &grad[i * n..(i + 1) * n]);
                    let sum = if LOG { simd::sum(dy) } else { simd::dot(m, y, dy) };
                    out.map2(
                        y,
                        dy,
                        #[inline(always)]
                        |y, dy| if LOG { m.fma(-m.exp(y), sum, dy) } else { y * (dy - sum) },
                    )
                },
            )
        },
    )
}

#[cfg(test)]
mod tests {
    use candle_core::{D, DType, Device};
    use proptest::prelude::*;

    use super::*;
    use crate::testing::{Draw, assert_close, check_gradients, gradients, strided, tolerance};

    #[test]
    fn gradients_are_exact() -> Result<()> {
        let xs = Draw::new(1).normal(&[2, 3, 4], DType::F64)?;
        for dim in 0..3 {
            check_gradients(std::slice::from_ref(&xs), |t| softmax(&t[0], dim));
            check_gradients(std::slice::from_ref(&xs), |t| log_softmax(&t[0], dim));
        }
        Ok(())
    }

    #[test]
    fn large_and_masked_logits() -> Result<()> {
        let dev = Device::Cpu;
        let xs = Tensor::new(&[[1e30f32, 0.], [f32::NEG_INFINITY, 5.], [f32::NAN, 0.]], &dev)?;
        let ys = softmax(&xs, D::Minus1)?.to_vec2::<f32>()?;
        assert_eq!(ys[..2], [[1., 0.], [0., 1.]]);
        assert!(ys[2].iter().all(|y| y.is_nan()));
        let logs = log_softmax(&Tensor::new(&[[0f32, -200.]], &dev)?, 1)?.to_vec2::<f32>()?;
        assert_eq!(logs, [[0., -200.]]);
        let masked = Tensor::new(&[f32::NEG_INFINITY; 3], &dev)?;
        assert!(softmax(&masked, 0)?.to_vec1::<f32>()?.iter().all(|y| y.is_nan()));
        Ok(())
    }

    #[test]
    fn wrong_input_is_refused_and_empty_input_is_not() -> Result<()> {
        let dev = Device::Cpu;
        assert!(softmax(&Tensor::new(1f32, &dev)?, D::Minus1).is_err());
        assert!(softmax(&Tensor::new(&[1f32], &dev)?, 1).is_err());
        assert!(log_softmax(&Tensor::new(&[1i64], &dev)?, 0).is_err());
        for shape in [(0, 3), (3, 0)] {
            assert_eq!(softmax(&Tensor::zeros(shape, DType::F32, &dev)?, 0)?.elem_count(), 0);
            assert_eq!(log_softmax(&Tensor::zeros(shape, DType::F32, &dev)?, 1)?.elem_count(), 0);
        }
        Ok(())
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(32))]

        #[test]
        fn agrees_with_the_reference(seed: u64, log: bool) {
            let mut draw = Draw::new(seed);
            let shape = draw.shape(1..=4, 1..=9);
            let dim = draw.int(0..=shape.len() - 1);
            let dtype = draw.pick(&[DType::F32, DType::F64, DType::F16, DType::BF16]);
            let xs = (strided(&mut draw, &shape, dtype).unwrap() * 2.).unwrap();
            let ours = |t: &[Tensor]| if log { log_softmax(&t[0], dim) } else { softmax(&t[0], dim) };
            let theirs = |t: &[Tensor]| if log { reference_log(&t[0], dim) } else { reference(&t[0], dim) };
            let inputs = [xs];
            assert_close(&ours(&inputs).unwrap(), &theirs(&inputs).unwrap(), tolerance(dtype));
            let dy = strided(&mut draw, &shape, dtype).unwrap();
            let (a, b) = (gradients(&inputs, &dy, ours).unwrap(), gradients(&inputs, &dy, theirs).unwrap());
            assert_close(&a[0], &b[0], 4. * tolerance(dtype));
        }
    }
}
