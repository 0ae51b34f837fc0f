//! Vectors scaled to unit length.

use candle_core::{
    CpuStorage, CustomOp1, DType, Error, Layout, Result, Shape, Tensor, WithDType, backend::BackendStorage, shape::Dim,
};

use crate::{
    check,
    kernel::{Element, Math, Real, Rows, Scratch, Uninit, cpu_slice, fill, fill_rows, parallel::rows_per_block, simd},
    with_float,
};

/// `x / max(|x|, eps)` along one dimension, `|x|` being the Euclidean norm. A vector of zeros stays one, also when `eps` is 0.
///
/// # Shapes
/// - output: as `xs`
///
/// # Errors
/// When the dimension does not exist, the type is not floating-point, or `eps` is negative.
pub fn l2_normalize(xs: &Tensor, dim: impl Dim, eps: f64) -> Result<Tensor> {
    let op = "l2_normalize";
    let dim = dim.to_index(xs.shape(), op)?;
    check::float(op, xs)?;
    check::epsilon(op, eps)?;
    match xs.device().is_cpu() {
        true => check::along(xs, dim, |xs| xs.apply_op1(L2Normalize { eps })),
        false => reference(xs, dim, eps),
    }
}

/// The same by candle's own operations; differentiable.
pub(crate) fn reference(xs: &Tensor, dim: usize, eps: f64) -> Result<Tensor> {
    if xs.elem_count() == 0 {
        return Ok(xs.clone());
    }
    let wide = xs.to_dtype(check::wide(xs.dtype()))?;
    // The limit is put on the square: the root's slope at 0 is infinite and would make the gradient NaN.
    let least = if wide.dtype() == DType::F64 { f64::MIN_POSITIVE } else { f64::from(f32::MIN_POSITIVE) };
    let norm = wide.sqr()?.sum_keepdim(dim)?.maximum((eps * eps).max(least))?.sqrt()?;
    wide.broadcast_div(&norm)?.to_dtype(xs.dtype())
}

/// Along the last dimension.
struct L2Normalize {
    eps: f64,
}

impl CustomOp1 for L2Normalize {
    fn name(&self) -> &'static str {
        "l2_normalize"
    }

    fn cpu_fwd(&self, storage: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let storage = with_float!(storage.dtype(), self.name(), T => {
            let rows = Rows::<T>::last(T::cpu_storage_as_slice(storage)?, layout);
            let n = rows.len();
            let out = fill_rows(rows.count(), n, |range, out| {
                let mut scratch = Scratch::default();
                let xs = rows.wide(range, &mut scratch);
                T::produce(out, |out| forward_block(xs, n, self.eps, out))
            });
            Ok::<_, Error>(T::to_cpu_storage_owned(out))
        })?;
        Ok((storage, layout.shape().clone()))
    }

    fn bwd(&self, xs: &Tensor, _: &Tensor, grad: &Tensor) -> Result<Option<Tensor>> {
        match xs.track_op() {
            true => with_float!(xs.dtype(), self.name(), T => backward::<T>(xs, grad, self.eps)).map(Some),
            false => Ok(None),
        }
    }
}

/// The reciprocal of the norm or of its limit, and whether the norm counts.
#[inline(always)]
fn inverse<A: Real>(m: Math, row: &[A], eps: f64) -> (A, bool) {
    let norm = simd::dot(m, row, row).sqrt();
    let (limit, least) = (A::from_f64(eps), A::min_positive_value());
    let limit = if limit < least { least } else { limit };
    // NaN counts, so that it goes on.
    if norm < limit { (limit.recip(), false) } else { (norm.recip(), true) }
}

fn forward_block<'a, A: Real>(xs: &[A], n: usize, eps: f64, out: Uninit<'a, A>) -> &'a mut [A] {
    A::dispatch(
        #[inline(always)]
        |m| {
            out.rows(
                n,
                #[inline(always)]
                |i, out| {
                    let row = &xs[i * n..(i + 1) * n];
                    let (scale, _) = inverse(m, row, eps);
                    out.map(
                        row,
                        #[inline(always)]
                        |x| x * scale,
                    )
                },
            )
        },
    )
}

