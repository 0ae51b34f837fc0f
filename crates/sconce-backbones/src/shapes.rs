//! The parameters of a model without their values.

use std::sync::{Arc, Mutex, PoisonError};

use candle_core::{DType, Device, Result, Shape, Tensor};
use candle_nn::var_builder::SimpleBackend;
use sconce_nn::VarBuilder;
use sconce_nn::init::{self, Role};

/// Records what a model asks of its builder and hands out zeros that take no memory, so that the parameters of a model
/// of any size can be listed and counted at no cost. The model works and computes nonsense.
///
/// ```
/// use sconce_backbones::{ShapeRecorder, VisionTransformer, vit::Config};
///
/// let recorder = ShapeRecorder::default();
/// VisionTransformer::new(&Config::vit_large_patch16_224(), recorder.vb())?;
/// assert_eq!(recorder.count(), 304_326_632);
/// # Ok::<(), candle_core::Error>(())
/// ```
#[derive(Debug, Clone, Default)]
pub struct ShapeRecorder(Arc<Mutex<Vec<Recorded>>>);

#[derive(Debug, Clone)]
struct Recorded {
    name: String,
    shape: Shape,
    role: Role,
}

impl ShapeRecorder {
    /// The builder to make the model from.
    pub fn vb(&self) -> VarBuilder<'static> {
        VarBuilder::from_backend(Box::new(self.clone()), DType::F32, Device::Cpu)
    }

    /// Names and shapes in the order in which the model asked for them, buffers included.
    pub fn shapes(&self) -> Vec<(String, Shape)> {
        let recorded = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        recorded.iter().map(|r| (r.name.clone(), r.shape.clone())).collect()
    }

    /// Scalars in all parameters, frozen ones included. Buffers do not count.
    pub fn count(&self) -> usize {
        let recorded = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        recorded.iter().filter(|r| r.role != Role::Buffer).map(|r| r.shape.elem_count()).sum()
    }
}

impl SimpleBackend for ShapeRecorder {
    fn get(&self, shape: Shape, name: &str, _: candle_nn::Init, dtype: DType, dev: &Device) -> Result<Tensor> {
        let zeros = Tensor::zeros((), dtype, dev)?.broadcast_as(&shape)?;
        let role = init::requested_role().unwrap_or(Role::Trained);
        let mut recorded = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if recorded.iter().all(|other| other.name != name) {
            recorded.push(Recorded { name: name.into(), shape, role });
        }
        Ok(zeros)
    }

    fn get_unchecked(&self, name: &str, _: DType, _: &Device) -> Result<Tensor> {
        Err(candle_core::Error::CannotFindTensor { path: name.into() }.bt())
    }

    fn contains_tensor(&self, _: &str) -> bool {
        true
    }
}
