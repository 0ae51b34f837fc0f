use candle_core::{Module, Result, Shape, Tensor};
use candle_nn::VarBuilder;
use sconce_ops::Activation;

use crate::init::{Init, param};

/// `act(x W^T + b)`, the activation optional and fused into the product.
///
/// # Shapes
/// - input `(*, in)`
/// - output `(*, out)`
#[derive(Debug, Clone)]
pub struct Linear {
    /// `(out, in)`.
    pub weight: Tensor,
    /// `(out)`.
    pub bias: Option<Tensor>,
    /// Applied to the result.
    pub activation: Option<Activation>,
}

impl Linear {
    /// A layer of existing tensors.
    pub fn new(weight: Tensor, bias: Option<Tensor>) -> Self {
        Self { weight, bias, activation: None }
    }

    /// `weight` starts as `init` says, the bias at 0.
    ///
    /// # Errors
    /// The builder's.
    pub fn with_init(in_dim: usize, out_dim: usize, bias: bool, init: Init, vb: VarBuilder) -> Result<Self> {
        let weight = param(&vb, (out_dim, in_dim), "weight", init)?;
        let bias = bias.then(|| param(&vb, out_dim, "bias", Init::Zeros)).transpose()?;
        Ok(Self::new(weight, bias))
    }

    /// Adds an activation to the result.
    pub fn with_activation(mut self, activation: Activation) -> Self {
        self.activation = Some(activation);
        self
    }
}

/// A linear layer called `weight` and `bias`, started as in PyTorch.
///
/// # Errors
/// The builder's.
pub fn linear(in_dim: usize, out_dim: usize, vb: VarBuilder) -> Result<Linear> {
    let shape = Shape::from((out_dim, in_dim));
    let bias = Init::torch_bias(&shape);
    let weight = param(&vb, shape, "weight", Init::TorchLinear)?;
    Ok(Linear::new(weight, Some(param(&vb, out_dim, "bias", bias)?)))
}

/// A linear layer without bias, started as in PyTorch.
///
/// # Errors
/// The builder's.
pub fn linear_no_bias(in_dim: usize, out_dim: usize, vb: VarBuilder) -> Result<Linear> {
    Linear::with_init(in_dim, out_dim, false, Init::TorchLinear, vb)
}

impl Module for Linear {
    fn forward(&self, xs: &Tensor) -> Result<Tensor> {
        sconce_ops::linear(xs, &self.weight, self.bias.as_ref(), self.activation)
    }
}
