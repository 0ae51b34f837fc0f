//! The part that all optimisers share: groups, clipping, state, and the one pass.

use std::collections::HashSet;

use candle_core::backprop::GradStore;
use candle_core::{DType, Device, Storage, Tensor, Var};
use rayon::prelude::*;

use super::clip::sums_of_squares;
use super::kernel::{self, CHUNK, Kernel, Real};
use super::{Clip, NonFinite, Optimizer, OptimizerState, Param, ParamGroups, StepReport};
use crate::{Error, Result};

/// Numbers that one parameter tensor is updated with.
#[derive(Clone, Copy, Debug)]
pub struct StepScalars {
    /// Number of this step for this parameter, from 1.
    pub step: u64,
    /// Learning rate, with the factor of the group.
    pub lr: f64,
    /// Weight decay, with the factor of the group.
    pub weight_decay: f64,
    /// Factor on the gradient, from clipping.
    pub grad_scale: f64,
    /// Number of dimensions of the parameter.
    pub rank: usize,
    /// What [`Rule::ratio`] gave.
    pub ratio: f64,
}

/// A rule for changing one parameter tensor by its gradient; [`Fused`] makes an optimiser of it.
pub trait Rule: Send + Sync {
    /// Name of the rule in saved state.
    fn name(&self) -> &'static str;

    /// Names of the buffers of the size of the parameter that the rule keeps; they start at zero.
    fn buffers(&self) -> &'static [&'static str];

    /// A factor that depends on whole tensors (LARS's trust ratio).
    fn ratio<T: Real>(&self, _scalars: &StepScalars, _param: &[T], _grad: &[T]) -> f64 {
        1.
    }

    /// Updates part of a parameter on the CPU. Mark the implementation `#[inline(always)]`: it is
    /// compiled anew for each instruction set.
    fn update<T: Real>(&self, scalars: &StepScalars, param: &mut [T], grad: &[T], state: &mut [&mut [T]]);

    /// [`Rule::ratio`] on another device or in another type.
    ///
    /// # Errors
    /// A failure of the device.
    fn ratio_tensor(&self, _scalars: &StepScalars, _param: &Tensor, _grad: &Tensor) -> candle_core::Result<f64> {
        Ok(1.)
    }

    /// [`Rule::update`] by tensor operations: gives the new parameter and replaces the state.
    ///
    /// # Errors
    /// A failure of the device.
    fn update_tensor(
        &self,
        scalars: &StepScalars,
        param: &Tensor,
        grad: &Tensor,
        state: &mut [Tensor],
    ) -> candle_core::Result<Tensor>;
}

/// State of one parameter. Buffers appear with the first step: frozen parameters cost nothing.
#[derive(Clone, Debug, Default)]
pub(super) struct Slot {
    pub(super) step: u64,
    pub(super) buffers: Buffers,
}

#[derive(Clone, Debug, Default)]
pub(super) enum Buffers {
    #[default]
    Absent,
    F32(Vec<Vec<f32>>),
    F64(Vec<Vec<f64>>),
    Tensors(Vec<Tensor>),
}

/// An optimiser that runs a [`Rule`] in one pass over parameter, gradient and state.
///
/// On the CPU, `f32` and `f64` parameters are updated in place by vectorised loops on all threads,
/// with the same bits for any number of threads. Elsewhere tensor operations do the same. Half
/// precision parameters keep their state and do their arithmetic in `f32`.
#[derive(Clone, Debug)]
pub struct Fused<R> {
    pub(super) rule: R,
    pub(super) groups: ParamGroups,
    pub(super) lr: f64,
    pub(super) weight_decay: f64,
    clip: Clip,
    non_finite: NonFinite,
    pub(super) slots: Vec<Slot>,
}

impl<R: Rule> Fused<R> {
    /// An optimiser with the given rule, base learning rate and base weight decay.
    pub fn from_rule(rule: R, groups: ParamGroups, lr: f64, weight_decay: f64) -> Self {
        let slots = vec![Slot::default(); groups.len()];
        Self { rule, groups, lr, weight_decay, clip: Clip::None, non_finite: NonFinite::Fail, slots }
    }

