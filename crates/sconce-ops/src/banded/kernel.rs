//! The CPU kernel: one plane at a time, first the axis that leaves less to do.

use candle_core::{CpuStorage, CustomOp1, Layout, Result, Shape, Tensor, WithDType, bail};
use pulp::{Arch, Simd, WithSimd};
use rayon::prelude::*;

use super::Band;
use crate::lanes::Lanes;

/// `rows * plane * columns^T` of each plane of `(B, C, H, W)`, on the CPU in `f32` or `f64`.
pub(super) struct Banded {
    rows: Band,
    columns: Band,
}

impl Banded {
    pub(super) fn new(rows: Band, columns: Band) -> Self {
        Self { rows, columns }
    }

    fn run<T: Lanes + WithDType>(&self, xs: &[T], planes: usize) -> CpuStorage {
        let size = self.rows.output() * self.columns.output();
        let mut out = vec![T::zero(); planes * size];
        if !out.is_empty() {
            let (rows, columns) = (Weights::new(&self.rows), Weights::new(&self.columns));
            Arch::new().dispatch(Job { rows: &rows, columns: &columns, xs, out: &mut out });
        }
        T::to_cpu_storage_owned(out)
    }
}

impl CustomOp1 for Banded {
    fn name(&self) -> &'static str {
        "banded"
    }

    fn cpu_fwd(&self, storage: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let (b, c, _, _) = layout.shape().dims4()?;
        let out = match (storage, layout.contiguous_offsets()) {
            (CpuStorage::F32(xs), Some((start, end))) => self.run(&xs[start..end], b * c),
            (CpuStorage::F64(xs), Some((start, end))) => self.run(&xs[start..end], b * c),
            _ => bail!("a kernel was given a tensor that is not contiguous or not f32 or f64"),
        };
        Ok((out, Shape::from((b, c, self.rows.output(), self.columns.output()))))
    }

    fn bwd(&self, _: &Tensor, _: &Tensor, grad: &Tensor) -> Result<Option<Tensor>> {
        let transposed = Self::new(self.rows.transpose(), self.columns.transpose());
        Ok(Some(grad.contiguous()?.apply_op1_no_bwd(&transposed)?))
    }
}

/// A [`Band`] in the type of the tensor, and with runs of equal length for the axis along the registers.
struct Weights<T> {
    input: usize,
    output: usize,
    identity: bool,
    runs: Vec<(usize, Vec<T>)>,
    /// For rows of `longest` weights each, filled up with zeros: all first weights, all second weights, ...
    even: Vec<T>,
    starts: Vec<usize>,
    longest: usize,
}

/// Up to this many weights, evened out and with gathered inputs, are faster than a dot product for each output.
const EVEN: usize = 8;

impl<T: Lanes> Weights<T> {
    fn new(band: &Band) -> Self {
        let cast = |w: f64| T::from(w).unwrap_or(T::zero());
        let runs: Vec<(usize, Vec<T>)> = (0..band.output())
            .map(|at| {
                let (start, weights) = band.row(at);
                (start, weights.iter().map(|&w| cast(w)).collect())
            })
            .collect();
        let longest = runs.iter().map(|(_, weights)| weights.len()).max().unwrap_or(0);
        let (mut even, mut starts) = (Vec::new(), Vec::new());
        if longest <= EVEN && longest <= band.input {
            even = vec![T::zero(); longest * runs.len()];
            for (at, (start, weights)) in runs.iter().enumerate() {
                // Moved to the left where the filled-up run would leave the input.
                let first = (*start).min(band.input - longest);
                starts.push(first);
                for (k, &w) in weights.iter().enumerate() {
                    even[(start - first + k) * runs.len() + at] = w;
                }
            }
        }
        Self { input: band.input, output: band.output(), identity: band.is_identity(), runs, even, starts, longest }
    }

