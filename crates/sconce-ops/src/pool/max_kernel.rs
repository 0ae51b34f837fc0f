//! The CPU kernel of maximum pooling and its gradient.

use candle_core::{CpuStorage, CustomOp1, CustomOp2, Layout, Result, Shape, Tensor, WithDType, bail};
use pulp::{Arch, Simd, WithSimd};
use rayon::prelude::*;

use crate::lanes::Lanes;
use crate::window::Window;

/// Maximum over the windows of each plane of `(B, C, H, W)`, on the CPU in `f32` or `f64`.
#[derive(Clone, Copy)]
pub(super) struct Max(pub(super) Window);

impl Max {
    fn shape(&self, layout: &Layout, extent: [usize; 3]) -> Result<Shape> {
        let (b, c, _, _) = layout.shape().dims4()?;
        Ok(Shape::from((b, c, extent[1], extent[2])))
    }
}

impl CustomOp1 for Max {
    fn name(&self) -> &'static str {
        "max-pool"
    }

    fn cpu_fwd(&self, storage: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        fn run<T: Lanes + WithDType>(window: &Window, xs: &[T]) -> CpuStorage {
            let mut out = vec![T::neg_infinity(); xs.len() / window.volume() * window.positions()];
            Arch::new().dispatch(Forward { window, xs, out: &mut out });
            T::to_cpu_storage_owned(out)
        }
        let out = match (storage, layout.contiguous_offsets()) {
            (CpuStorage::F32(xs), Some((start, end))) => run(&self.0, &xs[start..end]),
            (CpuStorage::F64(xs), Some((start, end))) => run(&self.0, &xs[start..end]),
            _ => bail!("a kernel was given a tensor that is not contiguous or not f32 or f64"),
        };
        Ok((out, self.shape(layout, self.0.output)?))
    }

    fn bwd(&self, xs: &Tensor, _: &Tensor, grad: &Tensor) -> Result<Option<Tensor>> {
        Ok(Some(xs.contiguous()?.apply_op2_no_bwd(&grad.contiguous()?, self)?))
    }
}

/// The gradient, from the input and the output's gradient.
impl CustomOp2 for Max {
    fn name(&self) -> &'static str {
        "max-pool-grad"
    }

    fn cpu_fwd(&self, s1: &CpuStorage, l1: &Layout, s2: &CpuStorage, l2: &Layout) -> Result<(CpuStorage, Shape)> {
        fn run<T: Lanes + WithDType>(window: &Window, xs: &[T], grad: &[T]) -> CpuStorage {
            let mut out = vec![T::zero(); xs.len()];
            out.par_chunks_mut(window.volume())
                .zip(xs.par_chunks(window.volume()))
                .zip(grad.par_chunks(window.positions()))
                .with_min_len(GRAIN.div_ceil(window.volume()))
                .for_each(|((out, xs), grad)| backward(window, xs, grad, out));
            T::to_cpu_storage_owned(out)
        }
        let out = match (s1, s2, l1.contiguous_offsets(), l2.contiguous_offsets()) {
            (CpuStorage::F32(xs), CpuStorage::F32(grad), Some((a, b)), Some((c, d))) => {
                run(&self.0, &xs[a..b], &grad[c..d])
            }
            (CpuStorage::F64(xs), CpuStorage::F64(grad), Some((a, b)), Some((c, d))) => {
                run(&self.0, &xs[a..b], &grad[c..d])
            }
            _ => bail!("a kernel was given a tensor that is not contiguous or not f32 or f64"),
        };
        Ok((out, self.shape(l1, self.0.input)?))
    }
}

/// Numbers that a task should read at least.
const GRAIN: usize = 1 << 14;

struct Forward<'a, T> {
    window: &'a Window,
    xs: &'a [T],
    out: &'a mut [T],
}

impl<T: Lanes> WithSimd for Forward<'_, T> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let Self { window, xs, out } = self;
        out.par_chunks_mut(window.positions())
            .zip(xs.par_chunks(window.volume()))
            .with_min_len(GRAIN.div_ceil(window.volume()))
            .for_each(|(out, xs)| simd.vectorize(PlaneTask { window, xs, out }));
    }
}

struct PlaneTask<'a, T> {
    window: &'a Window,
    xs: &'a [T],
    out: &'a mut [T],
}

impl<T: Lanes> WithSimd for PlaneTask<'_, T> {
    type Output = ();

    /// Row by row and tap by tap; the result was filled with minus infinity.
    #[inline(always)]
    fn with_simd<S: Simd>(self, _: S) {
        let Self { window, xs, out } = self;
        let ([_, _, width], [_, kh, kw]) = (window.input, window.kernel);
        let stride = window.stride[2];
        for (y, out) in out.chunks_exact_mut(window.output[2]).enumerate() {
            for i in 0..kh {
                let Some(row) = source(window, y, i) else { continue };
                let row = &xs[row * width..][..width];
                for j in 0..kw {
                    let (lo, hi) = window.valid(2, j);
                    if lo == hi {
                        continue;
                    }
                    let row = &row[lo * stride + j - window.padding[2]..];
                    if stride == 1 {
                        out[lo..hi].iter_mut().zip(row).for_each(|(t, &x)| *t = larger(*t, x));
                    } else {
                        out[lo..hi].iter_mut().zip(row.iter().step_by(stride)).for_each(|(t, &x)| *t = larger(*t, x));
                    }
                }
            }
        }
    }
}

/// The row of the input that kernel row `i` sees for output row `y`.
#[inline(always)]
fn source(window: &Window, y: usize, i: usize) -> Option<usize> {
    (y * window.stride[1] + i).checked_sub(window.padding[1]).filter(|&row| row < window.input[1])
}

/// `x` if it is larger than `t` or no number, so that a NaN stays.
#[inline(always)]
fn larger<T: Lanes>(t: T, x: T) -> T {
    if x > t || x.is_nan() { x } else { t }
}

/// Adds each window's gradient to its first maximum.
fn backward<T: Lanes>(window: &Window, xs: &[T], grad: &[T], out: &mut [T]) {
    let ([_, _, width], [_, kh, kw]) = (window.input, window.kernel);
    for (y, grad) in grad.chunks_exact(window.output[2]).enumerate() {
        for (x, &g) in grad.iter().enumerate() {
            let left = x * window.stride[2];
            let (from, to) = (left.max(window.padding[2]), (left + kw).min(width + window.padding[2]));
            let columns = from - window.padding[2]..to - window.padding[2];
            let mut best: Option<usize> = None;
            for row in (0..kh).filter_map(|i| source(window, y, i)) {
                for at in row * width + columns.start..row * width + columns.end {
                    best = match best {
                        // As `larger` chooses: a later NaN replaces a number, never a NaN.
                        Some(b) if xs[b].is_nan() || !(xs[at] > xs[b] || xs[at].is_nan()) => Some(b),
                        _ => Some(at),
                    };
                }
            }
            if let Some(best) = best {
                out[best] = out[best] + g;
            }
        }
    }
}
