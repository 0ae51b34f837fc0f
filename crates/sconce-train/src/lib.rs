//! Optimisers, schedules, EMA, checkpoints with bit-exact resume and logs for candle models.
//!
//! The parts stand alone: an [`Optimizer`] steps any variables, a [`Schedule`] is a function of a position, an [`Ema`]
//! follows any parameters, a [`TrainingState`] holds any tensors. [`Trainer`] puts them together for the common loop
//! and makes it resumable: a training that was stopped by Ctrl-C or killed, and resumed, ends with the same bits as
//! one that was not.

mod checkpoint;
mod ema;
mod error;
mod interrupt;
mod keep;
pub mod log;
pub mod optim;
pub mod schedule;
mod trainer;

pub use checkpoint::{Position, Section, TrainingState};
pub use ema::{Ema, EmaConfig, EmaWarmup};
pub use error::{Error, Result, StepError};
pub use interrupt::Interrupt;
pub use keep::CheckpointFolder;
pub use log::{CsvLog, JsonlLog, Log, TensorBoardLog};
pub use optim::{
    AdamW, AdamWConfig, Clip, GradAccumulator, GroupBuilder, Lars, LarsConfig, NonFinite, Optimizer, OptimizerState,
    Param, ParamGroup, ParamGroups, Sgd, SgdConfig, StepReport, vit_layer,
};
pub use schedule::Schedule;
pub use trainer::{Outcome, Progress, StepOutput, Trainer};
