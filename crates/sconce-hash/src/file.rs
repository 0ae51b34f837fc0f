//! The file of a method: a `.safetensors` whose header says what it is, with a checksum for each tensor.

use std::collections::BTreeMap;
use std::path::Path;

use candle_core::{Device, Tensor};
use safetensors::View;
use sconce_nn::{Checkpoint, SaveOptions, save_tensors};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::{Error, Result};

const VERSION: u32 = 1;
/// Key in the metadata.
const HEADER: &str = "sconce_hash";
const HEADER_CRC: &str = "sconce_hash_crc32";

#[derive(Serialize, Deserialize)]
struct Header {
    version: u32,
    method: String,
    config: serde_json::Value,
    /// CRC-32 of type, shape and bytes.
    tensors: BTreeMap<String, u32>,
}

pub(crate) fn write(path: &Path, method: &str, config: &impl Serialize, tensors: Vec<(String, Tensor)>) -> Result<()> {
    let text = |error: serde_json::Error| Error::Config(format!("options of {method}: {error}"));
    let header = Header {
        version: VERSION,
        method: method.into(),
        config: serde_json::to_value(config).map_err(text)?,
        tensors: tensors.iter().map(|(name, tensor)| (name.clone(), checksum(tensor))).collect(),
    };
    let header = serde_json::to_string(&header).map_err(text)?;
    let check = format!("{:08x}", crc32fast::hash(header.as_bytes()));
    let options = SaveOptions::default().with_metadata(HEADER, header).with_metadata(HEADER_CRC, check);
    Ok(save_tensors(path, tensors, &options)?)
}

fn checksum(tensor: &Tensor) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(format!("{:?}{:?}", tensor.dtype(), tensor.dims()).as_bytes());
    hasher.update(&View::data(tensor));
    hasher.finalize()
}

fn corrupt(path: &Path, what: impl Into<String>) -> Error {
    Error::Corrupt { path: path.into(), what: what.into() }
}

fn open(path: &Path) -> Result<(Checkpoint, Header)> {
    let file = Checkpoint::open(path)?;
    let text = |key: &str| {
        let found = file.metadata().get(key);
        found.ok_or_else(|| corrupt(path, format!("not the file of a hashing method: it has no {key}")))
    };
    let header = text(HEADER)?;
    if *text(HEADER_CRC)? != format!("{:08x}", crc32fast::hash(header.as_bytes())) {
        return Err(corrupt(path, "the checksum of the header is wrong"));
    }
    let header: Header = serde_json::from_str(header).map_err(|e| corrupt(path, e.to_string()))?;
    if header.version > VERSION {
        let found = header.version;
        return Err(corrupt(path, format!("version {found} of the format; this library reads up to {VERSION}")));
    }
    Ok((file, header))
}

/// The method that a file holds.
pub(crate) fn method(path: &Path) -> Result<String> {
    Ok(open(path)?.1.method)
}

/// Options and tensors of a file of this method.
pub(crate) fn read<C: DeserializeOwned>(
    path: &Path,
    method: &str,
    device: &Device,
) -> Result<(C, BTreeMap<String, Tensor>)> {
    let (file, header) = open(path)?;
    if header.method != method {
        return Err(corrupt(path, format!("a file of {}, not of {method}", header.method)));
    }
    let config =
        serde_json::from_value(header.config).map_err(|e| corrupt(path, format!("options of {method}: {e}")))?;
    if let Some(name) = file.names().find(|name| !header.tensors.contains_key(*name)) {
        return Err(corrupt(path, format!("the header does not list {name}")));
    }
    let mut tensors = BTreeMap::new();
    for (name, check) in header.tensors {
        let tensor = file.tensor(&name, &Device::Cpu)?;
        if checksum(&tensor) != check {
            return Err(corrupt(path, format!("the checksum of {name} is wrong")));
        }
        tensors.insert(name, tensor.to_device(device)?);
    }
    Ok((config, tensors))
}

/// Takes a tensor of this name and shape out of a file's; `None` for a dimension of any size.
pub(crate) fn take(
    path: &Path,
    tensors: &mut BTreeMap<String, Tensor>,
    name: &str,
    shape: &[Option<usize>],
) -> Result<Tensor> {
    let tensor = tensors.remove(name).ok_or_else(|| corrupt(path, format!("there is no {name}")))?;
    let dims = tensor.dims();
    if dims.len() != shape.len() || dims.iter().zip(shape).any(|(found, want)| want.is_some_and(|want| want != *found))
    {
        return Err(corrupt(path, format!("{name} has shape {dims:?}, expected {shape:?}")));
    }
    Ok(tensor)
}
