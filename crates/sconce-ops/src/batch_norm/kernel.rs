//! One pass for the statistics, one for the result; the same backward.

use candle_core::{CpuStorage, CustomOp3, Error, Layout, Result, Shape, Tensor, WithDType, backend::BackendStorage};

use crate::{
    kernel::{
        Element, Real, Rows, Scratch, Uninit, cpu_slice, fill, fill_rows, parallel::rows_per_block, simd, wide_vec,
    },
    with_float,
};

/// Normalisation by statistics that are known, and through which gradients flow if they are those of this very batch.
pub(super) struct BatchNorm {
    mean: Vec<f64>,
    rstd: Vec<f64>,
    train: bool,
}

type Gradients = (Option<Tensor>, Option<Tensor>, Option<Tensor>);

/// How rows of `(B, C, *)` belong to channels: as one row for each channel of each sample if memory lies so, else as rows of
/// the last dimension.
fn layout(xs: &Layout) -> (Layout, usize) {
    let dims = xs.dims();
    let outer = dims[0] * dims[1];
    match xs.is_contiguous() {
        true => {
            let positions = xs.shape().elem_count() / outer.max(1);
            (Layout::contiguous_with_offset((outer, positions), xs.start_offset()), 1)
        }
        false => (xs.clone(), dims[2..dims.len() - 1].iter().product()),
    }
}

/// Mean and biased variance of each channel of `(B, C, *, N)`, which is not empty.
pub(super) fn statistics<T: Element>(xs: &Tensor) -> Result<(Vec<f64>, Vec<f64>)> {
    let c = xs.dim(1)?;
    let (storage, xs_layout) = xs.storage_and_layout();
    let (layout, per_channel) = layout(xs_layout);
    let rows = Rows::<T>::last(cpu_slice(&storage)?, &layout);
    let n = rows.len();
    let (moments, _) = fill(rows.count(), 2, rows_per_block(n), |range, out| {
        let mut scratch = Scratch::default();
        (moments(rows.wide(range, &mut scratch), n, out), ())
    });
    // Rows are alike in length, so the mean is that of their means and the variance adds how these vary (Chan et al. 1979).
    let moments: Vec<[f64; 2]> =
        moments.as_chunks().0.iter().map(|&[mean, squares]| [mean, squares].map(double)).collect();
    let channel = |r: usize| r / per_channel.max(1) % c;
    let per = (rows.count() / c) as f64;
    let mut mean = vec![0.; c];
    for (r, [row_mean, _]) in moments.iter().enumerate() {
        mean[channel(r)] += row_mean / per;
    }
    let mut var = vec![0.; c];
    for (r, [row_mean, squares]) in moments.iter().enumerate() {
        let c = channel(r);
        var[c] += (squares / n as f64 + (row_mean - mean[c]).powi(2)) / per;
    }
    Ok((mean, var))
}

fn double<A: Real>(x: A) -> f64 {
    WithDType::to_f64(x)
}

/// Mean and sum of squares around it, for each row.
fn moments<'a, A: Real>(xs: &[A], n: usize, out: Uninit<'a, A>) -> &'a mut [A] {
    A::dispatch(
        #[inline(always)]
        |m| {
            let scale = A::from_f64((n as f64).recip());
            let out = out.fill(A::zero());
            for (out, row) in out.as_chunks_mut::<2>().0.iter_mut().zip(xs.chunks_exact(n)) {
                let mean = simd::sum(row) * scale;
                let squares = simd::squares(m, row, mean);
                *out = [mean, squares];
            }
            out
        },
    )
}

/// For each row, which channel `r / per_channel % C` it belongs to, and what is done to it there.
struct Channels<'a, A> {
    per_channel: usize,
    centre: &'a [A],
    slopes: &'a [[A; 3]],
}

