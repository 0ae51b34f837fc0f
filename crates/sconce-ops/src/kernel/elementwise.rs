//! One pass over tensors of any strides, element by element.

use candle_core::{Layout, Result, Tensor};

use super::{
    Element, Math, Real, Uninit, fill_rows,
    rows::{Rows, Scratch, cpu_slice},
};

/// Something to do to each element.
pub trait Map: Copy + Send + Sync {
    /// What becomes of `x`. Mark it as `#[inline(always)]`.
    fn apply<A: Real>(self, m: Math, x: A) -> A;
}

/// Something to do to each pair of elements.
pub trait Zip: Copy + Send + Sync {
    /// What becomes of `x` and `y`. Mark it as `#[inline(always)]`.
    fn apply<A: Real>(self, m: Math, x: A, y: A) -> A;
}

/// `f(x)` for every element, in row-major order.
pub fn map<T: Element>(data: &[T], layout: &Layout, f: impl Map) -> Vec<T> {
    let rows = Rows::last(data, layout);
    fill_rows(rows.count(), rows.len(), |range, out| {
        let mut scratch = Scratch::default();
        let xs = rows.wide(range, &mut scratch);
        T::produce(out, |out| map_block(xs, out, f))
    })
}

fn map_block<'a, A: Real>(xs: &[A], out: Uninit<'a, A>, f: impl Map) -> &'a mut [A] {
    A::dispatch(
        #[inline(always)]
        |m| {
            out.map(
                xs,
                #[inline(always)]
                |x| f.apply(m, x),
            )
        },
    )
}

/// `f(x, y)` for every pair of elements of two CPU tensors of one shape.
///
/// # Errors
/// When the shapes differ, or the tensors are not of this type or not on the CPU.
pub fn zip<T: Element>(op: &'static str, xs: &Tensor, ys: &Tensor, f: impl Zip) -> Result<Tensor> {
    if xs.shape() != ys.shape() {
        let (lhs, rhs) = (xs.shape().clone(), ys.shape().clone());
        return Err(candle_core::Error::ShapeMismatchBinaryOp { lhs, rhs, op }.bt());
    }
    let ((xs_storage, xs_layout), (ys_storage, ys_layout)) = (xs.storage_and_layout(), ys.storage_and_layout());
    let xs_rows = Rows::<T>::last(cpu_slice(&xs_storage)?, xs_layout);
    let ys_rows = Rows::<T>::last(cpu_slice(&ys_storage)?, ys_layout);
    let out = fill_rows(xs_rows.count(), xs_rows.len(), |range, out| {
        let (mut xs_scratch, mut ys_scratch) = (Scratch::default(), Scratch::default());
        let xs = xs_rows.wide(range.clone(), &mut xs_scratch);
        let ys = ys_rows.wide(range, &mut ys_scratch);
        T::produce(out, |out| zip_block(xs, ys, out, f))
    });
    Tensor::from_vec(out, xs.shape(), xs.device())
}

fn zip_block<'a, A: Real>(xs: &[A], ys: &[A], out: Uninit<'a, A>, f: impl Zip) -> &'a mut [A] {
    A::dispatch(
        #[inline(always)]
        |m| {
            out.map2(
                xs,
                ys,
                #[inline(always)]
                |x, y| f.apply(m, x, y),
            )
        },
    )
}
