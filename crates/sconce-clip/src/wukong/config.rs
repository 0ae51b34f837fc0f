//! Sizes and options of a Wukong model.

use super::ReductionConfig;
use crate::{Error, Result, TextConfig, TransformerConfig, VitConfig, config};
use sconce_backbones::{BackboneConfig, swin};
use serde::{Deserialize, Serialize};

/// What of a picture is compared with what of a text.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Variant {
    /// The class token, or the mean over the grid, with the end token: CLIP's comparison (`Wukong^G`).
    Global,
    /// All patches with all tokens of the text (`Wukong^F`).
    Filip,
    /// A few learned mixtures of the patches with all tokens of the text (`Wukong`).
    Reduced(ReductionConfig),
}

/// The image tower.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum VisionConfig {
    /// CLIP's vision transformer; Wukong's have an epsilon of 1e-7 in all layer norms.
    Vit(VitConfig),
    /// A backbone of the registry and a linear projection; its classifier is left out.
    Backbone(BackboneConfig),
    /// A tower of another model that stays as it is, with or without a projection that is trained.
    Locked(LockedConfig),
}

/// Where a locked image tower is from (Zhai et al. 2022, arXiv:2111.07991).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LockedConfig {
    /// Name of the folder of the CLIP model whose tower it is, beside the model's own folder.
    pub folder: String,
    /// SHA-256 of that model's weights file in hexadecimal, see [`weights_digest`](super::weights_digest).
    pub sha256: String,
    /// Side of the square input in pixels.
    pub image_size: usize,
    /// Channels that the tower gives.
    pub width: usize,
    /// The stage whose map is the grid of tokens, from 1; the last one's when absent. [`Variant::Global`] takes the embedding.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stage: Option<usize>,
    /// Whether a projection is trained on top; without one the text tower learns the locked tower's space.
    pub project: bool,
}

/// A Wukong model.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// Width of the shared space, E.
    pub embed_dim: usize,
    /// The image tower.
    pub vision: VisionConfig,
    /// The causal text tower. Its rows end at the last id that is not 0, whatever `end_token` says.
    pub text: TextConfig,
    /// What is compared.
    pub variant: Variant,
    /// Logarithm of the initial inverse temperature; ln(1 / 0.07) in the paper.
    pub logit_scale_init: f64,
}

impl Default for Config {
    fn default() -> Self {
        Self::wukong_vit_b_32()
    }
}

/// Epsilon of the layer norms: MindSpore's default.
const EPS: f64 = 1e-7;

fn blocks(width: usize, depth: usize) -> TransformerConfig {
    TransformerConfig { eps: EPS, ..TransformerConfig::new(width, depth) }
}

impl Config {
    fn published(embed_dim: usize, vision: VisionConfig, width: usize, tokens: usize) -> Self {
        let text = TextConfig {
            context_length: crate::WordPiece::CONTEXT_LENGTH,
            vocab_size: 21128,
            end_token: Some(102),
            transformer: blocks(width, 12),
        };
        let variant = Variant::Reduced(ReductionConfig { tokens, ..ReductionConfig::default() });
        Self { embed_dim, vision, text, variant, logit_scale_init: (1.0f64 / 0.07).ln() }
    }

    /// ViT-B/32 with 12 reduced tokens.
    pub fn wukong_vit_b_32() -> Self {
        let vit = VitConfig { image_size: 224, patch_size: 32, transformer: blocks(768, 12) };
        Self::published(512, VisionConfig::Vit(vit), 512, 12)
    }

    /// ViT-B/32, patches with words.
    pub fn wukong_vit_b_32_f() -> Self {
        Self { variant: Variant::Filip, ..Self::wukong_vit_b_32() }
    }

    /// ViT-B/32, picture with text.
    pub fn wukong_vit_b_32_g() -> Self {
        Self { variant: Variant::Global, ..Self::wukong_vit_b_32() }
    }

    /// ViT-L/14 with 24 reduced tokens.
    pub fn wukong_vit_l_14() -> Self {
        let vit = VitConfig { image_size: 224, patch_size: 14, transformer: blocks(1024, 24) };
        Self::published(768, VisionConfig::Vit(vit), 768, 24)
    }

    /// ViT-L/14, patches with words.
    pub fn wukong_vit_l_14_f() -> Self {
        Self { variant: Variant::Filip, ..Self::wukong_vit_l_14() }
    }

    /// ViT-L/14, picture with text.
    pub fn wukong_vit_l_14_g() -> Self {
        Self { variant: Variant::Global, ..Self::wukong_vit_l_14() }
    }

    /// Swin-L, window 7, with 24 reduced tokens.
    pub fn wukong_swin_l() -> Self {
        let swin = swin::Config { num_classes: 0, ..swin::Config::swin_large_patch4_window7_224() };
        Self::published(768, VisionConfig::Backbone(swin.into()), 768, 24)
    }

    /// Swin-L, picture with text.
    pub fn wukong_swin_l_g() -> Self {
        Self { variant: Variant::Global, ..Self::wukong_swin_l() }
    }

    /// The same sizes in the manner of CLIP, to be checked with its rules where they are the same.
    fn as_clip(&self) -> config::Config {
        let small = VitConfig { image_size: 1, patch_size: 1, transformer: TransformerConfig::new(64, 1) };
        let vit = if let VisionConfig::Vit(vit) = &self.vision { vit.clone() } else { small };
        config::Config {
            embed_dim: self.embed_dim,
            vision: config::VisionConfig::Vit(vit),
            text: self.text.clone(),
            logit_scale_init: self.logit_scale_init,
        }
    }

    /// Height and width of the pictures.
    pub fn image_size(&self) -> (usize, usize) {
        match &self.vision {
            VisionConfig::Vit(vit) => (vit.image_size, vit.image_size),
            VisionConfig::Backbone(backbone) => backbone.input_size(),
            VisionConfig::Locked(locked) => (locked.image_size, locked.image_size),
        }
    }

    /// Checks that the sizes go together and are sizes a model can have.
    ///
    /// # Errors
    /// [`Error::Config`] says what does not.
    pub fn validate(&self) -> Result<()> {
        self.as_clip().validate()?;
        let VisionConfig::Locked(locked) = &self.vision else { return Ok(()) };
        if locked.width == 0 || locked.width > 1 << 16 {
            return Err(Error::Config(format!("a locked tower of {} channels", locked.width)));
        }
        if !locked.project && locked.width != self.embed_dim {
            return Err(Error::Config(format!(
                "a locked tower of {} channels needs a projection into {}",
                locked.width, self.embed_dim
            )));
        }
        Ok(())
    }
}
