//! Registers of the machine under one name for `f32` and `f64`, and the block product that dense convolutions are made of.

use pulp::Simd;

/// A number that fills vector registers.
pub(crate) trait Lanes: num_traits::Float + Send + Sync + std::fmt::Debug + 'static {
    /// A register.
    type Vector<S: Simd>: Copy;

    /// Numbers in a register.
    fn count<S: Simd>() -> usize;

    fn splat<S: Simd>(simd: S, x: Self) -> Self::Vector<S>;

    /// `a * b + c`, fused where the machine can.
    fn fma<S: Simd>(simd: S, a: Self::Vector<S>, b: Self::Vector<S>, c: Self::Vector<S>) -> Self::Vector<S>;

    fn sum<S: Simd>(simd: S, a: Self::Vector<S>) -> Self;
}

macro_rules! lanes {
    ($t:ty, $vector:ident, $count:ident, $splat:ident, $fma:ident, $sum:ident) => {
        impl Lanes for $t {
            type Vector<S: Simd> = S::$vector;

            #[inline(always)]
            fn count<S: Simd>() -> usize {
                S::$count
            }

            #[inline(always)]
            fn splat<S: Simd>(simd: S, x: Self) -> S::$vector {
                simd.$splat(x)
            }

            #[inline(always)]
            fn fma<S: Simd>(simd: S, a: S::$vector, b: S::$vector, c: S::$vector) -> S::$vector {
                simd.$fma(a, b, c)
            }

            #[inline(always)]
            fn sum<S: Simd>(simd: S, a: S::$vector) -> Self {
                simd.$sum(a)
            }
        }
    };
}
lanes!(f32, f32s, F32_LANES, splat_f32s, mul_add_e_f32s, reduce_sum_f32s);
lanes!(f64, f64s, F64_LANES, splat_f64s, mul_add_e_f64s, reduce_sum_f64s);

/// The register that begins at `xs[at]`.
///
/// # Safety
/// `xs` must hold `T::count::<S>()` numbers from `at` on.
#[inline(always)]
#[expect(unsafe_code, reason = "a bounds check per load would halve the speed of the inner loops")]
pub(crate) unsafe fn load<T: Lanes, S: Simd>(xs: &[T], at: usize) -> T::Vector<S> {
    debug_assert!(at + T::count::<S>() <= xs.len());
    // SAFETY: in bounds by the caller's promise; every bit pattern is a number; unaligned reads are asked for.
    unsafe { xs.as_ptr().add(at).cast::<T::Vector<S>>().read_unaligned() }
}

/// Writes a register to `xs[at..]`.
///
/// # Safety
/// `xs` must hold `T::count::<S>()` numbers from `at` on.
#[inline(always)]
#[expect(unsafe_code, reason = "a bounds check per store would slow the inner loops")]
pub(crate) unsafe fn store<T: Lanes, S: Simd>(xs: &mut [T], at: usize, vector: T::Vector<S>) {
    debug_assert!(at + T::count::<S>() <= xs.len());
    // SAFETY: in bounds by the caller's promise; unaligned writes are asked for.
    unsafe { xs.as_mut_ptr().add(at).cast::<T::Vector<S>>().write_unaligned(vector) }
}

/// Registers along a row of a block; with 8 rows AVX-512's 32 registers are full, with 4 AVX2's 16.
pub(crate) const VECTORS: usize = 3;

/// Rows of a block.
#[inline(always)]
pub(crate) fn block_rows<T: Lanes, S: Simd>() -> usize {
    if wide::<T, S>() { 8 } else { 4 }
}

/// The most rows that a block has on any machine.
pub(crate) const MAX_ROWS: usize = 8;

#[inline(always)]
fn wide<T: Lanes, S: Simd>() -> bool {
    T::count::<S>() * size_of::<T>() >= 64
}

/// `tile[n][m] = sum_k rows[n][k] * panel[k][m]` for [`block_rows`] rows and `vectors` registers of columns.
///
/// `panel` holds `depth` rows of `vectors` registers, one after another; each of `rows` holds `depth` numbers; `tile`
/// is row-major and wholly overwritten.
#[inline(always)]
pub(crate) fn block_product<T: Lanes, S: Simd>(
    simd: S,
    vectors: usize,
    depth: usize,
    panel: &[T],
    rows: &[&[T]; MAX_ROWS],
    tile: &mut [T],
) {
    if wide::<T, S>() {
        match vectors {
            1 => product::<T, S, 1, 8>(simd, depth, panel, rows, tile),
            2 => product::<T, S, 2, 8>(simd, depth, panel, rows, tile),
            _ => product::<T, S, 3, 8>(simd, depth, panel, rows, tile),
        }
    } else {
        match vectors {
            1 => product::<T, S, 1, 4>(simd, depth, panel, rows, tile),
            2 => product::<T, S, 2, 4>(simd, depth, panel, rows, tile),
            _ => product::<T, S, 3, 4>(simd, depth, panel, rows, tile),
        }
    }
}

#[inline(always)]
#[expect(unsafe_code, reason = "the loop over `depth` is where a dense convolution spends its time")]
fn product<T: Lanes, S: Simd, const MV: usize, const NR: usize>(
    simd: S,
    depth: usize,
    panel: &[T],
    rows: &[&[T]; MAX_ROWS],
    tile: &mut [T],
) {
    let lanes = T::count::<S>();
    assert!(panel.len() >= depth * MV * lanes && tile.len() >= NR * MV * lanes);
    assert!(rows[..NR].iter().all(|row| row.len() >= depth));
    let zero = T::splat(simd, T::zero());
    let mut sums = [[zero; MV]; NR];
    for k in 0..depth {
        let mut columns = [zero; MV];
        for (m, column) in columns.iter_mut().enumerate() {
            // SAFETY: `k < depth` and `m < MV`, and the panel's length was checked.
            *column = unsafe { load::<T, S>(panel, (k * MV + m) * lanes) };
        }
        for (row, sums) in rows.iter().zip(&mut sums) {
            // SAFETY: `k < depth`, which is within each of the first `NR` rows by the check above.
            let factor = T::splat(simd, unsafe { *row.get_unchecked(k) });
            for (sum, &column) in sums.iter_mut().zip(&columns) {
                *sum = T::fma(simd, factor, column, *sum);
            }
        }
    }
    for (n, row) in sums.iter().enumerate() {
        for (m, &sum) in row.iter().enumerate() {
            // SAFETY: `n < NR` and `m < MV`, and the tile's length was checked.
            unsafe { store::<T, S>(tile, (n * MV + m) * lanes, sum) };
        }
    }
}

/// Where in `buffer` a cache line begins: a register read from there on in steps of registers never spans two lines.
///
/// Give the buffer [`SPARE`] more numbers than are needed.
#[inline(always)]
pub(crate) fn aligned<T>(buffer: &[T]) -> usize {
    buffer.as_ptr().align_offset(64).min(SPARE)
}

/// What [`aligned`] may skip, in numbers.
pub(crate) const SPARE: usize = 16;
