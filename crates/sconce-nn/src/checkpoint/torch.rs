//! Files of `torch.save` (`.pth`, `.pt`, `.bin`) and `torch.jit.save` (`.pt`).
//!
//! Since torch 1.6 such a file is an uncompressed zip archive: `data.pkl` describes, `data/N` holds one storage each, both
//! below a folder of any name. Before, it was a row of pickles followed by the storages.

use std::collections::BTreeMap;
use std::io::Cursor;
use std::ops::Range;
use std::path::Path;
use std::sync::{Arc, OnceLock};

use zip::{CompressionMethod, ZipArchive};

use super::entry::{Bytes, Entry, Layout, Storage};
use super::numpy;
use super::pickle::{Pickle, Value};
use super::torch_tree::{StorageRecord, Tree, storages};
use super::{Contents, Tensors};
use crate::error::{Error, Result};

/// A record of the archive.
struct Record {
    range: Range<usize>,
    /// Compressed or encrypted records cannot be mapped. Torch stores tensors as they are; TorchScript compresses its code.
    plain: bool,
    crc: Option<u32>,
}

struct Archive<'a> {
    path: &'a Path,
    records: BTreeMap<String, Record>,
}

impl Archive<'_> {
    fn record(&self, name: &str) -> Result<&Record> {
        match self.records.get(name) {
            Some(record) if record.plain => Ok(record),
            Some(_) => Err(Error::unsupported(self.path, format!("record `{name}` is compressed or encrypted"))),
            None => Err(Error::corrupt(self.path, format!("record `{name}` is missing"))),
        }
    }
}

pub(super) fn open_zip(path: &Arc<Path>, file: &Bytes) -> Result<Contents> {
    let bytes = (**file).as_ref();
    let archive = records(path, bytes)?;
    let description = archive.records.keys().find(|name| *name == "data.pkl" || name.ends_with("/data.pkl"));
    let Some(description) = description else {
        return Err(Error::unsupported(path, "a zip archive without `data.pkl`: not a PyTorch checkpoint"));
    };
    let folder = &description[..description.len() - "data.pkl".len()];
    let order = archive.record(&format!("{folder}byteorder")).ok();
    let big_endian = order.is_some_and(|order| bytes[order.range.clone()].trim_ascii() == b"big");
    let record = archive.record(description)?;
    let pickled = &bytes[record.range.clone()];
    if record.crc.is_some_and(|crc| crc32fast::hash(pickled) != crc) {
        return Err(Error::corrupt(path, format!("checksum of `{description}` does not match")));
    }
    let pickle = Pickle::decode(pickled).map_err(|reason| Error::corrupt(path, reason))?;
    let tree = Tree::of(&pickle).map_err(|reason| Error::corrupt(path, reason))?;
    let mut shared: BTreeMap<String, Arc<Storage>> = BTreeMap::new();
    let mut find = |storage: &StorageRecord| -> Result<Arc<Storage>> {
        if let Some(found) = shared.get(&storage.key) {
            return Ok(found.clone());
        }
        let record = archive.record(&format!("{folder}data/{}", storage.key))?;
        let found = Arc::new(Storage {
            path: path.clone(),
            file: file.clone(),
            range: record.range.clone(),
            big_endian,
            crc: record.crc,
            sound: OnceLock::new(),
        });
        shared.insert(storage.key.clone(), found.clone());
        Ok(found)
    };
    contents(path, tree, &mut find)
}

fn records<'a>(path: &'a Path, bytes: &[u8]) -> Result<Archive<'a>> {
    let broken = |error: zip::result::ZipError| Error::corrupt(path, format!("zip archive: {error}"));
    let mut archive = ZipArchive::new(Cursor::new(bytes)).map_err(broken)?;
    let mut records = BTreeMap::new();
    for index in 0..archive.len() {
        let member = archive.by_index_raw(index).map_err(broken)?;
        let name = String::from_utf8_lossy(member.name_raw()).into_owned();
        let plain = !member.encrypted() && member.compression() == CompressionMethod::Stored;
        let start = member.data_start().and_then(|start| usize::try_from(start).ok());
        let length = usize::try_from(member.compressed_size()).ok();
        let range = start.zip(length).and_then(|(start, length)| Some(start..start.checked_add(length)?));
        let range = range.filter(|range| range.end <= bytes.len());
        let range = range.ok_or_else(|| Error::corrupt(path, format!("record `{name}` ends outside of the file")))?;
        // Torch can be told to leave checksums out; the field is 0 then.
        let crc = Some(member.crc32()).filter(|&crc| crc != 0);
        records.insert(name, Record { range, plain, crc });
    }
    Ok(Archive { path, records })
}

