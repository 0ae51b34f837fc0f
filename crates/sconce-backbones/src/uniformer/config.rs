//! Options and presets of UniFormers.

use candle_core::{Result, bail};
use serde::{Deserialize, Serialize};

/// Which blocks of the third stage look through windows instead of at the whole map.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Windows {
    /// None: every token sees every other.
    #[default]
    None,
    /// All.
    All,
    /// All but every fourth.
    Hybrid,
}

impl Windows {
    /// Whether block `index` of the third stage looks through windows.
    pub fn at(self, index: usize) -> bool {
        match self {
            Self::None => false,
            Self::All => true,
            Self::Hybrid => !(index + 1).is_multiple_of(4),
        }
    }
}

/// Options of a [`UniFormer`](super::UniFormer).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// Height and width in pixels that the presets are meant for; the model takes any size.
    pub img_size: [usize; 2],
    /// Frames of a clip that the presets are meant for; the model takes any number. `None` for pictures.
    pub frames: Option<usize>,
    /// Channels of the picture.
    pub in_chans: usize,
    /// Classes; 0 leaves the classifier out.
    pub num_classes: usize,
    /// Blocks in each stage: convolutional in the first two, attention in the last two.
    pub depth: [usize; 4],
    /// Channels of each stage.
    pub embed_dim: [usize; 4],
    /// Channels of a head, a divisor of the channels of the last two stages. Files do not tell it: both sizes of S+ have
    /// the same tensors.
    pub head_dim: usize,
    /// Hidden channels of the MLPs as a multiple of the channels.
    pub mlp_ratio: f64,
    /// Whether queries, keys and values have a bias.
    pub qkv_bias: bool,
    /// Side of the patches that each stage makes of the map before it; official are 4, 2, 2, 2.
    pub patch_sizes: [usize; 4],
    /// Overlapping 3x3 convolutions with batch norm in place of patches, as in S+. For pictures.
    pub conv_stem: bool,
    /// First value of the layer scale in attention blocks, and in all blocks of models of token labelling; without one there
    /// is no layer scale.
    pub init_values: Option<f64>,
    /// A second classifier on every token, whose largest outputs count one half: models trained by token labelling.
    pub token_labeling: bool,
    /// Attention over time, then over space, in place of both at once. For clips.
    pub split: bool,
    /// Patches of the later stages overlap by a frame on both sides. For clips.
    pub std: bool,
    /// Dense prediction: a layer norm on the map of each stage and none before the classifier, which is left out.
    pub dense: bool,
    /// Blocks of the third stage that look through windows. For pictures.
    pub windows: Windows,
    /// Side of such a window in tokens.
    pub window_size: usize,
    /// Dropout probability after the first embedding, after the attention's projection and in the MLPs.
    pub drop_rate: f64,
    /// Dropout probability of attention weights.
    pub attn_drop_rate: f64,
    /// Drop-path probability of the last block; rises linearly from 0.
    pub drop_path_rate: f64,
}

impl Default for Config {
    fn default() -> Self {
        Self::uniformer_small()
    }
}

impl Config {
    fn new(depth: [usize; 4]) -> Self {
        Self {
            img_size: [224, 224],
            frames: None,
            in_chans: 3,
            num_classes: 1000,
            depth,
            embed_dim: [64, 128, 320, 512],
            head_dim: 64,
            mlp_ratio: 4.0,
            qkv_bias: true,
            patch_sizes: [4, 2, 2, 2],
            conv_stem: false,
            init_values: None,
            token_labeling: false,
            split: false,
            std: false,
            dense: false,
            windows: Windows::None,
            window_size: 14,
            drop_rate: 0.0,
            attn_drop_rate: 0.0,
            drop_path_rate: 0.0,
        }
    }

    /// UniFormer-S.
    pub fn uniformer_small() -> Self {
        Self::new([3, 4, 8, 3])
    }

    /// UniFormer-S+: a convolutional stem and heads of 32 channels.
    pub fn uniformer_small_plus() -> Self {
        Self { head_dim: 32, ..Self::uniformer_small_plus_dim64() }
    }

