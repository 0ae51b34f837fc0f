//! Residual adapters on the features of both towers.

use candle_core::{Result, Tensor};
use sconce_clip::normalize;
use sconce_nn::{Activation, Linear, Module, VarBuilder, linear_no_bias};
use sconce_ops::matmul;
use serde::{Deserialize, Serialize};

/// Two linear layers without bias through a bottleneck, each followed by ReLU.
#[derive(Clone, Debug)]
pub struct Adapter {
    /// To the bottleneck.
    pub down: Linear,
    /// Back to the width of the features.
    pub up: Linear,
}

impl Adapter {
    /// Under the official names `fc.0` and `fc.2`; the bottleneck is `dim / reduction` wide.
    ///
    /// # Errors
    /// When the bottleneck would have no channel or `vb` lacks a tensor.
    pub fn new(dim: usize, reduction: usize, vb: VarBuilder) -> Result<Self> {
        let Some(hidden) = dim.checked_div(reduction).filter(|hidden| *hidden > 0) else {
            candle_core::bail!("adapter: {dim} channels reduced by {reduction} leave none")
        };
        let vb = vb.pp("fc");
        Ok(Self {
            down: linear_no_bias(dim, hidden, vb.pp("0"))?.with_activation(Activation::Relu),
            up: linear_no_bias(hidden, dim, vb.pp("2"))?.with_activation(Activation::Relu),
        })
    }
}

impl Module for Adapter {
    fn forward(&self, xs: &Tensor) -> Result<Tensor> {
        self.up.forward(&self.down.forward(xs)?)
    }
}

/// Options of a [`ClipAdapter`].
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ClipAdapterConfig {
    /// Channels of the features.
    pub dim: usize,
    /// The bottleneck is this many times narrower.
    pub reduction: usize,
    /// Share of the adapted image features; `None` leaves them alone.
    pub visual_ratio: Option<f64>,
    /// Share of the adapted text features; `None` leaves them alone.
    pub text_ratio: Option<f64>,
}

impl Default for ClipAdapterConfig {
    /// The released code's: image features of width 1,024 (RN50) alone, a fifth of them adapted.
    fn default() -> Self {
        Self { dim: 1024, reduction: 4, visual_ratio: Some(0.2), text_ratio: None }
    }
}

/// Gao et al. 2021, "CLIP-Adapter: Better Vision-Language Models with Feature Adapters" (`arXiv:2110.04544`): features pass a
/// small network, and a share of what comes out is mixed into them.
///
/// There are no biases, so that the length of the features going in does not matter: they may be normalised or not. The paper
/// has about 0.2 as the share for general pictures and 0.6 to 0.8 for fine distinctions; an adapter of the text features alone
/// does less than one of the image features.
#[derive(Clone, Debug)]
pub struct ClipAdapter {
    /// The options it was made with.
    pub config: ClipAdapterConfig,
    /// Of image features.
    pub visual: Option<Adapter>,
    /// Of text features.
    pub text: Option<Adapter>,
}

impl ClipAdapter {
    /// With the visual adapter alone, `vb` stands where the official names `fc.0.weight` and `fc.2.weight` begin; with a text
    /// adapter they begin at `visual_adapter` and `text_adapter`.
    ///
    /// # Errors
    /// When there is nothing to adapt, a share is not a number, the bottleneck would have no channel, or `vb` lacks a tensor.
    pub fn new(cfg: &ClipAdapterConfig, vb: VarBuilder) -> crate::Result<Self> {
        if let Some(ratio) = [cfg.visual_ratio, cfg.text_ratio].into_iter().flatten().find(|ratio| !ratio.is_finite()) {
            return Err(crate::Error::Config(format!("a share of {ratio}")));
        }
        let adapter =
            |ratio: Option<f64>, vb: VarBuilder| ratio.map(|_| Adapter::new(cfg.dim, cfg.reduction, vb)).transpose();
        let (visual, text) = match (cfg.visual_ratio, cfg.text_ratio) {
            (None, None) => return Err(crate::Error::Config("neither images nor texts are to be adapted".into())),
            (visual, None) => (adapter(visual, vb)?, None),
            (visual, text) => (adapter(visual, vb.pp("visual_adapter"))?, adapter(text, vb.pp("text_adapter"))?),
        };
        Ok(Self { config: *cfg, visual, text })
    }

    /// Scaled cosine similarities of pictures to classes, both adapted.
    ///
    /// # Shapes
    /// - `image_features` `(B, E)` and `text_features` `(K, E)`, normalised or not, of any type; `scale` a scalar, the inverse
    ///   temperature; output `(B, K)`, of the adapters' type
    ///
    /// # Errors
    /// When the widths are others.
    pub fn logits(&self, image_features: &Tensor, text_features: &Tensor, scale: &Tensor) -> Result<Tensor> {
        let dtype = self.visual.as_ref().or(self.text.as_ref()).map_or(image_features.dtype(), |a| a.up.weight.dtype());
        let images = mixed(&image_features.to_dtype(dtype)?, self.visual.as_ref(), self.config.visual_ratio)?;
        let texts = mixed(&text_features.to_dtype(dtype)?, self.text.as_ref(), self.config.text_ratio)?;
        matmul(&normalize(&images)?, &normalize(&texts)?.t()?)?.broadcast_mul(&scale.to_dtype(dtype)?)
    }
}

fn mixed(features: &Tensor, adapter: Option<&Adapter>, ratio: Option<f64>) -> Result<Tensor> {
    match (adapter, ratio) {
        (Some(adapter), Some(ratio)) => (adapter.forward(features)? * ratio)? + (features * (1.0 - ratio))?,
        _ => Ok(features.clone()),
    }
}
