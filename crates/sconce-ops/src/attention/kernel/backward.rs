//! The backward pass: tiles of weights are recomputed from the highest score and the sum of their rows. The two are kept
//! apart: their log-sum-exp would lose the sum where all scores of a row are huge.

use super::{
    Inputs, PAD, QUERIES, Target, View,
    forward::{group, num, split},
    key_tile, load,
};
use crate::{
    kernel::{
        Math, dispatch,
        parallel::{fill, for_each},
        simd::fold2,
    },
    product::{Float, Matrix, product},
};

/// Where the gradients go.
pub(crate) struct Gradients<T> {
    pub(crate) q: Target<T>,
    pub(crate) k: Target<T>,
    pub(crate) v: Target<T>,
    /// Dimensions of the additive mask when its gradient is wanted.
    pub(crate) bias: Option<[usize; 4]>,
}

/// What the forward pass left.
pub(crate) struct Saved<'a, T> {
    pub(crate) out: View<'a, T>,
    pub(crate) grad: View<'a, T>,
    /// Highest score and inverse sum of the rows, `(b, h, nq, 2)`.
    pub(crate) stats: &'a [T],
}

/// Writes the gradients; returns that of the additive mask when it is wanted.
pub(crate) fn backward<T: Float>(inputs: &Inputs<'_, T>, saved: &Saved<'_, T>, to: &Gradients<T>) -> Option<Vec<T>> {
    let s = inputs.plan.shape;
    let Some([bb, bh, bq, bk]) = to.bias else {
        let (heads, group) = (s.b * s.h, group(s.nq * s.nk * (s.d + s.dv)));
        for_each(heads.div_ceil(group), &|i| {
            for slice in i * group..((i + 1) * group).min(heads) {
                head(inputs, saved, to, (slice / s.h, slice % s.h), &mut []);
            }
        });
        return None;
    };
    // Heads that share a part of the mask add to one gradient, in an order that depends on the sizes alone: they are dealt to
    // at most 32 tasks, each with a partial sum.
    let slices = bb * bh;
    let sharing = (s.b / bb.max(1)) * (s.h / bh.max(1));
    let parts = 32usize.div_ceil(slices.max(1)).min(sharing.max(1));
    let each = sharing.div_ceil(parts);
    let (sums, _) = fill(slices * parts, bq * bk, 1, |task, sum| {
        let sum = sum.fill(T::zero());
        let (slice, part) = (task.start / parts, task.start % parts);
        for n in part * each..((part + 1) * each).min(sharing) {
            // Number `n` of those that share: the dimension of size one in the mask counts through its heads or samples.
            // A mask that repeats is shared by every `bb`-th sample.
            let (heads, h0) = if bh == 1 { (s.h, 0) } else { (1, slice % bh) };
            let b = n / heads * bb + slice / bh;
            head(inputs, saved, to, (b, h0 + n % heads), sum);
        }
        (sum, ())
    });
    let size = (bq * bk).max(1);
    let mut total = Vec::with_capacity(slices * size);
    for group in sums.chunks_exact(parts * size) {
        let start = total.len();
        total.extend_from_slice(&group[..size]);
        for part in group[size..].chunks_exact(size) {
            for (x, &y) in total[start..].iter_mut().zip(part) {
                *x += y;
            }
        }
    }
    Some(total)
}