impl<A: Real> Channels<'_, A> {
    #[inline(always)]
    fn get(&self, row: usize) -> (A, [A; 3]) {
        let c = row / self.per_channel.max(1) % self.centre.len();
        (self.centre[c], self.slopes[c])
    }

    /// `a (x - centre) + c` with `[a, _, c]`
    fn forward<'a>(&self, xs: &[A], n: usize, first: usize, out: Uninit<'a, A>) -> &'a mut [A] {
        A::dispatch(
            #[inline(always)]
            |m| {
                out.rows(
                    n,
                    #[inline(always)]
                    |i, out| {
                        let (centre, [a, _, c]) = self.get(first + i);
                        out.map(
                            &xs[i * n..(i + 1) * n],
                            #[inline(always)]
                            |x| m.fma(x - centre, a, c),
                        )
                    },
                )
            },
        )
    }

    /// `a (x - centre) + b dy + c` with `[a, b, c]`
    fn backward<'a>(&self, xs: &[A], dy: &[A], n: usize, first: usize, out: Uninit<'a, A>) -> &'a mut [A] {
        A::dispatch(
            #[inline(always)]
            |m| {
                out.rows(
                    n,
                    #[inline(always)]
                    |i, out| {
                        let (centre, [a, b, c]) = self.get(first + i);
                        out.map2(
                            &xs[i * n..(i + 1) * n],
                            &dy[i * n..(i + 1) * n],
                            #[inline(always)]
                            |x, dy| m.fma(x - centre, a, m.fma(b, dy, c)),
                        )
                    },
                )
            },
        )
    }

    /// Sums of `dy` and of `dy (x - centre)` for each row.
    fn sums<'a>(&self, xs: &[A], dy: &[A], n: usize, first: usize, out: Uninit<'a, A>) -> &'a mut [A] {
        A::dispatch(
            #[inline(always)]
            |m| {
                let out = out.fill(A::zero());
                for (i, out) in out.as_chunks_mut::<2>().0.iter_mut().enumerate() {
                    let (centre, _) = self.get(first + i);
                    let (x, dy) = (&xs[i * n..(i + 1) * n], &dy[i * n..(i + 1) * n]);
                    let along = simd::fold2(
                        x,
                        dy,
                        A::zero(),
                        #[inline(always)]
                        |sum, x, dy| m.fma(x - centre, dy, sum),
                        #[inline(always)]
                        |a, b| a + b,
                    );
                    *out = [simd::sum(dy), along];
                }
                out
            },
        )
    }
}

impl BatchNorm {
    pub(super) fn new(mean: Vec<f64>, var: &[f64], eps: f64, train: bool) -> Self {
        let rstd = var.iter().map(|var| (var + eps).sqrt().recip()).collect();
        Self { mean, rstd, train }
    }

    fn narrow<A: Real>(&self, slopes: impl Fn(usize) -> [f64; 3]) -> (Vec<A>, Vec<[A; 3]>) {
        let centre = self.mean.iter().map(|&x| A::from_f64(x)).collect();
        (centre, (0..self.mean.len()).map(|c| slopes(c).map(A::from_f64)).collect())
    }

