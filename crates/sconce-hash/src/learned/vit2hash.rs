//! ViT2Hash, reconstructed.

use candle_core::Tensor;
use sconce_nn::{Linear, VarBuilder, linear};
use serde::{Deserialize, Serialize};

use super::{Batch, Corruption, EncoderConfig, LearnedHasher, Network, Objective, TrainConfig};
use crate::losses::{self, Vit2HashWeights};
use crate::{Error, Result};

/// A reconstruction of ViT2Hash (Gong et al. 2022, `arXiv:2201.05541`) that is ours and not official: the paper has no published
/// code, and of its text only the abstract was at hand. From there come the parts: a vision transformer that learns to give corrupted
/// pictures the features that its frozen self gives the whole ones; codes that keep the relations among those features, by a
/// Kullback-Leibler divergence; a quantisation and a similarity loss. Formulas ([`losses::vit2hash`]), weights, corruption and stages
/// are ours.
///
/// Tensors: `backbone.*`, `hash.weight` `(K, d)`, `hash.bias`.
pub type ViT2Hash = LearnedHasher<ViT2HashConfig>;

/// When a [`ViT2Hash`] learns what.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Stages {
    /// All losses from the start.
    Joint,
    /// Feature preservation alone, then the rest.
    Two {
        /// Epochs of the first stage, fewer than there are.
        preserve_epochs: u64,
        /// Whether the encoder stays as it is in the second stage; else it goes on with all losses.
        freeze: bool,
    },
}

/// Options of [`ViT2Hash`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ViT2HashConfig {
    /// Bits of a code.
    pub bits: usize,
    /// Student, and by its first weights the teacher.
    pub encoder: EncoderConfig,
    /// What the student sees instead of the inputs.
    pub corruption: Vec<Corruption>,
    /// Weights of the losses.
    pub weights: Vit2HashWeights,
    /// When it learns what.
    pub stages: Stages,
    /// How it is trained.
    pub train: TrainConfig,
}

impl Default for ViT2HashConfig {
    /// 64 bits on ViT-B/16 at 224 pixels, a quarter of the patches masked.
    fn default() -> Self {
        let vit =
            sconce_backbones::vit::Config { num_classes: 0, ..sconce_backbones::vit::Config::vit_base_patch16_224() };
        Self {
            bits: 64,
            encoder: EncoderConfig::Backbone(Box::new(vit.into())),
            corruption: vec![Corruption::PatchMask { patch: 16, ratio: 0.25 }],
            weights: Vit2HashWeights::default(),
            stages: Stages::Joint,
            train: TrainConfig::default(),
        }
    }
}

impl ViT2HashConfig {
    /// For features of width `dim` instead of pictures, a variant of ours: a residual layer stands for the backbone, and a quarter
    /// of the values is masked instead of patches.
    #[must_use]
    pub fn features(dim: usize, bits: usize) -> Self {
        Self {
            bits,
            encoder: EncoderConfig::Features { dim, hidden: dim },
            corruption: vec![Corruption::Mask { ratio: 0.25 }],
            train: TrainConfig { encoder_lr: 1e-3, ..TrainConfig::default() },
            ..Self::default()
        }
    }
}

impl Objective for ViT2HashConfig {
    const METHOD: &'static str = "vit2hash";

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
        let Vit2HashWeights { rec, kl, quant, sim, temperature } = self.weights;
        for (name, weight) in [("rec", rec), ("kl", kl), ("quant", quant), ("sim", sim)] {
            if !(weight.is_finite() && weight >= 0.0) {
                return Err(Error::Config(format!("the weight {name} is {weight}, not a number from 0")));
            }
        }
        if !(temperature.is_finite() && temperature > 0.0) {
            return Err(Error::Config(format!("temperature is {temperature}, not a number above 0")));
        }
        let Stages::Two { preserve_epochs, .. } = self.stages else { return Ok(()) };
        if preserve_epochs >= self.train.epochs {
            let epochs = self.train.epochs;
            return Err(Error::Config(format!("{preserve_epochs} of {epochs} epochs leave none to the second stage")));
        }
        if preserve_epochs > 0 && (self.train.encoder_lr == 0.0 || !self.encoder.trains() || rec == 0.0) {
            return Err(Error::Config("the first of two stages has nothing to train".into()));
        }
        Ok(())
    }

    fn head(&self, dim: usize, vb: VarBuilder) -> candle_core::Result<Vec<Linear>> {
        Ok(vec![linear(dim, self.bits, vb.pp("hash"))?])
    }

    fn needs_teacher(&self, _: bool) -> bool {
        true
    }

    fn restart(&self) -> u64 {
        match self.stages {
            Stages::Joint => 0,
            Stages::Two { preserve_epochs, .. } => preserve_epochs,
        }
    }

    fn loss(&self, network: &Network, batch: &Batch<'_>) -> Result<Tensor> {
        let teacher = batch.teacher()?;
        let mut student = network.features(&batch.view(&self.corruption)?)?;
        if let Stages::Two { preserve_epochs, freeze } = self.stages {
            if batch.epoch < preserve_epochs {
                return Ok((losses::feature_distance(&student, teacher)? * self.weights.rec)?);
            }
            if freeze {
                student = student.detach();
            }
        }
        Ok(losses::vit2hash(teacher, &student, &network.hash(&student)?, &self.weights)?.total)
    }
}
