//! Results cut into blocks that threads fill.

use std::{
    mem::MaybeUninit,
    ops::Range,
    sync::{Mutex, PoisonError},
};

use rayon::prelude::*;

use super::simd::padded;

/// Memory that has not been written yet. Every method writes all of it and returns it as a plain slice, which is the
/// proof that [`fill`] asks for.
#[derive(Debug)]
pub struct Uninit<'a, T>(&'a mut [MaybeUninit<T>]);

impl<'a, T: Copy> Uninit<'a, T> {
    /// Number of elements.
    #[inline(always)]
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there is nothing to write.
    #[inline(always)]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Writes one value everywhere; for kernels that write in no simple order.
    #[inline(always)]
    pub fn fill(self, value: T) -> &'a mut [T] {
        for slot in self.0.iter_mut() {
            slot.write(value);
        }
        self.written()
    }

    /// Writes a copy; panics when the lengths differ.
    #[inline(always)]
    pub fn copy(self, xs: &[T]) -> &'a mut [T] {
        self.map(xs, |x| x)
    }

    /// Writes `f(x)` for each `x`; panics when the lengths differ.
    #[inline(always)]
    pub fn map<A: Copy>(self, xs: &[A], f: impl Fn(A) -> T) -> &'a mut [T] {
        assert_eq!(self.len(), xs.len(), "one input for each output");
        let whole = xs.len() / WIDTH * WIDTH;
        let (slots, rest) = self.0.split_at_mut(whole);
        for (slot, &x) in slots.iter_mut().zip(&xs[..whole]) {
            slot.write(f(x));
        }
        if let Some(&pad) = xs.get(whole) {
            write_rest(rest, padded::<A, WIDTH>(&xs[whole..], pad).map(f));
        }
        self.written()
    }

    /// Writes `f(x, y)` for each pair; panics when the lengths differ.
    #[inline(always)]
    pub fn map2<A: Copy, B: Copy>(self, xs: &[A], ys: &[B], f: impl Fn(A, B) -> T) -> &'a mut [T] {
        assert!(self.len() == xs.len() && xs.len() == ys.len(), "one pair for each output");
        let whole = xs.len() / WIDTH * WIDTH;
        let (slots, rest) = self.0.split_at_mut(whole);
        for ((slot, &x), &y) in slots.iter_mut().zip(&xs[..whole]).zip(&ys[..whole]) {
            slot.write(f(x, y));
        }
        if let (Some(&x), Some(&y)) = (xs.get(whole), ys.get(whole)) {
            let (x, y) = (padded::<A, WIDTH>(&xs[whole..], x), padded::<B, WIDTH>(&ys[whole..], y));
            write_rest(
                rest,
                std::array::from_fn::<T, WIDTH, _>(
                    #[inline(always)]
                    |i| f(x[i], y[i]),
                ),
            );
        }
        self.written()
    }

    /// Writes `f(x, y, z)` for each triple; panics when the lengths differ.
    #[inline(always)]
    pub fn map3<A: Copy, B: Copy, C: Copy>(
        self,
        xs: &[A],
        ys: &[B],
        zs: &[C],
        f: impl Fn(A, B, C) -> T,
    ) -> &'a mut [T] {
        assert!(self.len() == xs.len() && xs.len() == ys.len() && xs.len() == zs.len());
        let whole = xs.len() / WIDTH * WIDTH;
        let (slots, rest) = self.0.split_at_mut(whole);
        for (((slot, &x), &y), &z) in slots.iter_mut().zip(&xs[..whole]).zip(&ys[..whole]).zip(&zs[..whole]) {
            slot.write(f(x, y, z));
        }
        for ((slot, &x), (&y, &z)) in rest.iter_mut().zip(&xs[whole..]).zip(ys[whole..].iter().zip(&zs[whole..])) {
            slot.write(f(x, y, z));
        }
        self.written()
    }

    /// Writes consecutive rows of `len` elements each, in order: `f` gets the row's number and its memory. A last row may be
    /// shorter.
    #[inline(always)]
    pub fn rows<F>(self, len: usize, mut f: F) -> &'a mut [T]
    where
        F: for<'b> FnMut(usize, Uninit<'b, T>) -> &'b mut [T],
    {
        for (i, row) in self.0.chunks_mut(len.max(1)).enumerate() {
            let place = (row.as_ptr() as usize, row.len());
            let done = f(i, Uninit(row));
            assert_eq!((done.as_ptr() as usize, done.len()), place, "the row itself comes back");
        }
        self.written()
    }

    #[inline(always)]
    fn written(self) -> &'a mut [T] {
        #[expect(unsafe_code, reason = "stable Rust 1.89 has no safe cast of a written slice")]
        // SAFETY: the methods above have written every element, and `MaybeUninit<T>` has the layout of `T`.
        unsafe {
            &mut *(self.0 as *mut [MaybeUninit<T>] as *mut [T])
        }
    }
}

/// Vectors of 16 are the widest; what is left of a row after whole ones is computed as one more.
const WIDTH: usize = 16;

#[inline(always)]
fn write_rest<T: Copy>(slots: &mut [MaybeUninit<T>], values: [T; WIDTH]) {
    for (slot, value) in slots.iter_mut().zip(values) {
        slot.write(value);
    }
}

/// Elements of work that a task should have at least, so that handing it over costs little.
pub const GRAIN: usize = 16 * 1024;

/// Rows in a block of about [`GRAIN`] elements, `work` being the cost of a row counted in elements read or written.
pub fn rows_per_block(work: usize) -> usize {
    GRAIN.div_ceil(work.max(1))
}

