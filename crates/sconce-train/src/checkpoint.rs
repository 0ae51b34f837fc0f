//! Everything that later steps depend on, in one file.

use std::collections::{BTreeMap, HashSet};
use std::path::Path;

use candle_core::{Device, Tensor};
use rayon::prelude::*;
use safetensors::{Dtype, SafeTensors, View};
use sconce_nn::{SaveOptions, save_tensors};
use sconce_ops::GeneratorState;
use serde::{Deserialize, Serialize};

use crate::{Error, Result};

/// Where training stands.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Position {
    /// Optimiser steps taken.
    pub step: u64,
    /// Epochs finished.
    pub epoch: u64,
    /// Batches used of the epoch after those.
    pub batch: u64,
}

/// Tensors of one part of training: the model, the optimiser, an average.
#[derive(Clone, Debug, Default)]
pub struct Section {
    /// What wrote it, where that matters: the kind of optimiser.
    pub kind: Option<String>,
    /// The tensors with their names, in order.
    pub tensors: Vec<(String, Tensor)>,
}

/// A checkpoint of training.
///
/// One `.safetensors` file holds it: tensors are named `section.name`, the rest stands in the header,
/// and each tensor and the header have a checksum, so that damage is found wherever it is. The
/// weights alone can be read by any reader of the format, under the prefix `model.`.
#[derive(Clone, Debug, Default)]
pub struct TrainingState {
    /// Where training stands. Schedules are functions of it.
    pub position: Position,
    /// Tensors by the name of their section, which holds no dot.
    pub sections: BTreeMap<String, Section>,
    /// States of random generators by name.
    pub generators: BTreeMap<String, GeneratorState>,
    /// What the caller wants to keep. JSON may round floating point numbers in their last digit:
    /// what has to be exact belongs into a section.
    pub metadata: serde_json::Map<String, serde_json::Value>,
}

const VERSION: u64 = 1;
const HEADER: &str = "sconce_train";
const HEADER_CRC: &str = "sconce_train_crc32";

#[derive(Serialize, Deserialize)]
struct Header {
    version: u64,
    position: Position,
    sections: BTreeMap<String, SectionHeader>,
    generators: BTreeMap<String, GeneratorState>,
    metadata: serde_json::Map<String, serde_json::Value>,
}

#[derive(Serialize, Deserialize)]
struct SectionHeader {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    kind: Option<String>,
    /// Names with checksums, in order.
    tensors: Vec<(String, u32)>,
}

impl TrainingState {
    /// The section of this name.
    ///
    /// # Errors
    /// There is none.
    pub fn section(&self, name: &str) -> Result<&Section> {
        let missing = || Error::MissingTensor { section: "the checkpoint".to_owned(), name: format!("section {name}") };
        self.sections.get(name).ok_or_else(missing)
    }

    /// Writes the file whole or not at all: an older file of this name stays until the new one is
    /// complete and on disk. The same state gives the same bytes.
    ///
    /// # Errors
    /// The file cannot be written; a name of a section with a dot; a name that occurs twice.
    pub fn write(&self, path: impl AsRef<Path>) -> Result<()> {
        let mut tensors = Vec::new();
        let mut sections = BTreeMap::new();
        for (section, Section { kind, tensors: members }) in &self.sections {
            if section.is_empty() || section.contains('.') {
                return Err(Error::Config(format!("a section named {section:?}")));
            }
            let checks: Vec<u32> = members
                .par_iter()
                .map(|(_, tensor)| checksum(View::dtype(tensor), tensor.dims(), &View::data(tensor)))
                .collect();
            let named = members.iter().zip(checks).map(|((name, _), check)| (name.clone(), check));
            sections.insert(section.clone(), SectionHeader { kind: kind.clone(), tensors: named.collect() });
            tensors.extend(members.iter().map(|(name, tensor)| (format!("{section}.{name}"), tensor.clone())));
        }
        let header = Header {
            version: VERSION,
            position: self.position,
            sections,
            generators: self.generators.clone(),
            metadata: self.metadata.clone(),
        };
        let header = serde_json::to_string(&header).map_err(|e| Error::Config(format!("metadata: {e}")))?;
        let check = format!("{:08x}", crc32fast::hash(header.as_bytes()));
        let options = SaveOptions::default().with_metadata(HEADER, header).with_metadata(HEADER_CRC, check);
        Ok(save_tensors(path, tensors, &options)?)
    }

    /// Reads a file; the tensors are put on `device`.
    ///
    /// # Errors
    /// The file cannot be read; it is truncated, altered or not a checkpoint of this crate.
    pub fn read(path: impl AsRef<Path>, device: &Device) -> Result<Self> {
        let path = path.as_ref();
        let bytes = sconce_ops::map_file(path).map_err(Error::io(path))?;
        let corrupt = |reason: String| Error::corrupt(path, reason);
        let (_, metadata) = SafeTensors::read_metadata(&bytes).map_err(|e| corrupt(e.to_string()))?;
        let file = SafeTensors::deserialize(&bytes).map_err(|e| corrupt(e.to_string()))?;
        let texts = metadata.metadata().as_ref();
        let text = |key| texts.and_then(|texts| texts.get(key)).ok_or_else(|| corrupt(format!("{key} is missing")));
        let header = text(HEADER)?;
        if *text(HEADER_CRC)? != format!("{:08x}", crc32fast::hash(header.as_bytes())) {
            return Err(corrupt("the checksum of the header is wrong".to_owned()));
        }
        let version = serde_json::from_str::<Version>(header).map_err(|e| corrupt(e.to_string()))?.version;
        if version > VERSION {
            return Err(Error::CheckpointVersion { path: path.to_owned(), found: version, supported: VERSION });
        }
        let header: Header = serde_json::from_str(header).map_err(|e| corrupt(e.to_string()))?;

        let mut expected = HashSet::new();
        let mut sections = BTreeMap::new();
        for (section, SectionHeader { kind, tensors }) in header.sections {
            let read = tensors
                .into_par_iter()
                .map(|(name, check)| {
                    let full = format!("{section}.{name}");
                    let view = file.tensor(&full).map_err(|e| corrupt(e.to_string()))?;
                    if checksum(view.dtype(), view.shape(), view.data()) != check {
                        return Err(corrupt(format!("the checksum of {full} is wrong")));
                    }
                    Ok((full, name, candle_core::safetensors::Load::load(&view, device)?))
                })
                .collect::<Result<Vec<_>>>()?;
            let mut members = Vec::with_capacity(read.len());
            for (full, name, tensor) in read {
                expected.insert(full);
                members.push((name, tensor));
            }
            sections.insert(section, Section { kind, tensors: members });
        }
        if let Some(name) = file.names().into_iter().find(|&name| !expected.contains(name)) {
            return Err(corrupt(format!("the header does not list {name}")));
        }
        Ok(Self { position: header.position, sections, generators: header.generators, metadata: header.metadata })
    }
}

#[derive(Deserialize)]
struct Version {
    version: u64,
}

fn checksum(dtype: Dtype, shape: &[usize], data: &[u8]) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(format!("{dtype:?}{shape:?}").as_bytes());
    hasher.update(data);
    hasher.finalize()
}
