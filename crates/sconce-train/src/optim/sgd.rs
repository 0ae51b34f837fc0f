//! Stochastic gradient descent.

use candle_core::Tensor;
use serde::{Deserialize, Serialize};

use super::engine::{Fused, Rule, StepScalars};
use super::{ParamGroups, Real};
use crate::{Error, Result};

/// Constants of [`Sgd`]; the defaults are PyTorch's, with a learning rate of 0.001.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct SgdConfig {
    /// Learning rate.
    pub lr: f64,
    /// Factor of the momentum buffer.
    pub momentum: f64,
    /// One minus the factor with which a gradient enters the momentum buffer, after the first.
    pub dampening: f64,
    /// Looks ahead along the momentum (Nesterov); needs momentum and no dampening.
    pub nesterov: bool,
    /// Weight decay, added to the gradient.
    pub weight_decay: f64,
}

impl Default for SgdConfig {
    fn default() -> Self {
        Self { lr: 1e-3, momentum: 0., dampening: 0., nesterov: false, weight_decay: 0. }
    }
}

/// Stochastic gradient descent with momentum as PyTorch computes it: with `d = g + wd * p`,
/// `b = momentum * b + (1 - dampening) * d` (first step: `b = d`), `p -= lr * b`, or with Nesterov's
/// momentum `p -= lr * (d + momentum * b)`.
pub type Sgd = Fused<SgdConfig>;

impl Sgd {
    /// An optimiser of these parameters.
    ///
    /// # Errors
    /// Nesterov's momentum without momentum or with dampening.
    pub fn new(groups: ParamGroups, config: SgdConfig) -> Result<Self> {
        if config.nesterov && (config.momentum <= 0. || config.dampening != 0.) {
            return Err(Error::Config("Nesterov's momentum needs momentum and no dampening".to_owned()));
        }
        let (lr, weight_decay) = (config.lr, config.weight_decay);
        Ok(Self::from_rule(config, groups, lr, weight_decay))
    }
}

impl SgdConfig {
    /// Factors of the old buffer and of the gradient in the new buffer.
    #[inline(always)]
    fn blend(&self, step: u64) -> (f64, f64) {
        if step == 1 { (0., 1.) } else { (self.momentum, 1. - self.dampening) }
    }
}

impl Rule for SgdConfig {
    fn name(&self) -> &'static str {
        "sgd"
    }

    fn buffers(&self) -> &'static [&'static str] {
        if self.momentum == 0. { &[] } else { &["momentum"] }
    }

    #[inline(always)]
    fn update<T: Real>(&self, s: &StepScalars, param: &mut [T], grad: &[T], state: &mut [&mut [T]]) {
        let (scale, decay, lr) = (T::of(s.grad_scale), T::of(s.weight_decay), T::of(s.lr));
        let [buffer] = state else {
            for (p, &g) in param.iter_mut().zip(grad) {
                *p -= (g * scale + *p * decay) * lr;
            }
            return;
        };
        let (old, new) = self.blend(s.step);
        let (old, new, momentum) = (T::of(old), T::of(new), T::of(self.momentum));
        if self.nesterov {
            for ((p, &g), b) in param.iter_mut().zip(grad).zip(buffer.iter_mut()) {
                let d = g * scale + *p * decay;
                *b = *b * old + d * new;
                *p -= (d + *b * momentum) * lr;
            }
        } else {
            for ((p, &g), b) in param.iter_mut().zip(grad).zip(buffer.iter_mut()) {
                let d = g * scale + *p * decay;
                *b = *b * old + d * new;
                *p -= *b * lr;
            }
        }
    }

    fn update_tensor(
        &self,
        s: &StepScalars,
        param: &Tensor,
        grad: &Tensor,
        state: &mut [Tensor],
    ) -> candle_core::Result<Tensor> {
        let d = ((grad * s.grad_scale)? + (param * s.weight_decay)?)?;
        let [buffer] = state else {
            return param - (d * s.lr)?;
        };
        let (old, new) = self.blend(s.step);
        *buffer = ((&*buffer * old)? + (&d * new)?)?;
        let direction = if self.nesterov { (d + (&*buffer * self.momentum)?)? } else { buffer.clone() };
        param - (direction * s.lr)?
    }
}