/// The gradients of one head.
fn head<T: Float>(
    inputs: &Inputs<'_, T>,
    saved: &Saved<'_, T>,
    to: &Gradients<T>,
    (b, h): (usize, usize),
    dbias: &mut [T],
) {
    let s = inputs.plan.shape;
    let (q, k, v) = (inputs.q.head(b, h), inputs.k.head(b, h), inputs.v.head(b, h));
    let (out, grad) = (saved.out.head(b, h), saved.grad.head(b, h));
    let stats = &saved.stats[(b * s.h + h) * s.nq * 2..][..s.nq * 2];
    let (keys, d, dv) = (key_tile(s.nk), s.d.next_multiple_of(PAD), s.dv.next_multiple_of(PAD));
    let scale = num(inputs.plan.scale);
    let sizes = [
        s.nq * d,
        s.nq * dv,
        s.nq * d.max(dv),
        s.nq,
        s.d * keys,
        keys * d,
        s.dv * keys,
        QUERIES * keys,
        QUERIES * keys,
        keys * d,
        keys * dv,
    ];
    T::scratch(sizes.iter().sum(), |memory| {
        let [queries, grads, dq, dots, keys_t, keys_n, values_t, weights, slopes, dk, dvalues] = split(memory, sizes);
        load(grad, 0, (s.nq, s.dv), dv, T::one(), grads);
        // Row sums of dO * O; the results lie for a moment where the gradient of the queries will.
        load(out, 0, (s.nq, s.dv), dv, T::one(), dq);
        dispatch(
            #[inline(always)]
            |m| {
                for ((dot, x), y) in dots.iter_mut().zip(grads.chunks_exact(dv)).zip(dq.chunks_exact(dv)) {
                    *dot = fold2(
                        x,
                        y,
                        T::zero(),
                        #[inline(always)]
                        |sum, x, y| m.fma(x, y, sum),
                        #[inline(always)]
                        |a, b| a + b,
                    );
                }
            },
        );
        load(q, 0, (s.nq, s.d), d, scale, queries);
        dq.fill(T::zero());
        for j in (0..s.nk).step_by(keys.max(1)) {
            let width = keys.min(s.nk - j);
            load(k.t().at(0, j), 0, (s.d, width), keys, T::one(), keys_t);
            load(v.t().at(0, j), 0, (s.dv, width), keys, T::one(), values_t);
            load(k, j, (width, s.d), d, T::one(), keys_n);
            dk.fill(T::zero());
            dvalues.fill(T::zero());
            for i in (0..s.nq).step_by(QUERIES) {
                let height = QUERIES.min(s.nq - i);
                if inputs.visible(i + height) <= j {
                    continue;
                }
                let query = Matrix::row_major(&*queries, d).at(i, 0);
                let grad = Matrix::row_major(&*grads, dv).at(i, 0);
                product((height, keys, s.d), weights, keys, false, query, Matrix::row_major(&*keys_t, keys));
                product((height, keys, s.dv), slopes, keys, false, grad, Matrix::row_major(&*values_t, keys));
                dispatch(
                    #[inline(always)]
                    |m| {
                        for r in 0..height {
                            let weights = &mut weights[r * keys..][..width];
                            let slopes = &mut slopes[r * keys..][..width];
                            let at = (b, h, i + r);
                            let row = (stats[2 * (i + r)], stats[2 * (i + r) + 1], dots[i + r]);
                            differentiate(m, inputs, at, j, weights, slopes, row);
                            if let Some([_, _, bq, bk]) = to.bias {
                                add_bias(dbias, slopes, if bq == 1 { 0 } else { i + r }, j, bk);
                            }
                        }
                    },
                );
                let (weights, slopes) = (Matrix::row_major(&*weights, keys), Matrix::row_major(&*slopes, keys));
                product((width, dv, height), dvalues, dv, true, weights.t(), grad);
                product((width, d, height), dk, d, true, slopes.t(), query);
                product((height, d, width), &mut dq[i * d..], d, true, slopes, Matrix::row_major(&*keys_n, d));
            }
            for r in 0..width {
                #[expect(unsafe_code, reason = "gradients may be interleaved with those of other heads")]
                // SAFETY: this task alone has this head, and the targets have room for all keys.
                unsafe {
                    to.k.write((b, h, j + r), &dk[r * d..][..s.d], |x| x);
                    to.v.write((b, h, j + r), &dvalues[r * dv..][..s.dv], |x| x);
                }
            }
        }
        for i in 0..s.nq {
            #[expect(unsafe_code, reason = "as above")]
            // SAFETY: as above, for all queries.
            unsafe {
                to.q.write((b, h, i), &dq[i * d..][..s.d], |x| x * scale);
            }
        }
    });
}

/// A line of scores becomes the weights (after dropout) that multiplied the values; a line of gradients of those weights becomes
/// that of the scores: `dS = P (dP - D)`.
#[inline(always)]
fn differentiate<T: Float>(
    m: Math,
    inputs: &Inputs<'_, T>,
    at: (usize, usize, usize),
    j: usize,
    weights: &mut [T],
    slopes: &mut [T],
    (max, factor, dot): (T, T, T),
) {
    let seen = inputs.mask(at, j, weights);
    let (weights, hidden) = weights.split_at_mut(seen);
    hidden.fill(T::zero());
    let (slopes, hidden) = slopes.split_at_mut(seen);
    hidden.fill(T::zero());
    match &inputs.plan.dropout {
        None => {
            for (w, s) in weights.iter_mut().zip(slopes) {
                *w = m.exp(*w - max) * factor;
                *s = *w * (*s - dot);
            }
        }
        Some(dropout) => {
            let row = dropout.row(at.0 * inputs.plan.shape.h + at.1, at.2);
            let scale = num::<T>(dropout.scale());
            for (n, (w, s)) in weights.iter_mut().zip(slopes).enumerate() {
                let kept = if row.keeps(j + n) { scale } else { T::zero() };
                let p = m.exp(*w - max) * factor;
                *s = p * (*s * kept - dot);
                *w = p * kept;
            }
        }
    }
}

/// Adds a line of score gradients to that of the additive mask, whose last dimension is `bk`.
#[inline(always)]
fn add_bias<T: Float>(dbias: &mut [T], slopes: &[T], row: usize, j: usize, bk: usize) {
    if bk == 1 {
        dbias[row] += crate::kernel::simd::sum(slopes);
    } else {
        let line = &mut dbias[row * bk + j..][..slopes.len()];
        for (x, &y) in line.iter_mut().zip(slopes) {
            *x += y;
        }
    }
}
