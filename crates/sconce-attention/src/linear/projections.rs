//! The linear layers around a linear attention.

use candle_core::{Result, Tensor, bail};
use sconce_nn::{Dropout, Init, Linear, Module, ModuleT, VarBuilder};

use crate::{MixerSpec, Qkv};

/// Sizes of the layers around a linear attention.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct LinearAttentionConfig {
    /// Channels of a token.
    pub dim: usize,
    /// Number of heads.
    pub heads: usize,
    /// Channels of a head; `heads * dim_head` need not be `dim`.
    pub dim_head: usize,
    /// Whether queries, keys and values have a bias.
    pub qkv_bias: bool,
    /// Whether the output has a bias.
    pub out_bias: bool,
    /// Dropout probability of the output.
    pub dropout: f64,
    /// How the weights start. Biases start at 0, and as in PyTorch where the weights do.
    pub init: Init,
}

impl LinearAttentionConfig {
    /// `dim / heads` channels a head, no bias but on the output, no dropout, started as in PyTorch.
    pub fn new(dim: usize, heads: usize) -> Self {
        let dim_head = dim.checked_div(heads).unwrap_or(0);
        Self { dim, heads, dim_head, qkv_bias: false, out_bias: true, dropout: 0.0, init: Init::TorchLinear }
    }
}

impl From<&MixerSpec> for LinearAttentionConfig {
    /// Dropout of attention weights has no place in a linear attention, which never holds them.
    fn from(spec: &MixerSpec) -> Self {
        let init = Init::TruncNormal { std: 0.02 };
        Self { qkv_bias: spec.qkv_bias, dropout: spec.proj_drop, init, ..Self::new(spec.dim, spec.heads) }
    }
}

/// The projections `to_q`, `to_k`, `to_v` and `to_out` of lucidrains' attention modules.
#[derive(Debug, Clone)]
pub struct Projections {
    /// To queries.
    pub to_q: Linear,
    /// To keys.
    pub to_k: Linear,
    /// To values.
    pub to_v: Linear,
    /// From the merged heads to the output.
    pub to_out: Linear,
    /// Number of heads.
    pub heads: usize,
    /// Dropout of the output.
    pub dropout: Dropout,
}

impl Projections {
    /// Four layers of these sizes.
    ///
    /// # Errors
    /// When a size is 0 or `vb` lacks a tensor.
    pub fn new(cfg: &LinearAttentionConfig, vb: VarBuilder) -> Result<Self> {
        let LinearAttentionConfig { dim, heads, dim_head, qkv_bias, out_bias, dropout, init } = *cfg;
        let inner = checked(dim, heads, dim_head)?;
        let layer = |from, to, bias, name| linear(from, to, bias, init, vb.pp(name));
        Ok(Self {
            to_q: layer(dim, inner, qkv_bias, "to_q")?,
            to_k: layer(dim, inner, qkv_bias, "to_k")?,
            to_v: layer(dim, inner, qkv_bias, "to_v")?,
            to_out: layer(inner, dim, out_bias, "to_out")?,
            heads,
            dropout: Dropout::new(dropout),
        })
    }

    /// Queries of `xs`, keys and values of `context`.
    ///
    /// # Shapes
    /// - `xs` `(B, N, C)`, `context` `(B, M, C)`
    /// - outputs `(B, heads, N or M, D)`
    ///
    /// # Errors
    /// When the inputs do not fit.
    pub fn qkv(&self, xs: &Tensor, context: &Tensor) -> Result<Qkv> {
        let part = |layer: &Linear, xs: &Tensor| split_heads(&layer.forward(xs)?, self.heads);
        Ok(Qkv { q: part(&self.to_q, xs)?, k: part(&self.to_k, context)?, v: part(&self.to_v, context)? })
    }

    /// Merges the heads and projects.
    ///
    /// # Shapes
    /// - `mixed` `(B, heads, N, D)`, output `(B, N, C)`
    ///
    /// # Errors
    /// When the input does not fit.
    pub fn out(&self, mixed: &Tensor, train: bool) -> Result<Tensor> {
        self.dropout.forward_t(&self.to_out.forward(&merge_heads(mixed)?)?, train)
    }
}

/// The width of all heads together, unless a size makes no sense.
pub(super) fn checked(dim: usize, heads: usize, dim_head: usize) -> Result<usize> {
    match heads.checked_mul(dim_head) {
        Some(inner) if inner > 0 && dim > 0 => Ok(inner),
        _ => bail!("linear attention: no {heads} heads of {dim_head} channels for tokens of {dim}"),
    }
}

/// PyTorch starts a bias by the fan of its weight; everyone else starts it at 0.
pub(super) fn linear(from: usize, to: usize, bias: bool, init: Init, vb: VarBuilder) -> Result<Linear> {
    match (init, bias) {
        (Init::TorchLinear, true) => sconce_nn::linear(from, to, vb),
        _ => Linear::with_init(from, to, bias, init, vb),
    }
}

/// `(B, N, heads D)` to `(B, heads, N, D)`.
pub(super) fn split_heads(xs: &Tensor, heads: usize) -> Result<Tensor> {
    let (b, n, c) = xs.dims3()?;
    xs.reshape((b, n, heads, c / heads))?.transpose(1, 2) // (B, heads, N, D)
}

/// `(B, heads, N, D)` to `(B, N, heads D)`.
pub(super) fn merge_heads(xs: &Tensor) -> Result<Tensor> {
    xs.transpose(1, 2)?.flatten_from(2) // (B, N, heads D)
}
