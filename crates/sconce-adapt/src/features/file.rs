//! A file of the cache: rows, the digests of what they belong to, and a checksum over both.

use std::collections::HashMap;
use std::path::Path;

use candle_core::{DType, Device, Tensor};
use safetensors::View;
use sconce_nn::{Checkpoint, SaveOptions, save_tensors};

use super::Digest;
use crate::{Error, Result};

/// Names in the file.
const FEATURES: &str = "features";
const DIGESTS: &str = "digests";
const KEY: &str = "sconce.features.key";
const CHECKSUM: &str = "sconce.features.checksum";
const IDENTITY: &str = "sconce.features.of";

/// Rows by digest, on the CPU.
#[derive(Debug, Default)]
pub(super) struct Rows {
    /// Places in the parts, one after the other.
    places: HashMap<Digest, usize>,
    digests: Vec<Digest>,
    parts: Vec<Tensor>,
}

impl Rows {
    /// The rows in a file, none when there is no file; in words why a file cannot be trusted.
    pub(super) fn read(path: &Path, key: &Digest, dtype: DType) -> std::result::Result<Self, String> {
        let bytes = match std::fs::read(path) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Self::default()),
            found => found.map_err(|error| error.to_string())?,
        };
        let file = Checkpoint::from_bytes(bytes, path).map_err(|error| error.to_string())?;
        let told = |name: &str| file.metadata().get(name).map(String::as_str).unwrap_or_default();
        if told(KEY) != key.hex() {
            return Err("the file is not of this model, preprocessing and view".into());
        }
        let tensor = |name: &str| file.tensor(name, &Device::Cpu).map_err(|error| error.to_string());
        let (features, digests) = (tensor(FEATURES)?, tensor(DIGESTS)?);
        if features.dtype() != dtype || digests.dtype() != DType::U8 {
            return Err(format!("features of {:?}, digests of {:?}", features.dtype(), digests.dtype()));
        }
        if told(CHECKSUM) != checksum(&features, &digests).hex() {
            return Err("its contents do not have the checksum that it was written with".into());
        }
        let digests = digests.to_vec2::<u8>().map_err(|error| error.to_string())?;
        let digests: Option<Vec<_>> = digests.into_iter().map(|row| row.try_into().ok().map(Digest)).collect();
        let mut rows = Self::default();
        rows.add(digests.ok_or("digests of another length")?, features).map_err(|error| error.to_string())?;
        Ok(rows)
    }

    /// Writes all rows, whole or not at all.
    pub(super) fn write(&mut self, path: &Path, key: &Digest, identity: &str) -> Result<()> {
        let bytes: Vec<u8> = self.digests.iter().flat_map(|digest| digest.0).collect();
        let digests = Tensor::from_vec(bytes, (self.digests.len(), 32), &Device::Cpu)?;
        let features = self.joined()?;
        let options = SaveOptions::default()
            .with_metadata(KEY, key.hex())
            .with_metadata(CHECKSUM, checksum(&features, &digests).hex())
            .with_metadata(IDENTITY, identity);
        save_tensors(path, [(FEATURES.to_owned(), features), (DIGESTS.to_owned(), digests)], &options)?;
        Ok(())
    }

    pub(super) fn contains(&self, digest: &Digest) -> bool {
        self.places.contains_key(digest)
    }

    pub(super) fn len(&self) -> usize {
        self.digests.len()
    }

    /// Adds a row for each digest.
    pub(super) fn add(&mut self, digests: impl IntoIterator<Item = Digest>, rows: Tensor) -> Result<()> {
        let before = self.digests.len();
        self.digests.extend(digests);
        self.places.extend(self.digests.iter().copied().zip(0..).skip(before));
        let (count, width) = rows.dims2()?;
        let wanted = match self.parts.first() {
            Some(part) => part.dim(1)?,
            None => width,
        };
        let added = self.digests.len() - before;
        if (count, width) != (added, wanted) {
            let expected = format!("({added}, {wanted})");
            return Err(Error::Shape { what: "features", expected, found: rows.dims().to_vec() });
        }
        // A sum is not finite when a part of it is not; halves are summed wide enough not to overflow.
        let sums = rows.to_dtype(DType::F64)?.sum(1)?.to_vec1::<f64>()?;
        if let Some(row) = sums.iter().position(|sum| !sum.is_finite()) {
            let dtype = rows.dtype();
            return Err(Error::Data(format!("the features of input {row} of a batch are not finite as {dtype:?}")));
        }
        self.parts.push(rows);
        Ok(())
    }

    /// The rows of these digests, all of which are known.
    pub(super) fn select(&mut self, digests: &[Digest]) -> Result<Tensor> {
        let place = |digest| {
            let place = self.places.get(digest).copied();
            place.map(|place| place as u32).ok_or_else(|| Error::Data("an input without features".into()))
        };
        let places = digests.iter().map(place).collect::<Result<Vec<u32>>>()?;
        Ok(self.joined()?.index_select(&Tensor::new(places, &Device::Cpu)?, 0)?)
    }

    /// All rows as one tensor, `(M, E)`.
    fn joined(&mut self) -> Result<Tensor> {
        if self.parts.len() > 1 {
            self.parts = vec![Tensor::cat(&self.parts, 0)?];
        }
        self.parts.first().cloned().ok_or_else(|| Error::Data("no features".into()))
    }
}

fn checksum(features: &Tensor, digests: &Tensor) -> Digest {
    let shape = format!("{:?} {:?}", features.dims(), digests.dims());
    Digest::of(&[shape.as_bytes(), &View::data(features), &View::data(digests)])
}
