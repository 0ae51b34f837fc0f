//! Activation functions, element by element.

use candle_core::{Module, Result, Tensor};
use serde::{Deserialize, Serialize};

use crate::check;

/// An activation function, by name; in configurations `"gelu_tanh"` and the like.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Activation {
    /// `x`
    Identity,
    /// [`gelu`]
    #[default]
    Gelu,
    /// [`gelu_tanh`]
    GeluTanh,
    /// [`gelu_quick`]
    GeluQuick,
    /// [`relu`]
    Relu,
    /// [`silu`]
    Silu,
    /// `tanh x`
    Tanh,
    /// `1 / (1 + e^-x)`
    Sigmoid,
}

impl Activation {
    /// Applies the function to every element.
    ///
    /// # Errors
    /// When the type is not floating-point.
    pub fn forward(self, xs: &Tensor) -> Result<Tensor> {
        if self == Self::Identity {
            return Ok(xs.clone());
        }
        check::float("activation", xs)?;
        reference(xs, self)
    }
}

impl Module for Activation {
    fn forward(&self, xs: &Tensor) -> Result<Tensor> {
        (*self).forward(xs)
    }
}

/// Gaussian error linear unit, Hendrycks and Gimpel 2016, the exact form: `x Phi(x)`, `Phi` the normal distribution.
///
/// # Errors
/// When the type is not floating-point.
pub fn gelu(xs: &Tensor) -> Result<Tensor> {
    Activation::Gelu.forward(xs)
}

/// The tanh approximation of [`gelu`]: `x / 2 (1 + tanh(sqrt(2 / pi) (x + 0.044715 x^3)))`.
///
/// # Errors
/// When the type is not floating-point.
pub fn gelu_tanh(xs: &Tensor) -> Result<Tensor> {
    Activation::GeluTanh.forward(xs)
}

/// The sigmoid approximation of [`gelu`], as in OpenAI's CLIP: `x sigmoid(1.702 x)`.
///
/// # Errors
/// When the type is not floating-point.
pub fn gelu_quick(xs: &Tensor) -> Result<Tensor> {
    Activation::GeluQuick.forward(xs)
}

/// Sigmoid linear unit, `x sigmoid(x)`.
///
/// # Errors
/// When the type is not floating-point.
pub fn silu(xs: &Tensor) -> Result<Tensor> {
    Activation::Silu.forward(xs)
}

/// `max(x, 0)`; its gradient at 0 is 0.
///
/// # Errors
/// When the type is not floating-point.
pub fn relu(xs: &Tensor) -> Result<Tensor> {
    Activation::Relu.forward(xs)
}

/// The same by candle's own operations; differentiable. Candle's ready GELUs are avoided: their gradients use constants of six
/// digits.
pub(crate) fn reference(xs: &Tensor, activation: Activation) -> Result<Tensor> {
    let x = xs.to_dtype(check::wide(xs.dtype()))?;
    let sigmoid = |x: &Tensor| ((x * 0.5)?.tanh()? * 0.5)? + 0.5;
    let y = match activation {
        Activation::Identity => x,
        Activation::Gelu => {
            let phi = (((&x * std::f64::consts::FRAC_1_SQRT_2)?.erf()? * 0.5)? + 0.5)?;
            (&x * phi)?
        }
        Activation::GeluTanh => {
            let inner = (&x * ((x.sqr()? * 0.044715)? + 1.)?)?;
            let scale = (2. / std::f64::consts::PI).sqrt();
            (&x * (((inner * scale)?.tanh()? * 0.5)? + 0.5)?)?
        }
        Activation::GeluQuick => (&x * sigmoid(&(&x * 1.702)?)?)?,
        Activation::Relu => (&x * x.gt(0.)?.to_dtype(x.dtype())?)?,
        Activation::Silu => (&x * sigmoid(&x)?)?,
        Activation::Tanh => x.tanh()?,
        Activation::Sigmoid => sigmoid(&x)?,
    };
    y.to_dtype(xs.dtype())
}
