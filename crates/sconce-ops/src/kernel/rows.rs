//! Reading tensors of any strides.

use std::{borrow::Cow, ops::Range};

use candle_core::{CpuStorage, Layout, Result, Storage, WithDType};

use super::{element::Element, parallel::fill_rows};

/// The elements of a tensor's CPU storage, for `tensor.storage_and_layout()`.
///
/// # Errors
/// When the tensor is not on the CPU or not of this type.
pub fn cpu_slice<T: WithDType>(storage: &Storage) -> Result<&[T]> {
    match storage {
        Storage::Cpu(storage) => T::cpu_storage_as_slice(storage),
        _ => candle_core::bail!("a CPU kernel was given a tensor of another device"),
    }
}

/// The elements in row-major order; copied only when the strides make it necessary.
///
/// # Errors
/// When the storage is not of this type.
pub fn contiguous<'a, T: WithDType>(storage: &'a CpuStorage, layout: &Layout) -> Result<Cow<'a, [T]>> {
    Ok(contiguous_slice(T::cpu_storage_as_slice(storage)?, layout))
}

/// [`contiguous`] for a slice that is already typed.
pub fn contiguous_slice<'a, T: Copy + Send + Sync>(data: &'a [T], layout: &Layout) -> Cow<'a, [T]> {
    // Views of nothing may point beyond the storage.
    if layout.shape().elem_count() == 0 {
        return Cow::Borrowed(&[]);
    }
    if let Some((start, end)) = layout.contiguous_offsets() {
        return Cow::Borrowed(&data[start..end]);
    }
    let rows = Rows::last(data, layout);
    Cow::Owned(fill_rows(rows.count(), rows.len(), |range, out| out.copy(rows.load(range, &mut Vec::new()))))
}

/// Where a row lies: its first element, and the step from one element to the next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Line {
    /// Index of the first element.
    pub start: usize,
    /// Distance between neighbours.
    pub stride: usize,
}

/// A tensor seen as rows along one dimension; the other dimensions, in order, number the rows.
#[derive(Debug, Clone)]
pub struct Rows<'a, T> {
    data: &'a [T],
    start: usize,
    len: usize,
    stride: usize,
    count: usize,
    /// (size, stride) of the outer dimensions, merged where they lie evenly, last first.
    outer: Vec<(usize, usize)>,
}

impl<'a, T: Copy> Rows<'a, T> {
    /// Rows along dimension `dim`, which must exist. A tensor without dimensions is one row of one element.
    pub fn new(data: &'a [T], layout: &Layout, dim: usize) -> Self {
        let (dims, strides) = (layout.dims(), layout.stride());
        let (len, stride) = match dims.get(dim) {
            Some(&len) => (len, strides[dim]),
            None => (1, 1),
        };
        let mut outer: Vec<(usize, usize)> = Vec::with_capacity(dims.len());
        let mut count = 1;
        for d in (0..dims.len()).rev().filter(|&d| d != dim) {
            count *= dims[d];
            match outer.last_mut() {
                _ if dims[d] == 1 => {}
                Some((size, step)) if strides[d] == *size * *step => *size *= dims[d],
                _ => outer.push((dims[d], strides[d])),
            }
        }
        Self { data, start: layout.start_offset(), len, stride, count, outer }
    }

    /// Rows along the last dimension.
    pub fn last(data: &'a [T], layout: &Layout) -> Self {
        Self::new(data, layout, layout.dims().len().saturating_sub(1))
    }

    /// Number of rows.
    #[inline(always)]
    pub fn count(&self) -> usize {
        self.count
    }

    /// Elements in a row.
    #[inline(always)]
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether rows have no elements or there are no rows.
    pub fn is_empty(&self) -> bool {
        self.len == 0 || self.count == 0
    }

    /// Where row `r` lies in the storage.
    #[inline]
    pub fn line(&self, r: usize) -> Line {
        let start = match self.outer[..] {
            [] => self.start,
            [(_, step)] => self.start + r * step,
            _ => {
                let (mut start, mut rest) = (self.start, r);
                for &(size, step) in &self.outer {
                    start += rest % size * step;
                    rest /= size;
                }
                start
            }
        };
        Line { start, stride: self.stride }
    }

