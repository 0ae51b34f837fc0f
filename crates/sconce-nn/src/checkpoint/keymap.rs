use candle_core::{Device, Tensor};

use super::Checkpoint;
use crate::error::{Error, Result};

/// What a tensor of the model is called in the file, or how it is made of tensors of the file.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Source {
    /// The tensor of this name.
    Tensor(String),
    /// The tensor of this name with its last two axes exchanged: `(a, b)` for a wanted `(b, a)`.
    Transposed(String),
    /// Several tensors joined along an axis, e.g. separate q, k, v stacked into one `qkv`.
    Concat {
        /// Names in the file, in order.
        names: Vec<String>,
        /// The axis.
        dim: usize,
    },
    /// One of `of` equal parts of a tensor, e.g. the second third of a packed `in_proj_weight`.
    Chunk {
        /// Name in the file.
        name: String,
        /// The axis that is divided.
        dim: usize,
        /// Which part, from 0.
        index: usize,
        /// Into how many parts.
        of: usize,
    },
    /// The file does not hold it.
    Missing,
}

/// Translates the names of a model to those of a family of checkpoint files. Closures `Fn(&str) -> Source` are key maps.
pub trait KeyMap: Send + Sync {
    /// Where the tensor that the model calls `name` is found.
    fn source(&self, name: &str) -> Source;
}

impl<F: Fn(&str) -> Source + Send + Sync> KeyMap for F {
    fn source(&self, name: &str) -> Source {
        self(name)
    }
}

impl Source {
    /// The names in the file.
    pub fn names(&self) -> Vec<&str> {
        match self {
            Self::Tensor(name) | Self::Transposed(name) | Self::Chunk { name, .. } => vec![name],
            Self::Concat { names, .. } => names.iter().map(String::as_str).collect(),
            Self::Missing => Vec::new(),
        }
    }

    /// Shape of the result. `wanted` is the model's name, for errors.
    pub(super) fn shape(&self, checkpoint: &Checkpoint, wanted: &str) -> Result<Vec<usize>> {
        let shape = |name: &str| checkpoint.entry(name).map(|entry| entry.shape.clone());
        let misfit = |expected: &[usize], found: Vec<usize>| Error::Shape {
            name: wanted.to_string(),
            expected: expected.to_vec(),
            found,
        };
        match self {
            Self::Missing => Err(checkpoint.missing(wanted)),
            Self::Tensor(name) => shape(name),
            Self::Transposed(name) => {
                let mut dims = shape(name)?;
                match dims.len() {
                    0 | 1 => Err(misfit(&[0, 0], dims)),
                    rank => {
                        dims.swap(rank - 1, rank - 2);
                        Ok(dims)
                    }
                }
            }
            Self::Concat { names, dim } => {
                let mut parts = names.iter().map(|name| shape(name));
                let mut total = parts.next().ok_or_else(|| checkpoint.missing(wanted))??;
                for part in parts {
                    let part = part?;
                    let mut others = part.clone();
                    match (total.get(*dim), others.get_mut(*dim)) {
                        (Some(&sum), Some(size)) => *size = sum,
                        _ => return Err(misfit(&total, part)),
                    }
                    if others != total {
                        return Err(misfit(&total, part));
                    }
                    total[*dim] = total[*dim].checked_add(part[*dim]).ok_or_else(|| misfit(&others, part.clone()))?;
                }
                Ok(total)
            }
            Self::Chunk { name, dim, index, of } => {
                let mut dims = shape(name)?;
                match dims.get_mut(*dim) {
                    Some(size) if index < of && *size % of == 0 => {
                        *size /= of;
                        Ok(dims)
                    }
                    _ => Err(misfit(&[], dims)),
                }
            }
        }
    }

    /// Reads and assembles the tensor.
    pub(super) fn tensor(&self, checkpoint: &Checkpoint, wanted: &str, device: &Device) -> Result<Tensor> {
        let shape = self.shape(checkpoint, wanted)?;
        let read = |name: &str| checkpoint.entry(name)?.tensor(device);
        let tensor = match self {
            Self::Missing => return Err(checkpoint.missing(wanted)),
            Self::Tensor(name) => read(name)?,
            Self::Transposed(name) => read(name)?.t()?.contiguous()?,
            Self::Concat { names, dim } => {
                let parts = names.iter().map(|name| read(name)).collect::<Result<Vec<_>>>()?;
                Tensor::cat(&parts, *dim)?
            }
            Self::Chunk { name, dim, index, .. } => {
                read(name)?.narrow(*dim, index * shape[*dim], shape[*dim])?.contiguous()?
            }
        };
        Ok(tensor)
    }
}
