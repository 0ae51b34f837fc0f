//! The two passes of a resize, and the nearest-neighbour copy.

use super::filter::{PRECISION_BITS, Weights};
use super::{Size, Window};
use rayon::prelude::*;
use std::ops::Range;

/// Half of one grey level: makes the final shift round.
const HALF: i32 = 1 << (PRECISION_BITS - 1);
/// Multiply-adds below which a pass is not worth a second thread.
const TASK: usize = 1 << 18;

fn clip(sum: i32) -> u8 {
    (sum >> PRECISION_BITS).clamp(0, 255) as u8
}

/// Calls `work(row, output)` for each output row of `row_len` bytes, on several threads where it pays.
fn for_rows(output: &mut [u8], row_len: usize, row_cost: usize, work: impl Fn(usize, &mut [u8]) + Sync) {
    let rows = (TASK / row_cost.max(1)).max(1);
    if output.len() <= rows * row_len {
        output.chunks_exact_mut(row_len).enumerate().for_each(|(row, out)| work(row, out));
    } else {
        output.par_chunks_mut(row_len * rows).enumerate().for_each(|(task, out)| {
            out.chunks_exact_mut(row_len).enumerate().for_each(|(row, out)| work(task * rows + row, out));
        });
    }
}

/// Resizes the columns of the source rows `rows`.
pub(super) fn horizontal(pixels: &[u8], channels: usize, width: u32, rows: Range<usize>, weights: &Weights) -> Vec<u8> {
    let row_in = width as usize * channels;
    let row_out = weights.first.len() * channels;
    let source = &pixels[rows.start * row_in..rows.end * row_in];
    let mut output = vec![0u8; rows.len() * row_out];
    let arch = pulp::Arch::new();
    for_rows(&mut output, row_out, row_out * weights.taps, |row, out| {
        let line = &source[row * row_in..][..row_in];
        arch.dispatch(
            #[inline(always)]
            || match channels {
                1 => line_of::<1>(line, out, weights),
                2 => line_of::<2>(line, out, weights),
                3 => line_of::<3>(line, out, weights),
                _ => line_of::<4>(line, out, weights),
            },
        );
    });
    output
}

/// One row: the channels are split into planes, so that a weighted sum is a dot product of contiguous runs.
#[inline(always)]
fn line_of<const C: usize>(line: &[u8], out: &mut [u8], weights: &Weights) {
    const L: usize = Weights::LANES;
    let width = line.len() / C;
    // Padded weights are zero, and the planes are padded to match.
    let stride = width + weights.taps;
    let mut planes = vec![0u8; stride * C];
    for (channel, plane) in planes.chunks_exact_mut(stride).enumerate() {
        for (value, pixel) in plane.iter_mut().zip(line.as_chunks::<C>().0) {
            *value = pixel[channel];
        }
    }
    let fixed = weights.fixed.chunks_exact(weights.taps);
    for ((pixel, &first), fixed) in out.as_chunks_mut::<C>().0.iter_mut().zip(&weights.first).zip(fixed) {
        let fixed = fixed.as_chunks::<L>().0;
        for (value, plane) in pixel.iter_mut().zip(planes.chunks_exact(stride)) {
            let run = plane[first..first + weights.taps].as_chunks::<L>().0;
            let mut sums = [0i32; L];
            for (run, fixed) in run.iter().zip(fixed) {
                for lane in 0..L {
                    sums[lane] += i32::from(run[lane]) * fixed[lane];
                }
            }
            *value = clip(sums.iter().sum::<i32>() + HALF);
        }
    }
}

/// Resizes the rows of an image of the given width.
pub(super) fn vertical(pixels: &[u8], channels: usize, width: u32, weights: &Weights) -> Vec<u8> {
    let row_len = width as usize * channels;
    let mut output = vec![0u8; weights.first.len() * row_len];
    let arch = pulp::Arch::new();
    for_rows(&mut output, row_len, row_len * weights.taps, |row, out| {
        let source = &pixels[weights.first[row] * row_len..];
        let fixed = weights.of(row);
        arch.dispatch(
            #[inline(always)]
            || column_sums(source, row_len, fixed, out),
        );
    });
    output
}

/// One output row: a weighted sum of source rows, in tiles that stay in registers.
#[inline(always)]
fn column_sums(source: &[u8], row_len: usize, fixed: &[i32], out: &mut [u8]) {
    const TILE: usize = 32;
    for (tile, out) in out.chunks_mut(TILE).enumerate() {
        let start = tile * TILE;
        let mut sums = [HALF; TILE];
        for (row, &weight) in fixed.iter().enumerate() {
            let run = &source[row * row_len + start..][..out.len()];
            if let Ok(run) = <&[u8; TILE]>::try_from(run) {
                for lane in 0..TILE {
                    sums[lane] += i32::from(run[lane]) * weight;
                }
            } else {
                sums.iter_mut().zip(run).for_each(|(sum, &value)| *sum += i32::from(value) * weight);
            }
        }
        out.iter_mut().zip(sums).for_each(|(out, sum)| *out = clip(sum));
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
