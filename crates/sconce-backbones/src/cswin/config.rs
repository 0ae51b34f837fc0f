//! Options and presets of CSWin transformers.

use sconce_attention::{CrossShapedConfig, MixerSpec, TokenLayout};
use serde::{Deserialize, Serialize};

/// Options of a [`CSWinTransformer`](super::CSWinTransformer), named as in the official code.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// Height and width in pixels. The model takes other sizes as long as the stripes divide the maps; this one decides which
    /// stages have stripes.
    pub img_size: [usize; 2],
    /// Channels of the picture.
    pub in_chans: usize,
    /// Classes; 0 leaves the classifier out.
    pub num_classes: usize,
    /// Channels of the first stage; each later one has twice as many.
    pub embed_dim: usize,
    /// Blocks in each stage.
    pub depth: [usize; 4],
    /// Width of the stripes in each stage, in tokens. The last stage has none, and neither has a stage whose map is one stripe.
    pub split_size: [usize; 4],
    /// Attention heads of each stage, even where there are stripes.
    pub num_heads: [usize; 4],
    /// Hidden channels of the MLP as a multiple of the stage's channels.
    pub mlp_ratio: f64,
    /// Whether queries, keys and values have a bias.
    pub qkv_bias: bool,
    /// Factor on the scores; `D^-1/2` when `None`.
    pub qk_scale: Option<f64>,
    /// Epsilon of every layer norm.
    pub norm_eps: f64,
    /// Dropout probability in the MLP.
    pub drop_rate: f64,
    /// Dropout probability of attention weights.
    pub attn_drop_rate: f64,
    /// Drop-path probability of the last block; rises linearly from 0.
    pub drop_path_rate: f64,
}

impl Default for Config {
    fn default() -> Self {
        Self::cswin_64_12211_tiny_224()
    }
}

impl Config {
    fn cswin(embed_dim: usize, depth: [usize; 4], num_heads: [usize; 4], drop_path_rate: f64) -> Self {
        Self {
            img_size: [224, 224],
            in_chans: 3,
            num_classes: 1000,
            embed_dim,
            depth,
            split_size: [1, 2, 7, 7],
            num_heads,
            mlp_ratio: 4.0,
            qkv_bias: true,
            qk_scale: None,
            norm_eps: 1e-5,
            drop_rate: 0.0,
            attn_drop_rate: 0.0,
            drop_path_rate,
        }
    }

    fn at_384(self) -> Self {
        Self { img_size: [384, 384], split_size: [1, 2, 12, 12], ..self }
    }

    /// CSWin-T: 64 channels, 25 blocks, drop path 0.2.
    pub fn cswin_64_12211_tiny_224() -> Self {
        Self::cswin(64, [1, 2, 21, 1], [2, 4, 8, 16], 0.2)
    }

    /// CSWin-S: 64 channels, 40 blocks, drop path 0.4.
    pub fn cswin_64_24322_small_224() -> Self {
        Self::cswin(64, [2, 4, 32, 2], [2, 4, 8, 16], 0.4)
    }

    /// CSWin-B: 96 channels, 40 blocks, drop path 0.5.
    pub fn cswin_96_24322_base_224() -> Self {
        Self::cswin(96, [2, 4, 32, 2], [4, 8, 16, 32], 0.5)
    }

    /// CSWin-L: 144 channels, 40 blocks; the drop path of its training is not published and left at 0.
    pub fn cswin_144_24322_large_224() -> Self {
        Self::cswin(144, [2, 4, 32, 2], [6, 12, 24, 24], 0.0)
    }

    /// CSWin-B for 384 x 384 pixels.
    pub fn cswin_96_24322_base_384() -> Self {
        Self::cswin_96_24322_base_224().at_384()
    }

    /// CSWin-L for 384 x 384 pixels.
    pub fn cswin_144_24322_large_384() -> Self {
        Self::cswin_144_24322_large_224().at_384()
    }

    /// A CSWin for tests: 32 x 32 pixels, 8 channels, 5 blocks, the last two stages without stripes, 10 classes.
    pub fn test_cswin() -> Self {
        Self {
            img_size: [32, 32],
            num_classes: 10,
            split_size: [2, 1, 2, 1],
            ..Self::cswin(8, [1, 1, 2, 1], [2, 2, 4, 4], 0.0)
        }
    }

    /// As [`test_cswin`](Self::test_cswin) with stripes in three stages, no bias of queries, keys and values, and all kinds of
    /// dropout.
    pub fn test_cswin_drop() -> Self {
        Self {
            split_size: [2, 1, 1, 1],
            qkv_bias: false,
            mlp_ratio: 2.0,
            drop_rate: 0.1,
            attn_drop_rate: 0.1,
            drop_path_rate: 0.1,
            ..Self::test_cswin()
        }
    }

    /// Channels of a stage.
    pub fn stage_dim(&self, stage: usize) -> usize {
        self.embed_dim << stage.min(3)
    }

    /// Layout of a stage's tokens at the configured size.
    pub fn stage_layout(&self, stage: usize) -> TokenLayout {
        // The stem is a convolution of 7 x 7 with stride 4 and padding 2; later ones round up.
        let side = |pixels: usize| (0..stage).fold(pixels.saturating_add(1) / 4, |side, _| side.div_ceil(2));
        TokenLayout { prefix: 0, height: side(self.img_size[0]), width: side(self.img_size[1]) }
    }

    /// Hidden channels of the MLP between `dim` channels.
    pub fn mlp_dim(&self, dim: usize) -> usize {
        // The ratio may itself be a quotient of two integers: what rounding took from it must not cost a channel.
        (dim as f64 * self.mlp_ratio + 1e-6) as usize
    }

    /// The attention of the block that `spec` tells of.
    pub fn cross_shaped_attention(&self, spec: &MixerSpec) -> CrossShapedConfig {
        let stripe = self.split_size[spec.stage.min(3)];
        let whole = spec.stage >= 3 || (spec.layout.height, spec.layout.width) == (stripe, stripe);
        CrossShapedConfig { scale: self.qk_scale, ..CrossShapedConfig::of_block(spec, (!whole).then_some(stripe)) }
    }
}
