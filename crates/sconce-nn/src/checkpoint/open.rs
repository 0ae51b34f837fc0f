use std::collections::BTreeMap;
use std::path::{Component, Path};
use std::sync::{Arc, OnceLock};

use safetensors::SafeTensors;

use super::element::Element;
use super::entry::{Bytes, Entry, Storage};
use super::{Checkpoint, Contents, Tensors, torch};
use crate::error::{Error, Result};

/// Usual names of the weights in a model's folder, the preferred first.
const FILES: [&str; 8] = [
    "model.safetensors",
    "model.safetensors.index.json",
    "open_clip_model.safetensors",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
    "open_clip_pytorch_model.bin",
    "model.pt",
    "model.pth",
];

pub(super) fn open(path: &Path) -> Result<Checkpoint> {
    if path.is_dir() {
        return match FILES.iter().map(|name| path.join(name)).find(|file| file.is_file()) {
            Some(file) => open(&file),
            None => Err(Error::unsupported(path, format!("a folder without weights; looked for {}", FILES.join(", ")))),
        };
    }
    let (path, file) = map(path)?;
    let bytes = (*file).as_ref();
    let contents = match bytes.first() {
        Some(b'{') => shards(&path, bytes)?,
        _ => detect(&path, &file)?,
    };
    Ok(Checkpoint::new(path, contents))
}

fn map(path: &Path) -> Result<(Arc<Path>, Bytes)> {
    let file = sconce_ops::map_file(path).map_err(|source| Error::io(path, source))?;
    Ok((path.into(), Arc::new(file)))
}

/// One file, told by its first bytes.
pub(super) fn detect(path: &Arc<Path>, file: &Bytes) -> Result<Contents> {
    let bytes = (**file).as_ref();
    match bytes {
        // First: the length of a header may begin with the bytes of any other format, 640 with those of a pickle.
        _ if has_header(bytes) => safetensors(path, file),
        [b'P', b'K', ..] => torch::open_zip(path, file),
        [0x80, 2..=5, ..] => torch::open_legacy(path, file),
        [b'<', ..] => Err(Error::unsupported(path, "a web page, not a checkpoint: the download went wrong")),
        _ if bytes.starts_with(b"version https://git-lfs") => {
            Err(Error::unsupported(path, "a Git LFS pointer, not the checkpoint itself: fetch it with `git lfs pull`"))
        }
        _ if bytes.get(257..262) == Some(b"ustar") => Err(Error::unsupported(
            path,
            "a checkpoint of torch before 0.2 (tar); load and save it again with a newer torch",
        )),
        // Cut off within its header.
        _ if bytes.get(8) == Some(&b'{') => safetensors(path, file),
        _ => Err(Error::corrupt(path, "neither safetensors nor a PyTorch checkpoint, or cut off at the start")),
    }
}

/// Whether a header of JSON follows its length, which a pickle's opcodes or a zip's flags would make longer than any file.
fn has_header(bytes: &[u8]) -> bool {
    let length = bytes.first_chunk().map_or(u64::MAX, |length| u64::from_le_bytes(*length));
    length < bytes.len() as u64 && bytes.get(8) == Some(&b'{')
}

fn safetensors(path: &Arc<Path>, file: &Bytes) -> Result<Contents> {
    let bytes = (**file).as_ref();
    let corrupt = |error: safetensors::SafeTensorError| Error::corrupt(path, error.to_string());
    let (header, metadata) = SafeTensors::read_metadata(bytes).map_err(corrupt)?;
    let start = header + 8;
    let mut tensors = Tensors::new();
    for (name, info) in metadata.tensors() {
        let (from, to) = info.data_offsets;
        let storage = Arc::new(Storage {
            path: path.clone(),
            file: file.clone(),
            range: start + from..start + to,
            big_endian: false,
            crc: None,
            sound: OnceLock::new(),
        });
        let entry = Entry::dense(info.shape.clone(), Element::from(info.dtype), storage)?;
        tensors.insert(name, Arc::new(entry));
    }
    let metadata = metadata.metadata().iter().flatten().map(|(k, v)| (k.clone(), v.clone())).collect();
    Ok(Contents { tensors, metadata })
}

#[derive(serde::Deserialize)]
struct Index {
    weight_map: BTreeMap<String, String>,
}

/// `*.index.json`: the file of each tensor. All names must be found where it says.
fn shards(path: &Arc<Path>, bytes: &[u8]) -> Result<Contents> {
    let index: Index =
        serde_json::from_slice(bytes).map_err(|error| Error::corrupt(path, format!("index: {error}")))?;
    let folder = path.parent().unwrap_or(Path::new(""));
    let mut opened: BTreeMap<&str, Contents> = BTreeMap::new();
    let mut tensors = Tensors::new();
    for (name, shard) in &index.weight_map {
        let mut parts = Path::new(shard).components();
        if !matches!((parts.next(), parts.next()), (Some(Component::Normal(_)), None)) {
            return Err(Error::corrupt(path, format!("`{shard}` is not the name of a file in the same folder")));
        }
        if !opened.contains_key(shard.as_str()) {
            let (file, bytes) = map(&folder.join(shard))?;
            opened.insert(shard, detect(&file, &bytes)?);
        }
        let entry = opened.get(shard.as_str()).and_then(|contents| contents.tensors.get(name));
        let entry = entry.ok_or_else(|| Error::corrupt(path, format!("`{name}` is not in `{shard}`")))?;
        tensors.insert(name.clone(), entry.clone());
    }
    let metadata = opened.values().flat_map(|contents| contents.metadata.iter());
    Ok(Contents { metadata: metadata.map(|(k, v)| (k.clone(), v.clone())).collect(), tensors })
}
