//! Options and presets of residual networks.

use serde::{Deserialize, Serialize};

/// Shape of a residual block.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum BlockKind {
    /// Two 3x3 convolutions (18 and 34 layers).
    Basic,
    /// 1x1, 3x3 and 1x1 with four times the channels (50 layers and more).
    Bottleneck,
}

impl BlockKind {
    /// Output channels as a multiple of the stage's width.
    pub fn expansion(self) -> usize {
        match self {
            Self::Basic => 1,
            Self::Bottleneck => 4,
        }
    }
}

/// Which convolution of a bottleneck halves the resolution.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum StrideIn {
    /// The 3x3 convolution ("v1.5"): torchvision, timm.
    #[default]
    Conv2,
    /// The first 1x1 convolution, as in the paper: weights that come from Caffe.
    Conv1,
}

/// Options of a [`ResNet`](super::ResNet).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// Height and width in pixels that the presets are meant for; the net takes any size.
    pub img_size: [usize; 2],
    /// Channels of the picture.
    pub in_chans: usize,
    /// Classes; 0 leaves the classifier out.
    pub num_classes: usize,
    /// Shape of the blocks.
    pub block: BlockKind,
    /// Blocks in each stage.
    pub layers: [usize; 4],
    /// Width of each stage, before the expansion.
    pub channels: [usize; 4],
    /// Channels of the stem.
    pub stem: usize,
    /// Groups of the 3x3 convolution in bottlenecks (ResNeXt: 32).
    pub groups: usize,
    /// Channels of a group at stage width 64 (ResNeXt-50: 4, Wide ResNet: 128).
    pub width_per_group: usize,
    /// Pixels of the picture per element of the last map: 32, or 16 or 8 with dilation instead of stride.
    pub output_stride: usize,
    /// Which convolution of a bottleneck halves the resolution.
    pub stride_in: StrideIn,
    /// Start the last norm of each block at 0, so that blocks start as the identity; timm's default, off in torchvision.
    pub zero_init_last: bool,
    /// Epsilon of the batch norms.
    pub bn_eps: f64,
    /// Keep running statistics as they are and normalise with them, also in training.
    pub frozen_bn: bool,
    /// Dropout probability before the classifier.
    pub drop_rate: f64,
    /// Drop-path probability of the last block; rises linearly from 0.
    pub drop_path_rate: f64,
}

impl Default for Config {
    fn default() -> Self {
        Self::resnet50()
    }
}

impl Config {
    fn new(block: BlockKind, layers: [usize; 4]) -> Self {
        Self {
            img_size: [224, 224],
            in_chans: 3,
            num_classes: 1000,
            block,
            layers,
            channels: [64, 128, 256, 512],
            stem: 64,
            groups: 1,
            width_per_group: 64,
            output_stride: 32,
            stride_in: StrideIn::Conv2,
            zero_init_last: true,
            bn_eps: 1e-5,
            frozen_bn: false,
            drop_rate: 0.0,
            drop_path_rate: 0.0,
        }
    }

    /// ResNet-18.
    pub fn resnet18() -> Self {
        Self::new(BlockKind::Basic, [2, 2, 2, 2])
    }

    /// ResNet-34.
    pub fn resnet34() -> Self {
        Self::new(BlockKind::Basic, [3, 4, 6, 3])
    }

    /// ResNet-50.
    pub fn resnet50() -> Self {
        Self::new(BlockKind::Bottleneck, [3, 4, 6, 3])
    }

    /// ResNet-101.
    pub fn resnet101() -> Self {
        Self::new(BlockKind::Bottleneck, [3, 4, 23, 3])
    }

    /// ResNet-152.
    pub fn resnet152() -> Self {
        Self::new(BlockKind::Bottleneck, [3, 8, 36, 3])
    }

    /// ResNeXt-50 (32 x 4d).
    pub fn resnext50_32x4d() -> Self {
        Self { groups: 32, width_per_group: 4, ..Self::resnet50() }
    }

    /// ResNeXt-101 (32 x 8d).
    pub fn resnext101_32x8d() -> Self {
        Self { groups: 32, width_per_group: 8, ..Self::resnet101() }
    }

    /// Wide ResNet-50-2: bottlenecks of twice the width.
    pub fn wide_resnet50_2() -> Self {
        Self { width_per_group: 128, ..Self::resnet50() }
    }

    /// Wide ResNet-101-2.
    pub fn wide_resnet101_2() -> Self {
        Self { width_per_group: 128, ..Self::resnet101() }
    }

    fn test(block: BlockKind, layers: [usize; 4]) -> Self {
        Self { img_size: [32, 32], num_classes: 10, channels: [8, 12, 16, 24], stem: 8, ..Self::new(block, layers) }
    }

    /// A net of basic blocks for tests.
    pub fn test_resnet_basic() -> Self {
        Self::test(BlockKind::Basic, [2, 1, 1, 1])
    }

    /// A net of bottlenecks for tests, with dilation and drop path.
    pub fn test_resnet_bottleneck() -> Self {
        Self {
            output_stride: 8,
            drop_path_rate: 0.1,
            drop_rate: 0.1,
            ..Self::test(BlockKind::Bottleneck, [1, 2, 1, 1])
        }
    }

    /// A net of grouped bottlenecks for tests.
    pub fn test_resnext() -> Self {
        let channels = [16, 16, 32, 32];
        Self { channels, groups: 4, width_per_group: 32, ..Self::test(BlockKind::Bottleneck, [1, 1, 1, 1]) }
    }

    /// Channels of the map that each stage gives.
    pub fn stage_channels(&self) -> [usize; 4] {
        self.channels.map(|width| width * self.block.expansion())
    }
}