    /// Rows one after another in one slice: borrowed where they lie so, else copied into `scratch`.
    pub fn load<'s>(&self, rows: Range<usize>, scratch: &'s mut Vec<T>) -> &'s [T]
    where
        'a: 's,
    {
        let total = rows.len() * self.len;
        if total == 0 {
            return &[];
        }
        if let Some(block) = self.block(&rows) {
            return block;
        }
        scratch.clear();
        if self.stride == 1 {
            for r in rows {
                let start = self.line(r).start;
                scratch.extend_from_slice(&self.data[start..start + self.len]);
            }
            return scratch;
        }
        let Some(&(size, 1)) = self.outer.first() else {
            for r in rows {
                let line = self.line(r);
                scratch.extend((0..self.len).map(|i| self.data[line.start + i * line.stride]));
            }
            return scratch;
        };
        // Neighbouring rows are neighbours in memory: read across them, a cache line at a time.
        scratch.resize(total, self.data[self.start]);
        let mut r = rows.start;
        while r < rows.end {
            let run = (size - r % size).min(rows.end - r).min(16);
            let start = self.line(r).start;
            let target = &mut scratch[(r - rows.start) * self.len..];
            for i in 0..self.len {
                let source = &self.data[start + i * self.stride..][..run];
                for (j, &x) in source.iter().enumerate() {
                    target[j * self.len + i] = x;
                }
            }
            r += run;
        }
        scratch
    }

    fn block(&self, rows: &Range<usize>) -> Option<&'a [T]> {
        let dense = (self.stride == 1 || self.len == 1)
            && match self.outer[..] {
                [] => true,
                [(_, step)] => step == self.len,
                _ => false,
            };
        let start = self.start + rows.start * self.len;
        dense.then(|| &self.data[start..start + rows.len() * self.len])
    }
}

/// Room for [`Rows::wide`]; one serves one input.
#[derive(Debug, Default)]
pub struct Scratch<T: Element> {
    rows: Vec<T>,
    wide: Vec<T::Acc>,
}

impl<'a, T: Element> Rows<'a, T> {
    /// Rows one after another in the type of the computation; borrowed where they lie so.
    pub fn wide<'s>(&self, rows: Range<usize>, scratch: &'s mut Scratch<T>) -> &'s [T::Acc]
    where
        'a: 's,
    {
        T::widen_slice(self.load(rows, &mut scratch.rows), &mut scratch.wide)
    }
}

/// All elements of a small tensor, such as a parameter, in the type of the computation.
pub fn wide_vec<T: Element>(data: &[T], layout: &Layout) -> Vec<T::Acc> {
    contiguous_slice(data, layout).iter().map(|x| x.widen()).collect()
}

#[cfg(test)]
mod tests {
    use candle_core::{DType, Device, Tensor};
    use proptest::prelude::*;

    use super::*;
    use crate::testing::{Draw, strided};

    #[test]
    fn a_scalar_is_one_row() -> Result<()> {
        let x = Tensor::new(3f32, &Device::Cpu)?;
        let (s, l) = x.storage_and_layout();
        let rows = Rows::<f32>::last(cpu_slice(&s)?, l);
        assert_eq!((rows.count(), rows.load(0..1, &mut vec![])), (1, &[3f32][..]));
        Ok(())
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(32))]

        #[test]
        fn any_strides_read_the_same(seed: u64) {
            let mut draw = Draw::new(seed);
            let shape = draw.shape(1..=4, 0..=5);
            let x = strided(&mut draw, &shape, DType::F32).unwrap();
            let (s, l) = x.storage_and_layout();
            let data: &[f32] = cpu_slice(&s).unwrap();
            prop_assert_eq!(&*contiguous_slice(data, l), &x.flatten_all().unwrap().to_vec1::<f32>().unwrap()[..]);
            for dim in 0..shape.len() {
                let rows = Rows::new(data, l, dim);
                let want = x.transpose(dim, shape.len() - 1).unwrap();
                // Moving `dim` to the end keeps the order of the others only for the last dimension, so permute fully.
                let mut order: Vec<usize> = (0..shape.len()).filter(|&d| d != dim).collect();
                order.push(dim);
                let want = if dim + 1 == shape.len() { want } else { x.permute(order).unwrap() };
                let want = want.flatten_all().unwrap().to_vec1::<f32>().unwrap();
                let mut got = vec![];
                let block = draw.int(1..=5);
                for start in (0..rows.count()).step_by(block) {
                    got.extend_from_slice(rows.load(start..(start + block).min(rows.count()), &mut vec![]));
                }
                prop_assert_eq!(got, want);
            }
        }
    }
}
