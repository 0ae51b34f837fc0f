//! Passes over plain CPU buffers: what every optimiser and the moving average are made of.

use std::cell::RefCell;
use std::ops::{Add, AddAssign, Div, Mul, Sub};

use candle_core::{CpuStorage, InplaceOp2, Layout, Storage, Tensor, bail};
use pulp::{Arch, Simd, WithSimd};
use rayon::prelude::*;

/// Elements per task. Fixed, so that no sum depends on the number of threads.
pub(crate) const CHUNK: usize = 1 << 15;

/// A scalar that parameters and optimiser state are held in: `f32` or `f64`.
pub trait Real:
    Copy
    + Send
    + Sync
    + Default
    + PartialOrd
    + Add<Output = Self>
    + Sub<Output = Self>
    + Mul<Output = Self>
    + Div<Output = Self>
    + AddAssign
    + candle_core::WithDType
{
    /// The nearest value of this type.
    fn of(x: f64) -> Self;
    /// The value as `f64`.
    fn wide(self) -> f64;
    /// Square root.
    fn root(self) -> Self;
    /// The buffer of a storage of this type.
    fn buffer(storage: &mut CpuStorage) -> Option<&mut [Self]>;
}

impl Real for f32 {
    #[inline(always)]
    fn of(x: f64) -> Self {
        x as f32
    }
    #[inline(always)]
    fn wide(self) -> f64 {
        f64::from(self)
    }
    #[inline(always)]
    fn root(self) -> Self {
        self.sqrt()
    }
    fn buffer(storage: &mut CpuStorage) -> Option<&mut [Self]> {
        match storage {
            CpuStorage::F32(buffer) => Some(buffer),
            _ => None,
        }
    }
}

impl Real for f64 {
    #[inline(always)]
    fn of(x: f64) -> Self {
        x
    }
    #[inline(always)]
    fn wide(self) -> f64 {
        self
    }
    #[inline(always)]
    fn root(self) -> Self {
        self.sqrt()
    }
    fn buffer(storage: &mut CpuStorage) -> Option<&mut [Self]> {
        match storage {
            CpuStorage::F64(buffer) => Some(buffer),
            _ => None,
        }
    }
}

/// Calls `f` with the elements of a contiguous tensor on the CPU.
pub(crate) fn read<T: Real, R>(tensor: &Tensor, f: impl FnOnce(&[T]) -> R) -> candle_core::Result<R> {
    let (storage, layout) = tensor.storage_and_layout();
    match (&*storage, layout.contiguous_offsets()) {
        (Storage::Cpu(storage), Some((start, end))) => Ok(f(&storage.as_slice::<T>()?[start..end])),
        _ => bail!("the tensor is not contiguous on the CPU"),
    }
}

/// Calls `f` with the elements of `target`, to be changed in place, and those of `source`.
///
/// Both are contiguous, of type `T` and on the CPU.
pub(crate) fn update<T: Real>(
    target: &Tensor,
    source: &Tensor,
    f: impl FnOnce(&mut [T], &[T]),
) -> candle_core::Result<()> {
    let once = Once(RefCell::new(Some(f)), std::marker::PhantomData::<T>);
    target.inplace_op2(source, &once)
}

struct Once<F, T>(RefCell<Option<F>>, std::marker::PhantomData<T>);

impl<T: Real, F: FnOnce(&mut [T], &[T])> InplaceOp2 for Once<F, T> {
    fn name(&self) -> &'static str {
        "update"
    }

    fn cpu_fwd(
        &self,
        target: &mut CpuStorage,
        target_layout: &Layout,
        source: &CpuStorage,
        source_layout: &Layout,
    ) -> candle_core::Result<()> {
        let (Some((start, end)), Some((from, to))) =
            (target_layout.contiguous_offsets(), source_layout.contiguous_offsets())
        else {
            bail!("update of tensors that are not contiguous");
        };
        if end - start != to - from {
            bail!("update of {} elements from {}", end - start, to - from);
        }
        let source = &source.as_slice::<T>()?[from..to];
        match (T::buffer(target), self.0.borrow_mut().take()) {
            (Some(target), Some(f)) => f(&mut target[start..end], source),
            _ => bail!("update of a tensor that is not {:?}", T::DTYPE),
        }
        Ok(())
    }
}

