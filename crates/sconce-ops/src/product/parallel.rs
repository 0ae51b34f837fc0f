//! One large product cut into blocks that threads compute, each finished while it is in cache.

use std::ops::Range;

use super::{Float, Matrix, product, product_to};
use crate::{
    Activation,
    kernel::parallel::{fill, for_each},
    linear::epilogue,
};

/// What happens to each element of a product before it leaves the cache: `act(x + bias[column])`.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Epilogue<'a, T> {
    /// One number per column.
    pub(crate) bias: Option<&'a [T]>,
    pub(crate) act: Activation,
    /// Whether to return the argument of the activation as well, for its gradient.
    pub(crate) keep: bool,
}

impl<T> Epilogue<'_, T> {
    pub(crate) const NONE: Self = Self { bias: None, act: Activation::Identity, keep: false };
}

/// `act(a b + bias)` row-major, and `a b + bias` when the epilogue keeps it: `a` is `m x k`, `b` is `k x n`.
///
/// Blocks depend on the sizes alone, so the bits do not depend on the number of threads.
pub(crate) fn parallel<T: Float>(
    (m, n, k): (usize, usize, usize),
    a: Matrix<'_, T>,
    b: Matrix<'_, T>,
    end: Epilogue<'_, T>,
) -> (Vec<T>, Option<Vec<T>>) {
    assert!(end.bias.is_none_or(|bias| bias.len() == n), "one bias per column");
    let blocks = Blocks::new(m, n, k);
    if blocks.depths > 1 {
        return deep((m, n, k), a, b, end, &blocks);
    }
    let mut out = Vec::with_capacity(m * n);
    let mut kept = end.keep.then(|| Vec::with_capacity(m * n));
    let targets = Targets { out: out.as_mut_ptr(), kept: kept.as_mut().map(|kept: &mut Vec<T>| kept.as_mut_ptr()), n };
    let task = |i: usize| {
        let (rows, cols) = blocks.block(i);
        #[expect(unsafe_code, reason = "blocks of rows and columns are not slices of the result")]
        // SAFETY: the blocks of different `i` are disjoint parts of the `m x n` results, which have that capacity.
        unsafe {
            block(rows, cols, k, a, b, end, &targets);
        }
    };
    for_each(blocks.count(), &task);
    #[expect(unsafe_code, reason = "the vectors are written through pointers")]
    // SAFETY: the blocks cover the results, and each block writes all of its elements.
    unsafe {
        out.set_len(m * n);
        if let Some(kept) = &mut kept {
            kept.set_len(m * n);
        }
    }
    (out, kept)
}

/// The same for small results of long sums, as the gradient of a weight: the sums are cut, too.
fn deep<T: Float>(
    (m, n, k): (usize, usize, usize),
    a: Matrix<'_, T>,
    b: Matrix<'_, T>,
    end: Epilogue<'_, T>,
    blocks: &Blocks,
) -> (Vec<T>, Option<Vec<T>>) {
    let depth = k.div_ceil(blocks.depths);
    let (mut out, _) = fill(blocks.depths, m * n, 1, |part, sum| {
        let sum = sum.fill(T::zero());
        let start = (part.start * depth).min(k);
        let depth = depth.min(k - start);
        product((m, n, depth), sum, n, false, a.at(0, start), b.at(start, 0));
        (sum, ())
    });
    let (sum, parts) = out.split_at_mut(m * n);
    for part in parts.chunks_exact((m * n).max(1)) {
        for (x, &y) in sum.iter_mut().zip(part) {
            *x += y;
        }
    }
    out.truncate(m * n);
    let mut kept = end.keep.then(|| vec![T::zero(); m * n]);
    for i in 0..m {
        let line = &mut out[i * n..][..n];
        let kept = kept.as_mut().map(|kept| &mut kept[i * n..][..n]);
        epilogue::finish(end.act, end.bias, line, kept);
    }
    (out, kept)
}

struct Targets<T> {
    out: *mut T,
    kept: Option<*mut T>,
    n: usize,
}

#[expect(unsafe_code, reason = "shared between the threads that write different blocks")]
// SAFETY: the pointers are only used by `block`, whose callers keep the blocks disjoint.
unsafe impl<T: Send> Sync for Targets<T> {}

/// Rows multiplied at a time: small enough for the epilogue to find them in the nearest cache.
const STRIP: usize = 96;
/// Length of sum after which the partial results go to memory: keeps the copied parts of `a` and `b` within the second cache.
const DEPTH: usize = 1024;
/// Rows from which copying `b` pays.
const COPY: usize = 16;

