use candle_core::{Module, Result, Tensor};
use candle_nn::VarBuilder;

use crate::init::{Init, param};

/// A learned factor per channel, Touvron et al. 2021 (CaiT).
///
/// # Shapes
/// - input and output `(*, C)`
#[derive(Debug, Clone)]
pub struct LayerScale {
    /// `(C)`.
    pub gamma: Tensor,
}

/// A layer scale called `gamma` that starts at `value`.
///
/// # Errors
/// The builder's.
pub fn layer_scale(dim: usize, value: f64, vb: VarBuilder) -> Result<LayerScale> {
    Ok(LayerScale { gamma: param(&vb, dim, "gamma", Init::Const(value))? })
}

impl Module for LayerScale {
    fn forward(&self, xs: &Tensor) -> Result<Tensor> {
        xs.broadcast_mul(&self.gamma)
    }
}
