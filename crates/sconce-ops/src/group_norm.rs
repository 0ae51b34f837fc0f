//! Group normalisation.

use candle_core::{CpuStorage, CustomOp3, D, Layout, Result, Shape, Tensor, WithDType, backend::BackendStorage};

use crate::{
    Error, check,
    kernel::{
        Element, Real, Rows, Scratch, Uninit, cpu_slice, fill, fill_rows,
        parallel::rows_per_block,
        rows::{contiguous, contiguous_slice},
        simd, wide_vec,
    },
    layer_norm::statistics,
    with_float,
};

/// Group normalisation, Wu and He 2018: each sample's channels in `groups` runs, each run normalised by its own mean and biased
/// variance, then `weight` and `bias` for each channel.
///
/// # Shapes
/// - `xs`: `(B, C, *)`, `C` a multiple of `groups`; `weight`, `bias`: `(C)`
/// - output: as `xs`
///
/// # Errors
/// When shapes or types do not fit.
pub fn group_norm(
    xs: &Tensor,
    groups: usize,
    weight: Option<&Tensor>,
    bias: Option<&Tensor>,
    eps: f64,
) -> Result<Tensor> {
    let op = "group_norm";
    check::float(op, xs)?;
    check::epsilon(op, eps)?;
    let c = check::channels(op, xs)?;
    if groups == 0 || c % groups != 0 {
        return Err(Error::value(op, "groups", format!("a divisor of {c} channels"), groups).into());
    }
    check::parameter(op, "weight", weight, c, xs)?;
    check::parameter(op, "bias", bias, c, xs)?;
    if !xs.device().is_cpu() {
        return reference(xs, groups, weight, bias, eps);
    }
    let (weight, bias) = check::affine(xs, c, weight, bias)?;
    xs.apply_op3(&weight, &bias, GroupNorm { groups, eps })
}

/// The same by candle's own operations; differentiable.
pub(crate) fn reference(
    xs: &Tensor,
    groups: usize,
    weight: Option<&Tensor>,
    bias: Option<&Tensor>,
    eps: f64,
) -> Result<Tensor> {
    if xs.elem_count() == 0 {
        return Ok(xs.clone());
    }
    let (b, c) = (xs.dim(0)?, xs.dim(1)?);
    let wide = xs.to_dtype(check::wide(xs.dtype()))?.reshape((b, groups, ()))?; // (B, groups, C / groups * N)
    let centred = wide.broadcast_sub(&wide.mean_keepdim(D::Minus1)?)?;
    let var = centred.sqr()?.mean_keepdim(D::Minus1)?;
    let normal = centred.broadcast_div(&(var + eps)?.sqrt()?)?.reshape((b, c, ()))?; // (B, C, N)
    channel_affine(&normal, weight, bias)?.reshape(xs.shape())?.to_dtype(xs.dtype())
}

/// `xs * weight + bias` along dimension 1 of `(B, C, N)`, computed in the type of `xs`.
pub(crate) fn channel_affine(xs: &Tensor, weight: Option<&Tensor>, bias: Option<&Tensor>) -> Result<Tensor> {
    let column = |t: &Tensor| t.to_dtype(xs.dtype())?.reshape((1, t.elem_count(), 1));
    let mut ys = xs.clone();
    if let Some(weight) = weight {
        ys = ys.broadcast_mul(&column(weight)?)?;
    }
    if let Some(bias) = bias {
        ys = ys.broadcast_add(&column(bias)?)?;
    }
    Ok(ys)
}

/// A row is one sample's group: `C / groups` channels of `N` elements.
struct GroupNorm {
    groups: usize,
    eps: f64,
}

type Gradients = (Option<Tensor>, Option<Tensor>, Option<Tensor>);

impl GroupNorm {
    /// The input as rows, whatever its shape.
    fn layout(&self, shape: &Shape) -> Layout {
        let rows = shape.dims()[0] * self.groups;
        Layout::contiguous((rows, shape.elem_count() / rows.max(1)))
    }