/// First of the pickles in a file older than torch 1.6, little-endian.
const LEGACY_MAGIC: [u8; 10] = [0x6c, 0xfc, 0x9c, 0x46, 0xf9, 0x20, 0x6a, 0xa8, 0x50, 0x19];

/// Magic number, protocol, system, object, keys of the storages; then each storage as its length and its elements.
pub(super) fn open_legacy(path: &Arc<Path>, file: &Bytes) -> Result<Contents> {
    let bytes = (**file).as_ref();
    let corrupt = |reason: String| Error::corrupt(path, reason);
    let mut at = 0;
    let mut next = || -> Result<Pickle<'_>> {
        let pickle = Pickle::decode(&bytes[at..]).map_err(corrupt)?;
        at += pickle.consumed;
        Ok(pickle)
    };
    let magic = next()?;
    if !matches!(magic.get(magic.root), Value::Long(number) if **number == LEGACY_MAGIC) {
        return numpy::open(path, file, &magic);
    }
    let version = next()?;
    if version.index(version.root) != Some(1001) {
        return Err(Error::unsupported(path, "an unknown version of torch's old format"));
    }
    let system = next()?;
    let little = match system.get(system.root) {
        Value::Dict(items) => items.iter().find(|(key, _)| system.text(*key) == Some("little_endian")),
        _ => None,
    };
    let big_endian = little.is_some_and(|&(_, little)| matches!(system.get(little), Value::Bool(false)));
    let object = next()?;
    let keys = next()?;
    let described = storages(&object);
    let mut placed = BTreeMap::new();
    for &key in keys.sequence(keys.root).ok_or_else(|| corrupt("the list of storages is no list".into()))? {
        let key = match keys.get(key) {
            Value::Text(key) => key.to_string(),
            Value::Int(key) => key.to_string(),
            _ => return Err(corrupt("a storage has no name".into())),
        };
        let size = described.get(&key).and_then(|record| record.element.size());
        let size = size.ok_or_else(|| corrupt(format!("storage `{key}` has no known element type")))?;
        let length = bytes.get(at..).and_then(|rest| rest.first_chunk::<8>()).map(|length| {
            let length = if big_endian { u64::from_be_bytes(*length) } else { u64::from_le_bytes(*length) };
            usize::try_from(length).ok().and_then(|length| length.checked_mul(size))
        });
        let start = at + 8;
        let end = length.flatten().and_then(|length| start.checked_add(length)).filter(|&end| end <= bytes.len());
        let end = end.ok_or_else(|| corrupt(format!("storage `{key}` ends outside of the file")))?;
        placed.insert(
            key,
            Arc::new(Storage {
                path: path.clone(),
                file: file.clone(),
                range: start..end,
                big_endian,
                crc: None,
                sound: OnceLock::new(),
            }),
        );
        at = end;
    }
    let tree = Tree::of(&object).map_err(corrupt)?;
    contents(path, tree, &mut |storage| {
        let found = placed.get(&storage.key).cloned();
        found.ok_or_else(|| corrupt(format!("storage `{}` is missing", storage.key)))
    })
}

fn contents(path: &Path, tree: Tree, find: &mut dyn FnMut(&StorageRecord) -> Result<Arc<Storage>>) -> Result<Contents> {
    let mut tensors = Tensors::new();
    for (name, record) in tree.tensors {
        let storage = find(&record.storage)?;
        let promised = record.storage.element.size().map(|size| record.storage.len.checked_mul(size));
        if promised.is_some_and(|bytes| bytes.is_none_or(|bytes| bytes > storage.range.len())) {
            let reason = format!("`{name}` wants a storage of {} elements; the file holds less", record.storage.len);
            return Err(Error::corrupt(path, reason));
        }
        let layout = Layout { offset: record.offset, strides: record.strides };
        let entry = Entry::strided(record.shape, record.element, storage, layout)?;
        if tensors.insert(name.clone(), Arc::new(entry)).is_some() {
            return Err(Error::Duplicate { path: path.to_path_buf(), name });
        }
    }
    Ok(Contents { tensors, metadata: tree.scalars })
}
