use candle_core::{ModuleT, Result, Tensor, Var};
use candle_nn::VarBuilder;

use crate::init::{Init, buffer, param};

/// Batch normalisation, Ioffe and Szegedy 2015, for any number of spatial axes.
///
/// Training normalises with the batch's biased variance and moves the running statistics towards the batch's mean and unbiased
/// variance; evaluation uses the running statistics. Clones share them. The counter `num_batches_tracked` of PyTorch's files
/// has no part in the result and is not kept.
///
/// # Shapes
/// - input and output `(B, C, *)`
#[derive(Debug, Clone)]
pub struct BatchNorm {
    /// `(C)`.
    pub weight: Option<Tensor>,
    /// `(C)`.
    pub bias: Option<Tensor>,
    /// `(C)`, buffer.
    pub running_mean: Var,
    /// `(C)`, buffer.
    pub running_var: Var,
    /// Added to the variance.
    pub eps: f64,
    /// Share of the new batch in the running statistics.
    pub momentum: f64,
    /// Use the running statistics, and leave them, in training too.
    pub frozen: bool,
}

/// A batch norm called `weight`, `bias`, `running_mean`, `running_var`; eps 1e-5, momentum 0.1.
///
/// # Errors
/// The builder's.
pub fn batch_norm(channels: usize, vb: VarBuilder) -> Result<BatchNorm> {
    Ok(BatchNorm {
        weight: Some(param(&vb, channels, "weight", Init::Ones)?),
        bias: Some(param(&vb, channels, "bias", Init::Zeros)?),
        running_mean: Var::from_tensor(&buffer(&vb, channels, "running_mean", 0.)?)?,
        running_var: Var::from_tensor(&buffer(&vb, channels, "running_var", 1.)?)?,
        eps: 1e-5,
        momentum: 0.1,
        frozen: false,
    })
}

impl BatchNorm {
    /// Normalises with the running statistics.
    ///
    /// # Errors
    /// When the channels do not fit.
    pub fn forward_eval(&self, xs: &Tensor) -> Result<Tensor> {
        let (mean, var) = (self.running_mean.as_detached_tensor(), self.running_var.as_detached_tensor());
        sconce_ops::batch_norm(xs, self.weight.as_ref(), self.bias.as_ref(), &mean, &var, self.eps)
    }

    fn track(&self, running: &Var, batch: &Tensor) -> Result<()> {
        let batch = batch.to_dtype(running.dtype())?;
        let moved = ((running.as_detached_tensor() * (1. - self.momentum))? + (batch * self.momentum)?)?;
        running.set(&moved)
    }
}

impl ModuleT for BatchNorm {
    fn forward_t(&self, xs: &Tensor, train: bool) -> Result<Tensor> {
        if !train || self.frozen {
            return self.forward_eval(xs);
        }
        let batch = sconce_ops::batch_norm_train(xs, self.weight.as_ref(), self.bias.as_ref(), self.eps)?;
        self.track(&self.running_mean, &batch.mean)?;
        self.track(&self.running_var, &batch.var_unbiased)?;
        Ok(batch.output)
    }
}
