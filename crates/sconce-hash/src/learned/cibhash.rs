//! CIBHash.

use candle_core::Tensor;
use sconce_nn::{Activation, Linear, VarBuilder, linear};
use serde::{Deserialize, Serialize};

use super::{Batch, Corruption, EncoderConfig, LearnedHasher, Network, Objective, TrainConfig};
use crate::losses::{bit_kl, code_contrast};
use crate::{Error, Result};

/// CIBHash (Qiu et al. 2021, `arXiv:2105.06138`): two views of a picture are to have the same code and different pictures different
/// ones, with a bottleneck on the bits' probabilities. Two layers on a frozen backbone, VGG-16 in the paper.
///
/// Tensors: `backbone.*`, and `encoder.0`, `encoder.2` as in the released code.
pub type CibHash = LearnedHasher<CibHashConfig>;

/// Options of [`CibHash`]; the defaults are those of the released code.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct CibHashConfig {
    /// Bits of a code.
    pub bits: usize,
    /// What is hashed.
    pub encoder: EncoderConfig,
    /// What makes two views of an input, on top of [`Inputs::view`](crate::Inputs::view), where the paper's crops, flips, colours and
    /// blur belong.
    pub corruption: Vec<Corruption>,
    /// Width of the first layer of the head.
    pub hidden: usize,
    /// Temperature of the contrast.
    pub temperature: f64,
    /// Weight of the bottleneck.
    pub weight: f64,
    /// How it is trained.
    pub train: TrainConfig,
}

impl Default for CibHashConfig {
    /// 64 bits on a frozen ViT-B/16 at 224 pixels; views by shifts and mirroring.
    fn default() -> Self {
        Self {
            bits: 64,
            encoder: super::ViT2HashConfig::default().encoder,
            corruption: vec![Corruption::Shift { pixels: 28, mirror: true }],
            hidden: 1024,
            temperature: 0.3,
            weight: 1e-3,
            train: TrainConfig { epochs: 60, encoder_lr: 0.0, cosine: false, ..TrainConfig::default() },
        }
    }
}

impl CibHashConfig {
    /// For features of width `dim` instead of pictures, a variant of ours: views by dropout.
    #[must_use]
    pub fn features(dim: usize, bits: usize) -> Self {
        Self {
            bits,
            encoder: EncoderConfig::Features { dim, hidden: 0 },
            corruption: vec![Corruption::Dropout { p: 0.3 }],
            ..Self::default()
        }
    }
}

impl Objective for CibHashConfig {
    const METHOD: &'static str = "cibhash";

    fn bits(&self) -> usize {
        self.bits
    }

    fn encoder(&self) -> &EncoderConfig {
        &self.encoder
    }

    fn train(&self) -> &TrainConfig {
        &self.train
    }

    fn validate(&self) -> Result<()> {
        if self.hidden == 0 {
            return Err(Error::Config("a hidden layer of width 0".into()));
        }
        if !(self.temperature.is_finite() && self.temperature > 0.0) {
            return Err(Error::Config(format!("temperature is {}, not a number above 0", self.temperature)));
        }
        match self.weight.is_finite() && self.weight >= 0.0 {
            true => Ok(()),
            false => Err(Error::Config(format!("weight is {}, not a number from 0", self.weight))),
        }
    }

    fn head(&self, dim: usize, vb: VarBuilder) -> candle_core::Result<Vec<Linear>> {
        let vb = vb.pp("encoder");
        let first = linear(dim, self.hidden, vb.pp("0"))?.with_activation(Activation::Relu);
        Ok(vec![first, linear(self.hidden, self.bits, vb.pp("2"))?])
    }

    fn needs_teacher(&self, _: bool) -> bool {
        false
    }

    fn loss(&self, network: &Network, batch: &Batch<'_>) -> Result<Tensor> {
        let outputs = || network.hash(&network.features(&batch.view(&self.corruption)?)?).map_err(Error::from);
        let (hi, hj) = (outputs()?, outputs()?);
        Ok((code_contrast(&hi, &hj, self.temperature)? + (bit_kl(&hi, &hj)? * self.weight)?)?)
    }
}
