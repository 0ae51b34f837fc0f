//! The tensors of one golden file.

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};

use candle_core::{Device, Tensor};
use safetensors::{Dtype, SafeTensors};
use serde::de::DeserializeOwned;

use super::Result;

/// Tensors by name, with the metadata of their file. Booleans are read as `u8`.
#[derive(Debug, Clone)]
pub struct Tensors {
    path: PathBuf,
    tensors: BTreeMap<String, Tensor>,
    metadata: HashMap<String, String>,
}

impl Tensors {
    /// Reads a safetensors file to the CPU.
    ///
    /// # Errors
    /// When the file cannot be read or holds a type that candle lacks.
    pub fn open(path: &Path) -> Result<Self> {
        let fail = |e: &dyn std::fmt::Display| format!("{}: {e}", path.display());
        let bytes = std::fs::read(path).map_err(|e| fail(&e))?;
        let (_, header) = SafeTensors::read_metadata(&bytes).map_err(|e| fail(&e))?;
        let metadata = header.metadata().clone().unwrap_or_default();
        let file = SafeTensors::deserialize(&bytes).map_err(|e| fail(&e))?;
        let mut tensors = BTreeMap::new();
        for (name, view) in file.iter() {
            let dtype = match view.dtype() {
                Dtype::BOOL => candle_core::DType::U8,
                other => other.try_into().map_err(|e| fail(&e))?,
            };
            let tensor = Tensor::from_raw_buffer(view.data(), dtype, view.shape(), &Device::Cpu);
            tensors.insert(name.to_owned(), tensor.map_err(|e| fail(&e))?);
        }
        Ok(Self { path: path.into(), tensors, metadata })
    }

    /// A tensor by name, in the type it was stored in.
    ///
    /// # Errors
    /// Names the file and the tensor that it lacks.
    pub fn get(&self, name: &str) -> Result<&Tensor> {
        let missing = || format!("{}: no tensor named {name}", self.path.display());
        Ok(self.tensors.get(name).ok_or_else(missing)?)
    }

    /// A tensor by name, or `None`.
    pub fn find(&self, name: &str) -> Option<&Tensor> {
        self.tensors.get(name)
    }

    /// Every name with its tensor, in order.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &Tensor)> {
        self.tensors.iter().map(|(name, tensor)| (name.as_str(), tensor))
    }

    /// What follows `prefix` in the names that start with it, with the tensors.
    pub fn with_prefix(&self, prefix: &str) -> impl Iterator<Item = (&str, &Tensor)> {
        self.iter().filter_map(move |(name, tensor)| Some((name.strip_prefix(prefix)?, tensor)))
    }

    /// The names in the file's metadata.
    pub fn metadata_keys(&self) -> impl Iterator<Item = &str> {
        self.metadata.keys().map(String::as_str)
    }

    /// A text of the file's metadata.
    pub fn metadata(&self, key: &str) -> Option<&str> {
        self.metadata.get(key).map(String::as_str)
    }

    /// A JSON value of the file's metadata.
    ///
    /// # Errors
    /// When the key is missing or its text is not the JSON of a `T`.
    pub fn metadata_json<T: DeserializeOwned>(&self, key: &str) -> Result<T> {
        let missing = || format!("{}: no metadata named {key}", self.path.display());
        let text = self.metadata(key).ok_or_else(missing)?;
        Ok(serde_json::from_str(text).map_err(|e| format!("{}: metadata {key}: {e}", self.path.display()))?)
    }
}
