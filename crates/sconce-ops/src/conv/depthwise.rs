//! Depthwise convolution on the CPU: one filter sees one channel, so each plane is a job of its own.
//!
//! A plane is copied into a scratch with its padding and, for strides along a row, with its columns sorted by phase; then
//! every tap reads neighbours, and the sums of several rows stay in registers over all taps.

use pulp::{Arch, Simd, WithSimd};
use rayon::prelude::*;

use super::{ConvShape, dense_grad};
use crate::lanes::{Lanes, load, store};

/// Whether each filter sees a single channel.
pub(crate) fn is_depthwise(shape: &ConvShape) -> bool {
    shape.groups == shape.channels && shape.channels > 1
}

/// `xs` `(B, C, D, H, W)` and `weight` `(O, 1, kD, kH, kW)`; returns `(B, O, oD, oH, oW)`.
pub(crate) fn forward<T: Lanes>(shape: &ConvShape, xs: &[T], weight: &[T], bias: Option<&[T]>) -> Vec<T> {
    Arch::new().dispatch(Job { kind: Kind::Forward, shape, planes: xs, weight, bias })
}

/// Gradient of the input `(B, C, D, H, W)`.
pub(crate) fn input<T: Lanes>(shape: &ConvShape, grad: &[T], weight: &[T]) -> Vec<T> {
    match dense_grad::mirrored(shape) {
        Some(mirrored) => {
            let mut flipped = weight.to_vec();
            flipped.chunks_mut(shape.window.taps()).for_each(<[T]>::reverse);
            let kind = Kind::Mirrored;
            Arch::new().dispatch(Job { kind, shape: &mirrored, planes: grad, weight: &flipped, bias: None })
        }
        None => Arch::new().dispatch(Job { kind: Kind::Scatter, shape, planes: grad, weight, bias: None }),
    }
}

/// Gradient of the weight, `(O, 1, kD, kH, kW)`.
pub(crate) fn weight<T: Lanes>(shape: &ConvShape, xs: &[T], grad: &[T]) -> Vec<T> {
    Arch::new().dispatch(Weight { shape, xs, grad })
}

/// Output rows whose sums stay in registers, and registers along each: together half of AVX2's registers.
const ROWS: usize = 4;
const VECTORS: usize = 2;

/// Taps whose sums stay in registers for the weight's gradient.
const TAPS: usize = 8;

/// Multiplications that a task should have at least.
const GRAIN: usize = 1 << 16;

/// How a padded plane lies in its scratch: phase, depth, row, column.
struct Plane {
    /// Padded depths and rows of each phase.
    extent: [usize; 2],
    /// Columns of a row of a phase.
    len: usize,
    /// From one output depth to the next, and from one output row to the next.
    step: [usize; 2],
    /// Where each tap reads for the output's first pixel.
    taps: Vec<usize>,
}

impl Plane {
    fn new(shape: &ConvShape, lanes: usize) -> Self {
        let window = &shape.window;
        let reach = |axis: usize| (window.kernel[axis] - 1) * window.dilation[axis];
        // Sums are made for whole blocks of rows and registers; what is too much reads zeros and is dropped.
        let height = window.output[1].next_multiple_of(ROWS);
        let extent =
            [(window.output[0] - 1) * window.stride[0] + reach(0) + 1, (height - 1) * window.stride[1] + reach(1) + 1];
        let stride = window.stride[2];
        let len = window.output[2].next_multiple_of(lanes * VECTORS) + reach(2) / stride;
        let mut taps = Vec::with_capacity(window.taps());
        for i in 0..window.kernel[0] {
            for j in 0..window.kernel[1] {
                for k in 0..window.kernel[2] {
                    let column = k * window.dilation[2];
                    let depth = column % stride * extent[0] + i * window.dilation[0];
                    taps.push((depth * extent[1] + j * window.dilation[1]) * len + column / stride);
                }
            }
        }
        let step = [window.stride[0] * extent[1] * len, window.stride[1] * len];
        Self { extent, len, step, taps }
    }

    /// Numbers in the scratch.
    fn volume(&self, shape: &ConvShape) -> usize {
        shape.window.stride[2] * self.extent[0] * self.extent[1] * self.len
    }

