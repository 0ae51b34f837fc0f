//! How a head is trained: the papers' settings by name, and a sane one.

use sconce_train::schedule::{Constant, Cosine, Dassl, PerEpoch, Schedule, Warmup};
use sconce_train::{AdamW, AdamWConfig, Optimizer, ParamGroups, Sgd, SgdConfig};
use serde::{Deserialize, Serialize};

use crate::{Error, Result};

/// The update rule of a training.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum FitOptimizer {
    /// Stochastic gradient descent without Nesterov's momentum or dampening; weight decay enters the gradient.
    Sgd {
        /// Factor of the momentum buffer, in `[0, 1)`.
        momentum: f64,
    },
    /// Adam with decoupled weight decay, betas 0.9 and 0.999.
    AdamW {
        /// Added to the root of the second moment.
        eps: f64,
    },
}

/// The learning rate over a training.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum FitSchedule {
    /// Half a cosine to 0 over all steps, after a linear warm-up.
    Cosine {
        /// Epochs of the warm-up.
        warmup: u64,
    },
    /// Dassl's of CoOp and CoCoOp, by epochs: the first at 1e-5, then a cosine that begins anew with all epochs as its half
    /// period. Quirk: training ends one epoch before the rate would be 0.
    Official,
    /// The same advanced with every step, as DAPL's released trainer does. Quirk: the number of epochs is the half period in
    /// steps, so that the rate is a wave: 0 after 26 steps and high again after 51 where there are 25 epochs.
    OfficialSteps,
    /// The same rate throughout.
    Constant,
}

/// Options of [`fit`](crate::fit) and [`fit_batches`](crate::fit_batches).
///
/// | preset | optimiser | rate | decay | batch | epochs | schedule |
/// | --- | --- | --- | --- | --- | --- | --- |
/// | `default()` | SGD 0.9 | 0.002 | 5e-4 | 32 | 50 | cosine over steps, one epoch of warm-up |
/// | [`coop`](Self::coop) | SGD 0.9 | 0.002 | 5e-4 | 32 | 50, 100, 200 | Dassl's by epochs |
/// | [`cocoop`](Self::cocoop) | SGD 0.9 | 0.002 | 5e-4 | 1 | 10 | Dassl's by epochs |
/// | [`clip_adapter`](Self::clip_adapter) | SGD 0.9 | 0.002 | 5e-4 | 32 | 50, 100, 200 | Dassl's by epochs |
/// | [`tip_adapter_f`](Self::tip_adapter_f) | AdamW, eps 1e-4 | 0.001 | 0.01 | 256 | 20 | cosine over steps |
/// | [`q16`](Self::q16) | SGD 0.9 | 0.01 | 0 | 64 | 300 | constant |
/// | [`dapl`](Self::dapl) | SGD 0.9 | 0.003 | 5e-4 | 32 | 25 | Dassl's by steps |
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct FitConfig {
    /// Passes over the pictures.
    pub epochs: u64,
    /// Pictures in a step.
    pub batch_size: usize,
    /// The update rule.
    pub optimizer: FitOptimizer,
    /// Highest learning rate.
    pub lr: f64,
    /// Weight decay.
    pub weight_decay: f64,
    /// The learning rate over time.
    pub schedule: FitSchedule,
    /// Leaves out the last batch of an epoch when it is not full, as Dassl does: only where there are enough pictures for a
    /// full one.
    pub drop_last: bool,
    /// Decides the order of the pictures and whatever the head draws.
    pub seed: u64,
    /// Weights of the classes in the loss, which is then the weighted mean over the batch.
    pub class_weights: Option<Vec<f32>>,
}

impl Default for FitConfig {
    /// CoOp's optimiser with a schedule that ends at 0 and every picture in every epoch.
    fn default() -> Self {
        Self {
            epochs: 50,
            batch_size: 32,
            optimizer: FitOptimizer::Sgd { momentum: 0.9 },
            lr: 0.002,
            weight_decay: 5e-4,
            schedule: FitSchedule::Cosine { warmup: 1 },
            drop_last: false,
            seed: 1,
            class_weights: None,
        }
    }
}

impl FitConfig {
    /// CoOp's for this many pictures of each class: 50 epochs for one, 100 for up to four, 200 for more. Quirks: the schedule
    /// is [`FitSchedule::Official`], the last part of an epoch is dropped; for `ImageNet` the paper has 50 epochs throughout.
    #[must_use]
    pub fn coop(shots: usize) -> Self {
        let epochs = match shots {
            0..=1 => 50,
            2..=4 => 100,
            _ => 200,
        };
        Self { epochs, schedule: FitSchedule::Official, drop_last: true, ..Self::default() }
    }

