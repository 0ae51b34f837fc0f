//! Gradients of dense and grouped convolution on the CPU.

use std::ops::Range;

use pulp::{Arch, Simd, WithSimd};
use rayon::prelude::*;

use super::ConvShape;
use super::dense::{DEPTH, flattened, forward};
use super::panel::{Columns, blocks};
use crate::lanes::{Lanes, MAX_ROWS, SPARE, VECTORS, aligned, block_product, block_rows};
use crate::shared::Shared;
use crate::window::Window;

/// Gradient of the input `(B, C, D, H, W)` from that of the output, `(B, O, oD, oH, oW)`.
pub(crate) fn input<T: Lanes>(shape: &ConvShape, grad: &[T], weight: &[T]) -> Vec<T> {
    match mirrored(shape) {
        Some(mirrored) => forward(&mirrored, grad, &mirrored_weight(shape, weight), None),
        None => {
            let shape = flattened(shape);
            let mut out = vec![T::zero(); shape.batch * shape.channels * shape.window.volume()];
            if !out.is_empty() {
                let weight = transposed_weight(&shape, weight);
                Arch::new().dispatch(Scatter { shape, grad, weight: &weight, out: &mut out });
            }
            out
        }
    }
}

/// With stride 1 the input's gradient is itself a convolution: of the output's, with the weight mirrored.
pub(super) fn mirrored(shape: &ConvShape) -> Option<ConvShape> {
    let window = &shape.window;
    let mut padding = [0; 3];
    for (axis, padding) in padding.iter_mut().enumerate() {
        let reach = (window.kernel[axis] - 1) * window.dilation[axis];
        *padding = reach.checked_sub(window.padding[axis]).filter(|_| window.stride[axis] == 1)?;
    }
    let window = Window { input: window.output, output: window.input, padding, ..*window };
    Some(ConvShape { channels: shape.filters, filters: shape.channels, window, ..*shape })
}

/// `(O, C / g, taps)` to `(C, O / g, taps)` with the taps in reverse order.
fn mirrored_weight<T: Lanes>(shape: &ConvShape, weight: &[T]) -> Vec<T> {
    let (taps, groups) = (shape.window.taps(), shape.groups);
    let (channels, filters) = (shape.channels / groups, shape.filters / groups);
    let mut out = vec![T::zero(); weight.len()];
    out.par_chunks_mut(filters * taps).enumerate().for_each(|(channel, out)| {
        let (group, channel) = (channel / channels, channel % channels);
        for (filter, out) in out.chunks_mut(taps).enumerate() {
            let source = &weight[((group * filters + filter) * channels + channel) * taps..][..taps];
            out.iter_mut().zip(source.iter().rev()).for_each(|(t, &s)| *t = s);
        }
    });
    out
}

/// `(g, O / g, rows)` to `(g, rows, O / g)`.
fn transposed_weight<T: Lanes>(shape: &ConvShape, weight: &[T]) -> Vec<T> {
    let rows = shape.channels / shape.groups * shape.window.taps();
    let filters = shape.filters / shape.groups;
    let mut out = vec![T::zero(); weight.len()];
    out.par_chunks_mut(filters * 64).enumerate().for_each(|(chunk, out)| {
        for (r, out) in out.chunks_mut(filters).enumerate() {
            let (group, row) = ((chunk * 64 + r) / rows, (chunk * 64 + r) % rows);
            for (filter, t) in out.iter_mut().enumerate() {
                *t = weight[(group * filters + filter) * rows + row];
            }
        }
    });
    out
}

/// Strided convolutions: each block of columns of the matrix of windows has its gradient added to where it came from.
struct Scatter<'a, T> {
    shape: ConvShape,
    grad: &'a [T],
    /// `(g, rows, O / g)`.
    weight: &'a [T],
    out: &'a mut [T],
}

/// Rows of the matrix of windows that a task works on: few enough for many tasks, enough to pay for the packing.
const ROWS: usize = 256;

impl<T: Lanes> WithSimd for Scatter<'_, T> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let Self { shape, grad, weight, out } = self;
        let volume = shape.window.volume();
        let per_group = shape.channels / shape.groups;
        let step = ROWS.div_ceil(shape.window.taps()).min(per_group);
        // A task is some channels of one group in one image, which lie side by side in the result.
        let mut tasks = Vec::new();
        let mut rest = out;
        for image in 0..shape.batch {
            for group in 0..shape.groups {
                for first in (0..per_group).step_by(step) {
                    let channels = first..(first + step).min(per_group);
                    let (part, after) = rest.split_at_mut(channels.len() * volume);
                    tasks.push(ScatterTask { shape: &shape, grad, weight, image, group, channels, part });
                    rest = after;
                }
            }
        }
        tasks.into_par_iter().for_each(|task| simd.vectorize(task));
    }
}

struct ScatterTask<'a, T> {
    shape: &'a ConvShape,
    grad: &'a [T],
    weight: &'a [T],
    image: usize,
    group: usize,
    channels: Range<usize>,
    part: &'a mut [T],
}

