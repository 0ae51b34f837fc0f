//! Optimisers whose step is one pass over parameter, gradient and state.

mod accumulate;
mod adamw;
mod clip;
mod engine;
mod groups;
pub(crate) mod kernel;
mod lars;
mod sgd;
mod state;

use candle_core::Tensor;
use candle_core::backprop::GradStore;

use crate::Result;

pub use accumulate::GradAccumulator;
pub use adamw::{AdamW, AdamWConfig};
pub use clip::{Clip, NonFinite};
pub use engine::{Fused, Rule, StepScalars};
pub use groups::{GroupBuilder, Param, ParamGroup, ParamGroups, vit_layer};
pub use kernel::Real;
pub use lars::{Lars, LarsConfig};
pub use sgd::{Sgd, SgdConfig};

/// What a step did.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct StepReport {
    /// Euclidean norm of all gradients before clipping; absent when nothing asked for it.
    pub grad_norm: Option<f64>,
    /// Number of gradients that were scaled down by clipping.
    pub clipped: usize,
    /// Number of parameter tensors that were changed.
    pub updated: usize,
    /// Number of parameter tensors that have no gradient and were left alone.
    pub without_gradient: usize,
    /// Name of the parameter whose gradient is not finite, when the step was skipped for it.
    pub skipped: Option<String>,
}

/// State of an optimiser as named tensors, for a checkpoint.
#[derive(Clone, Debug)]
pub struct OptimizerState {
    /// Name of the update rule.
    pub kind: String,
    /// Step counts and moments, named after their parameters.
    pub tensors: Vec<(String, Tensor)>,
}

/// Changes parameters by their gradients.
pub trait Optimizer: Send {
    /// Takes one step. Parameters without a gradient in `grads` are left alone.
    ///
    /// # Errors
    /// A gradient that is not finite (see [`NonFinite`]) or does not fit its parameter; no gradient
    /// at all. In each case every parameter keeps its value.
    fn step(&mut self, grads: &GradStore) -> Result<StepReport>;

    /// Gradients of a loss, followed by a step.
    ///
    /// # Errors
    /// Those of [`Optimizer::step`].
    fn backward_step(&mut self, loss: &Tensor) -> Result<StepReport> {
        self.step(&loss.backward()?)
    }

    /// Learning rate of groups with factor 1.
    fn lr(&self) -> f64;
    /// Sets the learning rate.
    fn set_lr(&mut self, lr: f64);
    /// Weight decay of groups with factor 1.
    fn weight_decay(&self) -> f64;
    /// Sets the weight decay.
    fn set_weight_decay(&mut self, weight_decay: f64);

    /// The parameters in their groups.
    fn groups(&self) -> &ParamGroups;
    /// The groups, for changing their factors between steps.
    fn groups_mut(&mut self) -> &mut ParamGroups;

    /// Everything that later steps depend on besides the parameters.
    ///
    /// # Errors
    /// A failure of the device.
    fn state(&self) -> Result<OptimizerState>;
    /// Restores a state, exactly.
    ///
    /// # Errors
    /// State of another kind of optimiser; a tensor that is missing, left over, or of another shape
    /// or type. The optimiser is then as it was.
    fn load_state(&mut self, state: &OptimizerState) -> Result<()>;
}

impl<O: Optimizer + ?Sized> Optimizer for Box<O> {
    fn step(&mut self, grads: &GradStore) -> Result<StepReport> {
        (**self).step(grads)
    }
    fn lr(&self) -> f64 {
        (**self).lr()
    }
    fn set_lr(&mut self, lr: f64) {
        (**self).set_lr(lr);
    }
    fn weight_decay(&self) -> f64 {
        (**self).weight_decay()
    }
    fn set_weight_decay(&mut self, weight_decay: f64) {
        (**self).set_weight_decay(weight_decay);
    }
    fn groups(&self) -> &ParamGroups {
        (**self).groups()
    }
    fn groups_mut(&mut self) -> &mut ParamGroups {
        (**self).groups_mut()
    }
    fn state(&self) -> Result<OptimizerState> {
        (**self).state()
    }
    fn load_state(&mut self, state: &OptimizerState) -> Result<()> {
        (**self).load_state(state)
    }
}
