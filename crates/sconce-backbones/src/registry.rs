//! Models by name.

use std::sync::OnceLock;

use sconce_nn::{VarBuilder, matches};

use crate::config::models;
use crate::{Backbone, Error, Pretrained, Result};

fn registry() -> &'static [Pretrained] {
    static MODELS: OnceLock<Vec<Pretrained>> = OnceLock::new();
    MODELS.get_or_init(models)
}

/// The names that match a pattern, in which `*` stands for any run of characters: `*`, `vit_*`, `*patch16*`.
pub fn list_models(pattern: &str) -> Vec<&'static str> {
    registry().iter().map(|model| model.name).filter(|name| matches(pattern, name)).collect()
}

/// The record of a model: options, preprocessing, key names, licence, source.
///
/// # Errors
/// When there is no model of that name.
pub fn pretrained(name: &str) -> Result<Pretrained> {
    let found = registry().iter().find(|model| model.name == name);
    found.cloned().ok_or_else(|| {
        let family = name.split('_').next().unwrap_or_default();
        let similar = list_models("*").into_iter().filter(|known| !family.is_empty() && known.contains(family));
        Error::UnknownModel { name: name.into(), similar: similar.map(str::to_owned).collect() }
    })
}

/// A model by name, with the options of its official weights. For other options change the record's
/// [`config`](Pretrained::config) and build that.
///
/// # Errors
/// When there is no model of that name or `vb` lacks a tensor.
pub fn create(name: &str, vb: VarBuilder) -> Result<Box<dyn Backbone>> {
    Ok(pretrained(name)?.config.build(vb)?)
}
