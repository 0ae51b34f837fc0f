//! Layer-wise adaptive rate scaling.

use candle_core::Tensor;
use serde::{Deserialize, Serialize};

use super::engine::{Fused, Rule, StepScalars};
use super::{ParamGroups, Real, kernel};

/// Constants of [`Lars`]; the defaults are those of the self-supervised learning literature.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct LarsConfig {
    /// Learning rate.
    pub lr: f64,
    /// Factor of the momentum buffer.
    pub momentum: f64,
    /// Weight decay, added to the gradient.
    pub weight_decay: f64,
    /// Size of a step relative to the parameter's norm.
    pub trust_coefficient: f64,
    /// Keeps weight decay and the trust ratio off parameters with at most one dimension.
    pub exclude_1d: bool,
}

impl Default for LarsConfig {
    fn default() -> Self {
        Self { lr: 0.1, momentum: 0.9, weight_decay: 0., trust_coefficient: 1e-3, exclude_1d: true }
    }
}

/// Layer-wise adaptive rate scaling, You et al. 2017, in the form that Barlow Twins and DINO use:
/// with `d = g + wd * p` and `q = trust * |p| / |d|` (1 where a norm is zero),
/// `b = momentum * b + q * d`, `p -= lr * b`.
pub type Lars = Fused<LarsConfig>;

impl Lars {
    /// An optimiser of these parameters.
    pub fn new(groups: ParamGroups, config: LarsConfig) -> Self {
        Self::from_rule(config, groups, config.lr, config.weight_decay)
    }
}

impl LarsConfig {
    #[inline(always)]
    fn adapts(&self, s: &StepScalars) -> bool {
        s.rank > 1 || !self.exclude_1d
    }

    #[inline(always)]
    fn decay(&self, s: &StepScalars) -> f64 {
        if self.adapts(s) { s.weight_decay } else { 0. }
    }

    fn trust(&self, param_square: f64, update_square: f64) -> f64 {
        if param_square > 0. && update_square > 0. {
            self.trust_coefficient * (param_square / update_square).sqrt()
        } else {
            1.
        }
    }
}

impl Rule for LarsConfig {
    fn name(&self) -> &'static str {
        "lars"
    }

    fn buffers(&self) -> &'static [&'static str] {
        &["momentum"]
    }

    fn ratio<T: Real>(&self, s: &StepScalars, param: &[T], grad: &[T]) -> f64 {
        if !self.adapts(s) {
            return 1.;
        }
        // |scale * g + wd * p| = scale * |g + wd / scale * p|
        let update = if s.grad_scale == 0. {
            s.weight_decay.powi(2) * kernel::sum_of_squares(param, None)
        } else {
            let relative = s.weight_decay / s.grad_scale;
            s.grad_scale.powi(2) * kernel::sum_of_squares(grad, Some((param, relative)))
        };
        self.trust(kernel::sum_of_squares(param, None), update)
    }

    #[inline(always)]
    fn update<T: Real>(&self, s: &StepScalars, param: &mut [T], grad: &[T], state: &mut [&mut [T]]) {
        let [buffer] = state else { return };
        let (scale, decay) = (T::of(s.grad_scale), T::of(self.decay(s)));
        let (ratio, momentum, lr) = (T::of(s.ratio), T::of(self.momentum), T::of(s.lr));
        for ((p, &g), b) in param.iter_mut().zip(grad).zip(buffer.iter_mut()) {
            let d = g * scale + *p * decay;
            *b = *b * momentum + d * ratio;
            *p -= *b * lr;
        }
    }

    fn ratio_tensor(&self, s: &StepScalars, param: &Tensor, grad: &Tensor) -> candle_core::Result<f64> {
        if !self.adapts(s) {
            return Ok(1.);
        }
        let square = |tensor: &Tensor| {
            let sum = tensor.sqr()?.sum_all()?.to_dtype(candle_core::DType::F64)?;
            sum.to_scalar::<f64>()
        };
        let update = ((grad * s.grad_scale)? + (param * s.weight_decay)?)?;
        Ok(self.trust(square(param)?, square(&update)?))
    }

    fn update_tensor(
        &self,
        s: &StepScalars,
        param: &Tensor,
        grad: &Tensor,
        state: &mut [Tensor],
    ) -> candle_core::Result<Tensor> {
        let [buffer] = state else { candle_core::bail!("LARS keeps one buffer") };
        let d = ((grad * s.grad_scale)? + (param * self.decay(s))?)?;
        *buffer = ((&*buffer * self.momentum)? + (d * s.ratio)?)?;
        param - (&*buffer * s.lr)?
    }
}