    /// CoCoOp's: 10 epochs of single pictures. Quirk: the schedule is [`FitSchedule::Official`].
    #[must_use]
    pub fn cocoop() -> Self {
        Self { epochs: 10, batch_size: 1, ..Self::coop(16) }
    }

    /// CLIP-Adapter's, whose released code is trained as [`CoOp`](Self::coop) is; here with the epochs of 16 shots.
    #[must_use]
    pub fn clip_adapter() -> Self {
        Self::coop(16)
    }

    /// Tip-Adapter-F's. Quirk of the paper's code that is not offered: it keeps the epoch that does best on the test pictures;
    /// give [`FitOptions::validation`](crate::FitOptions::validation) instead.
    #[must_use]
    pub fn tip_adapter_f() -> Self {
        Self {
            epochs: 20,
            batch_size: 256,
            optimizer: FitOptimizer::AdamW { eps: 1e-4 },
            lr: 1e-3,
            weight_decay: 0.01,
            schedule: FitSchedule::Cosine { warmup: 0 },
            ..Self::default()
        }
    }

    /// Q16's.
    #[must_use]
    pub fn q16() -> Self {
        Self {
            epochs: 300,
            batch_size: 64,
            lr: 0.01,
            weight_decay: 0.0,
            schedule: FitSchedule::Constant,
            ..Self::default()
        }
    }

    /// DAPL's. Quirk: the schedule is [`FitSchedule::OfficialSteps`], a wave.
    #[must_use]
    pub fn dapl() -> Self {
        Self { epochs: 25, lr: 0.003, schedule: FitSchedule::OfficialSteps, drop_last: true, ..Self::default() }
    }

    /// Steps in an epoch over `n` pictures.
    #[must_use]
    pub fn steps_per_epoch(&self, n: usize) -> usize {
        let batch = self.batch_size.max(1);
        if self.drop_last && n >= batch { n / batch } else { n.div_ceil(batch) }
    }

    pub(super) fn validate(&self) -> Result<()> {
        let refuse = |reason: String| Err(Error::Config(reason));
        if self.batch_size == 0 {
            return refuse("a batch of no pictures".into());
        }
        let not_negative = |value: f64| value.is_finite() && value >= 0.0;
        for (name, value) in [("lr", self.lr), ("weight_decay", self.weight_decay)] {
            if !not_negative(value) {
                return refuse(format!("{name} is {value}, not a number from 0"));
            }
        }
        match self.optimizer {
            FitOptimizer::Sgd { momentum } if !(0.0..1.0).contains(&momentum) => {
                return refuse(format!("momentum is {momentum}, not in [0, 1)"));
            }
            FitOptimizer::AdamW { eps } if !not_negative(eps) => {
                return refuse(format!("eps is {eps}, not a number from 0"));
            }
            _ => {}
        }
        let weights = self.class_weights.iter().flatten();
        if let Some(weight) = weights.copied().find(|weight| !(weight.is_finite() && *weight > 0.0)) {
            return refuse(format!("{weight} as the weight of a class: weights are above 0"));
        }
        Ok(())
    }

    pub(super) fn rate(&self, n: usize) -> Box<dyn Schedule> {
        let steps_per_epoch = self.steps_per_epoch(n) as u64;
        let total = self.epochs.saturating_mul(steps_per_epoch);
        match self.schedule {
            FitSchedule::Official => {
                Box::new(PerEpoch { schedule: Dassl::coop(self.lr, self.epochs), steps_per_epoch })
            }
            FitSchedule::OfficialSteps => Box::new(Dassl::dapl(self.lr, self.epochs)),
            FitSchedule::Constant => Box::new(Constant(self.lr)),
            FitSchedule::Cosine { warmup } => {
                let length = warmup.saturating_mul(steps_per_epoch).min(total);
                let from = self.lr / length.max(1) as f64;
                let then = Cosine { from: self.lr, to: 0.0, length: total - length };
                Box::new(Warmup { from, to: self.lr, length, inclusive: false, restart: true, then })
            }
        }
    }

    pub(super) fn optimizer(&self, groups: ParamGroups) -> Result<Box<dyn Optimizer>> {
        let (lr, weight_decay) = (self.lr, self.weight_decay);
        Ok(match self.optimizer {
            FitOptimizer::Sgd { momentum } => {
                Box::new(Sgd::new(groups, SgdConfig { lr, momentum, weight_decay, ..SgdConfig::default() })?)
            }
            FitOptimizer::AdamW { eps } => {
                Box::new(AdamW::new(groups, AdamWConfig { lr, eps, weight_decay, ..AdamWConfig::default() }))
            }
        })
    }
}