    /// Calls `f(columns, scratch)` for each run of a channel's plane and where it lies: first element, length and step in the
    /// plane, first element in the scratch.
    #[inline(always)]
    fn each_run(&self, shape: &ConvShape, mut f: impl FnMut(Run)) {
        let window = &shape.window;
        let ([depth, height, width], stride) = (window.input, window.stride[2]);
        for z in 0..depth {
            let pz = z + window.padding[0];
            for y in 0..height {
                let py = y + window.padding[1];
                if pz >= self.extent[0] || py >= self.extent[1] {
                    continue;
                }
                for phase in 0..stride {
                    // The first column of this phase inside the input.
                    let skip = (phase + stride - window.padding[2] % stride) % stride;
                    let at = (skip + window.padding[2]) / stride;
                    if skip >= width || at >= self.len {
                        continue;
                    }
                    let len = (width - skip).div_ceil(stride).min(self.len - at);
                    let line = (phase * self.extent[0] + pz) * self.extent[1] + py;
                    f(Run { plane: (z * height + y) * width + skip, len, scratch: line * self.len + at });
                }
            }
        }
    }

    #[inline(always)]
    fn read<T: Lanes>(&self, shape: &ConvShape, plane: &[T], scratch: &mut [T]) {
        let stride = shape.window.stride[2];
        self.each_run(shape, |run| {
            let target = &mut scratch[run.scratch..run.scratch + run.len];
            let source = &plane[run.plane..run.plane + (run.len - 1) * stride + 1];
            if stride == 1 {
                target.copy_from_slice(source);
            } else {
                target.iter_mut().zip(source.iter().step_by(stride)).for_each(|(t, &s)| *t = s);
            }
        });
    }
}

/// Elements of one row and one phase.
struct Run {
    plane: usize,
    len: usize,
    scratch: usize,
}

#[derive(Clone, Copy, PartialEq)]
enum Kind {
    /// Planes are inputs; one output per filter.
    Forward,
    /// Planes are gradients of outputs; inputs gather from all filters of their channel.
    Mirrored,
    /// As `Mirrored`, for strides: the plan is that of the forward pass, run backwards.
    Scatter,
}

struct Job<'a, T> {
    kind: Kind,
    shape: &'a ConvShape,
    planes: &'a [T],
    weight: &'a [T],
    bias: Option<&'a [T]>,
}

impl<T: Lanes> WithSimd for Job<'_, T> {
    type Output = Vec<T>;

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) -> Vec<T> {
        let window = &self.shape.window;
        let plane = &Plane::new(self.shape, T::count::<S>());
        let volume = plane.volume(self.shape);
        let (channels, size) = match self.kind {
            Kind::Forward => (self.shape.filters, window.positions()),
            Kind::Mirrored => (self.shape.filters, window.positions()),
            Kind::Scatter => (self.shape.channels, window.volume()),
        };
        let mut out = vec![T::zero(); self.shape.batch * channels * size];
        let grain = GRAIN.div_ceil(size * window.taps());
        out.par_chunks_mut(size).enumerate().with_min_len(grain).for_each_init(
            || vec![T::zero(); volume],
            |scratch, (at, out)| simd.vectorize(PlaneTask { job: &self, plane, scratch, at, out }),
        );
        out
    }
}

/// One plane of the result.
struct PlaneTask<'a, T> {
    job: &'a Job<'a, T>,
    plane: &'a Plane,
    scratch: &'a mut [T],
    at: usize,
    out: &'a mut [T],
}

impl<T: Lanes> WithSimd for PlaneTask<'_, T> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let Self { job, plane, scratch, at, out } = self;
        let shape = job.shape;
        let (taps, volume) = (shape.window.taps(), shape.window.volume());
        let weight = |filter: usize| &job.weight[filter * taps..(filter + 1) * taps];
        match job.kind {
            Kind::Forward => {
                let (image, filter) = (at / shape.filters, at % shape.filters);
                let channel = filter / (shape.filters / shape.channels);
                let source = &job.planes[(image * shape.channels + channel) * volume..][..volume];
                plane.read(shape, source, scratch);
                let bias = job.bias.map_or(T::zero(), |bias| bias[filter]);
                correlate::<T, S>(simd, shape, plane, scratch, weight(filter), Some(bias), out);
            }
            Kind::Mirrored => {
                // Here `channels` are the filters of the forward pass, and `filters` its channels.
                let multiplier = shape.channels / shape.filters;
                let (image, channel) = (at / shape.filters, at % shape.filters);
                for (n, filter) in (channel * multiplier..(channel + 1) * multiplier).enumerate() {
                    let source = &job.planes[(image * shape.channels + filter) * volume..][..volume];
                    plane.read(shape, source, scratch);
                    let start = (n == 0).then(T::zero);
                    correlate::<T, S>(simd, shape, plane, scratch, weight(filter), start, out);
                }
            }
            Kind::Scatter => {
                let multiplier = shape.filters / shape.channels;
                let (image, channel) = (at / shape.channels, at % shape.channels);
                let positions = shape.window.positions();
                scratch.fill(T::zero());
                for filter in channel * multiplier..(channel + 1) * multiplier {
                    let grad = &job.planes[(image * shape.filters + filter) * positions..][..positions];
                    scatter(shape, plane, scratch, weight(filter), grad);
                }
                let stride = shape.window.stride[2];
                plane.each_run(shape, |run| {
                    let source = &scratch[run.scratch..run.scratch + run.len];
                    let target = &mut out[run.plane..run.plane + (run.len - 1) * stride + 1];
                    target.iter_mut().step_by(stride).zip(source).for_each(|(t, &s)| *t = s);
                });
            }
        }
    }
}

