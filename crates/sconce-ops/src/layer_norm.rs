//! Layer normalisation, and the kernel that it shares with root-mean-square normalisation.

use candle_core::{CpuStorage, CustomOp3, D, Error, Layout, Result, Shape, Tensor, WithDType, backend::BackendStorage};
use num_traits::Zero;

use crate::{
    check,
    kernel::{
        Element, Math, Real, Rows, Scratch, Uninit, cpu_slice, fill, fill_rows,
        parallel::{join, rows_per_block, rows_per_partial},
        simd, wide_vec,
    },
    with_float,
};

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
    if !xs.device().is_cpu() {
        return reference(xs, weight, bias, eps);
    }
    let (weight, bias) = check::affine(xs, c, weight, bias)?;
    xs.apply_op3(&weight, &bias, RowNorm::<true> { eps })
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

/// Normalises rows: by mean and variance when `CENTRED`, else by the mean square.
pub(crate) struct RowNorm<const CENTRED: bool> {
    pub(crate) eps: f64,
}

/// Mean (0 unless `CENTRED`) and reciprocal standard deviation of a row.
#[inline(always)]
pub(crate) fn statistics<A: Real, const CENTRED: bool>(m: Math, row: &[A], eps: f64) -> (A, A) {
    let n = A::from_f64(row.len() as f64);
    let mean = if CENTRED { simd::sum(row) / n } else { A::zero() };
    let squares = simd::squares(m, row, mean);
    (mean, (squares / n + A::from_f64(eps)).sqrt().recip())
}

impl<const CENTRED: bool> RowNorm<CENTRED> {
    /// Gradients for the input, the weight and the bias, of those that are wanted.
    fn backward<T: Element>(&self, xs: &Tensor, w: &Tensor, b: &Tensor, grad: &Tensor) -> Result<Gradients> {
        let (want_dx, want_sums) = (xs.track_op(), w.track_op() || b.track_op());
        let ((xs_storage, xs_layout), (grad_storage, grad_layout)) =
            (xs.storage_and_layout(), grad.storage_and_layout());
        let xs_rows = Rows::<T>::last(cpu_slice(&xs_storage)?, xs_layout);
        let grad_rows = Rows::<T>::last(cpu_slice(&grad_storage)?, grad_layout);
        let n = xs_rows.len();
        let weight: Vec<T::Acc> = w.to_vec1::<T>()?.into_iter().map(Element::widen).collect();
        let block = if want_sums { rows_per_partial(xs_rows.count(), 2 * n) } else { rows_per_block(2 * n) };
        let (dx, partials) = fill(xs_rows.count(), if want_dx { n } else { 0 }, block, |range, out| {
            let (mut xs_scratch, mut grad_scratch) = (Scratch::default(), Scratch::default());
            let xs = xs_rows.wide(range.clone(), &mut xs_scratch);
            let grad = grad_rows.wide(range, &mut grad_scratch);
            let mut sums = vec![T::Acc::zero(); if want_sums { 2 * n } else { 0 }];
            let out = T::produce(out, |out| backward_block::<_, CENTRED>(xs, grad, &weight, self.eps, &mut sums, out));
            (out, sums)
        });
        let dx = want_dx.then(|| Tensor::from_vec(dx, xs.shape(), xs.device())).transpose()?;
        let mut dw = join(partials).unwrap_or_else(|| vec![T::Acc::zero(); 2 * n]);
        let db = if want_sums { dw.split_off(n) } else { Vec::new() };
        let parameter = |t: &Tensor, sums| match t.track_op() {
            true => Tensor::from_vec(T::narrow_vec(sums), t.shape(), t.device()).map(Some),
            false => Ok(None),
        };
        Ok((dx, parameter(w, dw)?, parameter(b, db)?))
    }
}

type Gradients = (Option<Tensor>, Option<Tensor>, Option<Tensor>);

fn forward_block<'a, A: Real, const CENTRED: bool>(
    xs: &[A],
    w: &[A],
    b: &[A],
    eps: f64,
    out: Uninit<'a, A>,
) -> &'a mut [A] {
    let n = w.len();
    A::dispatch(
        #[inline(always)]
        |m| {
            out.rows(
                n,
                #[inline(always)]
                |i, out| {
                    let row = &xs[i * n..(i + 1) * n];
                    let (mean, rstd) = statistics::<A, CENTRED>(m, row, eps);
                    out.map3(
                        row,
                        w,
                        b,
                        #[inline(always)]
                        |x, w, b| m.fma((x - mean) * rstd, w, b),
                    )
                },
            )
        },
    )
}

