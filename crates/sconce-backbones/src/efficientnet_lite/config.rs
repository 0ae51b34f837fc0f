//! Options and presets of EfficientNet-Lite.

use sconce_ops::Activation;
use serde::{Deserialize, Serialize};

/// Where the zeros around a map stand. It changes what strided convolutions see, not the size of the result.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Padding {
    /// TensorFlow's: as few as are needed, the odd one right and below.
    #[default]
    Same,
    /// `k / 2` on every side: nets trained in PyTorch.
    Symmetric,
}

/// Blocks of equal width.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Stage {
    /// Blocks.
    pub depth: usize,
    /// Side of the depthwise windows.
    pub kernel_size: usize,
    /// Stride of the first block.
    pub stride: usize,
    /// Channels of the depthwise convolution as a multiple of the block's input.
    pub expand_ratio: usize,
    /// Channels of the result.
    pub channels: usize,
}

/// Options of an [`EfficientNetLite`](super::EfficientNetLite).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// Height and width in pixels that the presets are meant for; the net takes any size.
    pub img_size: [usize; 2],
    /// Channels of the picture.
    pub in_chans: usize,
    /// Classes; 0 leaves the classifier out.
    pub num_classes: usize,
    /// Channels of the stem.
    pub stem: usize,
    /// The stages between stem and head.
    pub stages: Vec<Stage>,
    /// Channels of the head, which the classifier sees.
    pub head: usize,
    /// Activation.
    pub act: Activation,
    /// Where the zeros around a map stand.
    pub padding: Padding,
    /// Epsilon of the batch norms.
    pub bn_eps: f64,
    /// Share of a new batch in the running statistics.
    pub bn_momentum: f64,
    /// Dropout probability before the classifier.
    pub drop_rate: f64,
    /// Drop-path probability: block `i` of `n` has `i / n` of it.
    pub drop_path_rate: f64,
}

impl Default for Config {
    fn default() -> Self {
        Self::tf_efficientnet_lite0()
    }
}

fn stages<const N: usize>(table: [(usize, usize, usize, usize, usize); N]) -> Vec<Stage> {
    let stage = |(depth, kernel_size, stride, expand_ratio, channels)| Stage {
        depth,
        kernel_size,
        stride,
        expand_ratio,
        channels,
    };
    table.map(stage).to_vec()
}

impl Config {
    /// Google's Lite0, trained in TensorFlow.
    pub fn tf_efficientnet_lite0() -> Self {
        Self {
            img_size: [224, 224],
            in_chans: 3,
            num_classes: 1000,
            stem: 32,
            stages: stages([
                (1, 3, 1, 1, 16),
                (2, 3, 2, 6, 24),
                (2, 5, 2, 6, 40),
                (3, 3, 2, 6, 80),
                (3, 5, 1, 6, 112),
                (4, 5, 2, 6, 192),
                (1, 3, 1, 6, 320),
            ]),
            head: 1280,
            act: Activation::Relu6,
            padding: Padding::Same,
            bn_eps: 1e-3,
            bn_momentum: 0.01,
            drop_rate: 0.2,
            drop_path_rate: 0.2,
        }
    }

    /// Lite0 as timm trained it.
    pub fn efficientnet_lite0() -> Self {
        Self { padding: Padding::Symmetric, bn_eps: 1e-5, bn_momentum: 0.1, ..Self::tf_efficientnet_lite0() }
    }

    /// A net for tests, with dropout and drop path.
    pub fn test_efficientnet_lite() -> Self {
        Self {
            img_size: [32, 32],
            num_classes: 10,
            stem: 8,
            stages: stages([(1, 3, 1, 1, 8), (2, 3, 2, 4, 12), (2, 5, 2, 4, 16), (1, 3, 1, 4, 24)]),
            head: 32,
            ..Self::tf_efficientnet_lite0()
        }
    }

    /// A net for tests with symmetric padding.
    pub fn test_efficientnet_lite_symmetric() -> Self {
        let test = Self::test_efficientnet_lite();
        Self { padding: Padding::Symmetric, bn_eps: 1e-5, drop_rate: 0.0, drop_path_rate: 0.0, ..test }
    }

    /// Number of the stage and of the block within it, of every block in order.
    pub(super) fn places(&self) -> impl Iterator<Item = (usize, usize)> {
        self.stages.iter().enumerate().flat_map(|(stage, s)| (0..s.depth).map(move |index| (stage, index)))
    }
}
