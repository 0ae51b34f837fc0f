//! Attention composed of candle's own operations: runs on every device, and is what tests compare the kernel with.

use candle_core::{D, Result, Tensor};

use super::options::Plan;
use crate::check;

/// The whole op in plain candle; holds the `Nq x Nk` matrix.
pub(super) fn attention(q: &Tensor, k: &Tensor, v: &Tensor, plan: &Plan) -> Result<Tensor> {
    // Half types are computed in f32, as in the kernel.
    let dtype = q.dtype();
    let compute = check::wide(dtype);
    let (q, k, v) = (q.to_dtype(compute)?, k.to_dtype(compute)?, v.to_dtype(compute)?);
    let s = plan.shape;
    if s.b * s.h * s.nq * s.nk * s.d * s.dv == 0 {
        return Tensor::zeros((s.b, s.h, s.nq, s.dv), dtype, q.device());
    }
    let mut weights = weights(&q, &k, plan)?; // (B, heads, Nq, Nk)
    if plan.dropout.is_some() {
        weights = weights.mul(&dropout_mask(plan, &weights)?)?;
    }
    weights.matmul(&v.contiguous()?)?.to_dtype(dtype) // (B, heads, Nq, Dv)
}

/// `softmax(scale * Q K^T + mask)`, rows fully masked zero.
pub(super) fn weights(q: &Tensor, k: &Tensor, plan: &Plan) -> Result<Tensor> {
    let s = plan.shape;
    if s.b * s.h * s.nq * s.nk * s.d == 0 {
        return Tensor::zeros((s.b, s.h, s.nq, s.nk), q.dtype(), q.device());
    }
    let mut scores = (q.contiguous()?.matmul(&k.t()?.contiguous()?)? * plan.scale)?; // (B, heads, Nq, Nk)
    if let Some(bias) = &plan.bias {
        let (bias, period) = (bias.to_dtype(scores.dtype())?, bias.dims()[0]);
        scores = if period == 1 || period == s.b {
            scores.broadcast_add(&bias)?
        } else {
            let scores = scores.reshape((s.b / period, period, s.h, s.nq, s.nk))?;
            scores.broadcast_add(&bias.unsqueeze(0)?)?.reshape((s.b, s.h, s.nq, s.nk))? // (B, heads, Nq, Nk)
        };
    }
    if let Some(hidden) = hidden(plan, &scores)? {
        scores = scores.broadcast_add(&hidden)?;
    }
    let max = scores.max_keepdim(D::Minus1)?.detach();
    // A row of -inf alone: subtracting its maximum would give NaN; subtracting zero leaves exp(-inf) = 0.
    let max = max.eq(f64::NEG_INFINITY)?.where_cond(&max.zeros_like()?, &max)?;
    let e = scores.broadcast_sub(&max)?.exp()?;
    let sum = e.sum_keepdim(D::Minus1)?;
    let empty = sum.eq(0.0)?.to_dtype(sum.dtype())?;
    e.broadcast_div(&(sum + empty)?)
}

/// `-inf` where causality or padding hides a key, else zero; broadcastable to the scores.
fn hidden(plan: &Plan, like: &Tensor) -> Result<Option<Tensor>> {
    let s = plan.shape;
    let device = like.device();
    let mut hidden: Option<Tensor> = None; // u8, one where hidden
    if plan.causal {
        let query = Tensor::arange(0u32, s.nq as u32, device)?.reshape((1, 1, s.nq, 1))?;
        let key = Tensor::arange(0u32, s.nk as u32, device)?.reshape((1, 1, 1, s.nk))?;
        hidden = Some(key.broadcast_gt(&query)?);
    }
    if let Some(keep) = &plan.padding {
        let drop = keep.eq(0u8)?.reshape((s.b, 1, 1, s.nk))?;
        hidden = Some(match hidden {
            Some(causal) => causal.broadcast_maximum(&drop)?,
            None => drop,
        });
    }
    let Some(hidden) = hidden else { return Ok(None) };
    let none = Tensor::zeros(hidden.shape(), like.dtype(), device)?;
    let all = Tensor::full(f64::NEG_INFINITY, hidden.shape(), device)?.to_dtype(like.dtype())?;
    Ok(Some(hidden.where_cond(&all, &none)?))
}

/// Zero where a weight is dropped, `1 / (1 - p)` where it is kept.
fn dropout_mask(plan: &Plan, like: &Tensor) -> Result<Tensor> {
    let s = plan.shape;
    let Some(dropout) = plan.dropout else { return like.ones_like() };
    let keep = dropout.scale();
    let mut mask = Vec::with_capacity(s.b * s.h * s.nq * s.nk);
    for slice in 0..s.b * s.h {
        for i in 0..s.nq {
            let row = dropout.row(slice, i);
            mask.extend((0..s.nk).map(|j| if row.keeps(j) { keep } else { 0.0 }));
        }
    }
    Tensor::from_vec(mask, (s.b, s.h, s.nq, s.nk), like.device())?.to_dtype(like.dtype())
}
