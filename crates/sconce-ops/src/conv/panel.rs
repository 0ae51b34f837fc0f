//! Windows packed for the block product: a small panel at a time, never the whole matrix of a batch.

use std::ops::Range;

use super::ConvShape;
use crate::lanes::{Lanes, VECTORS};

/// Pixels of the result that lie in one row of one image.
#[derive(Debug, Clone, Copy)]
struct Run {
    /// First column in the panel.
    at: usize,
    len: usize,
    image: usize,
    /// Position (D, H, W) of the first pixel.
    first: [usize; 3],
}

/// Columns of the matrix of windows: pixels of the result, numbered through all images.
#[derive(Debug)]
pub(super) struct Columns {
    runs: Vec<Run>,
    /// Columns of the panel, a whole number of registers.
    pub(super) width: usize,
}

impl Columns {
    /// Pixels `pixels` of all images, filled up to `width` columns of zeros.
    pub(super) fn new(shape: &ConvShape, pixels: Range<usize>, width: usize) -> Self {
        let [_, oh, ow] = shape.window.output;
        let per_image = shape.window.positions();
        let mut runs = Vec::new();
        let mut pixel = pixels.start;
        while pixel < pixels.end {
            let (image, place) = (pixel / per_image, pixel % per_image);
            let x = place % ow;
            let len = (ow - x).min(pixels.end - pixel);
            runs.push(Run { at: pixel - pixels.start, len, image, first: [place / (oh * ow), place / ow % oh, x] });
            pixel += len;
        }
        Self { runs, width }
    }

    /// Fills `panel`, one row of `width` numbers after another, with rows `rows` of group `group`'s matrix of windows: row
    /// `(c, i, j, k)` holds what tap `(i, j, k)` of channel `c` sees.
    #[inline(always)]
    pub(super) fn pack<T: Lanes>(
        &self,
        shape: &ConvShape,
        xs: &[T],
        group: usize,
        rows: Range<usize>,
        panel: &mut [T],
    ) {
        let stride = shape.window.stride[2];
        let used = self.runs.last().map_or(0, |run| run.at + run.len);
        for (r, row) in rows.enumerate() {
            let base = r * self.width;
            let tap = Tap::new(shape, group, row);
            for run in &self.runs {
                let (at, end) = (base + run.at, base + run.at + run.len);
                let Some(seen) = tap.sees(shape, run) else {
                    zero(panel, at, run.len);
                    continue;
                };
                let (lo, hi) = (at + seen.skip, at + seen.skip + seen.len);
                zero(panel, at, seen.skip);
                if stride == 1 {
                    copy(panel, lo, xs, seen.from, seen.len);
                } else {
                    let source = &xs[seen.from..seen.from + (seen.len - 1) * stride + 1];
                    for (t, s) in panel[lo..hi].iter_mut().zip(source.iter().step_by(stride)) {
                        *t = *s;
                    }
                }
                zero(panel, hi, end - hi);
            }
            panel[base + used..base + self.width].fill(T::zero());
        }
    }

    /// Transpose of [`Columns::pack`] for one row: adds each column of `values` to what the row's tap saw there.
    ///
    /// `xs` begins at element `origin` of the whole input.
    #[inline(always)]
    pub(super) fn unpack<T: Lanes>(
        &self,
        shape: &ConvShape,
        values: &[T],
        group: usize,
        row: usize,
        xs: &mut [T],
        origin: usize,
    ) {
        let stride = shape.window.stride[2];
        let tap = Tap::new(shape, group, row);
        for run in &self.runs {
            if let Some(seen) = tap.sees(shape, run) {
                let values = &values[run.at + seen.skip..][..seen.len];
                let from = seen.from - origin;
                let target = &mut xs[from..from + (seen.len - 1) * stride + 1];
                for (t, &v) in target.iter_mut().step_by(stride).zip(values) {
                    *t = *t + v;
                }
            }
        }
    }
}

/// One element of the window in one channel: a row of the matrix of windows.
struct Tap {
    channel: usize,
    at: [usize; 3],
    /// Columns of the result for which it falls inside the input.
    valid: (usize, usize),
}

/// What a tap sees along a run: `len` elements from `from` on, after `skip` outside the input.
struct Seen {
    from: usize,
    skip: usize,
    len: usize,
}

impl Tap {
    #[inline(always)]
    fn new(shape: &ConvShape, group: usize, row: usize) -> Self {
        let [kd, kh, kw] = shape.window.kernel;
        let at = [row / (kh * kw) % kd, row / kw % kh, row % kw];
        let channel = group * (shape.channels / shape.groups) + row / (kd * kh * kw);
        Self { channel, at, valid: shape.window.valid(2, at[2]) }
    }

    /// `None` when all of the run is outside.
    #[inline(always)]
    fn sees(&self, shape: &ConvShape, run: &Run) -> Option<Seen> {
        let window = &shape.window;
        let mut line = run.image * shape.channels + self.channel;
        for axis in 0..2 {
            let padded = run.first[axis] * window.stride[axis] + self.at[axis] * window.dilation[axis];
            let source = padded.checked_sub(window.padding[axis])?;
            if source >= window.input[axis] {
                return None;
            }
            line = line * window.input[axis] + source;
        }
        let x = run.first[2];
        let lo = self.valid.0.clamp(x, x + run.len);
        let hi = self.valid.1.clamp(lo, x + run.len);
        if lo == hi {
            return None;
        }
        let padded = lo * window.stride[2] + self.at[2] * window.dilation[2];
        Some(Seen { from: line * window.input[2] + padded - window.padding[2], skip: lo - x, len: hi - lo })
    }
}

const CHUNK: usize = 16;

/// Copies a short run in whole chunks where both sides have room: what is written too much is overwritten by the runs
/// that follow, since a panel is filled from front to back.
#[inline(always)]
fn copy<T: Copy>(target: &mut [T], at: usize, source: &[T], from: usize, len: usize) {
    let padded = len.next_multiple_of(CHUNK);
    if len <= 8 * CHUNK && at + padded <= target.len() && from + padded <= source.len() {
        let (target, source) = (&mut target[at..at + padded], &source[from..from + padded]);
        for (t, s) in target.chunks_exact_mut(CHUNK).zip(source.chunks_exact(CHUNK)) {
            t.copy_from_slice(s);
        }
    } else {
        target[at..at + len].copy_from_slice(&source[from..from + len]);
    }
}

#[inline(always)]
fn zero<T: Lanes>(target: &mut [T], at: usize, len: usize) {
    for t in &mut target[at..at + len] {
        *t = T::zero();
    }
}

/// Registers in each block that `vectors` registers of columns are cut into: at most [`VECTORS`], as even as can be.
pub(super) fn blocks(vectors: usize) -> impl Iterator<Item = Range<usize>> {
    let count = vectors.div_ceil(VECTORS).max(1);
    (0..count).map(move |at| at * vectors / count..(at + 1) * vectors / count)
}
