//! Encoder and hash head.

use std::sync::Arc;

use candle_core::{Result, Tensor, bail};
use sconce_backbones::{Backbone, BackboneConfig, pretrained};
use sconce_nn::{Activation, Init, Linear, Module, VarBuilder, linear};
use serde::{Deserialize, Serialize};

/// What turns inputs into the features that are hashed.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum EncoderConfig {
    /// The inputs are features already, computed once by any model.
    Features {
        /// Their width d.
        dim: usize,
        /// Width of a residual layer `x + W2 gelu(W1 x)` that stands for the backbone where a method wants to train one; it begins
        /// as the identity. None where this is 0. Not in any of the papers.
        hidden: usize,
    },
    /// The inputs are pictures, the features those that this backbone gives its classifier. Boxed: options are large.
    Backbone(Box<BackboneConfig>),
}

impl EncoderConfig {
    /// A backbone of the registry, without its classifier.
    ///
    /// # Errors
    /// When there is no model of that name.
    pub fn registry(name: &str) -> crate::Result<Self> {
        Ok(Self::Backbone(Box::new(pretrained(name)?.config.with_num_classes(0))))
    }

    /// Whether it has parameters.
    pub fn trains(&self) -> bool {
        !matches!(self, Self::Features { hidden: 0, .. })
    }
}

/// What [`EncoderConfig`] describes. Its tensors are named `backbone.*`.
#[derive(Debug, Clone)]
pub enum Encoder {
    /// Features as they are, of this width.
    Identity(usize),
    /// `x + W2 gelu(W1 x)`: `fc1` with its activation, `fc2`.
    Residual(Linear, Linear),
    /// A backbone without classifier.
    Backbone(Arc<dyn Backbone>),
}

impl Encoder {
    /// An encoder; `vb` stands above `backbone`.
    ///
    /// # Errors
    /// Options that contradict each other, and the builder's.
    pub fn new(cfg: &EncoderConfig, vb: VarBuilder) -> Result<Self> {
        let vb = vb.pp("backbone");
        Ok(match cfg {
            EncoderConfig::Features { dim: 0, .. } => bail!("features of width 0"),
            &EncoderConfig::Features { dim, hidden: 0 } => Self::Identity(dim),
            &EncoderConfig::Features { dim, hidden } => Self::Residual(
                linear(dim, hidden, vb.pp("fc1"))?.with_activation(Activation::Gelu),
                Linear::with_init(hidden, dim, true, Init::Zeros, vb.pp("fc2"))?,
            ),
            EncoderConfig::Backbone(cfg) => Self::Backbone(cfg.build(vb)?.into()),
        })
    }

    /// Width of the features.
    pub fn dim(&self) -> usize {
        match self {
            Self::Identity(dim) => *dim,
            Self::Residual(fc1, _) => fc1.weight.dims()[1],
            Self::Backbone(backbone) => backbone.num_features(),
        }
    }

    /// The features.
    ///
    /// # Shapes
    /// - `xs` `(B, d)`, or what the backbone takes
    /// - output `(B, d)`
    ///
    /// # Errors
    /// When the input does not fit.
    pub fn forward_t(&self, xs: &Tensor, train: bool) -> Result<Tensor> {
        match self {
            Self::Backbone(backbone) => backbone.forward_head(&backbone.forward_features(xs, train)?, true, train),
            _ if xs.rank() != 2 || xs.dim(1)? != self.dim() => {
                bail!("features of shape {:?}, expected (B, {})", xs.dims(), self.dim())
            }
            Self::Identity(_) => Ok(xs.clone()),
            Self::Residual(fc1, fc2) => xs + fc2.forward(&fc1.forward(xs)?)?,
        }
    }
}

/// Encoder and hash head of a learned method.
#[derive(Debug, Clone)]
pub struct Network {
    /// Inputs to features.
    pub encoder: Encoder,
    /// Features to K outputs, layer after layer.
    pub head: Vec<Linear>,
    /// Whether the encoder stays as it is: it then runs in evaluation mode and takes no gradient.
    pub frozen: bool,
}

impl Network {
    /// Features, in the mode that training wants.
    ///
    /// # Errors
    /// When the input does not fit.
    pub fn features(&self, xs: &Tensor) -> Result<Tensor> {
        match self.frozen {
            true => Ok(self.encoder.forward_t(xs, false)?.detach()),
            false => self.encoder.forward_t(xs, true),
        }
    }

    /// The outputs of the hash head for features, `(B, d)` to `(B, K)`.
    ///
    /// # Errors
    /// When the features are of another width.
    pub fn hash(&self, features: &Tensor) -> Result<Tensor> {
        self.head.iter().try_fold(features.clone(), |xs, layer| layer.forward(&xs))
    }
}
