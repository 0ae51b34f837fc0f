//! Options and presets of BViT.

use sconce_attention::BroadConnection;
use serde::{Deserialize, Serialize};

use crate::vit::PosResample;

/// What becomes of the tokens before the classifier.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Pool {
    /// The class token.
    #[default]
    Cls,
    /// The mean of all tokens, that of the class among them.
    Mean,
}

/// Options of a [`BViT`](super::BViT).
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
    /// A 7x7 convolution of stride 2, without activation, before the patches.
    ///
    /// The released class has it, and so its checkpoints ask for `true`. It leaves 49 patches of a picture of 224 x 224
    /// pixels and 0.30 G multiply-accumulates of BViT-5M, where the paper reports 1.2 G; that takes the 196 patches of a
    /// model without it, hence the default `false`.
    pub stem: bool,
    /// Channels of a token.
    pub embed_dim: usize,
    /// Number of blocks.
    pub depth: usize,
    /// Attention heads.
    pub num_heads: usize,
    /// Channels of a head.
    pub head_dim: usize,
    /// Hidden channels of the MLP.
    pub mlp_dim: usize,
    /// What becomes of the tokens before the classifier.
    pub pool: Pool,
    /// The connection from all blocks to the output.
    pub broad: BroadConnection,
    /// Epsilon of every layer norm.
    pub norm_eps: f64,
    /// Dropout probability of the embedded tokens.
    pub pos_drop_rate: f64,
    /// Dropout probability after the attention's projection and in the MLP.
    pub proj_drop_rate: f64,
    /// Drop-path probability of the last block; rises linearly from 0.
    pub drop_path_rate: f64,
    /// What to do with pictures of another size.
    pub pos_resample: PosResample,
}

impl Default for Config {
    fn default() -> Self {
        Self::bvit_5m()
    }
}

impl Config {
    fn bvit(embed_dim: usize, depth: usize, num_heads: usize) -> Self {
        Self {
            img_size: [224, 224],
            patch_size: 16,
            in_chans: 3,
            num_classes: 1000,
            stem: false,
            embed_dim,
            depth,
            num_heads,
            head_dim: 64,
            mlp_dim: 4 * embed_dim,
            pool: Pool::Cls,
            broad: BroadConnection::default(),
            norm_eps: 1e-5,
            pos_drop_rate: 0.0,
            proj_drop_rate: 0.0,
            drop_path_rate: 0.0,
            pos_resample: PosResample::Fixed,
        }
    }

    /// BViT-5M as the paper counts its operations, without [`stem`](Self::stem): 192 channels, 12 blocks, 3 heads.
    pub fn bvit_5m() -> Self {
        Self::bvit(192, 12, 3)
    }

    /// BViT-22M as the paper counts its operations, without [`stem`](Self::stem): 384 channels, 12 blocks, 6 heads.
    pub fn bvit_22m() -> Self {
        Self::bvit(384, 12, 6)
    }

    /// BViT-5M as released.
    pub fn bvit_5m_stem() -> Self {
        Self { stem: true, ..Self::bvit_5m() }
    }

    /// BViT-22M as released. There the class fails, as it averages into 192 features whatever the channels; here it does not.
    pub fn bvit_22m_stem() -> Self {
        Self { stem: true, ..Self::bvit_22m() }
    }

    /// A small model of our own making for pictures of 32 x 32 pixels: 192 channels, 4 blocks, 3 heads, patches of 4 x 4
    /// pixels, 10 classes. The twin of [`vit_tiny_patch4_32`](crate::vit::Config::vit_tiny_patch4_32).
    pub fn bvit_tiny_patch4_32() -> Self {
        Self {
            img_size: [32, 32],
            patch_size: 4,
            num_classes: 10,
            pos_resample: PosResample::Timm,
            ..Self::bvit(192, 4, 3)
        }
    }

    /// A BViT for tests: 32 x 32 pixels, 32 channels, 2 blocks, 10 classes.
    pub fn test_bvit() -> Self {
        Self {
            patch_size: 8,
            embed_dim: 32,
            depth: 2,
            num_heads: 2,
            head_dim: 16,
            mlp_dim: 64,
            ..Self::bvit_tiny_patch4_32()
        }
    }

    /// As [`test_bvit`](Self::test_bvit) with the stem, mean pooling, heads that do not add up to the channels, and all kinds of
    /// dropout.
    pub fn test_bvit_stem() -> Self {
        Self {
            patch_size: 4,
            stem: true,
            num_heads: 3,
            head_dim: 8,
            pool: Pool::Mean,
            pos_drop_rate: 0.1,
            proj_drop_rate: 0.1,
            drop_path_rate: 0.1,
            ..Self::test_bvit()
        }
    }

    /// Pixels of the picture per side of a patch.
    pub fn reduction(&self) -> usize {
        if self.stem { self.patch_size.saturating_mul(2) } else { self.patch_size }
    }

    /// Rows and columns of patches of a picture of `(height, width)` pixels.
    pub fn grid(&self, (height, width): (usize, usize)) -> (usize, usize) {
        let side = |pixels: usize| {
            let pixels = if self.stem { pixels.div_ceil(2) } else { pixels };
            pixels.checked_div(self.patch_size).unwrap_or(0)
        };
        (side(height), side(width))
    }

    /// Rows of the position embedding: one for the class token and one for each patch of the picture without stem. With a
    /// stem the first of them are used.
    pub fn pos_rows(&self) -> usize {
        let side = |pixels: usize| pixels.checked_div(self.patch_size).unwrap_or(0);
        side(self.img_size[0]).saturating_mul(side(self.img_size[1])).saturating_add(1)
    }
}
