//! Options and presets of ConvMixers.

use sconce_ops::Activation;
use serde::{Deserialize, Serialize};

/// Options of a [`ConvMixer`](super::ConvMixer).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// Height and width in pixels that the presets are meant for; the net takes any size of at least a patch.
    pub img_size: [usize; 2],
    /// Channels of the picture.
    pub in_chans: usize,
    /// Classes; 0 leaves the classifier out.
    pub num_classes: usize,
    /// Channels of all maps.
    pub dim: usize,
    /// Blocks.
    pub depth: usize,
    /// Side of the depthwise windows; even sides reach one pixel further right and down.
    pub kernel_size: usize,
    /// Side of a patch in pixels.
    pub patch_size: usize,
    /// Activation after each convolution. Weights trained with another one load and give nonsense.
    pub act: Activation,
}

impl Default for Config {
    fn default() -> Self {
        Self::convmixer_1536_20()
    }
}

impl Config {
    fn new(dim: usize, depth: usize, kernel_size: usize, patch_size: usize) -> Self {
        Self {
            img_size: [224, 224],
            in_chans: 3,
            num_classes: 1000,
            dim,
            depth,
            kernel_size,
            patch_size,
            act: Activation::Gelu,
        }
    }

    /// ConvMixer-1536/20, windows of 9, patches of 7.
    pub fn convmixer_1536_20() -> Self {
        Self::new(1536, 20, 9, 7)
    }

    /// ConvMixer-768/32, windows and patches of 7, the only one with ReLU.
    pub fn convmixer_768_32() -> Self {
        Self { act: Activation::Relu, ..Self::new(768, 32, 7, 7) }
    }

    /// ConvMixer-1024/20, windows of 9, patches of 14.
    pub fn convmixer_1024_20_ks9_p14() -> Self {
        Self::new(1024, 20, 9, 14)
    }

    /// ConvMixer-256/8 of the authors' CIFAR-10 recipe: windows of 5, patches of 2, pictures of 32.
    pub fn convmixer_256_8_cifar10() -> Self {
        Self { img_size: [32, 32], num_classes: 10, ..Self::new(256, 8, 5, 2) }
    }

    /// A small net of this library's own for pictures of 32: 320/10, windows of 5, patches of 4, 10 classes.
    pub fn convmixer_tiny_32() -> Self {
        Self { img_size: [32, 32], num_classes: 10, ..Self::new(320, 10, 5, 4) }
    }

    /// A net for tests, with even windows.
    pub fn test_convmixer() -> Self {
        Self { img_size: [32, 32], num_classes: 10, ..Self::new(24, 2, 4, 4) }
    }

    /// A net for tests with ReLU.
    pub fn test_convmixer_relu() -> Self {
        Self { act: Activation::Relu, kernel_size: 7, patch_size: 8, ..Self::test_convmixer() }
    }
}