    /// UniFormer-S+ with heads of 64 channels.
    pub fn uniformer_small_plus_dim64() -> Self {
        Self { conv_stem: true, ..Self::new([3, 5, 9, 3]) }
    }

    /// UniFormer-B.
    pub fn uniformer_base() -> Self {
        Self::new([5, 8, 20, 7])
    }

    /// UniFormer-B with layer scale.
    pub fn uniformer_base_ls() -> Self {
        Self { init_values: Some(1e-6), ..Self::uniformer_base() }
    }

    /// UniFormer-L with layer scale. It exists as a model of token labelling only: a second classifier, and layer scale in
    /// the convolutional blocks too.
    pub fn uniformer_large_ls() -> Self {
        Self {
            embed_dim: [128, 192, 448, 640],
            init_values: Some(1e-6),
            token_labeling: true,
            ..Self::new([5, 10, 24, 7])
        }
    }

    fn k400(self, frames: usize) -> Self {
        Self { frames: Some(frames), num_classes: 400, ..self }
    }

    /// UniFormer-S for clips of 8 frames, every eighth of the video; Kinetics-400.
    pub fn uniformer_small_k400_8x8() -> Self {
        Self::uniformer_small().k400(8)
    }

    /// UniFormer-S for clips of 16 frames, every fourth of the video; Kinetics-400.
    pub fn uniformer_small_k400_16x4() -> Self {
        Self::uniformer_small().k400(16)
    }

    /// UniFormer-S for clips of 32 frames, every fourth of the video; Kinetics-400.
    pub fn uniformer_small_k400_32x4() -> Self {
        Self::uniformer_small().k400(32)
    }

    /// UniFormer-B for clips of 8 frames, every eighth of the video; Kinetics-400.
    pub fn uniformer_base_k400_8x8() -> Self {
        Self::uniformer_base().k400(8)
    }

    /// UniFormer-B for clips of 16 frames, every fourth of the video; Kinetics-400.
    pub fn uniformer_base_k400_16x4() -> Self {
        Self::uniformer_base().k400(16)
    }

    /// UniFormer-B for clips of 32 frames, every fourth of the video; Kinetics-400.
    pub fn uniformer_base_k400_32x4() -> Self {
        Self::uniformer_base().k400(32)
    }

    fn pyramid(self, windows: Windows) -> Self {
        Self { dense: true, num_classes: 0, windows, ..self }
    }

    /// UniFormer-S for dense prediction, attention over the whole map.
    pub fn uniformer_small_dense() -> Self {
        Self::uniformer_small().pyramid(Windows::None)
    }

    /// As [`uniformer_small_dense`](Self::uniformer_small_dense) with windows of 14 in the third stage.
    pub fn uniformer_small_dense_w14() -> Self {
        Self::uniformer_small().pyramid(Windows::All)
    }

    /// As [`uniformer_small_dense_w14`](Self::uniformer_small_dense_w14) where every fourth block sees the whole map.
    pub fn uniformer_small_dense_h14() -> Self {
        Self::uniformer_small().pyramid(Windows::Hybrid)
    }

    /// UniFormer-B for dense prediction, attention over the whole map.
    pub fn uniformer_base_dense() -> Self {
        Self::uniformer_base().pyramid(Windows::None)
    }

    /// As [`uniformer_base_dense`](Self::uniformer_base_dense) with windows of 14 in the third stage.
    pub fn uniformer_base_dense_w14() -> Self {
        Self::uniformer_base().pyramid(Windows::All)
    }

    /// As [`uniformer_base_dense_w14`](Self::uniformer_base_dense_w14) where every fourth block sees the whole map.
    pub fn uniformer_base_dense_h14() -> Self {
        Self::uniformer_base().pyramid(Windows::Hybrid)
    }

    /// A net for pictures of 32 x 32 pixels and 10 classes, of our own making: 1.67 million parameters and 39 million
    /// multiply-accumulates a picture. Its patches are 2, 2, 2 and 1 pixels, so that maps have 16, 8, 4 and 4 elements a side.
    pub fn uniformer_tiny_32() -> Self {
        Self {
            img_size: [32, 32],
            num_classes: 10,
            embed_dim: [32, 64, 128, 192],
            head_dim: 32,
            patch_sizes: [2, 2, 2, 1],
            ..Self::new([2, 3, 5, 1])
        }
    }