/// Rows in a block whose by-product is a sum over its rows: at least as many as [`rows_per_block`], and so many that there are at
/// most 64 sums to [`join`].
pub fn rows_per_partial(rows: usize, work: usize) -> usize {
    rows_per_block(work).max(rows.div_ceil(64))
}

/// The sum of vectors of one length, in order.
pub fn join<A: Copy + std::ops::Add<Output = A>>(partials: Vec<Vec<A>>) -> Option<Vec<A>> {
    partials.into_iter().reduce(|mut sum, part| {
        for (sum, part) in sum.iter_mut().zip(part) {
            *sum = *sum + part;
        }
        sum
    })
}

/// Makes a vector of `rows * len` elements, written once: `f` is given a range of at most `block` rows and their memory,
/// returns that memory written and a by-product. By-products come back in the order of the blocks.
///
/// Blocks depend on `block` alone and never on the number of threads, so that sums made of the by-products have the same bits
/// everywhere. One block runs on the calling thread.
pub fn fill<T, P, F>(rows: usize, len: usize, block: usize, f: F) -> (Vec<T>, Vec<P>)
where
    T: Copy + Send + Sync,
    P: Send,
    F: for<'a> Fn(Range<usize>, Uninit<'a, T>) -> (&'a mut [T], P) + Sync,
{
    let total = rows * len;
    let mut out: Vec<T> = Vec::with_capacity(total);
    let spare = &mut out.spare_capacity_mut()[..total];
    let block = block.clamp(1, rows.max(1));
    let products: Vec<Mutex<Option<P>>> = (0..rows.div_ceil(block)).map(|_| Mutex::new(None)).collect();
    let memory = Shared(spare.as_mut_ptr());
    for_each(products.len(), &|i| {
        let range = i * block..((i + 1) * block).min(rows);
        #[expect(unsafe_code, reason = "parallel iterators over chunks would be compiled anew for every kernel")]
        // SAFETY: ranges of different blocks are disjoint and within `rows`, so each slice lies within `spare`, which outlives
        // the loop, and is no one else's.
        let chunk = unsafe {
            let start = memory.get().add(range.start * len);
            std::slice::from_raw_parts_mut(start, range.len() * len)
        };
        let place = (chunk.as_ptr() as usize, chunk.len());
        let (done, product) = f(range, Uninit(chunk));
        // What makes `set_len` below sound: a written slice that is this very chunk.
        assert_eq!((done.as_ptr() as usize, done.len()), place, "the block itself comes back");
        *products[i].lock().unwrap_or_else(PoisonError::into_inner) = Some(product);
    });
    #[expect(unsafe_code, reason = "the vector is written in parallel through its spare capacity")]
    // SAFETY: the blocks cover the first `total` elements, and each of them has come back written.
    unsafe {
        out.set_len(total);
    }
    let product = |p: Mutex<Option<P>>| p.into_inner().unwrap_or_else(PoisonError::into_inner);
    (out, products.into_iter().filter_map(product).collect())
}

/// Runs `f` for each of `0..count` on the threads of the current rayon pool; a single one on the calling thread.
///
/// It is compiled once for all kernels: rayon's own iterators, made anew for each closure, would be most of this crate's code.
pub fn for_each(count: usize, f: &(dyn Fn(usize) + Sync)) {
    match count {
        0 | 1 => (0..count).for_each(f),
        _ => (0..count).into_par_iter().for_each(f),
    }
}

/// A pointer that threads may share, for slices that do not overlap.
struct Shared<T>(*mut T);

impl<T> Shared<T> {
    fn get(&self) -> *mut T {
        self.0
    }
}

#[expect(unsafe_code, reason = "raw pointers are not shared by themselves")]
// SAFETY: what the pointer is used for makes sure that no element is reached from two threads; elements may move to threads.
unsafe impl<T: Send> Sync for Shared<T> {}

/// A vector of `len` elements, written once by `f` on this thread.
pub fn fill_once<T: Copy, F>(len: usize, f: F) -> Vec<T>
where
    F: for<'a> FnOnce(Uninit<'a, T>) -> &'a mut [T],
{
    let mut out: Vec<T> = Vec::with_capacity(len);
    let spare = &mut out.spare_capacity_mut()[..len];
    let place = (spare.as_ptr() as usize, len);
    let done = f(Uninit(spare));
    assert_eq!((done.as_ptr() as usize, done.len()), place, "the memory itself comes back");
    #[expect(unsafe_code, reason = "the vector is written through its spare capacity")]
    // SAFETY: the first `len` elements have just come back written.
    unsafe {
        out.set_len(len);
    }
    out
}

/// [`fill`] with blocks of about [`GRAIN`] elements and no by-products.
pub fn fill_rows<T, F>(rows: usize, len: usize, f: F) -> Vec<T>
where
    T: Copy + Send + Sync,
    F: for<'a> Fn(Range<usize>, Uninit<'a, T>) -> &'a mut [T] + Sync,
{
    fill(rows, len, rows_per_block(len), |range, out| (f(range, out), ())).0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_cover_the_result_in_order() {
        let (out, products) = fill(10, 3, 4, |range, out: Uninit<'_, usize>| {
            let first = range.start;
            (out.rows(3, |i, row| row.fill(first + i)), range)
        });
        assert_eq!(products, [0..4, 4..8, 8..10]);
        assert_eq!(out, (0..30).map(|i| i / 3).collect::<Vec<_>>());
    }

    #[test]
    fn empty_results_are_fine() {
        assert!(fill_rows(0, 5, |_, out: Uninit<'_, f32>| out.fill(0.)).is_empty());
        assert!(fill_rows(5, 0, |_, out: Uninit<'_, f32>| out.fill(0.)).is_empty());
    }
}