impl<T: Lanes> WithSimd for ScatterTask<'_, T> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let Self { shape, image, group, .. } = self;
        let (lanes, step) = (T::count::<S>(), block_rows::<T, S>());
        let (pixels, taps) = (shape.window.positions(), shape.window.taps());
        let (channels, filters) = (shape.channels / shape.groups, shape.filters / shape.groups);
        let rows = self.channels.start * taps..self.channels.end * taps;
        let origin = (image * shape.channels + group * channels + self.channels.start) * shape.window.volume();
        let zeros = [T::zero(); DEPTH];
        let mut tile = [T::zero(); MAX_ROWS * VECTORS * 16];
        let mut panel = vec![T::zero(); DEPTH.min(filters) * VECTORS * lanes + SPARE];
        let start = aligned(&panel);
        for block in blocks(pixels.div_ceil(lanes)) {
            let first = block.start * lanes;
            let range = image * pixels + first..image * pixels + (block.end * lanes).min(pixels);
            let columns = Columns::new(shape, range.clone(), block.len() * lanes);
            for from in (0..filters).step_by(DEPTH) {
                let depth = DEPTH.min(filters - from);
                let panel = &mut panel[start..start + depth * columns.width];
                for (k, row) in panel.chunks_exact_mut(columns.width).enumerate() {
                    let filter = image * shape.filters + group * filters + from + k;
                    let source = &self.grad[filter * pixels + first..][..range.len()];
                    row[..range.len()].copy_from_slice(source);
                    row[range.len()..].fill(T::zero());
                }
                for row in rows.clone().step_by(step) {
                    let count = step.min(rows.end - row);
                    let mut weights: [&[T]; MAX_ROWS] = [&zeros; MAX_ROWS];
                    for (n, weight) in weights[..count].iter_mut().enumerate() {
                        let at = (group * channels * taps + row + n) * filters + from;
                        *weight = &self.weight[at..at + depth];
                    }
                    block_product(simd, block.len(), depth, panel, &weights, &mut tile);
                    for n in 0..count {
                        let values = &tile[n * columns.width..][..columns.width];
                        columns.unpack(shape, values, group, row + n, self.part, origin);
                    }
                }
            }
        }
    }
}

/// Gradient of the weight, `(O, C / g, kD, kH, kW)`.
pub(crate) fn weight<T: Lanes>(shape: &ConvShape, xs: &[T], grad: &[T]) -> Vec<T> {
    Arch::new().dispatch(Weight { shape: flattened(shape), xs, grad })
}

/// The output's gradient, pixels first, times the matrix of windows: output channels lie along the registers.
struct Weight<'a, T> {
    shape: ConvShape,
    xs: &'a [T],
    grad: &'a [T],
}

/// Rows of the matrix of windows in a task.
const WEIGHT_ROWS: usize = 64;

/// Filters that are turned around together.
const SIDE: usize = 16;

/// Tasks to aim at by cutting the pixels too, when there are few rows.
const WEIGHT_TASKS: usize = 16;

impl<T: Lanes> WithSimd for Weight<'_, T> {
    type Output = Vec<T>;

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) -> Vec<T> {
        let shape = &self.shape;
        let lanes = T::count::<S>();
        let (pixels, groups) = (shape.window.positions(), shape.groups);
        let filters = shape.filters / groups;
        let rows = shape.channels / groups * shape.window.taps();
        let width = filters.next_multiple_of(lanes);
        // (B, g, blocks of channels, pixels, channels of the block)
        let mut flipped = vec![T::zero(); shape.batch * groups * pixels * width + SPARE];
        let start = aligned(&flipped);
        let flipped = &mut flipped[start..start + shape.batch * groups * pixels * width];
        flipped.par_chunks_mut((pixels * width).max(1)).enumerate().for_each(|(unit, out)| {
            simd.vectorize(Flip {
                grad: &self.grad[unit * filters * pixels..][..filters * pixels],
                pixels,
                lanes,
                out,
            });
        });
        let chunks: Vec<(usize, Range<usize>)> = (0..shape.batch)
            .flat_map(|image| (0..pixels).step_by(DEPTH).map(move |p| (image, p..(p + DEPTH).min(pixels))))
            .collect();
        let tasks = groups * rows.div_ceil(WEIGHT_ROWS);
        let splits = WEIGHT_TASKS.div_ceil(tasks).min(chunks.len() / 4).max(1);
        let parts: Vec<Vec<T>> = (0..tasks * splits)
            .into_par_iter()
            .map(|at| {
                let (task, split) = (at / splits, at % splits);
                let (group, first) = (task % groups, task / groups * WEIGHT_ROWS);
                let range = chunks.len() * split / splits..chunks.len() * (split + 1) / splits;
                simd.vectorize(WeightTask {
                    job: &self,
                    flipped,
                    group,
                    rows: first..(first + WEIGHT_ROWS).min(rows),
                    chunks: &chunks[range],
                    width,
                })
            })
            .collect();
        let mut out = vec![T::zero(); shape.filters * rows];
        let shared = Shared::new(&mut out);
        parts.par_chunks(splits).enumerate().for_each(|(task, parts)| {
            let (group, first) = (task % groups, task / groups * WEIGHT_ROWS);
            let count = WEIGHT_ROWS.min(rows - first);
            // Sixteen filters at a time by way of a square that stays in the first-level cache.
            for from in (0..filters).step_by(SIDE) {
                let side = SIDE.min(filters - from);
                let mut square = [T::zero(); WEIGHT_ROWS * SIDE];
                for part in parts {
                    for (sums, row) in square.chunks_exact_mut(SIDE).zip(part.chunks_exact(width)) {
                        sums.iter_mut().zip(&row[from..from + side]).for_each(|(t, &s)| *t = *t + s);
                    }
                }
                for n in 0..side {
                    let at = (group * filters + from + n) * rows + first;
                    #[expect(unsafe_code, reason = "a task's part of each filter is not one chunk")]
                    // SAFETY: tasks differ in the group or in the rows, and each part is left before the next is taken.
                    let target = unsafe { shared.slice(at..at + count) };
                    target.iter_mut().zip(square.chunks_exact(SIDE)).for_each(|(t, sums)| *t = sums[n]);
                }
            }
        });
        out
    }
}

