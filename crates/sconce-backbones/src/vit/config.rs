//! Options and presets of vision transformers.

use sconce_ops::Activation;
use serde::{Deserialize, Serialize};

/// What becomes of the tokens before the classifier.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Pool {
    /// The class token.
    #[default]
    Token,
    /// The mean of the patch tokens. The final norm moves behind it and is called `fc_norm`, as in timm.
    Avg,
}

/// How position embeddings follow pictures of another size than the one configured. The official codes differ; each
/// checkpoint wants the rule that it was trained or evaluated with.
///
/// Convention: from a square grid, bicubic (`a = -0.75`), pixel centres at one half, prefix tokens untouched.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PosResample {
    /// Other sizes are an error, as by default in timm and DeiT.
    #[default]
    Fixed,
    /// timm's `resample_abs_pos_embed`: with antialiasing.
    Timm,
    /// DeiT's fine-tuning code: without antialiasing.
    Deit,
    /// DINO: without antialiasing, sampling step `sqrt(N) / (side + 0.1)`.
    Dino,
}

/// Which of the official codes sets the first values.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum InitScheme {
    /// timm 1.x: the class token starts near 0 (standard deviation 1e-6).
    #[default]
    Timm,
    /// DeiT and DINO: the class token starts like every other weight (truncated normal, 0.02).
    Deit,
}

/// Options of a [`VisionTransformer`](super::VisionTransformer), named as in timm.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// Height and width in pixels.
    pub img_size: [usize; 2],
    /// Side of a patch in pixels.
    pub patch_size: usize,
    /// Channels of the picture.
    pub in_chans: usize,
    /// Classes; 0 leaves the classifier out.
    pub num_classes: usize,
    /// What becomes of the tokens before the classifier.
    pub global_pool: Pool,
    /// Channels of a token.
    pub embed_dim: usize,
    /// Number of blocks.
    pub depth: usize,
    /// Attention heads, a divisor of `embed_dim`.
    pub num_heads: usize,
    /// Hidden channels of the MLP as a multiple of `embed_dim`.
    pub mlp_ratio: f64,
    /// Whether queries, keys and values have a bias.
    pub qkv_bias: bool,
    /// First value of the layer scale; without one there is no layer scale.
    pub init_values: Option<f64>,
    /// DeiT's distillation token and second head.
    pub distilled: bool,
    /// Epsilon of every layer norm: 1e-6 in timm, DeiT and DINO; 1e-12 in Hugging Face's ViT.
    pub norm_eps: f64,
    /// Activation of the MLP.
    pub act: Activation,
    /// Dropout probability before the classifier.
    pub drop_rate: f64,
    /// Dropout probability of the embedded tokens.
    pub pos_drop_rate: f64,
    /// Dropout probability after the attention's projection and in the MLP.
    pub proj_drop_rate: f64,
    /// Dropout probability of attention weights.
    pub attn_drop_rate: f64,
    /// Drop-path probability of the last block; rises linearly from 0.
    pub drop_path_rate: f64,
    /// What to do with pictures of another size.
    pub pos_resample: PosResample,
    /// First values.
    pub init: InitScheme,
}

impl Default for Config {
    fn default() -> Self {
        Self::vit_base_patch16_224()
    }
}

impl Config {
    fn vit(embed_dim: usize, depth: usize, num_heads: usize, patch_size: usize) -> Self {
        Self {
            img_size: [224, 224],
            patch_size,
            in_chans: 3,
            num_classes: 1000,
            global_pool: Pool::Token,
            embed_dim,
            depth,
            num_heads,
            mlp_ratio: 4.0,
            qkv_bias: true,
            init_values: None,
            distilled: false,
            norm_eps: 1e-6,
            act: Activation::Gelu,
            drop_rate: 0.0,
            pos_drop_rate: 0.0,
            proj_drop_rate: 0.0,
            attn_drop_rate: 0.0,
            drop_path_rate: 0.0,
            pos_resample: PosResample::Fixed,
            init: InitScheme::Timm,
        }
    }

    fn deit(embed_dim: usize, num_heads: usize, distilled: bool) -> Self {
        Self { distilled, init: InitScheme::Deit, ..Self::vit(embed_dim, 12, num_heads, 16) }
    }

    fn dino(embed_dim: usize, num_heads: usize, patch_size: usize) -> Self {
        let (init, pos_resample) = (InitScheme::Deit, PosResample::Dino);
        Self { num_classes: 0, pos_resample, init, ..Self::vit(embed_dim, 12, num_heads, patch_size) }
    }

    /// ViT-Tiny/16: 192 channels, 12 blocks, 3 heads.
    pub fn vit_tiny_patch16_224() -> Self {
        Self::vit(192, 12, 3, 16)
    }

