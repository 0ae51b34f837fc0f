use std::ops::Range;
use std::path::Path;
use std::sync::{Arc, OnceLock};

use candle_core::{DType, Device, Tensor};

use super::element::Element;
use crate::error::{Error, Result};

/// A mapped file or a buffer, shared by all tensors in it.
pub(crate) type Bytes = Arc<dyn AsRef<[u8]> + Send + Sync>;

/// A run of elements inside a file.
pub(crate) struct Storage {
    pub(crate) path: Arc<Path>,
    pub(crate) file: Bytes,
    pub(crate) range: Range<usize>,
    pub(crate) big_endian: bool,
    /// The checksum that the archive gives for the run; compared once, when the first tensor is read.
    pub(crate) crc: Option<u32>,
    pub(crate) sound: OnceLock<bool>,
}

impl Storage {
    fn bytes(&self) -> Result<&[u8]> {
        let bytes = (*self.file).as_ref();
        let bytes =
            bytes.get(self.range.clone()).ok_or_else(|| Error::corrupt(&self.path, "the file became shorter"))?;
        if let Some(crc) = self.crc
            && !self.sound.get_or_init(|| crc32fast::hash(bytes) == crc)
        {
            let reason = format!("checksum of the bytes {}..{} does not match", self.range.start, self.range.end);
            return Err(Error::corrupt(&self.path, reason));
        }
        Ok(bytes)
    }
}

/// Where an element of a tensor lies in its storage, counted in elements.
pub(crate) struct Layout {
    pub(crate) offset: usize,
    pub(crate) strides: Vec<usize>,
}

/// One tensor of a checkpoint. Nothing is read before it is asked for.
pub(crate) struct Entry {
    pub(crate) shape: Vec<usize>,
    pub(crate) kind: Kind,
}

pub(crate) enum Kind {
    Stored { element: Element, storage: Arc<Storage>, layout: Layout },
    Memory(Tensor),
}

impl Entry {
    /// A dense row-major tensor at the start of its storage.
    pub(crate) fn dense(shape: Vec<usize>, element: Element, storage: Arc<Storage>) -> Result<Self> {
        let strides =
            row_major(&shape).ok_or_else(|| Error::corrupt(&storage.path, format!("shape {shape:?} overflows")))?;
        Self::strided(shape, element, storage, Layout { offset: 0, strides })
    }

    /// Checks once that every element lies inside the storage and that the tensor is not larger than the whole file, which
    /// bounds what a zero stride can blow up to.
    pub(crate) fn strided(shape: Vec<usize>, element: Element, storage: Arc<Storage>, layout: Layout) -> Result<Self> {
        if let Some(size) = element.size() {
            let file = (*storage.file).as_ref().len();
            let held = storage.range.len() / size;
            let elements = shape.iter().try_fold(1usize, |n, &d| n.checked_mul(d));
            let end = match elements {
                Some(0) => Some(0),
                _ => shape.iter().zip(&layout.strides).try_fold(layout.offset, |end, (&d, &stride)| {
                    end.checked_add(d.saturating_sub(1).checked_mul(stride)?)
                }),
            };
            // Candle multiplies axes too, also where one of them is 0.
            let fits = row_major(&shape).is_some()
                && shape.len() == layout.strides.len()
                && elements.and_then(|n| n.checked_mul(size)).is_some_and(|n| n <= file)
                && (elements == Some(0) || end.is_some_and(|last| last < held));
            if !fits {
                let reason = format!(
                    "a tensor of shape {shape:?}, strides {:?}, offset {} does not fit its {held} stored elements",
                    layout.strides, layout.offset
                );
                return Err(Error::corrupt(&storage.path, reason));
            }
        }
        Ok(Self { shape, kind: Kind::Stored { element, storage, layout } })
    }

    /// Candle's type for the elements.
    pub(crate) fn dtype(&self) -> Result<DType> {
        match &self.kind {
            Kind::Memory(tensor) => Ok(tensor.dtype()),
            Kind::Stored { element, storage, .. } => element.dtype().ok_or_else(|| unreadable(*element, storage)),
        }
    }

    /// Reads the tensor.
    pub(crate) fn tensor(&self, device: &Device) -> Result<Tensor> {
        let (element, storage, layout) = match &self.kind {
            Kind::Memory(tensor) => return Ok(tensor.to_device(device)?),
            Kind::Stored { element, storage, layout } => (*element, storage, layout),
        };
        let size = element.size().ok_or_else(|| unreadable(element, storage))?;
        let bytes = storage.bytes()?;
        let elements: usize = self.shape.iter().product();
        let dense = row_major(&self.shape).is_some_and(|strides| same_order(&self.shape, &strides, &layout.strides));
        if elements == 0 {
            return Ok(element.decode(&[], &self.shape, device)?);
        }
        if dense && !(storage.big_endian && size > 1) {
            let start = layout.offset * size;
            let run = bytes.get(start..start + elements * size);
            let run = run.ok_or_else(|| Error::corrupt(&storage.path, "a tensor ends outside of its storage"))?;
            return Ok(element.decode(run, &self.shape, device)?);
        }
        let mut gathered = Vec::with_capacity(elements * size);
        gather(bytes, size, &self.shape, layout, &mut gathered);
        if storage.big_endian {
            gathered.chunks_exact_mut(size).for_each(<[u8]>::reverse);
        }
        Ok(element.decode(&gathered, &self.shape, device)?)
    }
}

fn unreadable(element: Element, storage: &Storage) -> Error {
    Error::unsupported(&storage.path, format!("element type not supported: {}", element.name()))
}

/// Strides of a dense tensor; `None` when the element count overflows.
pub(crate) fn row_major(shape: &[usize]) -> Option<Vec<usize>> {
    let mut strides = vec![0; shape.len()];
    let mut step = 1usize;
    for (stride, &d) in strides.iter_mut().zip(shape).rev() {
        *stride = step;
        step = step.checked_mul(d.max(1))?;
    }
    Some(strides)
}

/// Equal where it matters: the stride of an axis of length 1 is never used.
fn same_order(shape: &[usize], a: &[usize], b: &[usize]) -> bool {
    shape.iter().zip(a.iter().zip(b)).all(|(&d, (a, b))| d <= 1 || a == b)
}

/// Copies a strided tensor in row-major order. The caller has checked that every element lies inside `bytes`.
fn gather(bytes: &[u8], size: usize, shape: &[usize], layout: &Layout, out: &mut Vec<u8>) {
    let mut index = vec![0usize; shape.len()];
    let mut at = layout.offset;
    loop {
        out.extend_from_slice(&bytes[at * size..(at + 1) * size]);
        let mut axis = shape.len();
        loop {
            let Some(previous) = axis.checked_sub(1) else { return };
            axis = previous;
            index[axis] += 1;
            at += layout.strides[axis];
            if index[axis] < shape[axis] {
                break;
            }
            at -= index[axis] * layout.strides[axis];
            index[axis] = 0;
        }
    }
}