/// One group of one image from (channels, pixels) to (blocks of channels, pixels, channels of a block).
struct Flip<'a, T> {
    grad: &'a [T],
    pixels: usize,
    lanes: usize,
    out: &'a mut [T],
}

impl<T: Lanes> WithSimd for Flip<'_, T> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, _: S) {
        let (pixels, filters) = (self.pixels, self.grad.len() / self.pixels.max(1));
        for block in blocks(filters.div_ceil(self.lanes)) {
            let (first, width) = (block.start * self.lanes, block.len() * self.lanes);
            let out = &mut self.out[first * pixels..][..width * pixels];
            let count = width.min(filters - first);
            for (p, out) in out.chunks_exact_mut(width).enumerate() {
                for (n, t) in out[..count].iter_mut().enumerate() {
                    *t = self.grad[(first + n) * pixels + p];
                }
            }
        }
    }
}

struct WeightTask<'a, T> {
    job: &'a Weight<'a, T>,
    flipped: &'a [T],
    group: usize,
    rows: Range<usize>,
    chunks: &'a [(usize, Range<usize>)],
    width: usize,
}

impl<T: Lanes> WithSimd for WeightTask<'_, T> {
    /// `(rows, width)`.
    type Output = Vec<T>;

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) -> Vec<T> {
        let Self { job, group, rows, width, .. } = self;
        let shape = &job.shape;
        let (lanes, step) = (T::count::<S>(), block_rows::<T, S>());
        let pixels = shape.window.positions();
        let zeros = [T::zero(); DEPTH];
        let mut tile = [T::zero(); MAX_ROWS * VECTORS * 16];
        let mut sums = vec![T::zero(); rows.len() * width];
        let mut windows = vec![T::zero(); rows.len() * DEPTH];
        for (image, range) in self.chunks {
            let depth = range.len();
            let at = image * pixels;
            let columns = Columns::new(shape, at + range.start..at + range.end, depth);
            let windows = &mut windows[..rows.len() * depth];
            columns.pack(shape, job.xs, group, rows.clone(), windows);
            let unit = &self.flipped[(image * shape.groups + group) * pixels * width..][..pixels * width];
            for block in blocks(width / lanes) {
                let (first, columns) = (block.start * lanes, block.len() * lanes);
                let panel = &unit[first * pixels + range.start * columns..][..depth * columns];
                for from in (0..rows.len()).step_by(step) {
                    let count = step.min(rows.len() - from);
                    let mut factors: [&[T]; MAX_ROWS] = [&zeros; MAX_ROWS];
                    for (n, factor) in factors[..count].iter_mut().enumerate() {
                        *factor = &windows[(from + n) * depth..][..depth];
                    }
                    block_product(simd, block.len(), depth, panel, &factors, &mut tile);
                    for n in 0..count {
                        let target = &mut sums[(from + n) * width + first..][..columns];
                        let source = &tile[n * columns..][..columns];
                        target.iter_mut().zip(source).for_each(|(t, &s)| *t = *t + s);
                    }
                }
            }
        }
        sums
    }
}

/// Gradient of the bias, `(O)`.
pub(crate) fn bias<T: Lanes>(shape: &ConvShape, grad: &[T]) -> Vec<T> {
    let pixels = shape.window.positions();
    (0..shape.filters)
        .into_par_iter()
        .with_min_len(16)
        .map(|filter| {
            (0..shape.batch).fold(T::zero(), |sum, image| {
                let line = &grad[(image * shape.filters + filter) * pixels..][..pixels];
                // Sixteen sums of their own: they fill registers and lose less than one running sum.
                let mut sums = [T::zero(); 16];
                let chunks = line.chunks_exact(16);
                let tail = chunks.remainder().iter().fold(T::zero(), |t, &x| t + x);
                for chunk in chunks {
                    sums.iter_mut().zip(chunk).for_each(|(t, &x)| *t = *t + x);
                }
                sums.iter().fold(sum + tail, |t, &x| t + x)
            })
        })
        .collect()
}
