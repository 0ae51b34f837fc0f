//! Dropout of elements and of residual paths.

use candle_core::{Result, Tensor};

use crate::{Error, Generator, check};

/// Dropout, Srivastava et al. 2014: each element is 0 with probability `p`, survivors are divided by `1 - p`. For training;
/// in evaluation it is not called. `p = 0` draws nothing.
///
/// # Shapes
/// - output: as `xs`
///
/// # Errors
/// When `p` is outside `[0, 1]` or the type is not floating-point.
pub fn dropout(xs: &Tensor, p: f64, generator: &Generator) -> Result<Tensor> {
    drop("dropout", xs, xs.dims(), p, generator)
}

/// Stochastic depth, Huang et al. 2016, also "drop path": each sample of the batch is 0 with probability `p`, survivors are
/// divided by `1 - p`. `p = 0` draws nothing.
///
/// # Shapes
/// - `xs`: `(B, *)`
/// - output: as `xs`
///
/// # Errors
/// When `p` is outside `[0, 1]`, the type is not floating-point, or there is no dimension.
pub fn drop_path(xs: &Tensor, p: f64, generator: &Generator) -> Result<Tensor> {
    let op = "drop_path";
    check::last_dim(op, xs)?;
    let mut mask = vec![1; xs.rank()];
    mask[0] = xs.dim(0)?;
    drop(op, xs, &mask, p, generator)
}

fn drop(op: &'static str, xs: &Tensor, mask: &[usize], p: f64, generator: &Generator) -> Result<Tensor> {
    check::float(op, xs)?;
    if !(0. ..=1.).contains(&p) {
        return Err(Error::value(op, "p", "a probability", p).into());
    }
    if p == 0. || xs.elem_count() == 0 {
        return Ok(xs.clone());
    }
    let kept = generator.bernoulli(1. - p, mask, check::wide(xs.dtype()), xs.device())?;
    // Nothing survives p = 1, so there is nothing to divide.
    let scale = if p < 1. { 1. / (1. - p) } else { 0. };
    xs.broadcast_mul(&(kept * scale)?.to_dtype(xs.dtype())?)
}