    fn backward<T: Element>(&self, xs: &Tensor, w: &Tensor, b: &Tensor, grad: &Tensor) -> Result<Gradients> {
        let (want_dx, want_sums) = (xs.track_op(), w.track_op() || b.track_op());
        let ((xs_storage, xs_layout), (grad_storage, grad_layout)) =
            (xs.storage_and_layout(), grad.storage_and_layout());
        let xs_data = contiguous_slice(cpu_slice::<T>(&xs_storage)?, xs_layout);
        let grad_data = contiguous_slice(cpu_slice::<T>(&grad_storage)?, grad_layout);
        let rows = self.layout(xs.shape());
        let (xs_rows, grad_rows) = (Rows::last(&xs_data, &rows), Rows::last(&grad_data, &rows));
        let weight: Vec<T::Acc> = w.to_vec1::<T>()?.into_iter().map(Element::widen).collect();
        let channels = weight.len() / self.groups;
        let n = xs_rows.len();
        let (dx, sums) = fill(xs_rows.count(), if want_dx { n } else { 0 }, rows_per_block(2 * n), |range, out| {
            let (mut xs_scratch, mut grad_scratch) = (Scratch::default(), Scratch::default());
            let first = range.start;
            let xs = xs_rows.wide(range.clone(), &mut xs_scratch);
            let grad = grad_rows.wide(range.clone(), &mut grad_scratch);
            let mut sums = vec![<T::Acc as num_traits::Zero>::zero(); 2 * channels * range.len()];
            let out = T::produce(out, |out| self.backward_rows(xs, grad, n, &weight, first, &mut sums, out));
            (out, sums)
        });
        let dx = want_dx.then(|| Tensor::from_vec(dx, xs.shape(), xs.device())).transpose()?;
        // Sums of a row: first those for the weight, then those for the bias.
        let mut totals = [vec![T::Acc::default(); weight.len()], vec![T::Acc::default(); weight.len()]];
        if want_sums {
            for (r, row) in sums.concat().chunks_exact(2 * channels.max(1)).enumerate() {
                let group = r % self.groups * channels;
                for (total, sums) in totals.iter_mut().zip(row.chunks_exact(channels)) {
                    for (total, &sum) in total[group..].iter_mut().zip(sums) {
                        *total += sum;
                    }
                }
            }
        }
        let [dw, db] = totals;
        let parameter = |t: &Tensor, sums| match t.track_op() {
            true => Tensor::from_vec(T::narrow_vec(sums), t.shape(), t.device()).map(Some),
            false => Ok(None),
        };
        Ok((dx, parameter(w, dw)?, parameter(b, db)?))
    }

    fn forward_rows<'a, A: Real>(
        &self,
        xs: &[A],
        n: usize,
        (w, b): (&[A], &[A]),
        first: usize,
        out: Uninit<'a, A>,
    ) -> &'a mut [A] {
        let channels = w.len() / self.groups;
        let per_channel = n / channels.max(1);
        A::dispatch(
            #[inline(always)]
            |m| {
                out.rows(
                    n,
                    #[inline(always)]
                    |i, out| {
                        let row = &xs[i * n..(i + 1) * n];
                        let (mean, rstd) = statistics::<A, true>(m, row, self.eps);
                        let group = (first + i) % self.groups * channels;
                        out.rows(
                            per_channel,
                            #[inline(always)]
                            |j, out| {
                                let scale = rstd * w[group + j];
                                let bias = b[group + j];
                                out.map(
                                    &row[j * per_channel..(j + 1) * per_channel],
                                    #[inline(always)]
                                    |x| m.fma(x - mean, scale, bias),
                                )
                            },
                        )
                    },
                )
            },
        )
    }

    /// As for layer normalisation, the weight being constant along each channel.
    #[expect(clippy::too_many_arguments, reason = "the block and its place")]
    fn backward_rows<'a, A: Real>(
        &self,
        xs: &[A],
        grad: &[A],
        n: usize,
        w: &[A],
        first: usize,
        sums: &mut [A],
        out: Uninit<'a, A>,
    ) -> &'a mut [A] {
        let channels = w.len() / self.groups;
        let per_channel = n / channels.max(1);
        let wanted = !out.is_empty();
        if n == 0 {
            return out.fill(A::zero());
        }
        A::dispatch(
            #[inline(always)]
            |m| {
                let rows = sums.chunks_exact_mut(2 * channels.max(1)).enumerate();
                let mut moments = Vec::with_capacity(rows.len());
                for (i, sums) in rows {
                    let (row, dy) = (&xs[i * n..(i + 1) * n], &grad[i * n..(i + 1) * n]);
                    let (mean, rstd) = statistics::<A, true>(m, row, self.eps);
                    let group = (first + i) % self.groups * channels;
                    let (dw, db) = sums.split_at_mut(channels);
                    let (mut plain, mut along) = (A::zero(), A::zero());
                    for j in 0..channels {
                        let place = j * per_channel..(j + 1) * per_channel;
                        let (x, dy) = (&row[place.clone()], &dy[place]);
                        db[j] = simd::sum(dy);
                        dw[j] = rstd
                            * simd::fold2(
                                x,
                                dy,
                                A::zero(),
                                #[inline(always)]
                                |sum, x, dy| m.fma(x - mean, dy, sum),
                                #[inline(always)]
                                |a, b| a + b,
                            );
                        plain = m.fma(w[group + j], db[j], plain);
                        along = m.fma(w[group + j], dw[j], along);
                    }
                    let scale = A::from_f64((n as f64).recip());
                    moments.push((mean, rstd, plain * scale, along * scale * rstd));
                }
                if !wanted {
                    return out.fill(A::zero());
                }
                out.rows(
                    n,
                    #[inline(always)]
                    |i, out| {
                        let (mean, rstd, plain, along) = moments[i];
                        let group = (first + i) % self.groups * channels;
                        out.rows(
                            per_channel,
                            #[inline(always)]
                            |j, out| {
                                let place = i * n + j * per_channel..i * n + (j + 1) * per_channel;
                                let w = w[group + j];
                                out.map2(
                                    &xs[place.clone()],
                                    &grad[place],
                                    #[inline(always)]
                                    |x, dy| rstd * m.fma(mean - x, along, m.fma(dy, w, -plain)),
                                )
                            },
                        )
                    },
                )
            },
        )
    }
}

