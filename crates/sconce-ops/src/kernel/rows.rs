//! Reading tensors of any strides.

use std::borrow::Cow;

use candle_core::{CpuStorage, Layout, Result, Storage, WithDType};

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
pub fn contiguous_slice<'a, T: Copy>(data: &'a [T], layout: &Layout) -> Cow<'a, [T]> {
    // Views of nothing may point beyond the storage.
    if layout.shape().elem_count() == 0 {
        return Cow::Borrowed(&[]);
    }
    if let Some((start, end)) = layout.contiguous_offsets() {
        return Cow::Borrowed(&data[start..end]);
    }
    let rows = Rows::last(data, layout);
    let mut out = Vec::with_capacity(rows.count() * rows.len());
    for r in 0..rows.count() {
        let line = rows.line(r);
        match line.stride {
            1 => out.extend_from_slice(&data[line.start..line.start + rows.len()]),
            stride => out.extend((0..rows.len()).map(|i| data[line.start + i * stride])),
        }
    }
    Cow::Owned(out)
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

    /// Row `r` as a slice: borrowed where its elements are neighbours, else copied into `scratch`.
    #[inline]
    pub fn get<'s>(&self, r: usize, scratch: &'s mut Vec<T>) -> &'s [T]
    where
        'a: 's,
    {
        if self.len == 0 {
            return &[];
        }
        let line = self.line(r);
        if self.stride == 1 || self.len == 1 {
            return &self.data[line.start..line.start + self.len];
        }
        scratch.clear();
        scratch.extend((0..self.len).map(|i| self.data[line.start + i * line.stride]));
        scratch
    }

    /// The whole range of rows as one slice when they lie one after another, as in a contiguous tensor.
    #[inline]
    pub fn block(&self, rows: std::ops::Range<usize>) -> Option<&'a [T]> {
        if self.is_empty() {
            return Some(&[]);
        }
        let dense = self.stride == 1
            && match self.outer[..] {
                [] => true,
                [(_, step)] => step == self.len,
                _ => false,
            };
        let start = self.start + rows.start * self.len;
        dense.then(|| &self.data[start..start + rows.len() * self.len])
    }
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
        assert_eq!((rows.count(), rows.get(0, &mut vec![])), (1, &[3f32][..]));
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
                for r in 0..rows.count() {
                    got.extend_from_slice(rows.get(r, &mut vec![]));
                }
                prop_assert_eq!(got, want);
            }
        }
    }
}
