//! The contract of every backbone.

use std::fmt::Debug;

use candle_core::{Result, Tensor};
use sconce_nn::{ModuleT, VarBuilder};

use crate::BackboneConfig;

/// What every backbone can do, in timm's words. `forward_t` is [`forward_features`](Self::forward_features) followed by
/// [`forward_head`](Self::forward_head).
///
/// # Shapes
/// - pictures `(B, C, H, W)`, normalised as the checkpoint wants; clips of video models `(B, C, T, H, W)`
/// - features before pooling: `(B, N, C)` of transformers, `(B, C, h, w)` of convolutional nets
/// - output `(B, num_classes)`, or `(B, num_features)` when there is no classifier
pub trait Backbone: ModuleT + Debug + Send + Sync {
    /// Everything before pooling.
    ///
    /// # Errors
    /// When the input does not fit the model.
    fn forward_features(&self, xs: &Tensor, train: bool) -> Result<Tensor>;

    /// Pooling and the classifier; with `pre_logits` everything but the last linear layer, `(B, num_features)`.
    ///
    /// # Errors
    /// When the features are not those of this model.
    fn forward_head(&self, features: &Tensor, pre_logits: bool, train: bool) -> Result<Tensor>;

    /// Feature maps at the numbers of [`feature_info`](Self::feature_info) that `indices` names, in that order, each
    /// `(B, channels, H / reduction, W / reduction)`; of video models `(B, channels, T / 2, ..)`.
    ///
    /// # Errors
    /// When the input does not fit the model or an index is too large.
    fn forward_intermediates(&self, xs: &Tensor, indices: &[usize], train: bool) -> Result<Intermediates>;

    /// Channels that the classifier sees.
    fn num_features(&self) -> usize;

    /// Classes; 0 when there is no classifier.
    fn num_classes(&self) -> usize;

    /// The feature maps on offer, from the first to the last.
    fn feature_info(&self) -> Vec<FeatureInfo>;

    /// Replaces the classifier by one of `num_classes`, or by none when that is 0; `vb` stands at the model's root.
    ///
    /// # Errors
    /// When `vb` lacks a tensor.
    fn reset_classifier(&mut self, num_classes: usize, vb: VarBuilder) -> Result<()>;

    /// The options that the model was made with, as they are now.
    fn config(&self) -> BackboneConfig;
}

/// What [`Backbone::forward_intermediates`] gives.
#[derive(Debug, Clone)]
pub struct Intermediates {
    /// One map for each index that was asked for.
    pub features: Vec<Tensor>,
    /// What [`Backbone::forward_features`] gives, from the same pass.
    pub output: Tensor,
}

/// One feature map on offer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FeatureInfo {
    /// Path of the module that makes it.
    pub module: String,
    /// Channels.
    pub channels: usize,
    /// Pixels of the picture per element, in each direction.
    pub reduction: usize,
}