/// A loop over slices that is compiled for each instruction set and chosen at run time.
///
/// `run` has to be `#[inline(always)]`. Sums and products are never contracted, so that every
/// instruction set gives the same bits.
pub(crate) trait Kernel {
    type Output;
    fn run(self) -> Self::Output;
}

struct Dispatched<K>(K);

impl<K: Kernel> WithSimd for Dispatched<K> {
    type Output = K::Output;
    #[inline(always)]
    fn with_simd<S: Simd>(self, _: S) -> Self::Output {
        self.0.run()
    }
}

pub(crate) fn dispatch<K: Kernel>(kernel: K) -> K::Output {
    Arch::new().dispatch(Dispatched(kernel))
}

/// Sum of squares of `a + scale * b`; `b` may be absent.
pub(crate) fn sum_of_squares<T: Real>(a: &[T], b: Option<(&[T], f64)>) -> f64 {
    let partial = |index: usize| {
        let range = index * CHUNK..a.len().min((index + 1) * CHUNK);
        let b = b.map(|(b, scale)| (&b[range.clone()], scale));
        dispatch(Squares { a: &a[range], b })
    };
    let chunks = a.len().div_ceil(CHUNK);
    if chunks <= 1 {
        return (0..chunks).map(partial).sum();
    }
    let partials: Vec<f64> = (0..chunks).into_par_iter().map(partial).collect();
    partials.iter().sum()
}

struct Squares<'a, T> {
    a: &'a [T],
    b: Option<(&'a [T], f64)>,
}

impl<T: Real> Kernel for Squares<'_, T> {
    type Output = f64;
    #[inline(always)]
    fn run(self) -> f64 {
        // Independent lanes let the compiler vectorise the sum.
        const LANES: usize = 16;
        let mut lanes = [0f64; LANES];
        match self.b {
            None => {
                let mut chunks = self.a.chunks_exact(LANES);
                for chunk in &mut chunks {
                    for (lane, &x) in lanes.iter_mut().zip(chunk) {
                        *lane += x.wide() * x.wide();
                    }
                }
                for (lane, &x) in lanes.iter_mut().zip(chunks.remainder()) {
                    *lane += x.wide() * x.wide();
                }
            }
            Some((b, scale)) => {
                let mut a_chunks = self.a.chunks_exact(LANES);
                let mut b_chunks = b.chunks_exact(LANES);
                for (a, b) in (&mut a_chunks).zip(&mut b_chunks) {
                    for ((lane, &a), &b) in lanes.iter_mut().zip(a).zip(b) {
                        let x = a.wide() + scale * b.wide();
                        *lane += x * x;
                    }
                }
                let rest = a_chunks.remainder().iter().zip(b_chunks.remainder());
                for (lane, (&a, &b)) in lanes.iter_mut().zip(rest) {
                    let x = a.wide() + scale * b.wide();
                    *lane += x * x;
                }
            }
        }
        lanes.iter().sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sums_do_not_depend_on_the_number_of_threads() {
        let xs: Vec<f32> = (0..3 * CHUNK + 17).map(|i| (i as f32 * 0.37).sin()).collect();
        let ys: Vec<f32> = xs.iter().map(|x| x * 1.5 - 0.2).collect();
        let with = |threads| {
            rayon::ThreadPoolBuilder::new()
                .num_threads(threads)
                .build()
                .unwrap()
                .install(|| (sum_of_squares(&xs, None), sum_of_squares(&xs, Some((&ys, 0.3)))))
        };
        assert_eq!(with(1), with(3));
        let plain: f64 = xs.iter().map(|&x| f64::from(x).powi(2)).sum();
        assert!((with(2).0 - plain).abs() < 1e-9 * plain);
        assert_eq!(sum_of_squares::<f32>(&[], None), 0.);
    }
}
