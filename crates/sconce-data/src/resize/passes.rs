//! The two passes of a resize, and the nearest-neighbour copy.

use super::filter::{PRECISION_BITS, Weights};
use super::{Size, Window};
use pulp::{Simd, WithSimd};
use rayon::prelude::*;
use std::ops::Range;

// Sums cannot overflow, but only wrapping arithmetic is free of checks in every profile, and so vectorised.

/// Half of one grey level: makes the final shift round.
const HALF: i32 = 1 << (PRECISION_BITS - 1);
/// Multiply-adds below which a pass is not worth a second thread.
const TASK: usize = 1 << 18;

#[inline(always)]
fn clip(sum: i32) -> u8 {
    (sum >> PRECISION_BITS).clamp(0, 255) as u8
}

/// Samples of a row that are worked on together, so that they stay in registers or in the first cache.
const TILE: usize = 64;
/// Rows that the horizontal pass computes side by side, one in each lane.
const ROWS: usize = 16;

/// Calls `work(row, output)` for every `step` output rows of `row_len` bytes, on several threads where it pays.
fn for_rows(output: &mut [u8], row_len: usize, row_cost: usize, step: usize, work: impl Fn(usize, &mut [u8]) + Sync) {
    let rows = (TASK / row_cost.max(1)).max(1).next_multiple_of(step);
    let block = |start: usize, out: &mut [u8]| {
        out.chunks_mut(row_len * step).enumerate().for_each(|(block, out)| work(start + block * step, out));
    };
    if output.len() <= rows * row_len {
        block(0, output);
    } else {
        output.par_chunks_mut(row_len * rows).enumerate().for_each(|(task, out)| block(task * rows, out));
    }
}

/// Resizes the columns of the source rows `rows`.
pub(super) fn horizontal(pixels: &[u8], channels: usize, width: u32, rows: Range<usize>, weights: &Weights) -> Vec<u8> {
    let row_in = width as usize * channels;
    let row_out = weights.first.len() * channels;
    let source = &pixels[rows.start * row_in..rows.end * row_in];
    let mut output = vec![0u8; rows.len() * row_out];
    let arch = pulp::Arch::new();
    for_rows(&mut output, row_out, row_out * weights.taps, ROWS, |row, out| {
        let count = out.len() / row_out;
        let source = &source[row * row_in..][..count * row_in];
        arch.dispatch(RowBlock { source, row_in, row_out, channels, weights, out });
    });
    output
}

/// Up to [`ROWS`] rows of the horizontal pass. A struct, not a closure: a closure's body may stay behind in a
/// function of its own, compiled for the baseline.
struct RowBlock<'a> {
    source: &'a [u8],
    row_in: usize,
    row_out: usize,
    channels: usize,
    weights: &'a Weights,
    out: &'a mut [u8],
}

impl WithSimd for RowBlock<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, _: S) {
        let Self { source, row_in, row_out, channels, weights, out } = self;
        // Transposed, so that a sample of all rows is one vector and every weight serves all of them.
        let mut columns = vec![[0u8; ROWS]; row_in];
        for (tile, columns) in columns.chunks_mut(TILE).enumerate() {
            for (row, line) in source.chunks_exact(row_in).enumerate() {
                let line = &line[tile * TILE..][..columns.len()];
                for (column, &sample) in columns.iter_mut().zip(line) {
                    column[row] = sample;
                }
            }
        }
        for (position, &first) in weights.first.iter().enumerate() {
            let fixed = weights.of(position);
            for channel in 0..channels {
                let mut sums = [HALF; ROWS];
                let samples = columns[first * channels + channel..].iter().step_by(channels);
                for (samples, &weight) in samples.zip(fixed) {
                    for lane in 0..ROWS {
                        sums[lane] = sums[lane].wrapping_add(i32::from(samples[lane]).wrapping_mul(weight));
                    }
                }
                let sample = position * channels + channel;
                for (line, sum) in out.chunks_exact_mut(row_out).zip(sums) {
                    line[sample] = clip(sum);
                }
            }
        }
    }
}

/// Resizes the rows of an image of the given width.
pub(super) fn vertical(pixels: &[u8], channels: usize, width: u32, weights: &Weights) -> Vec<u8> {
    let row_len = width as usize * channels;
    let mut output = vec![0u8; weights.first.len() * row_len];
    let arch = pulp::Arch::new();
    for_rows(&mut output, row_len, row_len * weights.taps, 1, |row, out| {
        let source = &pixels[weights.first[row] * row_len..];
        let fixed = weights.of(row);
        arch.dispatch(ColumnSums { source, row_len, fixed, out });
    });
    output
}

/// One output row of the vertical pass: a weighted sum of source rows, in tiles that stay in registers.
struct ColumnSums<'a> {
    source: &'a [u8],
    row_len: usize,
    fixed: &'a [i32],
    out: &'a mut [u8],
}

impl WithSimd for ColumnSums<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, _: S) {
        let Self { source, row_len, fixed, out } = self;
        let (tiles, rest) = out.as_chunks_mut::<TILE>();
        let start = tiles.len() * TILE;
        for (tile, out) in tiles.iter_mut().enumerate() {
            let mut sums = [HALF; TILE];
            for (&weight, row) in fixed.iter().zip(source.chunks(row_len)) {
                if let Some(run) = row[tile * TILE..].first_chunk::<TILE>() {
                    for lane in 0..TILE {
                        sums[lane] = sums[lane].wrapping_add(i32::from(run[lane]).wrapping_mul(weight));
                    }
                }
            }
            for lane in 0..TILE {
                out[lane] = clip(sums[lane]);
            }
        }
        for (column, out) in rest.iter_mut().enumerate() {
            let mut sum = HALF;
            for (&weight, row) in fixed.iter().zip(source.chunks(row_len)) {
                sum = sum.wrapping_add(i32::from(row[start + column]).wrapping_mul(weight));
            }
            *out = clip(sum);
        }
    }
}

/// Nearest neighbour: positions are accumulated, not multiplied, so that they drift as Pillow's do.
pub(super) fn nearest(
    pixels: &[u8],
    channels: usize,
    from: Size,
    to: Size,
    region: [f32; 4],
    window: &Window,
) -> Vec<u8> {
    let positions = |out: u32, start: f32, end: f32, wanted: &Range<u32>| -> Vec<usize> {
        let step = f64::from(end - start) / f64::from(out);
        let mut position = f64::from(start) + step * 0.5;
        let next = |_| {
            let here = position as usize;
            position += step;
            here
        };
        (0..wanted.end).map(next).skip(wanted.start as usize).collect()
    };
    let columns = positions(to.width, region[0], region[2], &window.columns);
    let rows = positions(to.height, region[1], region[3], &window.rows);
    let row_in = from.width as usize * channels;
    let row_out = columns.len() * channels;
    let mut output = vec![0u8; rows.len() * row_out];
    for (out, row) in output.chunks_exact_mut(row_out).zip(rows) {
        let Some(line) = pixels.get(row * row_in..(row + 1) * row_in) else { continue };
        for (out, &column) in out.chunks_exact_mut(channels).zip(&columns) {
            if let Some(pixel) = line.get(column * channels..(column + 1) * channels) {
                out.copy_from_slice(pixel);
            }
        }
    }
    output
}
