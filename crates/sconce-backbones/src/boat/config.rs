//! Options and presets of BOAT transformers.

use sconce_attention::{BilateralConfig, ClusterOptions, MixerSpec};
use serde::{Deserialize, Serialize};

use crate::{cswin, swin};

/// Options of a [`BoatTransformer`](super::BoatTransformer).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// The transformer that the attention among similar tokens is added to.
    pub host: HostConfig,
    /// Tokens of a leaf. A map's tokens are halved as long as the halves keep this many; where they are another number than this
    /// times a power of two, leaves hold more, up to twice as many.
    pub leaf: usize,
    /// Keys that each leaf borrows from its sibling.
    pub overlap: usize,
    /// Factor on the cosines before the softmax that assigns tokens to the two centres of a group.
    pub temperature: f64,
    /// Times that the centres of a group are computed anew before it is halved.
    pub iterations: usize,
    /// Factor on the scores; `D^-1/2` when `None`. The official CSWin flavour has 1.
    pub scale: Option<f64>,
    /// Whether images that are a single leaf (in BOAT-CSWin the last stage at 224 x 224 pixels) borrow keys from their
    /// neighbours in the batch, as in the official code. The released weights were trained so; what an image comes out as then
    /// depends on its neighbour, and an odd batch is an error.
    pub compat: bool,
}

/// Options of the transformer that the attention among similar tokens is added to.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum HostConfig {
    /// In each block whose windows are shifted.
    Swin(swin::Config),
    /// In every second block of each stage, starting with the first.
    Cswin(cswin::Config),
}

impl Default for Config {
    fn default() -> Self {
        Self::boat_swin_tiny_patch4_window7_224()
    }
}

impl Config {
    fn new(host: HostConfig, scale: Option<f64>) -> Self {
        let ClusterOptions { leaf, temperature, iterations } = ClusterOptions::default();
        Self { host, leaf, overlap: 20, temperature, iterations, scale, compat: false }
    }

    /// Around a Swin transformer.
    pub fn swin(host: swin::Config) -> Self {
        let scale = host.qk_scale;
        Self::new(HostConfig::Swin(host), scale)
    }

    /// Around a CSWin transformer. As in the official code, which takes `qkv_bias` for the scale, scores are not scaled when
    /// there is such a bias.
    pub fn cswin(host: cswin::Config) -> Self {
        let scale = host.qkv_bias.then_some(1.0);
        Self::new(HostConfig::Cswin(host), scale)
    }

    /// BOAT-Swin-T.
    pub fn boat_swin_tiny_patch4_window7_224() -> Self {
        Self::swin(swin::Config::swin_tiny_patch4_window7_224())
    }

    /// BOAT-Swin-S.
    pub fn boat_swin_small_patch4_window7_224() -> Self {
        Self::swin(swin::Config::swin_small_patch4_window7_224())
    }

    /// BOAT-Swin-B.
    pub fn boat_swin_base_patch4_window7_224() -> Self {
        Self::swin(swin::Config::swin_base_patch4_window7_224())
    }

    /// BOAT-CSWin-T.
    pub fn boat_cswin_64_12211_tiny_224() -> Self {
        Self::cswin(cswin::Config::cswin_64_12211_tiny_224())
    }

    /// BOAT-CSWin-S.
    pub fn boat_cswin_64_24322_small_224() -> Self {
        Self::cswin(cswin::Config::cswin_64_24322_small_224())
    }

    /// BOAT-CSWin-B.
    pub fn boat_cswin_96_24322_base_224() -> Self {
        Self::cswin(cswin::Config::cswin_96_24322_base_224())
    }

    /// Leaves of 8 tokens, 3 borrowed keys: maps of 8 x 8 tokens are eight leaves.
    fn small(self) -> Self {
        Self { leaf: 8, overlap: 3, ..self }
    }

    /// A BOAT-Swin for tests: 32 x 32 pixels, 10 classes.
    pub fn test_boat_swin() -> Self {
        Self::swin(swin::Config::test_swin()).small()
    }

    /// A BOAT-CSWin for tests: 32 x 32 pixels, 10 classes, single leaves in the last two stages.
    pub fn test_boat_cswin() -> Self {
        Self::cswin(cswin::Config::test_cswin()).small()
    }

    /// As [`test_boat_cswin`](Self::test_boat_cswin) with all kinds of dropout.
    pub fn test_boat_cswin_drop() -> Self {
        Self::cswin(cswin::Config::test_cswin_drop()).small()
    }

    /// The attention among similar tokens in the block that `spec` tells of, a spec of the host's own mixer.
    pub fn content_attention(&self, spec: &MixerSpec) -> BilateralConfig {
        // The official CSWin flavour drops weights and outputs at one rate.
        let proj_drop = match &self.host {
            HostConfig::Swin(_) => spec.proj_drop,
            HostConfig::Cswin(_) => spec.attn_drop,
        };
        BilateralConfig {
            clusters: ClusterOptions { leaf: self.leaf, temperature: self.temperature, iterations: self.iterations },
            overlap: self.overlap,
            scale: self.scale,
            compat: self.compat,
            proj_drop,
            ..BilateralConfig::from(spec)
        }
    }

    /// Whether the block that `spec` tells of has attention among similar tokens.
    pub fn has_content(&self, spec: &MixerSpec) -> bool {
        match &self.host {
            HostConfig::Swin(host) => {
                let window = host.window_attention(spec);
                let map = [spec.layout.height, spec.layout.width];
                let (_, shift) = window.fit.apply(window.window, window.shift, map);
                shift != [0, 0]
            }
            HostConfig::Cswin(_) => spec.stage_block.is_multiple_of(2),
        }
    }
}
