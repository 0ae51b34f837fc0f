//! Optimisers, schedules, EMA, checkpoints with bit-exact resume and logs for candle models.

mod error;
pub mod optim;
pub mod schedule;

pub use error::{Error, Result, StepError};
pub use optim::{
    AdamW, AdamWConfig, Clip, GradAccumulator, GroupBuilder, Lars, LarsConfig, NonFinite, Optimizer, OptimizerState,
    Param, ParamGroup, ParamGroups, Sgd, SgdConfig, StepReport, vit_layer,
};
pub use schedule::Schedule;
