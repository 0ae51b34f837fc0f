//! The published `.pkl` files under CLIP's names, and sizes from their shapes.

use super::{Config, Variant, VisionConfig};
use crate::{Error, Result, config};
use sconce_nn::{Checkpoint, KeyMap, Source};
use std::sync::Arc;

/// The name in a published file for one of CLIP's: five tensors of the text tower lie below `transformer.`, the temperature
/// below `loss.`.
pub fn to_official_name(name: &str) -> String {
    match name {
        "logit_scale" => format!("loss.{name}"),
        "token_embedding.weight" | "positional_embedding" | "text_projection" | "ln_final.weight" | "ln_final.bias" => {
            format!("transformer.{name}")
        }
        _ => name.to_owned(),
    }
}

/// A checkpoint that answers to this crate's names: a published one, also nested or prefixed as training scripts leave it, or one
/// that was saved by this crate.
///
/// # Errors
/// [`Error::Checkpoint`] when the tensors are not those of a Wukong model.
pub fn official_names(checkpoint: &Checkpoint) -> Result<Checkpoint> {
    let (plain, map) = unwrap(checkpoint)?;
    Ok(plain.with_map(move |name: &str| map.source(name)))
}

/// The tensors without what is around them, and how they are named.
pub(super) fn unwrap(checkpoint: &Checkpoint) -> Result<(Checkpoint, Arc<dyn KeyMap>)> {
    for file in [checkpoint, &checkpoint.select_first(&Checkpoint::WRAPPERS)] {
        let plain = file.strip_prefix(&["module."])?;
        if plain.contains("transformer.token_embedding.weight") {
            return Ok((plain, Arc::new(|name: &str| Source::Tensor(to_official_name(name)))));
        }
        if plain.contains("token_embedding.weight") {
            return Ok((plain, Arc::new(|name: &str| Source::Tensor(name.to_owned()))));
        }
    }
    let some: Vec<&str> = checkpoint.names().take(5).collect();
    Err(Error::Checkpoint(format!("these are not the names of a Wukong model: {}, ...", some.join(", "))))
}

impl Config {
    /// Reads the sizes of a model with a ViT tower off its tensors. What shapes do not tell is as published: heads of 64, quick
    /// GELU, an epsilon of 1e-7. With `token_learner.*` in the file the variant is [`Variant::Reduced`], otherwise `variant`.
    ///
    /// # Errors
    /// [`Error::Checkpoint`] when the tensors are not those of such a model; [`Error::Config`] when a width does not split into
    /// heads of 64, so that a configuration is needed.
    pub fn infer(checkpoint: &Checkpoint, variant: Variant) -> Result<Self> {
        let named = official_names(checkpoint)?;
        let clip = config::Config::infer_named(named.clone())?;
        let config::VisionConfig::Vit(mut vit) = clip.vision else {
            return Err(Error::Checkpoint("sizes are inferred for ViT towers only".into()));
        };
        let mut text = clip.text;
        let eps = Self::default().text.transformer.eps;
        (vit.transformer.eps, text.transformer.eps) = (eps, eps);
        let shape = |name: &str| named.shape(&format!("token_learner.{name}.weight"));
        let variant = match (shape("attention_maps.1"), shape("feat_conv")) {
            (Ok(maps), Ok(conv)) if maps.len() == 4 && conv.len() == 4 => {
                let groups = vit.transformer.width / conv[1].max(1);
                Variant::Reduced(super::ReductionConfig { tokens: maps[0], groups, ..Default::default() })
            }
            _ => variant,
        };
        let config = Self {
            embed_dim: clip.embed_dim,
            vision: VisionConfig::Vit(vit),
            text,
            variant,
            logit_scale_init: clip.logit_scale_init,
        };
        config.validate()?;
        Ok(config)
    }
}
