//! The forward pass: keys pass by in tiles under an online softmax.

use super::{Inputs, PAD, QUERIES, Target, key_tile, load};
use crate::{
    kernel::{Math, dispatch, parallel::for_each},
    product::{Float, Matrix, product},
};

/// Queries that share the packed keys: a task.
const CHUNK: usize = 8 * QUERIES;

/// Writes the result, and the highest score of every row and the inverse of its sum, `(b, h, nq, 2)`, when wanted.
pub(crate) fn forward<T: Float>(inputs: &Inputs<'_, T>, out: &Target<T>, stats: Option<&Target<T>>) {
    let s = inputs.plan.shape;
    let chunks = s.nq.div_ceil(CHUNK);
    let tasks = s.b * s.h * chunks;
    // Small heads go several to a task.
    let group = group(s.nq.min(CHUNK) * s.nk * (s.d + s.dv));
    for_each(tasks.div_ceil(group), &|i| {
        for task in i * group..((i + 1) * group).min(tasks) {
            let (slice, start) = (task / chunks, task % chunks * CHUNK);
            chunk(inputs, (slice / s.h, slice % s.h), start..(start + CHUNK).min(s.nq), out, stats);
        }
    });
}

/// How many pieces of so many multiply-adds are worth handing to a thread.
pub(super) fn group(work: usize) -> usize {
    ((1 << 19) / work.max(1)).max(1)
}

/// Queries `rows` of one head.
fn chunk<T: Float>(
    inputs: &Inputs<'_, T>,
    (b, h): (usize, usize),
    rows: std::ops::Range<usize>,
    out: &Target<T>,
    stats: Option<&Target<T>>,
) {
    let s = inputs.plan.shape;
    let (q, k, v) = (inputs.q.head(b, h), inputs.k.head(b, h), inputs.v.head(b, h));
    let (keys, dv) = (key_tile(s.nk), s.dv.next_multiple_of(PAD));
    let scale = num(inputs.plan.scale);
    let sizes = [rows.len() * s.d, s.d * keys, keys * dv, QUERIES * keys, rows.len() * dv, rows.len(), rows.len()];
    T::scratch(sizes.iter().sum(), |memory| {
        let [queries, keys_t, values, scores, sums, max, total] = split(memory, sizes);
        load(q, rows.start, (rows.len(), s.d), s.d, scale, queries);
        max.fill(T::neg_infinity());
        total.fill(T::zero());
        sums.fill(T::zero());
        let visible = inputs.visible(rows.end);
        for j in (0..visible).step_by(keys.max(1)) {
            let width = keys.min(s.nk - j);
            load(k.t().at(0, j), 0, (s.d, width), keys, T::one(), keys_t);
            load(v, j, (width, s.dv), dv, T::one(), values);
            for i in (0..rows.len()).step_by(QUERIES) {
                let height = QUERIES.min(rows.len() - i);
                if inputs.visible(rows.start + i + height) <= j {
                    continue;
                }
                let tile = Matrix::row_major(&*queries, s.d).at(i, 0);
                product((height, keys, s.d), scores, keys, false, tile, Matrix::row_major(&*keys_t, keys));
                dispatch(
                    #[inline(always)]
                    |m| {
                        for r in 0..height {
                            let (row, line) = (i + r, &mut scores[r * keys..][..width]);
                            let at = (b, h, rows.start + row);
                            let sum = &mut sums[row * dv..][..dv];
                            online(m, inputs, at, j, line, sum, (&mut max[row], &mut total[row]));
                        }
                    },
                );
                let weights = Matrix::row_major(&*scores, keys);
                product((height, dv, width), &mut sums[i * dv..], dv, true, weights, Matrix::row_major(&*values, dv));
            }
        }
        for (r, i) in rows.clone().enumerate() {
            // A row without keys has summed nothing.
            let factor = if total[r] == T::zero() { T::zero() } else { T::one() / total[r] };
            #[expect(unsafe_code, reason = "the result may be interleaved with other heads")]
            // SAFETY: this task alone has query `i` of this head, and the target has room for all queries.
            unsafe {
                out.write((b, h, i), &sums[r * dv..][..s.dv], |x| x * factor);
                if let Some(stats) = stats {
                    // With +inf for a row without keys its weights come out as exp(-inf) = 0 in the backward pass.
                    let max = if total[r] == T::zero() { T::infinity() } else { max[r] };
                    stats.write((b, h, i), &[max, factor], |x| x);
                }
            }
        }
    })
}

/// One step of the online softmax on a line of scores, which become unnormalised weights.
#[inline(always)]
fn online<T: Float>(
    m: Math,
    inputs: &Inputs<'_, T>,
    at: (usize, usize, usize),
    j: usize,
    line: &mut [T],
    sum: &mut [T],
    (max, total): (&mut T, &mut T),
) {
    let seen = inputs.mask(at, j, line);
    let (line, hidden) = line.split_at_mut(seen);
    hidden.fill(T::zero());
    let high = crate::kernel::simd::max(line);
    let high = if high > *max { high } else { *max };
    // Minus infinity less itself would be NaN; zero keeps exp(-inf) = 0.
    let base = if high == T::neg_infinity() { T::zero() } else { high };
    if *max < high && *max > T::neg_infinity() {
        let shrink = m.exp(*max - high);
        *total *= shrink;
        for x in sum.iter_mut() {
            *x *= shrink;
        }
    }
    *max = high;
    *total += exp_sum(m, line, base);
    if let Some(dropout) = &inputs.plan.dropout {
        let row = dropout.row(at.0 * inputs.plan.shape.h + at.1, at.2);
        let scale = num::<T>(dropout.scale());
        for (n, x) in line.iter_mut().enumerate() {
            *x = if row.keeps(j + n) { *x * scale } else { T::zero() };
        }
    }
}

/// `line = exp(line - base)`; returns the sum, taken in 32 lanes whatever the machine.
#[inline(always)]
fn exp_sum<T: Float>(m: Math, line: &mut [T], base: T) -> T {
    let mut lanes = [T::zero(); 32];
    let (chunks, rest) = line.as_chunks_mut::<32>();
    for chunk in chunks {
        for (lane, x) in lanes.iter_mut().zip(chunk) {
            *x = m.exp(*x - base);
            *lane += *x;
        }
    }
    for (lane, x) in lanes.iter_mut().zip(rest) {
        *x = m.exp(*x - base);
        *lane += *x;
    }
    crate::kernel::simd::sum(&lanes)
}

/// Cuts scratch memory into pieces.
pub(super) fn split<T, const N: usize>(mut memory: &mut [T], sizes: [usize; N]) -> [&mut [T]; N] {
    sizes.map(|size| {
        let (piece, rest) = std::mem::take(&mut memory).split_at_mut(size);
        memory = rest;
        piece
    })
}

pub(super) fn num<T: Float>(x: f64) -> T {
    <T as candle_core::WithDType>::from_f64(x)
}