/// Sums over all taps for each output; they begin with `start`, or with what `out` holds.
#[inline(always)]
fn correlate<T: Lanes, S: Simd>(
    simd: S,
    shape: &ConvShape,
    plane: &Plane,
    scratch: &[T],
    weight: &[T],
    start: Option<T>,
    out: &mut [T],
) {
    let lanes = T::count::<S>();
    let [depth, height, width] = shape.window.output;
    for z in 0..depth {
        for y in (0..height).step_by(ROWS) {
            let row = z * plane.step[0] + y * plane.step[1];
            for x in (0..width).step_by(lanes * VECTORS) {
                let narrow = width - x <= lanes;
                let mut block = [[T::splat(simd, start.unwrap_or(T::zero())); VECTORS]; ROWS];
                if narrow {
                    sum_block::<T, S, 1>(simd, plane, scratch, weight, row + x, &mut block);
                } else {
                    sum_block::<T, S, VECTORS>(simd, plane, scratch, weight, row + x, &mut block);
                }
                for (r, block) in block.iter().enumerate().take(height - y) {
                    for (v, &sum) in block.iter().enumerate() {
                        let at = x + v * lanes;
                        if at < width {
                            let count = lanes.min(width - at);
                            let out = &mut out[(z * height + y + r) * width + at..][..count];
                            write::<T, S>(sum, start.is_none(), out);
                        }
                    }
                }
            }
        }
    }
}

#[inline(always)]
#[expect(unsafe_code, reason = "a bounds check per load would halve the speed of the loop over taps")]
fn sum_block<T: Lanes, S: Simd, const V: usize>(
    simd: S,
    plane: &Plane,
    scratch: &[T],
    weight: &[T],
    first: usize,
    block: &mut [[T::Vector<S>; VECTORS]; ROWS],
) {
    let lanes = T::count::<S>();
    let last = plane.taps.iter().max().map_or(0, |&tap| tap);
    assert!(first + last + (ROWS - 1) * plane.step[1] + V * lanes <= scratch.len());
    let mut sums = [[T::splat(simd, T::zero()); V]; ROWS];
    for (sums, block) in sums.iter_mut().zip(block.iter()) {
        sums.copy_from_slice(&block[..V]);
    }
    for (&tap, &w) in plane.taps.iter().zip(weight) {
        let w = T::splat(simd, w);
        for (r, sums) in sums.iter_mut().enumerate() {
            for (v, sum) in sums.iter_mut().enumerate() {
                // SAFETY: `tap <= last`, `r < ROWS` and `v < V`, so the check above covers the register.
                let x = unsafe { load::<T, S>(scratch, first + tap + r * plane.step[1] + v * lanes) };
                *sum = T::fma(simd, w, x, *sum);
            }
        }
    }
    for (sums, block) in sums.iter().zip(block) {
        block[..V].copy_from_slice(sums);
    }
}

/// Writes or adds the first numbers of a register.
#[inline(always)]
#[expect(unsafe_code, reason = "writes whole registers")]
fn write<T: Lanes, S: Simd>(sum: T::Vector<S>, add: bool, out: &mut [T]) {
    let lanes = T::count::<S>();
    let mut buffer = [T::zero(); 16];
    assert!(lanes <= buffer.len());
    if out.len() == lanes && !add {
        // SAFETY: the lengths are equal.
        unsafe { store::<T, S>(out, 0, sum) };
        return;
    }
    // SAFETY: the buffer holds a register by the check above.
    unsafe { store::<T, S>(&mut buffer, 0, sum) };
    for (t, &s) in out.iter_mut().zip(&buffer) {
        *t = if add { *t + s } else { s };
    }
}

