use std::collections::BTreeMap;
use std::io::Write;
use std::path::Path;

use candle_core::{DType, Tensor};
use safetensors::View;

use crate::error::{Error, Result};
use crate::fs::write_atomic;

/// How tensors are written.
#[derive(Debug, Clone, Default)]
pub struct SaveOptions {
    /// Text stored in the file's header (`__metadata__`): configuration, command line, licence.
    pub metadata: BTreeMap<String, String>,
    /// Convert floating-point tensors; integers stay as they are.
    pub dtype: Option<DType>,
}

impl SaveOptions {
    /// Adds one entry of metadata.
    pub fn with_metadata(mut self, key: impl Into<String>, value: impl Into<String>) -> Self {
        self.metadata.insert(key.into(), value.into());
        self
    }

    /// Converts floating-point tensors to this type.
    pub fn with_dtype(mut self, dtype: DType) -> Self {
        self.dtype = Some(dtype);
        self
    }
}

/// Writes named tensors to a `.safetensors` file, whole or not at all. The same input gives the same bytes.
///
/// # Errors
/// [`Error::Io`]; [`Error::Duplicate`] when a name occurs twice.
pub fn save_tensors(
    path: impl AsRef<Path>,
    tensors: impl IntoIterator<Item = (String, Tensor)>,
    options: &SaveOptions,
) -> Result<()> {
    let path = path.as_ref();
    let mut tensors: Vec<(String, Tensor)> = tensors.into_iter().collect();
    if let Some(dtype) = options.dtype {
        for (_, tensor) in tensors.iter_mut().filter(|(_, t)| t.dtype().is_float()) {
            *tensor = tensor.to_dtype(dtype)?;
        }
    }
    // Wide elements first, so that each starts at a multiple of its size; the order within a size is the caller's.
    tensors.sort_by_key(|(_, tensor)| std::cmp::Reverse(tensor.dtype().size_in_bytes()));
    let header = header(path, &tensors, &options.metadata)?;
    write_atomic(path, |out| write(out, &header, &tensors)).map_err(|source| Error::io(path, source))
}

fn write(out: &mut dyn Write, header: &[u8], tensors: &[(String, Tensor)]) -> std::io::Result<()> {
    out.write_all(&(header.len() as u64).to_le_bytes())?;
    out.write_all(header)?;
    tensors.iter().try_for_each(|(_, tensor)| out.write_all(&View::data(tensor)))
}

/// Written by hand because the `safetensors` crate keeps metadata in a hash map, whose order changes from run to run.
fn header(path: &Path, tensors: &[(String, Tensor)], metadata: &BTreeMap<String, String>) -> Result<Vec<u8>> {
    let mut fields = Vec::with_capacity(tensors.len() + 1);
    if !metadata.is_empty() {
        fields.push(format!("\"__metadata__\":{}", json(path, metadata)?));
    }
    let mut offset = 0;
    let mut seen = std::collections::HashSet::new();
    for (name, tensor) in tensors {
        if !seen.insert(name) || name == "__metadata__" {
            return Err(Error::Duplicate { path: path.to_path_buf(), name: name.clone() });
        }
        let end = offset + View::data_len(tensor);
        fields.push(format!(
            "{}:{{\"dtype\":{},\"shape\":{:?},\"data_offsets\":[{offset},{end}]}}",
            json(path, name)?,
            json(path, &View::dtype(tensor))?,
            tensor.dims(),
        ));
        offset = end;
    }
    let mut header = format!("{{{}}}", fields.join(",")).into_bytes();
    header.resize(header.len().next_multiple_of(8), b' ');
    Ok(header)
}

fn json<T: serde::Serialize>(path: &Path, value: &T) -> Result<String> {
    serde_json::to_string(value).map_err(|error| Error::io(path, error.into()))
}
