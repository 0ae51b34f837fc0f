//! Memory that kernels write for the first time.

use std::mem::MaybeUninit;

/// Memory that has not been written yet. Every method writes all of it and returns it as a plain slice, which is the
/// proof that [`fill`](super::fill) asks for.
#[derive(Debug)]
pub struct Uninit<'a, T>(pub(super) &'a mut [MaybeUninit<T>]);

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

    /// Writes `f(x)` for each `x`; panics when the lengths differ. `f` may be called twice for an element.
    #[inline(always)]
    pub fn map<A: Copy>(self, xs: &[A], f: impl Fn(A) -> T) -> &'a mut [T] {
        let n = self.len();
        assert!(xs.len() == n, "as many inputs as outputs");
        let plain = plain(n);
        for (slot, &x) in self.0[..plain].iter_mut().zip(&xs[..plain]) {
            slot.write(f(x));
        }
        if let (Some(out), Some(x)) = (rest(self.0, plain), xs.last_chunk::<WIDTH>()) {
            for i in 0..WIDTH {
                out[i].write(f(x[i]));
            }
        }
        self.written()
    }

    /// Writes `f(x, y)` for each pair; as [`map`](Self::map).
    #[inline(always)]
    pub fn map2<A: Copy, B: Copy>(self, xs: &[A], ys: &[B], f: impl Fn(A, B) -> T) -> &'a mut [T] {
        let n = self.len();
        assert!(xs.len() == n && ys.len() == n, "as many inputs as outputs");
        let plain = plain(n);
        for ((slot, &x), &y) in self.0[..plain].iter_mut().zip(&xs[..plain]).zip(&ys[..plain]) {
            slot.write(f(x, y));
        }
        if let (Some(out), Some(x), Some(y)) = (rest(self.0, plain), xs.last_chunk::<WIDTH>(), ys.last_chunk::<WIDTH>())
        {
            for i in 0..WIDTH {
                out[i].write(f(x[i], y[i]));
            }
        }
        self.written()
    }

    /// Writes `f(x, y, z)` for each triple; as [`map`](Self::map).
    #[inline(always)]
    pub fn map3<A: Copy, B: Copy, C: Copy>(
        self,
        xs: &[A],
        ys: &[B],
        zs: &[C],
        f: impl Fn(A, B, C) -> T,
    ) -> &'a mut [T] {
        let n = self.len();
        assert!(xs.len() == n && ys.len() == n && zs.len() == n, "as many inputs as outputs");
        let plain = plain(n);
        for (((slot, &x), &y), &z) in self.0[..plain].iter_mut().zip(&xs[..plain]).zip(&ys[..plain]).zip(&zs[..plain]) {
            slot.write(f(x, y, z));
        }
        if let (Some(out), Some(x), Some(y), Some(z)) =
            (rest(self.0, plain), xs.last_chunk::<WIDTH>(), ys.last_chunk::<WIDTH>(), zs.last_chunk::<WIDTH>())
        {
            for i in 0..WIDTH {
                out[i].write(f(x[i], y[i], z[i]));
            }
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

/// The widest vectors hold 16. What is left of a row after whole ones is computed, with elements before it, as one more:
/// scalar code for it could cost as much as the row.
const WIDTH: usize = 16;

/// How many elements the plain loop takes: whole vectors, or all of a short row.
#[inline(always)]
fn plain(n: usize) -> usize {
    if n < WIDTH { n } else { n / WIDTH * WIDTH }
}

/// The last vector, if the plain loop has not reached the end.
#[inline(always)]
fn rest<T>(out: &mut [T], plain: usize) -> Option<&mut [T; WIDTH]> {
    match plain < out.len() {
        true => out.last_chunk_mut(),
        false => None,
    }
}

#[cfg(test)]
mod tests {
    use crate::kernel::fill_once;

    #[test]
    fn maps_write_every_element_of_any_length() {
        for n in 0..100 {
            let (xs, ys): (Vec<i32>, Vec<i32>) = ((0..n).collect(), (0..n).map(|i| i * i).collect());
            let len = xs.len();
            assert_eq!(fill_once(len, |out| out.map(&xs, |x| x + 1)), (1..=n).collect::<Vec<_>>());
            let sums: Vec<i32> = (0..n).map(|i| i + i * i).collect();
            assert_eq!(fill_once(len, |out| out.map2(&xs, &ys, |x, y| x + y)), sums);
            assert_eq!(fill_once(len, |out| out.map3(&xs, &ys, &xs, |x, y, z| x + y - z)), ys);
            let rows: Vec<usize> = (0..len).map(|i| i / 7).collect();
            assert_eq!(fill_once(len, |out| out.rows(7, |i, row| row.fill(i))), rows);
        }
    }
}
