//! State of an optimiser as named tensors, and back.

use std::collections::HashMap;

use candle_core::{DType, Device, Tensor};

use super::engine::{Buffers, Fused, Rule, Slot, state_dtype};
use super::kernel::Real;
use super::{OptimizerState, Param};
use crate::{Error, Result};

impl<R: Rule> Fused<R> {
    pub(super) fn save_slots(&self) -> Result<OptimizerState> {
        let mut tensors = vec![
            ("hyper.lr".to_owned(), Tensor::new(self.lr, &Device::Cpu)?),
            ("hyper.weight_decay".to_owned(), Tensor::new(self.weight_decay, &Device::Cpu)?),
        ];
        for ((_, Param { name, var }), slot) in self.groups.iter().zip(&self.slots) {
            let step = Tensor::new(slot.step as i64, &Device::Cpu)?;
            tensors.push((format!("step.{name}"), step));
            let shape = var.shape();
            let buffers: Vec<Tensor> = match &slot.buffers {
                Buffers::Absent => continue,
                Buffers::F32(state) => state
                    .iter()
                    .map(|xs| Tensor::from_slice(xs, shape, &Device::Cpu))
                    .collect::<candle_core::Result<_>>()?,
                Buffers::F64(state) => state
                    .iter()
                    .map(|xs| Tensor::from_slice(xs, shape, &Device::Cpu))
                    .collect::<candle_core::Result<_>>()?,
                Buffers::Tensors(state) => state.clone(),
            };
            for (buffer, tensor) in self.rule.buffers().iter().zip(buffers) {
                tensors.push((format!("{buffer}.{name}"), tensor));
            }
        }
        Ok(OptimizerState { kind: self.rule.name().to_owned(), tensors })
    }

    pub(super) fn load_slots(&mut self, state: &OptimizerState) -> Result<()> {
        if state.kind != self.rule.name() {
            return Err(Error::WrongOptimizer { expected: self.rule.name().to_owned(), found: state.kind.clone() });
        }
        let mut source = Source(state.tensors.iter().map(|(name, tensor)| (name.as_str(), tensor)).collect());
        let scalar: [usize; 0] = [];
        let lr = source.take("hyper.lr", &scalar, DType::F64)?.to_scalar()?;
        let weight_decay = source.take("hyper.weight_decay", &scalar, DType::F64)?.to_scalar()?;
        let mut slots = Vec::with_capacity(self.slots.len());
        for (_, Param { name, var }) in self.groups.iter() {
            let step: i64 = source.take(&format!("step.{name}"), &scalar, DType::I64)?.to_scalar()?;
            let step =
                u64::try_from(step).map_err(|_| Error::Config(format!("step {step} of {name} in the saved state")))?;
            let mut slot = Slot { step, buffers: Buffers::Absent };
            if step > 0 {
                let dtype = state_dtype(var.dtype());
                let tensors = self
                    .rule
                    .buffers()
                    .iter()
                    .map(|buffer| source.take(&format!("{buffer}.{name}"), var.dims(), dtype))
                    .collect::<Result<Vec<_>>>()?;
                slot.buffers = match (var.device(), var.dtype()) {
                    (Device::Cpu, DType::F32) => Buffers::F32(to_vecs(&tensors)?),
                    (Device::Cpu, DType::F64) => Buffers::F64(to_vecs(&tensors)?),
                    (device, _) => Buffers::Tensors(
                        tensors.iter().map(|tensor| tensor.to_device(device)).collect::<candle_core::Result<_>>()?,
                    ),
                };
            }
            slots.push(slot);
        }
        if let Some(name) = source.0.keys().min() {
            return Err(Error::UnexpectedTensor { section: SECTION.to_owned(), name: (*name).to_owned() });
        }
        (self.lr, self.weight_decay, self.slots) = (lr, weight_decay, slots);
        Ok(())
    }
}

const SECTION: &str = "optimizer state";

struct Source<'a>(HashMap<&'a str, &'a Tensor>);

impl<'a> Source<'a> {
    fn take(&mut self, name: &str, shape: &[usize], dtype: DType) -> Result<&'a Tensor> {
        let section = SECTION.to_owned();
        let Some(tensor) = self.0.remove(name) else {
            let name = name.to_owned();
            return Err(Error::MissingTensor { section, name });
        };
        if tensor.dims() != shape || tensor.dtype() != dtype {
            return Err(Error::TensorMismatch {
                section,
                name: name.to_owned(),
                expected: shape.into(),
                expected_dtype: dtype,
                found: tensor.shape().clone(),
                found_dtype: tensor.dtype(),
            });
        }
        Ok(tensor)
    }
}

fn to_vecs<T: Real>(tensors: &[&Tensor]) -> Result<Vec<Vec<T>>> {
    let vecs = tensors.iter().map(|tensor| tensor.flatten_all()?.to_vec1::<T>()).collect::<candle_core::Result<_>>()?;
    Ok(vecs)
}