    /// Clips gradients by their norm before each step, without a pass of its own to scale them.
    #[must_use]
    pub fn with_clip(mut self, clip: Clip) -> Self {
        self.clip = clip;
        self
    }

    /// What to do when a gradient is not finite.
    #[must_use]
    pub fn with_non_finite(mut self, policy: NonFinite) -> Self {
        self.non_finite = policy;
        self
    }

    /// The rule with its constants.
    pub fn rule(&self) -> &R {
        &self.rule
    }

    /// Gradients that fit, contiguous, each with the index of its slot.
    fn gather(&self, grads: &GradStore) -> Result<Vec<(usize, Tensor)>> {
        let mut found = Vec::with_capacity(self.slots.len());
        let written: HashSet<_> = self.groups.iter().map(|(_, param)| address(&param.var)).collect();
        for (index, (_, Param { name, var })) in self.groups.iter().enumerate() {
            let Some(grad) = grads.get(var) else { continue };
            if grad.shape() != var.shape() || grad.dtype() != var.dtype() {
                return Err(Error::GradientMismatch {
                    name: name.clone(),
                    expected: var.shape().clone(),
                    expected_dtype: var.dtype(),
                    found: grad.shape().clone(),
                    found_dtype: grad.dtype(),
                });
            }
            let grad = grad.detach().contiguous()?;
            // A gradient that lives in a parameter would change while it is read.
            let grad = if written.contains(&address(&grad)) { grad.copy()? } else { grad };
            found.push((index, grad));
        }
        if found.is_empty() {
            let parameters = self.slots.len();
            return Err(Error::NoGradient { parameters });
        }
        Ok(found)
    }

    fn apply(&self, slot: &mut Slot, var: &Var, grad: &Tensor, mut s: StepScalars) -> Result<()> {
        s.step = slot.step + 1;
        let (count, elements) = (self.rule.buffers().len(), var.elem_count());
        if let Buffers::Absent = slot.buffers {
            slot.buffers = match (var.device(), var.dtype()) {
                (Device::Cpu, DType::F32) => Buffers::F32(vec![vec![0.; elements]; count]),
                (Device::Cpu, DType::F64) => Buffers::F64(vec![vec![0.; elements]; count]),
                (device, dtype) => {
                    let zeros = Tensor::zeros(var.shape(), state_dtype(dtype), device)?;
                    Buffers::Tensors(vec![zeros; count])
                }
            };
        }
        match &mut slot.buffers {
            Buffers::Absent => {}
            Buffers::F32(state) => {
                kernel::update(var, grad, |p, g| fused_pass(&self.rule, s, p, g, state))?;
            }
            Buffers::F64(state) => {
                kernel::update(var, grad, |p, g| fused_pass(&self.rule, s, p, g, state))?;
            }
            Buffers::Tensors(state) => {
                let wide = state_dtype(var.dtype());
                let param = var.as_detached_tensor().to_dtype(wide)?;
                let grad = grad.to_dtype(wide)?;
                s.ratio = self.rule.ratio_tensor(&s, &param, &grad)?;
                let new = self.rule.update_tensor(&s, &param, &grad, state)?;
                var.set(&new.to_dtype(var.dtype())?)?;
            }
        }
        slot.step += 1;
        Ok(())
    }
}

