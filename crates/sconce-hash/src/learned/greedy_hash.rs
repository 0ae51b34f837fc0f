//! GreedyHash without labels.

use candle_core::Tensor;
use sconce_nn::{Linear, VarBuilder, linear};
use serde::{Deserialize, Serialize};

use super::{Batch, Corruption, EncoderConfig, HashOptimizer, LearnedHasher, Network, Objective, TrainConfig};
use crate::losses::{greedy_quantisation, greedy_similarity};
use crate::{Error, Result};

/// GreedyHash (Su et al. 2018, NeurIPS "Greedy hash"), its unsupervised form: signs with a straight-through gradient, whose cosines
/// are to be those of the features. One layer on a frozen backbone, VGG-16 in the paper.
///
/// Tensors: `backbone.*`, and `fc_encode` as in the released code.
pub type GreedyHash = LearnedHasher<GreedyHashConfig>;

/// Options of [`GreedyHash`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct GreedyHashConfig {
    /// Bits of a code.
    pub bits: usize,
    /// What is hashed.
    pub encoder: EncoderConfig,
    /// What is done to the inputs before they are hashed; the features to compare with are those of the inputs as they are. Nothing
    /// in the paper.
    pub corruption: Vec<Corruption>,
    /// Weight of the pull to +1 and -1.
    pub alpha: f64,
    /// How it is trained.
    pub train: TrainConfig,
}

impl Default for GreedyHashConfig {
    /// 64 bits on a frozen ViT-B/16 at 224 pixels, trained as the released code trains 64 bits on VGG-16.
    fn default() -> Self {
        Self {
            bits: 64,
            encoder: super::ViT2HashConfig::default().encoder,
            corruption: vec![],
            alpha: 0.1,
            train: TrainConfig {
                epochs: 60,
                batch_size: 32,
                optimizer: HashOptimizer::Sgd { momentum: 0.9 },
                lr: 1e-4,
                encoder_lr: 0.0,
                weight_decay: 5e-4,
                cosine: false,
                seed: 1,
            },
        }
    }
}

impl GreedyHashConfig {
    /// For features of width `dim` instead of pictures, with the hash layer trained by Adam: the paper's rate is made for the large
    /// features of VGG-16.
    #[must_use]
    pub fn features(dim: usize, bits: usize) -> Self {
        Self {
            bits,
            encoder: EncoderConfig::Features { dim, hidden: 0 },
            train: TrainConfig { encoder_lr: 0.0, ..TrainConfig::default() },
            ..Self::default()
        }
    }
}

impl Objective for GreedyHashConfig {
    const METHOD: &'static str = "greedyhash";

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
        match self.alpha.is_finite() && self.alpha >= 0.0 {
            true => Ok(()),
            false => Err(Error::Config(format!("alpha is {}, not a number from 0", self.alpha))),
        }
    }

    fn head(&self, dim: usize, vb: VarBuilder) -> candle_core::Result<Vec<Linear>> {
        Ok(vec![linear(dim, self.bits, vb.pp("fc_encode"))?])
    }

    fn needs_teacher(&self, _: bool) -> bool {
        true
    }

    fn loss(&self, network: &Network, batch: &Batch<'_>) -> Result<Tensor> {
        let features = match self.corruption.is_empty() {
            true => batch.features(network)?,
            false => network.features(&batch.view(&self.corruption)?)?,
        };
        let h = network.hash(&features)?;
        Ok((greedy_similarity(&h, batch.teacher()?)? + (greedy_quantisation(&h)? * self.alpha)?)?)
    }
}
