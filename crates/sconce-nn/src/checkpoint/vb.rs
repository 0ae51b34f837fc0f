use candle_core::{DType, Device, Result, Shape, Tensor};
use candle_nn::var_builder::SimpleBackend;

use super::Checkpoint;
use crate::error::Error;
use crate::init;
use crate::load::LoadOptions;

/// Gives the tensors of a checkpoint to layers, and nothing else.
pub(super) struct Backend {
    pub(super) checkpoint: Checkpoint,
    pub(super) options: LoadOptions,
}

impl SimpleBackend for Backend {
    fn get(&self, shape: Shape, name: &str, _: candle_nn::Init, dtype: DType, device: &Device) -> Result<Tensor> {
        init::take_request();
        let found = self.checkpoint.shape(name)?;
        if found == shape.dims() {
            return self.checkpoint.tensor(name, device)?.to_dtype(dtype);
        }
        if self.options.has_hooks() {
            let tensor = self.checkpoint.tensor(name, device)?;
            if let Some(tensor) = self.options.resized(name, &tensor, shape.dims())? {
                return tensor.to_device(device)?.to_dtype(dtype);
            }
        }
        Err(Error::Shape { name: name.to_string(), expected: shape.into_dims(), found }.into())
    }

    fn get_unchecked(&self, name: &str, dtype: DType, device: &Device) -> Result<Tensor> {
        self.checkpoint.tensor(name, device)?.to_dtype(dtype)
    }

    fn contains_tensor(&self, name: &str) -> bool {
        self.checkpoint.contains(name)
    }
}
