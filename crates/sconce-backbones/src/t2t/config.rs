//! Options and presets of T2T-ViTs.

use sconce_attention::BroadConnection;
use serde::{Deserialize, Serialize};

use crate::vit::{self, PosResample};

/// What lets the tokens of a soft split see each other.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TokensType {
    /// Random features: linear in the number of tokens.
    #[default]
    Performer,
    /// Softmax attention with one head: quadratic.
    Transformer,
}

/// The factor on the scores of the blocks.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum QkScale {
    /// `embed_dim^-1/2`: what the official factory sets for its released weights, and for them alone.
    #[default]
    Released,
    /// `(embed_dim / num_heads)^-1/2`: what the official code trains with from scratch.
    Head,
    /// This number.
    Factor(f64),
}

/// Options of a [`T2tVit`](super::T2tVit), named as in the official code.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// Height and width in pixels.
    pub img_size: [usize; 2],
    /// Channels of the picture.
    pub in_chans: usize,
    /// Classes; 0 leaves the classifier out.
    pub num_classes: usize,
    /// What lets the tokens of a soft split see each other.
    pub tokens_type: TokensType,
    /// Channels of the tokens within the soft splits.
    pub token_dim: usize,
    /// Channels of a token in the blocks.
    pub embed_dim: usize,
    /// Number of blocks.
    pub depth: usize,
    /// Attention heads of the blocks, a divisor of `embed_dim`.
    pub num_heads: usize,
    /// Hidden channels of the blocks' MLP as a multiple of `embed_dim`.
    pub mlp_ratio: f64,
    /// Whether queries, keys and values of the blocks have a bias.
    pub qkv_bias: bool,
    /// The factor on the scores of the blocks: released weights want another one than training from scratch.
    pub qk_scale: QkScale,
    /// Dropout probability within the Performers of the soft splits.
    pub token_drop_rate: f64,
    /// Dropout probability of the embedded tokens and in the blocks.
    pub drop_rate: f64,
    /// Dropout probability of attention weights.
    pub attn_drop_rate: f64,
    /// Drop-path probability of the last block; rises linearly from 0.
    pub drop_path_rate: f64,
    /// What to do with pictures of another size; [`PosResample::Deit`] is the official rule for fine-tuning.
    pub pos_resample: PosResample,
    /// BViT's broad connection over all blocks, before the final norm. A definition of our own: BViT's authors report the
    /// combination and publish no code for it.
    pub broad: Option<BroadConnection>,
}

impl Default for Config {
    fn default() -> Self {
        Self::t2t_vit_14()
    }
}

impl Config {
    fn new(embed_dim: usize, depth: usize, num_heads: usize, mlp_ratio: f64) -> Self {
        Self {
            img_size: [224, 224],
            in_chans: 3,
            num_classes: 1000,
            tokens_type: TokensType::Performer,
            token_dim: 64,
            embed_dim,
            depth,
            num_heads,
            mlp_ratio,
            qkv_bias: false,
            qk_scale: QkScale::Released,
            token_drop_rate: 0.1,
            drop_rate: 0.0,
            attn_drop_rate: 0.0,
            drop_path_rate: 0.0,
            pos_resample: PosResample::Fixed,
            broad: None,
        }
    }

    /// T2T-ViT-7: 256 channels, 7 blocks.
    pub fn t2t_vit_7() -> Self {
        Self::new(256, 7, 4, 2.0)
    }

    /// T2T-ViT-10: 256 channels, 10 blocks.
    pub fn t2t_vit_10() -> Self {
        Self::new(256, 10, 4, 2.0)
    }

    /// T2T-ViT-12: 256 channels, 12 blocks.
    pub fn t2t_vit_12() -> Self {
        Self::new(256, 12, 4, 2.0)
    }

    /// T2T-ViT-14: 384 channels, 14 blocks.
    pub fn t2t_vit_14() -> Self {
        Self::new(384, 14, 6, 3.0)
    }

    /// T2T-ViT-19: 448 channels, 19 blocks.
    pub fn t2t_vit_19() -> Self {
        Self::new(448, 19, 7, 3.0)
    }

    /// T2T-ViT-24: 512 channels, 24 blocks.
    pub fn t2t_vit_24() -> Self {
        Self::new(512, 24, 8, 3.0)
    }

    /// T2T-ViT-14 with softmax attention in the soft splits.
    pub fn t2t_vit_t_14() -> Self {
        Self { tokens_type: TokensType::Transformer, ..Self::t2t_vit_14() }
    }

    /// A T2T-ViT for tests, with all kinds of dropout and the broad connection.
    pub fn test_t2t() -> Self {
        Self {
            img_size: [32, 32],
            num_classes: 10,
            token_dim: 16,
            qk_scale: QkScale::Head,
            drop_rate: 0.1,
            attn_drop_rate: 0.1,
            drop_path_rate: 0.1,
            pos_resample: PosResample::Deit,
            broad: Some(BroadConnection::default()),
            ..Self::new(32, 2, 2, 2.0)
        }
    }

    /// A T2T-ViT for tests with softmax attention in the soft splits.
    pub fn test_t2t_transformer() -> Self {
        Self {
            tokens_type: TokensType::Transformer,
            qk_scale: QkScale::Released,
            qkv_bias: true,
            drop_rate: 0.0,
            attn_drop_rate: 0.0,
            drop_path_rate: 0.0,
            broad: None,
            ..Self::test_t2t()
        }
    }

    /// Rows and columns of tokens at the configured size.
    pub fn grid(&self) -> (usize, usize) {
        let side = |pixels: usize| super::tokens::SPLITS.iter().fold(pixels, |side, split| split.count(side));
        (side(self.img_size[0]), side(self.img_size[1]))
    }

    /// The factor on the scores of the blocks.
    pub fn scale(&self) -> f64 {
        let head = self.embed_dim.checked_div(self.num_heads).unwrap_or(0);
        match self.qk_scale {
            QkScale::Released => (self.embed_dim.max(1) as f64).powf(-0.5),
            QkScale::Head => (head.max(1) as f64).powf(-0.5),
            QkScale::Factor(factor) => factor,
        }
    }

    /// The blocks are those of a ViT.
    pub(super) fn blocks(&self) -> vit::Config {
        vit::Config {
            img_size: self.img_size,
            embed_dim: self.embed_dim,
            depth: self.depth,
            num_heads: self.num_heads,
            mlp_ratio: self.mlp_ratio,
            qkv_bias: self.qkv_bias,
            norm_eps: 1e-5,
            proj_drop_rate: self.drop_rate,
            attn_drop_rate: self.attn_drop_rate,
            drop_path_rate: self.drop_path_rate,
            ..vit::Config::vit_base_patch16_224()
        }
    }
}
