//! Lines of the registry before the common parts are filled in.

use sconce_data::Preprocess;

use crate::{BackboneConfig, KeyNames, Pretrained};

pub(crate) const TIMM: &str = "https://github.com/huggingface/pytorch-image-models";

/// What the models of one paper and one publisher share.
pub(crate) struct Family {
    pub(crate) licence: &'static str,
    pub(crate) paper: &'static str,
    pub(crate) source: Option<&'static str>,
    pub(crate) preprocess: fn() -> Preprocess,
    pub(crate) keys: KeyNames,
}

/// A family whose files nest and prefix their tensors in the common ways.
pub(crate) const fn family(
    licence: &'static str,
    paper: &'static str,
    source: &'static str,
    preprocess: fn() -> Preprocess,
) -> Family {
    let keys = KeyNames {
        nested: &["state_dict_ema", "state_dict", "model_state", "model", "teacher"],
        prefixes: &["module.", "backbone.", "model."],
    };
    Family { licence, paper, source: Some(source), preprocess, keys }
}

impl Family {
    /// A model with official weights; `params` as the official code counts them.
    pub(crate) fn model(&self, name: &'static str, config: impl Into<BackboneConfig>, params: usize) -> Pretrained {
        Pretrained {
            name,
            config: config.into(),
            preprocess: (self.preprocess)(),
            keys: self.keys,
            licence: self.licence,
            paper: self.paper,
            source: self.source,
            params: Some(params),
        }
    }

    /// A small model that nobody publishes weights of.
    pub(crate) fn test(&self, name: &'static str, config: impl Into<BackboneConfig>) -> Pretrained {
        let config = config.into();
        let (side, _) = config.input_size();
        let preprocess = Preprocess::imagenet(side as u32, 1.0);
        Pretrained { preprocess, source: None, params: None, ..self.model(name, config, 0) }
    }
}
