//! What a training depends on.

use std::path::PathBuf;

use clap::{Args, ValueEnum};
use serde::{Deserialize, Serialize};

use super::augment::AugmentOptions;
use super::data::DataOptions;

/// Everything that decides the result of a training is serialised; folders, threads and the display are not.
#[derive(Debug, Clone, PartialEq, Args, Serialize, Deserialize)]
pub struct Options {
    /// Name in the registry; a wrong one lists similar names.
    #[arg(long)]
    pub model: String,
    /// Another value for an option of the model, as depth=6; may be given several times.
    #[arg(long = "set", value_name = "KEY=VALUE")]
    #[serde(default)]
    pub set: Vec<String>,
    /// Side of the pictures in pixels. [default: the model's]
    #[arg(long)]
    pub image_size: Option<u32>,
    /// Probability of dropping the last block's residual branch; rises linearly from the first block.
    #[arg(long)]
    pub drop_path: Option<f64>,
    /// Which pictures.
    #[command(flatten, next_help_heading = "Pictures")]
    #[serde(flatten)]
    pub data: DataOptions,
    /// How pictures are changed.
    #[command(flatten, next_help_heading = "Augmentation")]
    #[serde(flatten)]
    pub augment: AugmentOptions,
    /// How the weights are found.
    #[command(flatten, next_help_heading = "Recipe")]
    #[serde(flatten)]
    pub recipe: Recipe,
    /// What the result does not depend on.
    #[command(flatten, next_help_heading = "Running")]
    #[serde(skip)]
    pub run: RunOptions,
}

/// How the weights are found.
#[derive(Debug, Clone, PartialEq, Args, Serialize, Deserialize)]
pub struct Recipe {
    /// Passes over the training pictures; with --schedule dual the most there may be.
    #[arg(long, default_value_t = 100)]
    pub epochs: u64,
    /// Pictures in a step.
    #[arg(long, default_value_t = 128)]
    pub batch_size: usize,
    /// Optimiser; --schedule dual begins with AdamW whatever this says.
    #[arg(long, value_enum, default_value_t = OptimizerName::Adamw)]
    pub optimizer: OptimizerName,
    /// Highest learning rate.
    #[arg(long, default_value_t = 1e-3)]
    pub lr: f64,
    /// Weight decay of matrices and kernels.
    #[arg(long, default_value_t = 0.05)]
    pub weight_decay: f64,
    /// Momentum of SGD.
    #[arg(long, default_value_t = 0.9)]
    pub momentum: f64,
    /// Largest norm of the gradient; 0 for no limit.
    #[arg(long, default_value_t = 1.0)]
    pub clip_grad: f64,
    /// How the learning rate goes.
    #[arg(long, value_enum, default_value_t = ScheduleName::Cosine)]
    pub schedule: ScheduleName,
    /// Epochs of linear warm-up of the cosine.
    #[arg(long, default_value_t = 5)]
    pub warmup: u64,
    /// Epochs without a new best after which --schedule dual goes on to SGD, and then ends.
    #[arg(long, default_value_t = 20)]
    pub patience: u64,
    /// Learning rate of SGD in --schedule dual.
    #[arg(long, default_value_t = 1e-3)]
    pub sgd_lr: f64,
    /// Factor on the learning rate from each block to the one before it (models with `blocks.N`).
    #[arg(long)]
    pub layer_decay: Option<f64>,
    /// Decay of a moving average of the weights, which is then what is evaluated and saved.
    #[arg(long)]
    pub ema: Option<f64>,
    /// Weight that all classes share in the targets.
    #[arg(long, default_value_t = 0.1)]
    pub label_smoothing: f64,
    /// Seed of weights, order, augmentation and dropout.
    #[arg(long, default_value_t = 1)]
    pub seed: u64,
}

/// What the result does not depend on.
#[derive(Debug, Clone, PartialEq, Default, Args)]
pub struct RunOptions {
    /// Folder for weights, checkpoints and logs.
    #[arg(long, default_value = "runs/classifier")]
    pub out: PathBuf,
    /// Threads that decode and augment.
    #[arg(long, default_value_t = 1)]
    pub workers: usize,
    /// Evaluate every so many epochs; --schedule dual does it after each.
    #[arg(long, default_value_t = 5)]
    pub evaluate_every: u64,
    /// Continue from the latest checkpoint in `out`.
    #[arg(long)]
    pub resume: bool,
    /// Stop after this step as Ctrl-C does, where a machine is lent for a time.
    #[arg(long)]
    pub stop_after: Option<u64>,
    /// Draw no progress bars.
    #[arg(long)]
    pub quiet: bool,
    /// auto, cpu, cuda or cuda:N.
    #[arg(long, default_value = "auto")]
    pub device: String,
}

/// An optimiser.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum OptimizerName {
    /// Adam with decoupled weight decay.
    Adamw,
    /// Stochastic gradient descent with momentum.
    Sgd,
}

/// A course of the learning rate.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ScheduleName {
    /// Warm-up, then half a cosine to a hundredth; the last weights count.
    Cosine,
    /// The same throughout; the last weights count.
    Constant,
    /// AdamW until --patience epochs brought no new best on the validation pictures, then SGD from the best weights in the same
    /// way (CXV, arXiv:2201.10271, as its author's DualOpt does it, but for the split that selects); the best weights count.
    Dual,
}
