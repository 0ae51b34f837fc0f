//! Options and presets of Swin transformers.

use sconce_attention::{MixerSpec, TokenLayout, WindowAttentionConfig, WindowFit};
use sconce_ops::Activation;
use serde::{Deserialize, Serialize};

use super::{Broad, BroadStages, StageBroad};

/// Options of a [`SwinTransformer`](super::SwinTransformer), named as in the official code and timm.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// Height and width in pixels. Other sizes may come at run time; this one decides the windows of small maps and with
    /// them the size of bias tables.
    pub img_size: [usize; 2],
    /// Side of a patch in pixels.
    pub patch_size: usize,
    /// Channels of the picture.
    pub in_chans: usize,
    /// Classes; 0 leaves the classifier out.
    pub num_classes: usize,
    /// Channels of a token in the first stage; each further stage has twice as many.
    pub embed_dim: usize,
    /// Blocks of each stage.
    pub depths: Vec<usize>,
    /// Attention heads of each stage, a divisor of its channels.
    pub num_heads: Vec<usize>,
    /// Side of a window in tokens. Every second block is shifted by half of it.
    pub window_size: usize,
    /// What becomes of the window on small maps.
    pub window_fit: WindowFit,
    /// Hidden channels of the MLP as a multiple of the stage's channels.
    pub mlp_ratio: f64,
    /// Whether queries, keys and values have a bias.
    pub qkv_bias: bool,
    /// Factor on the scores; `D^-1/2` of the head's channels when `None`.
    pub qk_scale: Option<f64>,
    /// Whether tokens get an absolute position embedding besides the relative biases.
    pub ape: bool,
    /// Whether the embedded patches are normalised.
    pub patch_norm: bool,
    /// Epsilon of every layer norm.
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
    /// A broad connection over the blocks of a stage, which the original does not have.
    pub broad: Option<Broad>,
}

impl Default for Config {
    fn default() -> Self {
        Self::swin_tiny_patch4_window7_224()
    }
}

impl Config {
    fn swin(embed_dim: usize, third: usize, heads: usize, drop_path_rate: f64) -> Self {
        Self {
            img_size: [224, 224],
            patch_size: 4,
            in_chans: 3,
            num_classes: 1000,
            embed_dim,
            depths: vec![2, 2, third, 2],
            num_heads: vec![heads, 2 * heads, 4 * heads, 8 * heads],
            window_size: 7,
            window_fit: WindowFit::Square,
            mlp_ratio: 4.0,
            qkv_bias: true,
            qk_scale: None,
            ape: false,
            patch_norm: true,
            norm_eps: 1e-5,
            act: Activation::Gelu,
            drop_rate: 0.0,
            pos_drop_rate: 0.0,
            proj_drop_rate: 0.0,
            attn_drop_rate: 0.0,
            drop_path_rate,
            broad: None,
        }
    }

    /// The official presets for 384 x 384 pixels have windows of 12 x 12 tokens.
    fn at_384(self) -> Self {
        Self { img_size: [384, 384], window_size: 12, ..self }
    }

    /// ImageNet-22k as the official code numbers it.
    fn of_22k(self) -> Self {
        Self { num_classes: 21_841, ..self }
    }

    /// Swin-T: 96 channels, 12 blocks, drop path 0.2.
    pub fn swin_tiny_patch4_window7_224() -> Self {
        Self::swin(96, 6, 3, 0.2)
    }

    /// Swin-S: 96 channels, 24 blocks, drop path 0.3.
    pub fn swin_small_patch4_window7_224() -> Self {
        Self::swin(96, 18, 3, 0.3)
    }

    /// Swin-B: 128 channels, 24 blocks, drop path 0.5.
    pub fn swin_base_patch4_window7_224() -> Self {
        Self::swin(128, 18, 4, 0.5)
    }

    /// Swin-L: 192 channels, 24 blocks, drop path 0.2.
    pub fn swin_large_patch4_window7_224() -> Self {
        Self::swin(192, 18, 6, 0.2)
    }

    /// Swin-B for 384 x 384 pixels.
    pub fn swin_base_patch4_window12_384() -> Self {
        Self::swin_base_patch4_window7_224().at_384()
    }

