//! Options and presets of convolutional X-formers.

use serde::{Deserialize, Serialize};

/// Which linear attention mixes the places of the map.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Mixer {
    /// CLTV: efficient attention with 3x3 convolutions for queries, keys, values and output.
    Linear,
    /// CNV: Nystrom attention.
    Nystrom,
    /// CPV: Performer.
    Performer,
}

/// Options of a [`Cxv`](super::Cxv), named as in the authors' code.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// Height and width in pixels that the presets are meant for; the net takes any size.
    pub img_size: [usize; 2],
    /// Channels of the picture.
    pub in_chans: usize,
    /// Classes; 0 leaves the classifier out.
    pub num_classes: usize,
    /// What lets the places of the map see each other.
    pub mixer: Mixer,
    /// Channels of the map, a multiple of 4.
    pub emb_dim: usize,
    /// Side of the window of each layer's convolution.
    pub emb_kernel: usize,
    /// Stride of each layer's convolution.
    pub emb_stride: usize,
    /// Stride of each of the two convolutions before the layers. Always 1 in the authors' code; ours, for small budgets.
    pub stem_stride: usize,
    /// Attention heads.
    pub heads: usize,
    /// Channels of a head; 32 in the authors' code.
    pub dim_head: usize,
    /// Number of layers.
    pub depth: usize,
    /// Hidden channels of the feed-forward net as a multiple of `emb_dim`.
    pub mlp_mult: usize,
    /// Dropout probability within the feed-forward net.
    pub dropout: f64,
    /// Dropout probability of the attention's output. CLTV has none.
    pub attn_dropout: f64,
    /// Landmarks of CNV.
    pub num_landmarks: usize,
    /// Compute what the authors' code does to the last bit of meaning: CNV and CPV take a maximum over the whole batch, so that
    /// the output for one picture depends on the others. Without it each picture is by itself; weights fit both.
    pub compat: bool,
}

impl Default for Config {
    fn default() -> Self {
        Self::cltv()
    }
}

impl Config {
    fn release(mixer: Mixer) -> Self {
        Self {
            img_size: [32, 32],
            in_chans: 3,
            num_classes: 10,
            mixer,
            emb_dim: 128,
            emb_kernel: 3,
            emb_stride: 1,
            stem_stride: 1,
            heads: 4,
            dim_head: 32,
            depth: 5,
            mlp_mult: 2,
            dropout: 0.5,
            attn_dropout: 0.5,
            num_landmarks: 64,
            compat: true,
        }
    }

    /// CLTV: efficient attention by convolutions; 32 x 32 pixels, 128 channels, 5 layers.
    pub fn cltv() -> Self {
        Self::release(Mixer::Linear)
    }

    /// CNV: Nystrom attention.
    pub fn cnv() -> Self {
        Self::release(Mixer::Nystrom)
    }

    /// CPV: Performer.
    pub fn cpv() -> Self {
        Self::release(Mixer::Performer)
    }

    fn tiny(mixer: Mixer) -> Self {
        Self {
            stem_stride: 2,
            depth: 4,
            dropout: 0.1,
            attn_dropout: 0.1,
            num_landmarks: 16,
            compat: false,
            ..Self::release(mixer)
        }
    }

    /// A cheap CLTV of our own making for training on 32 x 32 pixels: the map has 8 x 8 places, 80 channels, 4 layers.
    pub fn cltv_tiny_32() -> Self {
        Self { emb_dim: 80, heads: 2, ..Self::tiny(Mixer::Linear) }
    }

    /// A cheap CNV of our own making for training on 32 x 32 pixels: the map has 8 x 8 places, 128 channels, 4 layers,
    /// 16 landmarks.
    pub fn cnv_tiny_32() -> Self {
        Self::tiny(Mixer::Nystrom)
    }

    /// A cheap CPV of our own making for training on 32 x 32 pixels: the map has 8 x 8 places, 128 channels, 4 layers.
    pub fn cpv_tiny_32() -> Self {
        Self::tiny(Mixer::Performer)
    }

    fn test(mixer: Mixer) -> Self {
        Self { emb_dim: 16, heads: 2, dim_head: 8, depth: 2, num_landmarks: 8, ..Self::tiny(mixer) }
    }

    /// A CLTV for tests whose layers have stride 2.
    pub fn test_cltv() -> Self {
        Self { stem_stride: 1, emb_stride: 2, ..Self::test(Mixer::Linear) }
    }

    /// A CNV for tests.
    pub fn test_cnv() -> Self {
        Self { compat: true, ..Self::test(Mixer::Nystrom) }
    }

    /// A CPV for tests.
    pub fn test_cpv() -> Self {
        Self::test(Mixer::Performer)
    }

    /// Pixels per place of the map after the given number of layers.
    pub fn reduction(&self, layers: usize) -> usize {
        let strides = self.emb_stride.saturating_pow(u32::try_from(layers).unwrap_or(u32::MAX));
        self.stem_stride.saturating_pow(2).saturating_mul(strides)
    }
}