    /// `out = weights * line` along a line.
    #[inline(always)]
    fn along(&self, line: &[T], out: &mut [T]) {
        if self.identity {
            out.copy_from_slice(line);
        } else if self.starts.len() == out.len() {
            for k in 0..self.longest {
                let weights = &self.even[k * out.len()..][..out.len()];
                let Some(line) = line.get(k..) else { break };
                for ((t, &w), &start) in out.iter_mut().zip(weights).zip(&self.starts) {
                    let product = w * line[start];
                    *t = if k == 0 { product } else { *t + product };
                }
            }
        } else {
            for (t, (start, weights)) in out.iter_mut().zip(&self.runs) {
                *t = dot(&line[*start..*start + weights.len()], weights);
            }
        }
    }

    /// Output row `at` from the rows of a plane.
    #[inline(always)]
    fn across(&self, plane: &[T], at: usize, out: &mut [T]) {
        let (start, weights) = &self.runs[at];
        let width = out.len();
        if weights.is_empty() {
            out.fill(T::zero());
        }
        for (k, &w) in weights.iter().enumerate() {
            let row = &plane[(start + k) * width..][..width];
            match k {
                0 => out.iter_mut().zip(row).for_each(|(t, &x)| *t = w * x),
                _ => out.iter_mut().zip(row).for_each(|(t, &x)| *t = *t + w * x),
            }
        }
    }
}

/// Sixteen running sums, so that the loop fills registers.
#[inline(always)]
fn dot<T: Lanes>(xs: &[T], weights: &[T]) -> T {
    let mut sums = [T::zero(); 16];
    let (x, w) = (xs.chunks_exact(16), weights.chunks_exact(16));
    let tail = x.remainder().iter().zip(w.remainder()).fold(T::zero(), |t, (&x, &w)| t + x * w);
    for (x, w) in x.zip(w) {
        for ((t, &x), &w) in sums.iter_mut().zip(x).zip(w) {
            *t = *t + x * w;
        }
    }
    sums.iter().fold(tail, |t, &s| t + s)
}

struct Job<'a, T> {
    rows: &'a Weights<T>,
    columns: &'a Weights<T>,
    xs: &'a [T],
    out: &'a mut [T],
}

/// Numbers that a task should write at least.
const GRAIN: usize = 1 << 14;

impl<T: Lanes> WithSimd for Job<'_, T> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let Self { rows, columns, xs, out } = self;
        let (source, size) = (rows.input * columns.input, rows.output * columns.output);
        let grain = GRAIN.div_ceil(size.max(source));
        out.par_chunks_mut(size)
            .zip(xs.par_chunks(source))
            .with_min_len(grain)
            .for_each_init(Vec::new, |scratch, (out, plane)| {
                simd.vectorize(PlaneTask { rows, columns, plane, scratch, out })
            });
    }
}

struct PlaneTask<'a, T> {
    rows: &'a Weights<T>,
    columns: &'a Weights<T>,
    plane: &'a [T],
    scratch: &'a mut Vec<T>,
    out: &'a mut [T],
}

impl<T: Lanes> WithSimd for PlaneTask<'_, T> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, _: S) {
        let Self { rows, columns, plane, scratch, out } = self;
        let width = columns.output;
        if rows.identity {
            for (out, line) in out.chunks_exact_mut(width).zip(plane.chunks_exact(columns.input)) {
                columns.along(line, out);
            }
        } else if rows.output <= rows.input {
            // Fewer rows first: then there are fewer lines to go along.
            scratch.resize(columns.input, T::zero());
            for (at, out) in out.chunks_exact_mut(width).enumerate() {
                if columns.identity {
                    rows.across(plane, at, out);
                } else {
                    rows.across(plane, at, scratch);
                    columns.along(scratch, out);
                }
            }
        } else {
            scratch.resize(rows.input * width, T::zero());
            for (line, source) in scratch.chunks_exact_mut(width).zip(plane.chunks_exact(columns.input)) {
                columns.along(source, line);
            }
            for (at, out) in out.chunks_exact_mut(width).enumerate() {
                rows.across(scratch, at, out);
            }
        }
    }
}
