//! Adam with decoupled weight decay.

use candle_core::Tensor;
use serde::{Deserialize, Serialize};

use super::engine::{Fused, Rule, StepScalars};
use super::{ParamGroups, Real};

/// Constants of [`AdamW`]; the defaults are PyTorch's.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct AdamWConfig {
    /// Learning rate.
    pub lr: f64,
    /// Decay of the first moment.
    pub beta1: f64,
    /// Decay of the second moment.
    pub beta2: f64,
    /// Added to the root of the second moment.
    pub eps: f64,
    /// Weight decay: each step multiplies parameters by `1 - lr * weight_decay`.
    pub weight_decay: f64,
}

impl Default for AdamWConfig {
    fn default() -> Self {
        Self { lr: 1e-3, beta1: 0.9, beta2: 0.999, eps: 1e-8, weight_decay: 0.01 }
    }
}

/// Adam with decoupled weight decay, Loshchilov and Hutter 2019, as PyTorch computes it:
/// `p -= lr / (1 - beta1^t) * m / (sqrt(v) / sqrt(1 - beta2^t) + eps)`.
///
/// `t` counts the steps of each parameter, so that one which is unfrozen late is not biased.
pub type AdamW = Fused<AdamWConfig>;

impl AdamW {
    /// An optimiser of these parameters.
    pub fn new(groups: ParamGroups, config: AdamWConfig) -> Self {
        Self::from_rule(config, groups, config.lr, config.weight_decay)
    }
}

/// The factors of one step.
struct Factors {
    keep: f64,
    size: f64,
    root: f64,
}

impl AdamWConfig {
    #[inline(always)]
    fn factors(&self, s: &StepScalars) -> Factors {
        let power = |beta: f64| 1. - beta.powi(s.step.min(i32::MAX as u64) as i32);
        Factors { keep: 1. - s.lr * s.weight_decay, size: s.lr / power(self.beta1), root: power(self.beta2).sqrt() }
    }
}

impl Rule for AdamWConfig {
    fn name(&self) -> &'static str {
        "adamw"
    }

    fn buffers(&self) -> &'static [&'static str] {
        &["exp_avg", "exp_avg_sq"]
    }

    #[inline(always)]
    fn update<T: Real>(&self, s: &StepScalars, param: &mut [T], grad: &[T], state: &mut [&mut [T]]) {
        let [m, v] = state else { return };
        let Factors { keep, size, root } = self.factors(s);
        let (keep, size, root) = (T::of(keep), T::of(size), T::of(root));
        let (lerp1, beta2, lerp2) = (T::of(1. - self.beta1), T::of(self.beta2), T::of(1. - self.beta2));
        let (eps, scale) = (T::of(self.eps), T::of(s.grad_scale));
        let state = m.iter_mut().zip(v.iter_mut());
        for ((p, &g), (m, v)) in param.iter_mut().zip(grad).zip(state) {
            let g = g * scale;
            *m += (g - *m) * lerp1;
            *v = *v * beta2 + g * g * lerp2;
            *p = *p * keep - *m / (v.root() / root + eps) * size;
        }
    }

    fn update_tensor(
        &self,
        s: &StepScalars,
        param: &Tensor,
        grad: &Tensor,
        state: &mut [Tensor],
    ) -> candle_core::Result<Tensor> {
        let [m, v] = state else { candle_core::bail!("AdamW keeps two buffers") };
        let Factors { keep, size, root } = self.factors(s);
        let grad = (grad * s.grad_scale)?;
        *m = (&*m + ((&grad - &*m)? * (1. - self.beta1))?)?;
        *v = ((&*v * self.beta2)? + (grad.sqr()? * (1. - self.beta2))?)?;
        let denominator = ((v.sqrt()? / root)? + self.eps)?;
        (param * keep)? - ((&*m / denominator)? * size)?
    }
}
