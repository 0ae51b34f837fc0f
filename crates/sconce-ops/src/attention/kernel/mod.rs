//! Attention by tiles on the CPU: what the forward and the backward pass share.

mod backward;
mod forward;

use candle_core::{Layout, Result};

use super::options::Plan;
use crate::product::{Float, Matrix};

pub(super) use backward::{Gradients, Saved, backward};
pub(super) use forward::forward;

/// Queries in a tile.
const QUERIES: usize = 48;
/// Keys in a tile, at most. With [`QUERIES`] this keeps a tile of scores within the second cache.
const KEYS: usize = 256;
/// Tiles are padded to whole registers of the widest kind, so that the gemm crate reads them without packing.
const PAD: usize = 16;

/// Elements `(b, h, n, d)` of a tensor, wherever they lie.
#[derive(Clone, Copy, Debug)]
pub(super) struct View<'a, T> {
    data: &'a [T],
    start: usize,
    strides: [usize; 4],
}

impl<'a, T: Float> View<'a, T> {
    /// A tensor `(B, heads, N, D)`; dimensions of size one, expanded or not, have stride zero.
    pub(super) fn new(data: &'a [T], layout: &Layout) -> Result<Self> {
        layout.shape().dims4()?;
        let stride = |d: usize| if layout.dims()[d] == 1 { 0 } else { layout.stride()[d] };
        Ok(Self { data, start: layout.start_offset(), strides: std::array::from_fn(stride) })
    }

    /// Part `which` of a tensor `(B, N, 3 * heads * D)`.
    pub(super) fn packed(data: &'a [T], layout: &Layout, which: usize, heads: usize, d: usize) -> Result<Self> {
        layout.shape().dims3()?;
        let [b, n, c] = *layout.stride() else { candle_core::bail!("attention_packed: expected three dimensions") };
        Ok(Self { data, start: layout.start_offset() + which * heads * d * c, strides: [b, d * c, n, c] })
    }

    /// The matrix `(N, D)` of one head.
    fn head(&self, b: usize, h: usize) -> Matrix<'a, T> {
        let [sb, sh, rows, cols] = self.strides;
        Matrix { data: self.data, start: self.start + b * sb + h * sh, rows, cols }
    }
}

/// Where results `(b, h, n, d)` go; neighbours in `d` are neighbours in memory.
#[derive(Clone, Copy, Debug)]
pub(super) struct Target<T> {
    start: *mut T,
    strides: [usize; 3],
}

#[expect(unsafe_code, reason = "shared by the threads that write different heads")]
// SAFETY: the pointer is only used by `row`, whose callers keep to rows of their own.
unsafe impl<T: Send> Sync for Target<T> {}
#[expect(unsafe_code, reason = "as above")]
// SAFETY: as above.
unsafe impl<T: Send> Send for Target<T> {}

impl<T> Target<T> {
    /// For a contiguous tensor `(B, heads, n, d)`.
    pub(super) fn separate(out: &mut Vec<T>, [b, h, n, d]: [usize; 4]) -> Self {
        out.reserve_exact(b * h * n * d);
        Self { start: out.as_mut_ptr(), strides: [h * n * d, n * d, d] }
    }

    /// For part `which` of `parts` of a contiguous tensor `(B, n, parts * heads * d)`.
    pub(super) fn packed(out: &mut Vec<T>, [b, h, n, d]: [usize; 4], which: usize, parts: usize) -> Self {
        let width = parts * h * d;
        out.reserve_exact(b * n * width);
        Self { start: out.as_mut_ptr().wrapping_add(which * h * d), strides: [n * width, d, width] }
    }

    /// Writes a row: `f(x)` for each `x`.
    ///
    /// # Safety
    /// The row must lie within the reserved memory, and no other thread may touch it.
    #[expect(unsafe_code, reason = "rows of a packed tensor are not slices that can be dealt out")]
    #[inline(always)]
    unsafe fn write(&self, (b, h, i): (usize, usize, usize), row: &[T], f: impl Fn(T) -> T)
    where
        T: Copy,
    {
        let [sb, sh, sn] = self.strides;
        // SAFETY: the caller's promise.
        let out = unsafe { self.start.add(b * sb + h * sh + i * sn) };
        for (j, &x) in row.iter().enumerate() {
            // SAFETY: as above.
            unsafe { out.add(j).write(f(x)) };
        }
    }
}

/// The arguments of one call.
pub(super) struct Inputs<'a, T> {
    pub(super) q: View<'a, T>,
    pub(super) k: View<'a, T>,
    pub(super) v: View<'a, T>,
    pub(super) bias: Option<View<'a, T>>,
    /// Samples after which the bias repeats.
    pub(super) bias_period: usize,
    /// `(b, nk)`.
    pub(super) padding: Option<&'a [u8]>,
    pub(super) plan: &'a Plan,
}

/// The padding mask as a contiguous slice.
pub(super) fn padding(plan: &Plan) -> Result<Option<Vec<u8>>> {
    plan.padding.as_ref().map(|keep| keep.flatten_all()?.to_vec1()).transpose()
}

impl<T: Float> Inputs<'_, T> {
    /// Adds the bias to a line of scores (query `i`, keys from `j`) and hides padded keys; returns how many keys from the left
    /// the query may see.
    #[inline(always)]
    fn mask(&self, (b, h, i): (usize, usize, usize), j: usize, line: &mut [T]) -> usize {
        let seen = if self.plan.causal { (i + 1).saturating_sub(j).min(line.len()) } else { line.len() };
        if let Some(bias) = &self.bias {
            let [sb, sh, sq, sk] = bias.strides;
            let start = bias.start + b % self.bias_period * sb + h * sh + i * sq + j * sk;
            // Loops, not closures: a closure that is not inlined loses the instruction set it is compiled for.
            match sk {
                1 => {
                    for (x, &y) in line.iter_mut().zip(&bias.data[start..][..seen]) {
                        *x += y;
                    }
                }
                _ => {
                    for (j, x) in line[..seen].iter_mut().enumerate() {
                        *x += bias.data[start + j * sk];
                    }
                }
            }
        }
        if let Some(keep) = self.padding {
            for (x, &keep) in line.iter_mut().zip(&keep[b * self.plan.shape.nk + j..][..seen]) {
                *x = if keep != 0 { *x } else { T::neg_infinity() };
            }
        }
        seen
    }

    /// Keys that any of the queries before `end` may see.
    fn visible(&self, end: usize) -> usize {
        let nk = self.plan.shape.nk;
        if self.plan.causal { nk.min(end) } else { nk }
    }
}

/// Copies rows `start..start + rows` of a matrix, times `scale`, into row-major memory padded with zeros to `width`.
fn load<T: Float>(
    from: Matrix<'_, T>,
    start: usize,
    (rows, cols): (usize, usize),
    width: usize,
    scale: T,
    to: &mut [T],
) {
    from.at(start, 0).copy_to(rows, cols, to, width);
    for line in to[..rows * width].chunks_exact_mut(width.max(1)) {
        line[cols..].fill(T::zero());
        if scale != T::one() {
            line[..cols].iter_mut().for_each(|x| *x *= scale);
        }
    }
}

/// Size of a tile of keys: even tiles of at most [`KEYS`].
fn key_tile(nk: usize) -> usize {
    nk.div_ceil(nk.div_ceil(KEYS).max(1)).next_multiple_of(PAD)
}