    /// ViT-Small/16: 384 channels, 12 blocks, 6 heads.
    pub fn vit_small_patch16_224() -> Self {
        Self::vit(384, 12, 6, 16)
    }

    /// ViT-Base/16: 768 channels, 12 blocks, 12 heads.
    pub fn vit_base_patch16_224() -> Self {
        Self::vit(768, 12, 12, 16)
    }

    /// ViT-Base/32: as ViT-Base with patches of 32 pixels.
    pub fn vit_base_patch32_224() -> Self {
        Self::vit(768, 12, 12, 32)
    }

    /// ViT-Large/16: 1024 channels, 24 blocks, 16 heads.
    pub fn vit_large_patch16_224() -> Self {
        Self::vit(1024, 24, 16, 16)
    }

    /// DeiT-Ti.
    pub fn deit_tiny_patch16_224() -> Self {
        Self::deit(192, 3, false)
    }

    /// DeiT-S.
    pub fn deit_small_patch16_224() -> Self {
        Self::deit(384, 6, false)
    }

    /// DeiT-B.
    pub fn deit_base_patch16_224() -> Self {
        Self::deit(768, 12, false)
    }

    /// DeiT-Ti with distillation token.
    pub fn deit_tiny_distilled_patch16_224() -> Self {
        Self::deit(192, 3, true)
    }

    /// DeiT-S with distillation token.
    pub fn deit_small_distilled_patch16_224() -> Self {
        Self::deit(384, 6, true)
    }

    /// DeiT-B with distillation token.
    pub fn deit_base_distilled_patch16_224() -> Self {
        Self::deit(768, 12, true)
    }

    /// DINO's ViT-S/16, without classifier.
    pub fn dino_vits16() -> Self {
        Self::dino(384, 6, 16)
    }

    /// DINO's ViT-S/8, without classifier.
    pub fn dino_vits8() -> Self {
        Self::dino(384, 6, 8)
    }

    /// DINO's ViT-B/16, without classifier.
    pub fn dino_vitb16() -> Self {
        Self::dino(768, 12, 16)
    }

    /// DINO's ViT-B/8, without classifier.
    pub fn dino_vitb8() -> Self {
        Self::dino(768, 12, 8)
    }

    /// A small model of our own making for pictures of 32 x 32 pixels: 192 channels, 4 blocks, 3 heads, patches of 4 x 4
    /// pixels, 10 classes.
    pub fn vit_tiny_patch4_32() -> Self {
        Self { img_size: [32, 32], num_classes: 10, pos_resample: PosResample::Timm, ..Self::vit(192, 4, 3, 4) }
    }

    /// A ViT for tests: 32 x 32 pixels, 32 channels, 2 blocks, 10 classes.
    pub fn test_vit() -> Self {
        Self { img_size: [32, 32], num_classes: 10, pos_resample: PosResample::Timm, ..Self::vit(32, 2, 2, 8) }
    }

    /// As [`test_vit`](Self::test_vit) with mean pooling, layer scale, and all kinds of dropout.
    pub fn test_vit_avg() -> Self {
        Self {
            global_pool: Pool::Avg,
            init_values: Some(0.1),
            drop_rate: 0.1,
            pos_drop_rate: 0.1,
            proj_drop_rate: 0.1,
            attn_drop_rate: 0.1,
            drop_path_rate: 0.1,
            ..Self::test_vit()
        }
    }

    /// A distilled DeiT for tests.
    pub fn test_deit_distilled() -> Self {
        Self { distilled: true, init: InitScheme::Deit, pos_resample: PosResample::Deit, ..Self::test_vit() }
    }

    /// A DINO backbone for tests.
    pub fn test_dino() -> Self {
        Self { num_classes: 0, init: InitScheme::Deit, pos_resample: PosResample::Dino, ..Self::test_vit() }
    }

    /// Rows and columns of patches at the configured size.
    pub fn grid(&self) -> (usize, usize) {
        let side = |pixels: usize| pixels.checked_div(self.patch_size).unwrap_or(0);
        (side(self.img_size[0]), side(self.img_size[1]))
    }

    /// Tokens before those of the patches: class and, in distilled models, distillation.
    pub fn num_prefix_tokens(&self) -> usize {
        if self.distilled { 2 } else { 1 }
    }

    /// Hidden channels of the MLP.
    pub fn mlp_dim(&self) -> usize {
        // The ratio may itself be a quotient of two integers: what rounding took from it must not cost a channel.
        (self.embed_dim as f64 * self.mlp_ratio + 1e-6) as usize
    }
}