/// Computes one block.
///
/// # Safety
/// The block must lie inside the targets, and no other thread may touch it.
#[expect(unsafe_code, reason = "see above")]
unsafe fn block<T: Float>(
    rows: Range<usize>,
    cols: Range<usize>,
    k: usize,
    a: Matrix<'_, T>,
    b: Matrix<'_, T>,
    end: Epilogue<'_, T>,
    targets: &Targets<T>,
) {
    let (width, n) = (cols.len(), targets.n);
    let plain = end.bias.is_none() && end.act == Activation::Identity && !end.keep;
    let copy = rows.len() >= COPY;
    // Columns of `a` that are neighbours are read as they are; others are far apart, often a page each.
    let turn = copy && a.cols != 1;
    let depth = if copy { k.div_ceil(k.div_ceil(DEPTH).max(1)) } else { k };
    let sizes = [if copy { depth * width } else { 0 }, if turn { STRIP * depth } else { 0 }];
    T::scratch(sizes.iter().sum(), |memory| {
        let (panel, turned) = memory.split_at_mut(sizes[0]);
        let mut start = 0;
        loop {
            let depth = depth.min(k - start);
            let last = start + depth == k;
            let right = b.at(start, cols.start);
            let right = if copy {
                // The gemm crate multiplies rows that are neighbours in memory without packing them again for each strip.
                right.copy_to(depth, width, panel, width);
                Matrix::row_major(panel, width)
            } else {
                right
            };
            for top in rows.clone().step_by(STRIP) {
                let height = STRIP.min(rows.end - top);
                let mut left = a.at(top, start);
                if turn {
                    left.copy_to(height, depth, turned, depth);
                    left = Matrix::row_major(turned, depth);
                }
                // SAFETY: the strip lies in the block, which is ours; with `start > 0` it has been written before.
                unsafe {
                    let to = targets.out.add(top * n + cols.start);
                    product_to((height, width, depth), to, n, start > 0, left, right);
                }
                if !last || plain {
                    continue;
                }
                let bias = end.bias.map(|bias| &bias[cols.clone()]);
                for i in top..top + height {
                    let at = i * n + cols.start;
                    // SAFETY: row `i` of the strip, written above; the kept row is initialised before it becomes a slice.
                    let (line, kept) = unsafe {
                        let line = std::slice::from_raw_parts_mut(targets.out.add(at), width);
                        let kept = targets.kept.map(|kept| {
                            kept.add(at).write_bytes(0, width);
                            std::slice::from_raw_parts_mut(kept.add(at), width)
                        });
                        (line, kept)
                    };
                    epilogue::finish(end.act, bias, line, kept);
                }
            }
            start += depth;
            if last {
                break;
            }
        }
    });
}

/// How a product is cut.
struct Blocks {
    m: usize,
    n: usize,
    rows: usize,
    cols: usize,
    depths: usize,
}

impl Blocks {
    fn new(m: usize, n: usize, k: usize) -> Self {
        // Multiply-adds that are worth a task.
        const WORTH: usize = 1 << 20;
        let (mut rows, mut cols, mut depths) = (m.max(1), 128.min(n.max(1)), 1);
        let count = |rows: usize, cols: usize| m.div_ceil(rows) * n.div_ceil(cols);
        // Tall blocks copy `b` least often; enough of them keep every thread busy.
        while count(rows, cols) < 16 && rows > 512 {
            rows = rows.div_ceil(2);
        }
        while count(rows, cols) < 8 && rows * cols * k >= 2 * WORTH && (rows > STRIP || cols > 64) {
            if cols > 64 {
                cols = 64;
            } else {
                rows = rows.div_ceil(2);
            }
        }
        if count(rows, cols) < 8 && k >= 4096 {
            depths = (k / 2048).min(16);
        }
        // Even blocks, so that no thread waits for one that has a larger one.
        let even = |size: usize, block: usize, unit: usize| {
            size.div_ceil(size.div_ceil(block).max(1)).next_multiple_of(unit).max(1)
        };
        Self { m, n, rows: even(m, rows, 8), cols: even(n, cols, 16), depths }
    }

    fn count(&self) -> usize {
        self.m.div_ceil(self.rows) * self.n.div_ceil(self.cols)
    }

    fn block(&self, i: usize) -> (Range<usize>, Range<usize>) {
        let across = self.n.div_ceil(self.cols);
        let (top, left) = (i / across * self.rows, i % across * self.cols);
        (top..(top + self.rows).min(self.m), left..(left + self.cols).min(self.n))
    }
}
