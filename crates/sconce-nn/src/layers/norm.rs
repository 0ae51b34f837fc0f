use candle_core::{Module, Result, Tensor};
use candle_nn::VarBuilder;

use crate::init::{Init, param};

/// Layer normalisation over the last axis, Ba et al. 2016.
///
/// # Shapes
/// - input and output `(*, C)`
#[derive(Debug, Clone)]
pub struct LayerNorm {
    /// `(C)`.
    pub weight: Option<Tensor>,
    /// `(C)`.
    pub bias: Option<Tensor>,
    /// Added to the variance.
    pub eps: f64,
}

/// A layer norm with weight and bias. Mind `eps`: timm's vision transformers use 1e-6, PyTorch's and CLIP's 1e-5, HF's ViT 1e-12.
///
/// # Errors
/// The builder's.
pub fn layer_norm(dim: usize, eps: f64, vb: VarBuilder) -> Result<LayerNorm> {
    let weight = Some(param(&vb, dim, "weight", Init::Ones)?);
    let bias = Some(param(&vb, dim, "bias", Init::Zeros)?);
    Ok(LayerNorm { weight, bias, eps })
}

impl LayerNorm {
    /// Without parameters.
    pub fn plain(eps: f64) -> Self {
        Self { weight: None, bias: None, eps }
    }
}

impl Module for LayerNorm {
    fn forward(&self, xs: &Tensor) -> Result<Tensor> {
        sconce_ops::layer_norm(xs, self.weight.as_ref(), self.bias.as_ref(), self.eps)
    }
}

/// Root-mean-square normalisation over the last axis, Zhang and Sennrich 2019.
///
/// # Shapes
/// - input and output `(*, C)`
#[derive(Debug, Clone)]
pub struct RmsNorm {
    /// `(C)`.
    pub weight: Option<Tensor>,
    /// Added to the mean square.
    pub eps: f64,
}

/// An RMS norm with weight.
///
/// # Errors
/// The builder's.
pub fn rms_norm(dim: usize, eps: f64, vb: VarBuilder) -> Result<RmsNorm> {
    Ok(RmsNorm { weight: Some(param(&vb, dim, "weight", Init::Ones)?), eps })
}

impl Module for RmsNorm {
    fn forward(&self, xs: &Tensor) -> Result<Tensor> {
        sconce_ops::rms_norm(xs, self.weight.as_ref(), self.eps)
    }
}

/// Group normalisation, Wu and He 2018: channels are normalised in groups, each sample for itself.
///
/// # Shapes
/// - input and output `(B, C, *)`, `C` a multiple of `groups`
#[derive(Debug, Clone)]
pub struct GroupNorm {
    /// `(C)`.
    pub weight: Option<Tensor>,
    /// `(C)`.
    pub bias: Option<Tensor>,
    /// Number of groups.
    pub groups: usize,
    /// Added to the variance.
    pub eps: f64,
}

/// A group norm with weight and bias.
///
/// # Errors
/// The builder's; `channels` that are not a multiple of `groups`.
pub fn group_norm(groups: usize, channels: usize, eps: f64, vb: VarBuilder) -> Result<GroupNorm> {
    if groups == 0 || !channels.is_multiple_of(groups) {
        candle_core::bail!("group_norm: {channels} channels do not divide into {groups} groups")
    }
    let weight = Some(param(&vb, channels, "weight", Init::Ones)?);
    let bias = Some(param(&vb, channels, "bias", Init::Zeros)?);
    Ok(GroupNorm { weight, bias, groups, eps })
}

impl Module for GroupNorm {
    fn forward(&self, xs: &Tensor) -> Result<Tensor> {
        sconce_ops::group_norm(xs, self.groups, self.weight.as_ref(), self.bias.as_ref(), self.eps)
    }
}
