//! The CPU kernels of `unfold` and `fold`, each the other's gradient.

use candle_core::{CpuStorage, CustomOp1, Layout, Result, Shape, Tensor, WithDType, bail};
use rayon::prelude::*;

use crate::lanes::Lanes;
use crate::window::Window;

/// `(B, C, H, W)` to `(B, C taps, L)`, on the CPU in `f32` or `f64`.
pub(super) struct Unfold(pub(super) Window);

/// `(B, C taps, L)` to `(B, C, H, W)`, on the CPU in `f32` or `f64`.
pub(super) struct Fold(pub(super) Window);

impl CustomOp1 for Unfold {
    fn name(&self) -> &'static str {
        "unfold"
    }

    fn cpu_fwd(&self, storage: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        fn run<T: Lanes + WithDType>(window: &Window, xs: &[T]) -> CpuStorage {
            let columns = window.taps() * window.positions();
            let mut out = vec![T::zero(); xs.len() / window.volume() * columns];
            out.par_chunks_mut(columns)
                .zip(xs.par_chunks(window.volume()))
                .with_min_len(GRAIN.div_ceil(columns))
                .for_each(|(out, xs)| {
                    each_run(window, |run| {
                        let out = &mut out[run.column..run.column + run.len];
                        let xs = &xs[run.pixel..];
                        match run.stride {
                            1 => out.copy_from_slice(&xs[..run.len]),
                            stride => out.iter_mut().zip(xs.iter().step_by(stride)).for_each(|(t, &x)| *t = x),
                        }
                    });
                });
            T::to_cpu_storage_owned(out)
        }
        let (b, c, _, _) = layout.shape().dims4()?;
        let out = match (storage, layout.contiguous_offsets()) {
            (CpuStorage::F32(xs), Some((start, end))) => run(&self.0, &xs[start..end]),
            (CpuStorage::F64(xs), Some((start, end))) => run(&self.0, &xs[start..end]),
            _ => bail!("a kernel was given a tensor that is not contiguous or not f32 or f64"),
        };
        Ok((out, Shape::from((b, c * self.0.taps(), self.0.positions()))))
    }

    fn bwd(&self, _: &Tensor, _: &Tensor, grad: &Tensor) -> Result<Option<Tensor>> {
        Ok(Some(grad.contiguous()?.apply_op1_no_bwd(&Fold(self.0))?))
    }
}

impl CustomOp1 for Fold {
    fn name(&self) -> &'static str {
        "fold"
    }

    fn cpu_fwd(&self, storage: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        fn run<T: Lanes + WithDType>(window: &Window, xs: &[T]) -> CpuStorage {
            let columns = window.taps() * window.positions();
            let mut out = vec![T::zero(); xs.len() / columns * window.volume()];
            out.par_chunks_mut(window.volume())
                .zip(xs.par_chunks(columns))
                .with_min_len(GRAIN.div_ceil(columns))
                .for_each(|(out, xs)| {
                    each_run(window, |run| {
                        let xs = &xs[run.column..run.column + run.len];
                        let out = &mut out[run.pixel..];
                        match run.stride {
                            1 => out.iter_mut().zip(xs).for_each(|(t, &x)| *t += x),
                            stride => out.iter_mut().step_by(stride).zip(xs).for_each(|(t, &x)| *t += x),
                        }
                    });
                });
            T::to_cpu_storage_owned(out)
        }
        let (b, rows, _) = layout.shape().dims3()?;
        let out = match (storage, layout.contiguous_offsets()) {
            (CpuStorage::F32(xs), Some((start, end))) => run(&self.0, &xs[start..end]),
            (CpuStorage::F64(xs), Some((start, end))) => run(&self.0, &xs[start..end]),
            _ => bail!("a kernel was given a tensor that is not contiguous or not f32 or f64"),
        };
        let [_, h, w] = self.0.input;
        Ok((out, Shape::from((b, rows / self.0.taps(), h, w))))
    }

    fn bwd(&self, _: &Tensor, _: &Tensor, grad: &Tensor) -> Result<Option<Tensor>> {
        Ok(Some(grad.contiguous()?.apply_op1_no_bwd(&Unfold(self.0))?))
    }
}

/// Numbers that a task should move at least.
const GRAIN: usize = 1 << 14;

/// Neighbouring windows of one row whose tap lies inside the input.
struct Run {
    /// First element among the channel's columns.
    column: usize,
    /// First element in the channel's plane.
    pixel: usize,
    len: usize,
    /// From one pixel to the next.
    stride: usize,
}

fn each_run(window: &Window, mut f: impl FnMut(Run)) {
    let ([_, height, width], [_, kh, kw], [_, oh, ow]) = (window.input, window.kernel, window.output);
    let stride = window.stride[2];
    for i in 0..kh {
        for j in 0..kw {
            let (lo, hi) = window.valid(2, j);
            if lo == hi {
                continue;
            }
            let x = lo * stride + j * window.dilation[2] - window.padding[2];
            for y in 0..oh {
                let row = (y * window.stride[1] + i * window.dilation[1]).checked_sub(window.padding[1]);
                if let Some(row) = row.filter(|&row| row < height) {
                    let column = ((i * kw + j) * oh + y) * ow + lo;
                    f(Run { column, pixel: row * width + x, len: hi - lo, stride });
                }
            }
        }
    }
}
