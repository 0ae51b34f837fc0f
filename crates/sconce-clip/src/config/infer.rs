//! The sizes of a model from the shapes of its checkpoint.

use super::{Config, ResNetConfig, TextConfig, TransformerConfig, VisionConfig, VitConfig, default_logit_scale};
use crate::{Error, Result, weights::openai_names};
use sconce_nn::Checkpoint;

impl Config {
    /// Reads the sizes off the tensors, in any of the three formats. What shapes do not tell is as in OpenAI's models: heads of
    /// 64, quick GELU, and the text ends at its largest id.
    ///
    /// # Errors
    /// [`Error::Checkpoint`] when the tensors are not those of a CLIP model; [`Error::Config`] when a width does not split into
    /// heads of 64, so that a configuration is needed.
    pub fn infer(checkpoint: &Checkpoint) -> Result<Self> {
        Self::infer_named(openai_names(checkpoint)?)
    }

    /// [`Config::infer`] of a checkpoint that answers to OpenAI's names.
    pub(crate) fn infer_named(checkpoint: Checkpoint) -> Result<Self> {
        let shapes = Shapes(checkpoint);
        let [vocab_size, width] = shapes.of("token_embedding.weight")?;
        let [context_length, _] = shapes.of("positional_embedding")?;
        let [_, embed_dim] = shapes.of("text_projection")?;
        let transformer = shapes.transformer("transformer.resblocks", width)?;
        let text = TextConfig { context_length, vocab_size, end_token: None, transformer };
        let vision = if shapes.0.contains("visual.proj") { shapes.vit()? } else { shapes.resnet()? };
        let config = Self { embed_dim, vision, text, logit_scale_init: default_logit_scale() };
        config.validate()?;
        Ok(config)
    }
}

/// A checkpoint under OpenAI's names.
struct Shapes(Checkpoint);

impl Shapes {
    fn of<const N: usize>(&self, name: &str) -> Result<[usize; N]> {
        let shape = self.0.shape(name)?;
        let rank = || Error::Checkpoint(format!("{name} has shape {shape:?}, {N} axes are expected"));
        shape.as_slice().try_into().map_err(|_| rank())
    }

    /// How many of `prefix.0`, `prefix.1`, ... have a tensor called `name`.
    fn count(&self, prefix: &str, name: &str) -> usize {
        (0..).take_while(|i| self.0.contains(&format!("{prefix}.{i}.{name}"))).count()
    }

    fn transformer(&self, prefix: &str, width: usize) -> Result<TransformerConfig> {
        let [hidden, _] = self.of(&format!("{prefix}.0.mlp.c_fc.weight"))?;
        let mlp_ratio = hidden as f64 / width.max(1) as f64;
        Ok(TransformerConfig { mlp_ratio, ..TransformerConfig::new(width, self.count(prefix, "attn.in_proj_weight")) })
    }

    /// Side of the grid behind a position embedding with one extra token.
    fn grid(&self, name: &str) -> Result<usize> {
        let [tokens, _] = self.of(name)?;
        let cells = tokens.saturating_sub(1);
        match cells.isqrt() {
            side if side > 0 && side * side == cells => Ok(side),
            _ => Err(Error::Checkpoint(format!("{name}: {tokens} tokens are not a square grid and one more"))),
        }
    }

    fn vit(&self) -> Result<VisionConfig> {
        let [width, _, patch_size, _] = self.of("visual.conv1.weight")?;
        let image_size = patch_size.saturating_mul(self.grid("visual.positional_embedding")?);
        let transformer = self.transformer("visual.transformer.resblocks", width)?;
        Ok(VisionConfig::Vit(VitConfig { image_size, patch_size, transformer }))
    }

    fn resnet(&self) -> Result<VisionConfig> {
        let depth = |stage: usize| self.count(&format!("visual.layer{stage}"), "conv1.weight");
        let [width, ..] = self.of::<4>("visual.layer1.0.conv1.weight")?;
        let image_size = self.grid("visual.attnpool.positional_embedding")?.saturating_mul(32);
        let depths = [depth(1), depth(2), depth(3), depth(4)];
        Ok(VisionConfig::ResNet(ResNetConfig { image_size, depths, width, heads: None }))
    }
}