/// Writes `dx = rstd (g - mean(g) - x_hat mean(g x_hat))` with `g = dy * w` (without the first mean unless `CENTRED`), if there
/// is room for it, and adds `dy * x_hat` and `dy` to the sums, if there is room for them.
fn backward_block<'a, A: Real, const CENTRED: bool>(
    xs: &[A],
    grad: &[A],
    w: &[A],
    eps: f64,
    sums: &mut [A],
    out: Uninit<'a, A>,
) -> &'a mut [A] {
    let n = w.len();
    let rows = xs.chunks_exact(n.max(1)).zip(grad.chunks_exact(n.max(1)));
    A::dispatch(
        #[inline(always)]
        |m| {
            if !sums.is_empty() {
                let (dw, db) = sums.split_at_mut(n);
                for (row, dy) in rows {
                    let (mean, rstd) = statistics::<A, CENTRED>(m, row, eps);
                    for (((dw, db), &x), &dy) in dw.iter_mut().zip(db.iter_mut()).zip(row).zip(dy) {
                        *dw = m.fma((x - mean) * rstd, dy, *dw);
                        *db += dy;
                    }
                }
            }
            if out.is_empty() {
                return out.fill(A::zero());
            }
            let scale = A::from_f64((n as f64).recip());
            out.rows(
                n,
                #[inline(always)]
                |i, out| {
                    let (row, dy) = (&xs[i * n..(i + 1) * n], &grad[i * n..(i + 1) * n]);
                    let (mean, rstd) = statistics::<A, CENTRED>(m, row, eps);
                    let (plain, along) = row_sums(m, row, dy, w, mean);
                    let plain = if CENTRED { plain * scale } else { A::zero() };
                    let along = along * scale * rstd * rstd;
                    out.map3(
                        row,
                        dy,
                        w,
                        #[inline(always)]
                        |x, dy, w| rstd * m.fma(mean - x, along, m.fma(dy, w, -plain)),
                    )
                },
            )
        },
    )
}

/// Sums of `g` and of `g (x - mean)`, `g = dy * w`.
#[inline(always)]
fn row_sums<A: Real>(m: Math, row: &[A], dy: &[A], w: &[A], mean: A) -> (A, A) {
    let along = simd::fold3(
        row,
        dy,
        w,
        #[inline(always)]
        |sum, x, dy, w| m.fma((x - mean) * dy, w, sum),
    );
    (simd::dot(m, dy, w), along)
}

impl<const CENTRED: bool> CustomOp3 for RowNorm<CENTRED> {
    fn name(&self) -> &'static str {
        if CENTRED { "layer_norm" } else { "rms_norm" }
    }

    fn cpu_fwd(
        &self,
        xs: &CpuStorage,
        xl: &Layout,
        w: &CpuStorage,
        wl: &Layout,
        b: &CpuStorage,
        bl: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let storage = with_float!(xs.dtype(), self.name(), T => {
            let rows = Rows::<T>::last(T::cpu_storage_as_slice(xs)?, xl);
            let w = wide_vec(T::cpu_storage_as_slice(w)?, wl);
            let b = wide_vec(T::cpu_storage_as_slice(b)?, bl);
            let out = fill_rows(rows.count(), rows.len(), |range, out| {
                let mut scratch = Scratch::default();
                let xs = rows.wide(range, &mut scratch);
                T::produce(out, |out| forward_block::<_, CENTRED>(xs, &w, &b, self.eps, out))
            });
            Ok::<_, Error>(T::to_cpu_storage_owned(out))
        })?;
        Ok((storage, xl.shape().clone()))
    }

    fn bwd(&self, xs: &Tensor, w: &Tensor, b: &Tensor, _: &Tensor, grad: &Tensor) -> Result<Gradients> {
        with_float!(xs.dtype(), self.name(), T => self.backward::<T>(xs, w, b, grad))
    }
}

#[cfg(test)]
mod tests {
    use candle_core::{DType, Device};
    use proptest::prelude::*;

    use super::*;
    use crate::testing::{Draw, assert_close, check_gradients, gradients, strided, tolerance};

    #[test]
    fn gradients_are_exact() -> Result<()> {
        let mut draw = Draw::new(1);
        let xs = draw.normal(&[2, 3, 5], DType::F64)?;
        let (w, b) = (draw.normal(&[5], DType::F64)?, draw.normal(&[5], DType::F64)?);
        check_gradients(&[xs.clone(), w.clone(), b.clone()], |t| layer_norm(&t[0], Some(&t[1]), Some(&t[2]), 1e-5));
        check_gradients(&[xs.clone(), w], |t| layer_norm(&t[0], Some(&t[1]), None, 1e-5));
        check_gradients(&[xs.clone(), b], |t| layer_norm(&t[0], None, Some(&t[1]), 1e-5));
        check_gradients(&[xs], |t| layer_norm(&t[0], None, None, 1e-5));
        Ok(())
    }