/// `(dy - y (y . dy)) / |x|`, or `dy / eps` for short vectors.
fn backward<T: Element>(xs: &Tensor, grad: &Tensor, eps: f64) -> Result<Tensor> {
    let ((xs_storage, xs_layout), (grad_storage, grad_layout)) = (xs.storage_and_layout(), grad.storage_and_layout());
    let xs_rows = Rows::<T>::last(cpu_slice(&xs_storage)?, xs_layout);
    let grad_rows = Rows::<T>::last(cpu_slice(&grad_storage)?, grad_layout);
    let n = xs_rows.len();
    let (dx, _) = fill(xs_rows.count(), n, rows_per_block(2 * n), |range, out| {
        let (mut xs_scratch, mut grad_scratch) = (Scratch::default(), Scratch::default());
        let xs = xs_rows.wide(range.clone(), &mut xs_scratch);
        let grad = grad_rows.wide(range, &mut grad_scratch);
        (T::produce(out, |out| backward_block(xs, grad, n, eps, out)), ())
    });
    Tensor::from_vec(dx, xs.shape(), xs.device())
}

fn backward_block<'a, A: Real>(xs: &[A], grad: &[A], n: usize, eps: f64, out: Uninit<'a, A>) -> &'a mut [A] {
    A::dispatch(
        #[inline(always)]
        |m| {
            out.rows(
                n,
                #[inline(always)]
                |i, out| {
                    let (x, dy) = (&xs[i * n..(i + 1) * n], &grad[i * n..(i + 1) * n]);
                    let (scale, counts) = inverse(m, x, eps);
                    let along = if counts { simd::dot(m, x, dy) * scale * scale } else { A::zero() };
                    out.map2(
                        x,
                        dy,
                        #[inline(always)]
                        |x, dy| scale * m.fma(x, -along, dy),
                    )
                },
            )
        },
    )
}

#[cfg(test)]
mod tests {
    use candle_core::Device;
    use proptest::prelude::*;

    use super::*;
    use crate::testing::{Draw, assert_close, check_gradients, gradients, strided, tolerance};

    #[test]
    fn gradients_are_exact() -> Result<()> {
        let xs = Draw::new(1).normal(&[2, 3, 4], DType::F64)?;
        for dim in 0..3 {
            check_gradients(std::slice::from_ref(&xs), |t| l2_normalize(&t[0], dim, 1e-12));
        }
        // All below the limit.
        check_gradients(std::slice::from_ref(&xs), |t| l2_normalize(&t[0], 1, 100.));
        Ok(())
    }

    #[test]
    fn zeros_stay_zeros_and_their_gradient_is_finite() -> Result<()> {
        let xs = Tensor::zeros((2, 3), DType::F32, &Device::Cpu)?;
        for eps in [0., 1e-12] {
            assert_eq!(l2_normalize(&xs, 1, eps)?.to_vec2::<f32>()?, [[0.; 3]; 2]);
        }
        let grads = gradients(std::slice::from_ref(&xs), &xs.ones_like()?, |t| l2_normalize(&t[0], 1, 1e-12))?;
        assert!(grads[0].flatten_all()?.to_vec1::<f32>()?.iter().all(|g| g.is_finite()));
        Ok(())
    }

    #[test]
    fn wrong_input_is_refused_and_empty_input_is_not() -> Result<()> {
        let dev = Device::Cpu;
        assert!(l2_normalize(&Tensor::new(&[1f32], &dev)?, 1, 1e-12).is_err());
        assert!(l2_normalize(&Tensor::new(&[1f32], &dev)?, 0, -1.).is_err());
        assert!(l2_normalize(&Tensor::new(&[1u8], &dev)?, 0, 1e-12).is_err());
        assert_eq!(l2_normalize(&Tensor::zeros((3, 0), DType::F32, &dev)?, 1, 1e-12)?.dims(), [3, 0]);
        Ok(())
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(32))]

        #[test]
        fn agrees_with_the_reference(seed: u64) {
            let mut draw = Draw::new(seed);
            let shape = draw.shape(1..=4, 1..=9);
            let dim = draw.int(0..=shape.len() - 1);
            let dtype = draw.pick(&[DType::F32, DType::F64, DType::F16, DType::BF16]);
            let inputs = [strided(&mut draw, &shape, dtype).unwrap()];
            let eps = draw.pick(&[1e-3, 1.]);
            let ours = |t: &[Tensor]| l2_normalize(&t[0], dim, eps);
            let theirs = |t: &[Tensor]| reference(&t[0], dim, eps);
            assert_close(&ours(&inputs).unwrap(), &theirs(&inputs).unwrap(), tolerance(dtype));
            let dy = strided(&mut draw, &shape, dtype).unwrap();
            let (a, b) = (gradients(&inputs, &dy, ours).unwrap(), gradients(&inputs, &dy, theirs).unwrap());
            assert_close(&a[0], &b[0], 4. * tolerance(dtype));
        }
    }
}
