//! Everything that belongs to one set of weights.

use std::path::Path;

use candle_core::{DType, Device};
use sconce_data::Preprocess;
use sconce_nn::Checkpoint;

use crate::vit::HuggingFaceKeys;
use crate::{Backbone, BackboneConfig, Result};

/// Options, preprocessing, key names and provenance of one set of weights.
///
/// Weights are not part of the library: get the file from where [`source`](Self::source) points and hand its path to
/// [`load`](Self::load).
#[derive(Debug, Clone, PartialEq)]
pub struct Pretrained {
    /// Name in the registry.
    pub name: &'static str,
    /// Options of the model.
    pub config: BackboneConfig,
    /// How pictures are prepared.
    pub preprocess: Preprocess,
    /// How the official files name their tensors.
    pub keys: KeyNames,
    /// Licence of the official weights, an SPDX expression.
    pub licence: &'static str,
    /// The paper.
    pub paper: &'static str,
    /// The project that publishes the weights; `None` for the small models of tests, which have none.
    pub source: Option<&'static str>,
    /// Number of parameters in the official model.
    pub params: Option<usize>,
}

/// How the official files name their tensors, apart from what the library finds out by itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct KeyNames {
    /// Keys under which the tensors may be nested; the first that exists counts, a flat file is fine too.
    pub nested: &'static [&'static str],
    /// Prefixes to take off, in this order, where all names have them.
    pub prefixes: &'static [&'static str],
}

impl Pretrained {
    /// Opens a checkpoint file of this model so that its tensors answer to this library's names: official files, also
    /// nested or prefixed as training codes leave them, and those of Hugging Face.
    ///
    /// # Errors
    /// When the file cannot be read or is damaged.
    pub fn open(&self, path: impl AsRef<Path>) -> Result<Checkpoint> {
        let file = Checkpoint::open(path)?.select_first(self.keys.nested).strip_prefix(self.keys.prefixes)?;
        if let BackboneConfig::Vit(_) = self.config
            && let Ok(keys) = HuggingFaceKeys::detect(file.names())
        {
            return Ok(file.with_map(keys));
        }
        Ok(file)
    }

    /// The model with the weights of a file, for inference. To train on, make it from the builder of a
    /// [`ParamStore`](sconce_nn::ParamStore) and load [`open`](Self::open)'s checkpoint into that.
    ///
    /// # Errors
    /// When the file cannot be read, or a tensor is missing or of another shape.
    pub fn load(&self, path: impl AsRef<Path>, dtype: DType, device: &Device) -> Result<Box<dyn Backbone>> {
        Ok(self.config.build(self.open(path)?.vb(dtype, device))?)
    }
}
