//! Results cut into blocks that threads fill.

use std::{
    ops::Range,
    sync::{Mutex, PoisonError},
};

use rayon::prelude::*;

use super::uninit::Uninit;

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
