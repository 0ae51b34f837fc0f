//! Matrix products: on one thread, for kernels that split the work themselves, and split over threads with an epilogue.

mod parallel;
mod transpose;

use std::cell::RefCell;

use candle_core::{Layout, Result};
use gemm::Parallelism;

pub(crate) use parallel::{Epilogue, parallel};

/// A strided matrix: element `(i, j)` lies at `start + i * rows + j * cols`.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Matrix<'a, T> {
    pub(crate) data: &'a [T],
    pub(crate) start: usize,
    pub(crate) rows: usize,
    pub(crate) cols: usize,
}

impl<'a, T: Float> Matrix<'a, T> {
    /// A tensor of two dimensions.
    pub(crate) fn new(data: &'a [T], layout: &Layout) -> Result<Self> {
        layout.shape().dims2()?;
        Ok(Self { data, start: layout.start_offset(), rows: layout.stride()[0], cols: layout.stride()[1] })
    }

    /// A row-major matrix with `width` elements from one row to the next.
    pub(crate) fn row_major(data: &'a [T], width: usize) -> Self {
        Self { data, start: 0, rows: width, cols: 1 }
    }

    /// Rows and columns exchanged.
    pub(crate) fn t(self) -> Self {
        Self { rows: self.cols, cols: self.rows, ..self }
    }

    /// The part that begins at row `i` and column `j`.
    pub(crate) fn at(self, i: usize, j: usize) -> Self {
        Self { start: self.start + i * self.rows + j * self.cols, ..self }
    }

    /// Panics unless an `m x n` matrix lies inside the data: what makes [`product`] safe to call.
    fn check(&self, m: usize, n: usize) {
        let last = self.start + m.saturating_sub(1) * self.rows + n.saturating_sub(1) * self.cols;
        assert!(m == 0 || n == 0 || last < self.data.len(), "a matrix reaches beyond its data");
    }

    /// Copies an `m x n` part into row-major memory, `width` apart, by squares that stay in registers when rows are the
    /// direction in which elements are neighbours.
    pub(crate) fn copy_to(&self, m: usize, n: usize, out: &mut [T], width: usize) {
        self.check(m, n);
        if self.cols == 1 {
            for i in 0..m {
                let from = self.start + i * self.rows;
                out[i * width..][..n].copy_from_slice(&self.data[from..from + n]);
            }
        } else if self.rows == 1 {
            T::transpose((m, n), &self.data[self.start..], self.cols, out, width);
        } else {
            for i in 0..m {
                let line = &mut out[i * width..][..n];
                for (j, x) in line.iter_mut().enumerate() {
                    *x = self.data[self.start + i * self.rows + j * self.cols];
                }
            }
        }
    }
}

/// A float that the product and attention kernels compute with.
pub(crate) trait Float: crate::kernel::Real {
    /// Lends the thread's scratch memory, contents unspecified. It is kept for the life of the thread: fresh large blocks
    /// cost page faults that rival the arithmetic.
    fn scratch<R>(len: usize, f: impl FnOnce(&mut [Self]) -> R) -> R;

    /// `out[i * width + j] = from[j * step + i]` for `(i, j)` below `size`.
    fn transpose(size: (usize, usize), from: &[Self], step: usize, out: &mut [Self], width: usize);
}

macro_rules! float {
    ($($t:ident, $transpose:path;)*) => {$(
        impl Float for $t {
            fn transpose(size: (usize, usize), from: &[$t], step: usize, out: &mut [$t], width: usize) {
                $transpose(size, from, step, out, width);
            }

            fn scratch<R>(len: usize, f: impl FnOnce(&mut [$t]) -> R) -> R {
                thread_local! {
                    static SCRATCH: RefCell<Vec<$t>> = const { RefCell::new(Vec::new()) };
                }
                const LINE: usize = 64 / size_of::<$t>();
                // Taken out of its cell, so that a nested use gets memory of its own.
                let mut memory = SCRATCH.take();
                if memory.len() < len + LINE {
                    memory.resize(len + LINE, 0.0);
                }
                let start = memory.as_ptr().align_offset(64).min(LINE);
                let result = f(&mut memory[start..start + len]);
                SCRATCH.replace(memory);
                result
            }
        }
    )*};
}
float! {
    f32, transpose::single;
    f64, transpose::any;
}

/// `c = a b`, or `c += a b` when `add`: `a` is `m x k`, `b` is `k x n`, `c` row-major with `width` from row to row.
pub(crate) fn product<T: Float>(
    (m, n, k): (usize, usize, usize),
    c: &mut [T],
    width: usize,
    add: bool,
    a: Matrix<'_, T>,
    b: Matrix<'_, T>,
) {
    assert!(
        m == 0 || n == 0 || (n <= width || m == 1) && (m - 1) * width + n <= c.len(),
        "a product reaches beyond its result"
    );
    #[expect(unsafe_code, reason = "the gemm crate takes raw pointers")]
    // SAFETY: `c` is exclusively borrowed and holds the `m x n` result, rows not overlapping.
    unsafe {
        product_to((m, n, k), c.as_mut_ptr(), width, add, a, b);
    }
}

/// [`product`] into memory that other threads may be writing around, and that need not be initialised unless `add`.
///
/// # Safety
/// `c` must be writable (readable too when `add`) at `i * width + j` for all `i < m`, `j < n`, by this thread alone.
#[expect(unsafe_code, reason = "the gemm crate takes raw pointers")]
pub(crate) unsafe fn product_to<T: Float>(
    (m, n, k): (usize, usize, usize),
    c: *mut T,
    width: usize,
    add: bool,
    a: Matrix<'_, T>,
    b: Matrix<'_, T>,
) {
    a.check(m, k);
    b.check(k, n);
    // SAFETY: `a` and `b` have been checked against their slices, the caller answers for `c`, and `T` is f32 or f64, which
    // gemm knows.
    unsafe {
        gemm::gemm(
            m,
            n,
            k,
            c,
            1,
            width as isize,
            add,
            a.data.as_ptr().add(a.start.min(a.data.len())),
            a.cols as isize,
            a.rows as isize,
            b.data.as_ptr().add(b.start.min(b.data.len())),
            b.cols as isize,
            b.rows as isize,
            T::one(),
            T::one(),
            false,
            false,
            false,
            Parallelism::None,
        );
    }
}
