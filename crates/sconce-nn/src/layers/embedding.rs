use candle_core::{Module, Result, Tensor};
use candle_nn::VarBuilder;

use crate::init::{Init, param};

/// A table of vectors, looked up by index.
///
/// # Shapes
/// - input `(*)` of `u32`, each below `vocabulary`
/// - output `(*, C)`
#[derive(Debug, Clone)]
pub struct Embedding {
    /// `(vocabulary, C)`.
    pub weight: Tensor,
}

/// An embedding called `weight`.
///
/// # Errors
/// The builder's.
pub fn embedding(vocabulary: usize, dim: usize, init: Init, vb: VarBuilder) -> Result<Embedding> {
    Ok(Embedding { weight: param(&vb, (vocabulary, dim), "weight", init)? })
}

impl Module for Embedding {
    fn forward(&self, ids: &Tensor) -> Result<Tensor> {
        let mut shape = ids.dims().to_vec();
        shape.push(self.weight.dim(1)?);
        self.weight.index_select(&ids.flatten_all()?, 0)?.reshape(shape)
    }
}