impl<R: Rule> Optimizer for Fused<R> {
    fn step(&mut self, grads: &GradStore) -> Result<StepReport> {
        let found = self.gather(grads)?;
        let params: Vec<_> = self.groups.iter().collect();
        let mut report = StepReport { without_gradient: params.len() - found.len(), ..StepReport::default() };
        let mut factors = vec![1.; found.len()];
        if self.clip != Clip::None || self.non_finite != NonFinite::Ignore {
            let tensors: Vec<&Tensor> = found.iter().map(|(_, grad)| grad).collect();
            let squares = sums_of_squares(&tensors)?;
            let bad = squares.iter().position(|square| !square.is_finite());
            if let Some(bad) = bad.filter(|_| self.non_finite != NonFinite::Ignore) {
                let name = params[found[bad].0].1.name.clone();
                if self.non_finite == NonFinite::Fail {
                    return Err(Error::NonFiniteGradient { name });
                }
                report.skipped = Some(name);
                return Ok(report);
            }
            report.grad_norm = Some(squares.iter().sum::<f64>().sqrt());
            factors = self.clip.factors(&squares);
            report.clipped = factors.iter().filter(|&&factor| factor < 1.).count();
        }
        report.updated = found.len();

        let mut slots = std::mem::take(&mut self.slots);
        let mut work: Vec<Option<(&Tensor, f64)>> = vec![None; slots.len()];
        for ((index, grad), factor) in found.iter().zip(factors) {
            work[*index] = Some((grad, factor));
        }
        let result = slots
            .par_iter_mut()
            .zip(&work)
            .zip(&params)
            .filter_map(|((slot, work), param)| work.map(|work| (slot, work, param)))
            .map(|(slot, (grad, grad_scale), (group, param))| {
                let scalars = StepScalars {
                    step: 0,
                    lr: self.lr * group.lr_scale,
                    weight_decay: self.weight_decay * group.weight_decay_scale,
                    grad_scale,
                    rank: param.var.dims().len(),
                    ratio: 1.,
                };
                self.apply(slot, &param.var, grad, scalars)
            })
            .collect::<Result<()>>();
        self.slots = slots;
        result.map(|()| report)
    }

    fn lr(&self) -> f64 {
        self.lr
    }

    fn set_lr(&mut self, lr: f64) {
        self.lr = lr;
    }

    fn weight_decay(&self) -> f64 {
        self.weight_decay
    }

    fn set_weight_decay(&mut self, weight_decay: f64) {
        self.weight_decay = weight_decay;
    }

    fn groups(&self) -> &ParamGroups {
        &self.groups
    }

    fn groups_mut(&mut self) -> &mut ParamGroups {
        &mut self.groups
    }

    fn state(&self) -> Result<OptimizerState> {
        self.save_slots()
    }

    fn load_state(&mut self, state: &OptimizerState) -> Result<()> {
        self.load_slots(state)
    }
}

/// Where the storage of a tensor lies: equal for tensors that share it.
fn address(tensor: &Tensor) -> usize {
    let (storage, _) = tensor.storage_and_layout();
    std::ptr::from_ref::<Storage>(&storage).addr()
}

pub(super) fn state_dtype(param: DType) -> DType {
    if param == DType::F64 { DType::F64 } else { DType::F32 }
}

/// Runs the rule over a whole parameter on the CPU.
fn fused_pass<R: Rule, T: Real>(rule: &R, mut scalars: StepScalars, param: &mut [T], grad: &[T], state: &mut [Vec<T>]) {
    scalars.ratio = rule.ratio(&scalars, param, grad);
    let scalars = &scalars;
    if param.len() <= CHUNK {
        let mut state: Vec<&mut [T]> = state.iter_mut().map(Vec::as_mut_slice).collect();
        let state = state.as_mut_slice();
        return kernel::dispatch(Part { rule, scalars, param, grad, state });
    }
    let mut rest: Vec<_> = state.iter_mut().map(|xs| xs.chunks_mut(CHUNK)).collect();
    let parts: Vec<_> = param
        .chunks_mut(CHUNK)
        .zip(grad.chunks(CHUNK))
        .map(|(param, grad)| {
            let state: Vec<&mut [T]> = rest.iter_mut().filter_map(Iterator::next).collect();
            (param, grad, state)
        })
        .collect();
    parts.into_par_iter().for_each(|(param, grad, mut state)| {
        kernel::dispatch(Part { rule, scalars, param, grad, state: &mut state });
    });
}

struct Part<'a, 'b, R, T> {
    rule: &'a R,
    scalars: &'a StepScalars,
    param: &'a mut [T],
    grad: &'a [T],
    state: &'a mut [&'b mut [T]],
}

impl<R: Rule, T: Real> Kernel for Part<'_, '_, R, T> {
    type Output = ();
    #[inline(always)]
    fn run(self) {
        self.rule.update(self.scalars, self.param, self.grad, self.state);
    }
}
