//! Scaled dot-product attention that never holds an `N x N` matrix.
//!
//! `softmax(scale * Q K^T + mask) V`, Vaswani et al. 2017 (arXiv 1706.03762), eq. 1. On the CPU the keys pass by in tiles
//! under an online softmax and the backward pass recomputes the tiles from the saved log-sum-exp of each row: Dao 2023,
//! "FlashAttention-2" (arXiv 2307.08691), algorithms 1 and 2. On other devices the plain composition of `reference` runs.

mod kernel;
mod op;
mod options;
mod reference;
#[cfg(test)]
mod tests;

pub use options::{AttentionOptions, Mask};

use candle_core::{Result, Tensor};
use options::Shape;

use crate::{Error, check, macs};

/// Multi-head attention over separate queries, keys and values, which may have any strides.
///
/// A query row whose keys are all masked out gives zeros (and passes no gradient), not NaN.
///
/// # Shapes
/// - `q` `(B, heads, Nq, D)`, `k` `(B, heads, Nk, D)`, `v` `(B, heads, Nk, Dv)`
/// - output `(B, heads, Nq, Dv)`, contiguous
///
/// # Errors
/// When ranks, shapes, data types or devices do not agree with each other or with the mask, and when the dropout
/// probability lies outside `[0, 1]`.
pub fn attention(q: &Tensor, k: &Tensor, v: &Tensor, options: &AttentionOptions) -> Result<Tensor> {
    let shape = Shape::new(q, k, v)?;
    let plan = options.plan(&shape, q)?;
    count(&shape, shape.d + shape.dv);
    if !q.device().is_cpu() || shape.is_empty() {
        return reference::attention(q, k, v, &plan);
    }
    let wide = check::wide(q.dtype());
    let source = op::Source::Separate([q.to_dtype(wide)?, k.to_dtype(wide)?, v.to_dtype(wide)?]);
    op::attention(source, plan.to_dtype(wide)?)?.to_dtype(q.dtype())
}

/// Multi-head self-attention over one packed projection, read in place.
///
/// The last dimension is laid out `which | head | d` with `which` running over queries, keys and values: what one linear
/// layer with `3 C` outputs gives (the `qkv` of timm's ViT, `in_proj` of `torch.nn.MultiheadAttention`).
///
/// # Shapes
/// - `qkv` `(B, N, 3 C)` with `C = heads * D`
/// - output `(B, N, C)`, contiguous: ready for the output projection
///
/// # Errors
/// As [`attention`], and when the last dimension is not a multiple of `3 * heads`.
pub fn attention_packed(qkv: &Tensor, heads: usize, options: &AttentionOptions) -> Result<Tensor> {
    let (b, n, c3) = qkv.dims3()?;
    if heads == 0 || c3 % (3 * heads) != 0 {
        let expected = format!("(B, N, C) with C a multiple of 3 * heads, heads = {heads}");
        return Err(Error::shape("attention_packed", "qkv", expected, qkv.shape()).into());
    }
    let d = c3 / (3 * heads);
    let shape = Shape { b, h: heads, nq: n, nk: n, d, dv: d };
    check::float("attention_packed", qkv)?;
    let plan = options.plan(&shape, qkv)?;
    count(&shape, shape.d + shape.dv);
    if !qkv.device().is_cpu() || shape.is_empty() {
        let split = qkv.reshape((b, n, 3, heads, d))?.permute((2, 0, 3, 1, 4))?; // (3, B, heads, N, D)
        let mixed = reference::attention(&split.get(0)?, &split.get(1)?, &split.get(2)?, &plan)?; // (B, heads, N, D)
        return mixed.transpose(1, 2)?.reshape((b, n, heads * d)); // (B, N, C)
    }
    let wide = check::wide(qkv.dtype());
    op::attention(op::Source::Packed(qkv.to_dtype(wide)?), plan.to_dtype(wide)?)?.to_dtype(qkv.dtype())
}

/// The attention weights themselves, for inspection: `softmax(scale * Q K^T + mask)`, without dropout.
///
/// Differentiable, but this is the full matrix: use [`attention`] to compute with.
///
/// # Shapes
/// - `q` `(B, heads, Nq, D)`, `k` `(B, heads, Nk, D)`
/// - output `(B, heads, Nq, Nk)`; rows sum to one, rows fully masked are zero
///
/// # Errors
/// As [`attention`].
pub fn attention_weights(q: &Tensor, k: &Tensor, options: &AttentionOptions) -> Result<Tensor> {
    let shape = Shape::new(q, k, k)?;
    let plan = options.clone().with_dropout(0.0).plan(&shape, q)?;
    count(&shape, shape.d);
    let dtype = q.dtype();
    let compute = check::wide(dtype);
    reference::weights(&q.to_dtype(compute)?, &k.to_dtype(compute)?, &plan)?.to_dtype(dtype)
}

/// Counts products of `width` for each pair of a query and a key.
fn count(shape: &Shape, width: usize) {
    macs::add(&[shape.b, shape.h, shape.nq, shape.nk, width]);
}