    /// Swin-L for 384 x 384 pixels.
    pub fn swin_large_patch4_window12_384() -> Self {
        Self::swin_large_patch4_window7_224().at_384()
    }

    /// Swin-B with the classifier of ImageNet-22k.
    pub fn swin_base_patch4_window7_224_22k() -> Self {
        Self::swin_base_patch4_window7_224().of_22k()
    }

    /// Swin-L with the classifier of ImageNet-22k.
    pub fn swin_large_patch4_window7_224_22k() -> Self {
        Self::swin_large_patch4_window7_224().of_22k()
    }

    /// A Swin for tests: 32 x 32 pixels, two stages of two blocks, windows of 4 x 4 tokens, 10 classes.
    pub fn test_swin() -> Self {
        Self {
            img_size: [32, 32],
            num_classes: 10,
            depths: vec![2, 2],
            num_heads: vec![2, 4],
            window_size: 4,
            ..Self::swin(16, 0, 1, 0.0)
        }
    }

    /// As [`test_swin`](Self::test_swin) with windows that do not divide the map, an absolute position embedding, no bias of
    /// queries, keys and values, and all kinds of dropout.
    pub fn test_swin_ape() -> Self {
        Self {
            window_size: 3,
            window_fit: WindowFit::PerAxis,
            qkv_bias: false,
            ape: true,
            patch_norm: false,
            drop_rate: 0.1,
            pos_drop_rate: 0.1,
            proj_drop_rate: 0.1,
            attn_drop_rate: 0.1,
            drop_path_rate: 0.1,
            ..Self::test_swin()
        }
    }

    /// As [`test_swin`](Self::test_swin) with a broad connection in every stage.
    pub fn test_swin_broad() -> Self {
        let broad = Broad { stages: BroadStages::All, ..Broad::default() };
        Self { broad: Some(broad), ..Self::test_swin() }
    }

    /// Rows and columns of patches at the configured size.
    pub fn grid(&self) -> (usize, usize) {
        let side = |pixels: usize| pixels.checked_div(self.patch_size).unwrap_or(0);
        (side(self.img_size[0]), side(self.img_size[1]))
    }

    /// Channels of a stage; `None` where there is no such number.
    pub fn stage_dim(&self, stage: usize) -> Option<usize> {
        let factor = u32::try_from(stage).ok().and_then(|stage| 1usize.checked_shl(stage))?;
        // Some layers have four times as many channels.
        self.embed_dim.checked_mul(factor).filter(|dim| dim.checked_mul(4).is_some())
    }

    /// Layout of a stage's tokens at the configured size.
    pub fn stage_layout(&self, stage: usize) -> TokenLayout {
        let (mut height, mut width) = self.grid();
        for _ in 0..stage {
            (height, width) = (height.div_ceil(2), width.div_ceil(2));
        }
        TokenLayout { prefix: 0, height, width }
    }

    /// Hidden channels of the MLP between `dim` channels.
    pub fn mlp_dim(&self, dim: usize) -> usize {
        // The ratio may itself be a quotient of two integers: what rounding took from it must not cost a channel.
        (dim as f64 * self.mlp_ratio + 1e-6) as usize
    }

    /// The broad connection of a stage that has one.
    pub fn stage_broad(&self, stage: usize) -> Option<StageBroad> {
        let Broad { connection, stages } = self.broad?;
        let here = stages == BroadStages::All || stage + 1 == self.depths.len();
        here.then_some(StageBroad { connection, window: [self.window_size; 2], fit: self.window_fit })
    }

    /// The attention of the block that `spec` tells of: shifted in every second block of a stage.
    pub fn window_attention(&self, spec: &MixerSpec) -> WindowAttentionConfig {
        let shift = if spec.stage_block % 2 == 1 { self.window_size / 2 } else { 0 };
        let config = WindowAttentionConfig {
            shift: [shift; 2],
            fit: self.window_fit,
            qkv_bias: spec.qkv_bias,
            scale: self.qk_scale,
            attn_drop: spec.attn_drop,
            proj_drop: spec.proj_drop,
            ..WindowAttentionConfig::new(spec.dim, spec.heads, self.window_size)
        };
        config.for_map(spec.layout)
    }
}