    fn test() -> Self {
        Self {
            img_size: [32, 32],
            num_classes: 10,
            embed_dim: [8, 12, 16, 24],
            head_dim: 8,
            mlp_ratio: 2.0,
            ..Self::new([1, 2, 2, 1])
        }
    }

    /// A model for tests with layer scale, the second classifier of token labelling, and all kinds of dropout.
    pub fn test_uniformer() -> Self {
        Self {
            init_values: Some(0.1),
            token_labeling: true,
            drop_rate: 0.1,
            attn_drop_rate: 0.1,
            drop_path_rate: 0.1,
            ..Self::test()
        }
    }

    /// A model for tests on clips of 4 frames.
    pub fn test_uniformer_video() -> Self {
        Self { frames: Some(4), ..Self::test() }
    }

    /// A model for tests of dense prediction, with windows in three of the four blocks of its third stage.
    pub fn test_uniformer_dense() -> Self {
        Self { window_size: 3, depth: [1, 1, 4, 1], ..Self::test().pyramid(Windows::Hybrid) }
    }

    /// Hidden channels of the MLPs of a stage, from 0.
    pub fn mlp_dim(&self, stage: usize) -> usize {
        // The ratio may itself be a quotient of two integers: what rounding took from it must not cost a channel.
        (self.embed_dim[stage] as f64 * self.mlp_ratio + 1e-6) as usize
    }

    /// Frames, rows and columns of the map of a stage at the configured size; one frame for pictures.
    pub fn grid(&self, stage: usize) -> [usize; 3] {
        let side = |pixels: usize| match self.conv_stem {
            // Each convolution of the stem rounds up.
            true => self.patch_sizes[..=stage].iter().fold(pixels, |side, patch| side.div_ceil(*patch)),
            false => self.patch_sizes[..=stage].iter().fold(pixels, |side, patch| side / patch),
        };
        let frames = self.frames.map_or(1, |frames| frames.div_ceil(2));
        [frames, side(self.img_size[0]), side(self.img_size[1])]
    }

    /// Options that contradict each other are refused before they meet a tensor.
    pub(super) fn check(&self) -> Result<()> {
        let sizes = [self.embed_dim, self.patch_sizes, std::array::from_fn(|stage| self.mlp_dim(stage))];
        if sizes.as_flattened().contains(&0) || self.in_chans == 0 {
            bail!("uniformer: channels, hidden channels and patches must be at least 1: {self:?}")
        }
        // Far beyond any model, and products of them still fit.
        let others = [self.frames.unwrap_or(1), self.in_chans, self.img_size[0], self.img_size[1]];
        let largest = sizes.as_flattened().iter().chain(&others).max();
        if largest > Some(&(1 << 20)) || self.window_size > 1 << 12 || self.depth.iter().any(|depth| *depth > 1 << 12) {
            bail!("uniformer: too large: {self:?}")
        }
        let heads = |stage: usize| self.embed_dim[stage].checked_rem(self.head_dim);
        if heads(2) != Some(0) || heads(3) != Some(0) {
            bail!("uniformer: heads of {} channels do not divide {:?}", self.head_dim, &self.embed_dim[2..])
        }
        let video = self.frames.is_some();
        let contradictions = [
            (video && self.conv_stem, "convolutional stem on clips"),
            (
                self.conv_stem && self.patch_sizes != [4, 2, 2, 2],
                "convolutional stem with other patches than 4, 2, 2, 2",
            ),
            (!video && (self.split || self.std), "`split` or `std` on pictures"),
            (self.split && self.init_values.is_some(), "layer scale in split attention"),
            (video && self.windows != Windows::None, "windows on clips"),
            (self.windows != Windows::None && self.window_size == 0, "window of no token"),
            ((self.dense || video) && self.token_labeling, "token labelling on clips or a feature pyramid"),
        ];
        match contradictions.iter().find(|(wrong, _)| *wrong) {
            Some((_, what)) => bail!("uniformer: there is no {what}"),
            None => Ok(()),
        }
    }
}