/// Transpose of the sums over taps: each tap adds its share of a row of gradients to where it read.
#[inline(always)]
fn scatter<T: Lanes>(shape: &ConvShape, plane: &Plane, scratch: &mut [T], weight: &[T], grad: &[T]) {
    let [depth, height, width] = shape.window.output;
    for z in 0..depth {
        for y in 0..height {
            let grad = &grad[(z * height + y) * width..][..width];
            let row = z * plane.step[0] + y * plane.step[1];
            for (&tap, &w) in plane.taps.iter().zip(weight) {
                let target = &mut scratch[row + tap..][..width];
                target.iter_mut().zip(grad).for_each(|(t, &g)| *t = *t + w * g);
            }
        }
    }
}

struct Weight<'a, T> {
    shape: &'a ConvShape,
    xs: &'a [T],
    grad: &'a [T],
}

impl<T: Lanes> WithSimd for Weight<'_, T> {
    type Output = Vec<T>;

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) -> Vec<T> {
        let window = &self.shape.window;
        let plane = &Plane::new(self.shape, T::count::<S>());
        let volume = plane.volume(self.shape);
        let mut out = vec![T::zero(); self.shape.filters * window.taps()];
        let grain = GRAIN.div_ceil((self.shape.batch * window.positions() * window.taps()).max(1));
        out.par_chunks_mut(window.taps()).enumerate().with_min_len(grain).for_each_init(
            || (vec![T::zero(); volume], Vec::new()),
            |(scratch, rows), (filter, out)| {
                simd.vectorize(WeightTask { job: &self, plane, scratch, rows, filter, out });
            },
        );
        out
    }
}

struct WeightTask<'a, T> {
    job: &'a Weight<'a, T>,
    plane: &'a Plane,
    scratch: &'a mut [T],
    /// The gradient's rows, filled up with zeros to whole registers.
    rows: &'a mut Vec<T>,
    filter: usize,
    out: &'a mut [T],
}

impl<T: Lanes> WithSimd for WeightTask<'_, T> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let Self { job, plane, scratch, rows, filter, out } = self;
        let shape = job.shape;
        let lanes = T::count::<S>();
        let (volume, positions) = (shape.window.volume(), shape.window.positions());
        let width = shape.window.output[2];
        let padded = width.next_multiple_of(lanes);
        let channel = filter / (shape.filters / shape.channels);
        rows.resize(positions / width * padded, T::zero());
        for image in 0..shape.batch {
            plane.read(shape, &job.xs[(image * shape.channels + channel) * volume..][..volume], scratch);
            let grad = &job.grad[(image * shape.filters + filter) * positions..][..positions];
            for (row, grad) in rows.chunks_exact_mut(padded).zip(grad.chunks_exact(width)) {
                row[..width].copy_from_slice(grad);
            }
            for (taps, out) in plane.taps.chunks(TAPS).zip(out.chunks_mut(TAPS)) {
                dot_block::<T, S>(simd, shape, plane, scratch, rows, taps, out);
            }
        }
    }
}

/// Adds to `out` the dot product of the gradient with what each tap sees.
#[inline(always)]
#[expect(unsafe_code, reason = "a bounds check per load would halve the speed of the loop over columns")]
fn dot_block<T: Lanes, S: Simd>(
    simd: S,
    shape: &ConvShape,
    plane: &Plane,
    scratch: &[T],
    rows: &[T],
    taps: &[usize],
    out: &mut [T],
) {
    let lanes = T::count::<S>();
    let [depth, height, width] = shape.window.output;
    let padded = width.next_multiple_of(lanes);
    let mut offsets = [taps[0]; TAPS];
    offsets[..taps.len()].copy_from_slice(taps);
    let last = offsets.iter().fold(0, |last, &tap| last.max(tap));
    assert!((depth - 1) * plane.step[0] + (height - 1) * plane.step[1] + last + padded <= scratch.len());
    assert!(depth * height * padded <= rows.len());
    let mut sums = [T::splat(simd, T::zero()); TAPS];
    for z in 0..depth {
        for y in 0..height {
            let (row, from) = ((z * height + y) * padded, z * plane.step[0] + y * plane.step[1]);
            for x in (0..padded).step_by(lanes) {
                // SAFETY: `z < depth`, `y < height` and `x + lanes <= padded`, for which both lengths were checked.
                let grad = unsafe { load::<T, S>(rows, row + x) };
                for (sum, &tap) in sums.iter_mut().zip(&offsets) {
                    // SAFETY: as above, and `tap <= last`.
                    *sum = T::fma(simd, grad, unsafe { load::<T, S>(scratch, from + tap + x) }, *sum);
                }
            }
        }
    }
    for (t, &sum) in out.iter_mut().zip(&sums) {
        *t = *t + T::sum(simd, sum);
    }
}