    fn backward<T: Element>(&self, xs: &Tensor, w: &Tensor, b: &Tensor, grad: &Tensor) -> Result<Gradients> {
        let ((xs_storage, xs_layout), (grad_storage, grad_layout)) =
            (xs.storage_and_layout(), grad.storage_and_layout());
        let ((xs_rows, per_channel), (grad_rows, _)) = match xs_layout.is_contiguous() && grad_layout.is_contiguous() {
            true => (layout(xs_layout), layout(grad_layout)),
            // Rows of the last dimension on both sides, or they would not be the same rows.
            false => {
                let per_channel = xs.dims()[2..xs.rank() - 1].iter().product();
                ((xs_layout.clone(), per_channel), (grad_layout.clone(), per_channel))
            }
        };
        let xs_rows = Rows::<T>::last(cpu_slice(&xs_storage)?, &xs_rows);
        let grad_rows = Rows::<T>::last(cpu_slice(&grad_storage)?, &grad_rows);
        let (n, rows, channels) = (xs_rows.len(), xs_rows.count(), self.mean.len());
        let block = rows_per_block(2 * n);

        let mut totals = vec![[0f64; 2]; channels];
        if w.track_op() || b.track_op() || self.train {
            let (centre, slopes) = self.narrow::<T::Acc>(|_| [0.; 3]);
            let place = Channels { per_channel, centre: &centre, slopes: &slopes };
            let (sums, _) = fill(rows, 2, block, |range, out| {
                let (mut xs_scratch, mut grad_scratch) = (Scratch::default(), Scratch::default());
                let xs = xs_rows.wide(range.clone(), &mut xs_scratch);
                let grad = grad_rows.wide(range.clone(), &mut grad_scratch);
                (place.sums(xs, grad, n, range.start, out), ())
            });
            for (r, &[plain, along]) in sums.as_chunks().0.iter().enumerate() {
                let total = &mut totals[r / per_channel.max(1) % channels];
                total[0] += double(plain);
                total[1] += double(along);
            }
        }

        let weight: Vec<f64> = w.to_vec1::<T>()?.into_iter().map(WithDType::to_f64).collect();
        let count = (rows * n / channels.max(1)) as f64;
        let dx = xs.track_op().then(|| {
            let (centre, slopes) = self.narrow::<T::Acc>(|c| {
                let scale = weight[c] * self.rstd[c];
                match self.train {
                    true => {
                        let [plain, along] = totals[c].map(|sum| sum / count);
                        [-scale * self.rstd[c].powi(2) * along, scale, -scale * plain]
                    }
                    false => [0., scale, 0.],
                }
            });
            let place = Channels { per_channel, centre: &centre, slopes: &slopes };
            let (dx, _) = fill(rows, n, block, |range, out| {
                let (mut xs_scratch, mut grad_scratch) = (Scratch::default(), Scratch::default());
                let first = range.start;
                let xs = xs_rows.wide(range.clone(), &mut xs_scratch);
                let grad = grad_rows.wide(range, &mut grad_scratch);
                (T::produce(out, |out| place.backward(xs, grad, n, first, out)), ())
            });
            Tensor::from_vec(dx, xs.shape(), xs.device())
        });
        let parameter = |t: &Tensor, sums: &dyn Fn(usize) -> f64| match t.track_op() {
            true => {
                let values: Vec<f64> = (0..channels).map(sums).collect();
                Tensor::new(values, t.device())?.to_dtype(t.dtype()).map(Some)
            }
            false => Ok(None),
        };
        let (dw, db) = (parameter(w, &|c| totals[c][1] * self.rstd[c])?, parameter(b, &|c| totals[c][0])?);
        Ok((dx.transpose()?, dw, db))
    }
}

impl CustomOp3 for BatchNorm {
    fn name(&self) -> &'static str {
        if self.train { "batch_norm_train" } else { "batch_norm" }
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
            let w = wide_vec::<T>(T::cpu_storage_as_slice(w)?, wl);
            let b = wide_vec::<T>(T::cpu_storage_as_slice(b)?, bl);
            let (centre, slopes) = self.narrow(|c| [double(w[c]) * self.rstd[c], 0., double(b[c])]);
            let (layout, per_channel) = layout(xl);
            let place = Channels { per_channel, centre: &centre, slopes: &slopes };
            let rows = Rows::<T>::last(T::cpu_storage_as_slice(xs)?, &layout);
            let out = fill_rows(rows.count(), rows.len(), |range, out| {
                let (mut scratch, first) = (Scratch::default(), range.start);
                let xs = rows.wide(range, &mut scratch);
                T::produce(out, |out| place.forward(xs, rows.len(), first, out))
            });
            Ok::<_, Error>(T::to_cpu_storage_owned(out))
        })?;
        Ok((storage, xl.shape().clone()))
    }

    fn bwd(&self, xs: &Tensor, w: &Tensor, b: &Tensor, _: &Tensor, grad: &Tensor) -> Result<Gradients> {
        with_float!(xs.dtype(), self.name(), T => self.backward::<T>(xs, w, b, grad))
    }
}
