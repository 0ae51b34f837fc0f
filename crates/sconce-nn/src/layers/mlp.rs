use candle_core::{Module, ModuleT, Result, Tensor};
use candle_nn::VarBuilder;
use sconce_ops::Activation;

use super::{Dropout, Linear};
use crate::init::Init;

/// The two-layer perceptron of a transformer block: `fc2(dropout(act(fc1(x))))`, dropout again at the end.
///
/// # Shapes
/// - input `(*, in)`
/// - output `(*, out)`
#[derive(Debug, Clone)]
pub struct Mlp {
    /// First layer, with the activation fused.
    pub fc1: Linear,
    /// Second layer.
    pub fc2: Linear,
    /// After the activation and after the second layer.
    pub dropout: Dropout,
}

/// What an [`Mlp`] is made of.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct MlpOptions {
    /// Width in between, usually four times the input's.
    pub hidden: usize,
    /// Width of the result; the input's when `None`.
    pub out: Option<usize>,
    /// Between the layers.
    pub activation: Activation,
    /// Probability of dropping.
    pub dropout: f64,
    /// Whether the layers have a bias.
    pub bias: bool,
    /// Names of the two layers.
    pub names: (&'static str, &'static str),
    /// How the weights start; biases start at 0.
    pub init: (Init, Init),
}

impl MlpOptions {
    /// timm's: GELU, no dropout, names `fc1` and `fc2`, weights from a truncated normal of 0.02.
    pub fn new(hidden: usize) -> Self {
        Self {
            hidden,
            out: None,
            activation: Activation::Gelu,
            dropout: 0.,
            bias: true,
            names: ("fc1", "fc2"),
            init: (Init::TruncNormal { std: 0.02 }, Init::TruncNormal { std: 0.02 }),
        }
    }
}

impl Mlp {
    /// An MLP on inputs of width `dim`.
    ///
    /// # Errors
    /// The builder's.
    pub fn new(dim: usize, options: &MlpOptions, vb: VarBuilder) -> Result<Self> {
        let MlpOptions { hidden, out, activation, dropout, bias, names, init } = *options;
        let fc1 = Linear::with_init(dim, hidden, bias, init.0, vb.pp(names.0))?.with_activation(activation);
        let fc2 = Linear::with_init(hidden, out.unwrap_or(dim), bias, init.1, vb.pp(names.1))?;
        Ok(Self { fc1, fc2, dropout: Dropout::new(dropout) })
    }
}

impl ModuleT for Mlp {
    fn forward_t(&self, xs: &Tensor, train: bool) -> Result<Tensor> {
        let hidden = self.dropout.forward_t(&self.fc1.forward(xs)?, train)?;
        self.dropout.forward_t(&self.fc2.forward(&hidden)?, train)
    }
}