impl CustomOp3 for GroupNorm {
    fn name(&self) -> &'static str {
        "group_norm"
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
            let data = contiguous::<T>(xs, xl)?;
            let layout = self.layout(xl.shape());
            let rows = Rows::last(&data, &layout);
            let w = wide_vec::<T>(T::cpu_storage_as_slice(w)?, wl);
            let b = wide_vec::<T>(T::cpu_storage_as_slice(b)?, bl);
            let out = fill_rows(rows.count(), rows.len(), |range, out| {
                let (mut scratch, first) = (Scratch::default(), range.start);
                let xs = rows.wide(range, &mut scratch);
                T::produce(out, |out| self.forward_rows(xs, rows.len(), (&w, &b), first, out))
            });
            Ok::<_, candle_core::Error>(T::to_cpu_storage_owned(out))
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
        let xs = draw.normal(&[2, 6, 2, 3], DType::F64)?;
        let (w, b) = (draw.normal(&[6], DType::F64)?, draw.normal(&[6], DType::F64)?);
        for groups in [1, 2, 6] {
            check_gradients(&[xs.clone(), w.clone(), b.clone()], |t| {
                group_norm(&t[0], groups, Some(&t[1]), Some(&t[2]), 1e-5)
            });
        }
        check_gradients(&[xs], |t| group_norm(&t[0], 3, None, None, 1e-5));
        Ok(())
    }

    #[test]
    fn wrong_input_is_refused_and_empty_input_is_not() -> Result<()> {
        let dev = Device::Cpu;
        let xs = Tensor::zeros((2, 6, 4), DType::F32, &dev)?;
        assert!(group_norm(&xs, 4, None, None, 1e-5).is_err());
        assert!(group_norm(&xs, 0, None, None, 1e-5).is_err());
        assert!(group_norm(&xs, 2, Some(&Tensor::zeros(4, DType::F32, &dev)?), None, 1e-5).is_err());
        assert!(group_norm(&Tensor::zeros(6, DType::F32, &dev)?, 2, None, None, 1e-5).is_err());
        for shape in [(0, 6, 4), (2, 0, 4), (2, 6, 0)] {
            let xs = candle_core::Var::zeros(shape, DType::F32, &dev)?;
            let w = candle_core::Var::ones(shape.1, DType::F32, &dev)?;
            let ys = group_norm(&xs, 2, Some(&w), None, 1e-5)?;
            assert_eq!(ys.dims(), xs.dims());
            ys.sum_all()?.backward()?;
        }
        Ok(())
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(24))]

        #[test]
        fn agrees_with_the_reference(seed: u64) {
            let mut draw = Draw::new(seed);
            let (groups, per_group) = (draw.int(1..=3), draw.int(1..=3));
            let c = groups * per_group;
            let mut shape = vec![draw.int(1..=3), c];
            shape.extend(draw.shape(0..=2, 1..=7));
            shape.push(draw.int(2..=7));
            let dtype = draw.pick(&[DType::F32, DType::F64, DType::F16, DType::BF16]);
            let inputs = [&shape[..], &[c], &[c]].map(|s| strided(&mut draw, s, dtype).unwrap());
            let ours = |t: &[Tensor]| group_norm(&t[0], groups, Some(&t[1]), Some(&t[2]), 1e-2);
            let theirs = |t: &[Tensor]| reference(&t[0], groups, Some(&t[1]), Some(&t[2]), 1e-2);
            assert_close(&ours(&inputs).unwrap(), &theirs(&inputs).unwrap(), tolerance(dtype));
            let dy = strided(&mut draw, &shape, dtype).unwrap();
            let (a, b) = (gradients(&inputs, &dy, ours).unwrap(), gradients(&inputs, &dy, theirs).unwrap());
            for (a, b) in a.iter().zip(&b) {
                assert_close(a, b, 4. * tolerance(dtype));
            }
        }
    }
}