    #[test]
    fn wrong_shapes_and_types_are_refused() -> Result<()> {
        let dev = Device::Cpu;
        let (xs, w) = (Tensor::zeros((2, 3), DType::F32, &dev)?, Tensor::zeros(4, DType::F32, &dev)?);
        assert!(layer_norm(&xs, Some(&w), None, 1e-5).is_err());
        assert!(layer_norm(&xs, None, Some(&w), 1e-5).is_err());
        assert!(layer_norm(&xs, Some(&Tensor::zeros(3, DType::F64, &dev)?), None, 1e-5).is_err());
        assert!(layer_norm(&xs, None, None, -1.).is_err());
        assert!(layer_norm(&Tensor::new(1f32, &dev)?, None, None, 1e-5).is_err());
        assert!(layer_norm(&Tensor::zeros((2, 3), DType::U8, &dev)?, None, None, 1e-5).is_err());
        Ok(())
    }

    #[test]
    fn empty_tensors_and_nan_pass() -> Result<()> {
        for shape in [(0, 3), (3, 0)] {
            let xs = candle_core::Var::zeros(shape, DType::F32, &Device::Cpu)?;
            let w = candle_core::Var::ones(shape.1, DType::F32, &Device::Cpu)?;
            let ys = layer_norm(&xs, Some(&w), Some(&w), 1e-5)?;
            assert_eq!(ys.dims(), xs.dims());
            ys.sum_all()?.backward()?;
        }
        let xs = Tensor::new(&[[1f32, f32::NAN], [1., 3.]], &Device::Cpu)?;
        let ys = layer_norm(&xs, None, None, 0.)?.to_vec2::<f32>()?;
        assert!(ys[0].iter().all(|y| y.is_nan()));
        assert_eq!(ys[1], [-1., 1.]);
        Ok(())
    }

    #[test]
    fn gradients_have_the_same_bits_on_any_number_of_threads() -> Result<()> {
        let mut draw = Draw::new(2);
        let xs = draw.normal(&[700, 65], DType::F32)?;
        let (w, dy) = (draw.normal(&[65], DType::F32)?, draw.normal(&[700, 65], DType::F32)?);
        let run = |threads| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            let grads = pool.install(|| {
                gradients(&[xs.clone(), w.clone(), w.clone()], &dy, |t| {
                    layer_norm(&t[0], Some(&t[1]), Some(&t[2]), 1e-6)
                })
            });
            grads.unwrap().iter().map(|g| g.flatten_all().unwrap().to_vec1::<f32>().unwrap()).collect::<Vec<_>>()
        };
        assert_eq!(run(1), run(3));
        Ok(())
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(32))]

        #[test]
        fn agrees_with_the_reference(seed: u64, with_weight: bool, with_bias: bool) {
            let mut draw = Draw::new(seed);
            let mut shape = draw.shape(0..=3, 1..=6);
            shape.push(draw.int(2..=70));
            let dtype = draw.pick(&[DType::F32, DType::F64, DType::F16, DType::BF16]);
            let c = shape[shape.len() - 1];
            let inputs: Vec<Tensor> = [&shape[..], &[c], &[c]].iter().map(|s| strided(&mut draw, s, dtype).unwrap()).collect();
            let some = |t: &[Tensor]| (with_weight.then(|| t[1].clone()), with_bias.then(|| t[2].clone()));
            let ours = |t: &[Tensor]| { let (w, b) = some(t); layer_norm(&t[0], w.as_ref(), b.as_ref(), 1e-2) };
            let theirs = |t: &[Tensor]| { let (w, b) = some(t); reference(&t[0], w.as_ref(), b.as_ref(), 1e-2) };
            // In double precision: of a row of equal values the reference in f32 leaves its own rounding, enlarged by `eps`.
            let wide: Vec<Tensor> = inputs.iter().map(|t| t.to_dtype(DType::F64).unwrap()).collect();
            assert_close(&ours(&inputs).unwrap(), &theirs(&wide).unwrap(), tolerance(dtype));
            let used: Vec<usize> = [Some(0), with_weight.then_some(1), with_bias.then_some(2)].into_iter().flatten().collect();
            let dy = strided(&mut draw, &shape, dtype).unwrap();
            let vary = |f: &dyn Fn(&[Tensor]) -> Result<Tensor>| {
                let varied: Vec<Tensor> = used.iter().map(|&i| inputs[i].clone()).collect();
                gradients(&varied, &dy, |t| {
                    let mut all = inputs.clone();
                    for (&i, t) in used.iter().zip(t) { all[i] = t.clone(); }
                    f(&all)
                }).unwrap()
            };
            for (a, b) in vary(&ours).iter().zip(vary(&theirs)) {
                assert_close(a, &b, 4. * tolerance(dtype));
            }
        }
    }
}
