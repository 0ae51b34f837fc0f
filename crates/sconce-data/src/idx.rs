//! The idx format of MNIST and its kin: a typed n-dimensional array, often gzipped.
//!
//! Layout: two zero bytes, a type byte, the number of dimensions, each dimension as a big-endian `u32`, then the
//! values, big-endian, last dimension fastest. Source: the description on LeCun's MNIST page.

use crate::{Error, Result};
use candle_core::{Device, Tensor};
use flate2::read::MultiGzDecoder;
use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::path::Path;

/// Most bytes of values that are read; far above any published file.
const LIMIT: u64 = 1 << 32;

/// Type of the values of an idx file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum IdxType {
    /// Unsigned byte.
    U8,
    /// Signed byte.
    I8,
    /// 16-bit integer.
    I16,
    /// 32-bit integer.
    I32,
    /// Single precision.
    F32,
    /// Double precision.
    F64,
}

impl IdxType {
    fn from_byte(byte: u8) -> Option<Self> {
        Some(match byte {
            0x08 => Self::U8,
            0x09 => Self::I8,
            0x0b => Self::I16,
            0x0c => Self::I32,
            0x0d => Self::F32,
            0x0e => Self::F64,
            _ => return None,
        })
    }

    fn bytes(self) -> usize {
        match self {
            Self::U8 | Self::I8 => 1,
            Self::I16 => 2,
            Self::I32 | Self::F32 => 4,
            Self::F64 => 8,
        }
    }
}

/// The contents of an idx file.
#[derive(Debug, Clone, PartialEq)]
pub struct IdxArray {
    kind: IdxType,
    shape: Vec<usize>,
    bytes: Vec<u8>,
}

impl IdxArray {
    /// Reads a file, gzipped or not.
    ///
    /// # Errors
    /// [`Error::Io`]; [`Error::Malformed`] for a wrong magic number, an unknown type, values missing or left over;
    /// [`Error::Stream`] for damaged gzip; [`Error::TooLarge`]. All name the path.
    pub fn open(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        let file = File::open(path).map_err(|e| Error::io(path, e))?;
        Self::read(BufReader::new(file)).map_err(|e| e.at(path.display()))
    }

    /// Reads a stream, gzipped or not.
    ///
    /// # Errors
    /// As [`Self::open`].
    pub fn read(mut reader: impl BufRead) -> Result<Self> {
        let gzip = reader.fill_buf().map_err(Error::Stream)?.starts_with(&[0x1f, 0x8b]);
        if gzip { Self::read_plain(MultiGzDecoder::new(reader)) } else { Self::read_plain(reader) }
    }

    fn read_plain(mut reader: impl Read) -> Result<Self> {
        let mut magic = [0u8; 4];
        fill(&mut reader, &mut magic)?;
        let [0, 0, kind, rank] = magic else {
            return Err(Error::malformed("idx", format!("magic number {magic:02x?}")));
        };
        if rank == 0 {
            return Err(Error::malformed("idx", "no dimension"));
        }
        let kind =
            IdxType::from_byte(kind).ok_or_else(|| Error::malformed("idx", format!("unknown type {kind:#04x}")))?;
        let mut shape = Vec::with_capacity(rank.into());
        let mut size = kind.bytes() as u64;
        for _ in 0..rank {
            let mut dim = [0u8; 4];
            fill(&mut reader, &mut dim)?;
            let dim = u32::from_be_bytes(dim);
            size = size.saturating_mul(dim.into());
            shape.push(dim as usize);
        }
        if size > LIMIT {
            return Err(Error::TooLarge { what: "the idx array (bytes)", size, limit: LIMIT });
        }
        // The header may lie, so memory grows with what is really there.
        let mut bytes = Vec::new();
        reader.by_ref().take(size).read_to_end(&mut bytes).map_err(Error::Stream)?;
        if (bytes.len() as u64) < size {
            let reason = format!("shape {shape:?} needs {size} bytes, the file has {}", bytes.len());
            return Err(Error::malformed("idx", reason));
        }
        if reader.read(&mut [0]).map_err(Error::Stream)? != 0 {
            return Err(Error::malformed("idx", format!("bytes left over after shape {shape:?}")));
        }
        Ok(Self { kind, shape, bytes })
    }

    /// Type of the values.
    pub fn kind(&self) -> IdxType {
        self.kind
    }

    /// Dimensions, the number of items first.
    pub fn shape(&self) -> &[usize] {
        &self.shape
    }

    /// Number of items: the first dimension.
    pub fn len(&self) -> usize {
        self.shape[0]
    }

    /// Whether there is no item.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The values of one item, big-endian as in the file.
    pub fn item(&self, index: usize) -> Option<&[u8]> {
        let size = self.bytes.len().checked_div(self.len())?;
        self.bytes.get(index * size..).and_then(|rest| rest.get(..size)).filter(|_| index < self.len())
    }

    /// The values as bytes, which labels and images are.
    ///
    /// # Errors
    /// [`Error::Malformed`] for values of another type.
    pub fn as_u8(&self) -> Result<&[u8]> {
        match self.kind {
            IdxType::U8 => Ok(&self.bytes),
            other => Err(Error::malformed("idx", format!("values are {other:?}, not bytes"))),
        }
    }

    /// The array as a tensor: `u8`, `i64` for signed integers, `f32` or `f64`.
    ///
    /// # Shapes
    /// - output: that of the file
    ///
    /// # Errors
    /// Those of the tensor's creation.
    pub fn tensor(&self, device: &Device) -> Result<Tensor> {
        let (shape, bytes) = (self.shape.as_slice(), &self.bytes);
        let integers = |values: Vec<i64>| Tensor::from_vec(values, shape, device);
        Ok(match self.kind {
            IdxType::U8 => Tensor::from_slice(bytes, shape, device)?,
            IdxType::I8 => integers(bytes.iter().map(|&b| i64::from(b as i8)).collect())?,
            IdxType::I16 => integers(values(bytes, |b| i64::from(i16::from_be_bytes(b))))?,
            IdxType::I32 => integers(values(bytes, |b| i64::from(i32::from_be_bytes(b))))?,
            IdxType::F32 => Tensor::from_vec(values(bytes, f32::from_be_bytes), shape, device)?,
            IdxType::F64 => Tensor::from_vec(values(bytes, f64::from_be_bytes), shape, device)?,
        })
    }
}

fn values<const N: usize, T>(bytes: &[u8], decode: impl Fn([u8; N]) -> T) -> Vec<T> {
    bytes.as_chunks::<N>().0.iter().map(|chunk| decode(*chunk)).collect()
}

fn fill(reader: &mut impl Read, buffer: &mut [u8]) -> Result<()> {
    reader.read_exact(buffer).map_err(|error| match error.kind() {
        std::io::ErrorKind::UnexpectedEof => Error::malformed("idx", "ends within its header"),
        _ => Error::Stream(error),
    })
}
