//! Global attention whose heads need not divide the channels.

use candle_core::{Result, Tensor, bail};
use sconce_attention::{MixerSpec, Qkv, TokenLayout, TokenMixer};
use sconce_nn::{Dropout, Linear, Module, ModuleT, VarBuilder, linear, linear_no_bias};
use sconce_ops::AttentionOptions;

use super::Config;

/// Multi-head self-attention as BViT has it: heads of a width of their own, no bias before and one after. Quadratic in the
/// number of tokens.
///
/// # Shapes
/// - input and output `(B, N, C)`
#[derive(Debug, Clone)]
pub struct Attention {
    /// To queries, keys and values, laid out `which | head | d`.
    pub to_qkv: Linear,
    /// Output projection; none when there is one head as wide as the token.
    pub to_out: Option<Linear>,
    /// Number of heads.
    pub heads: usize,
    /// Dropout of the output.
    pub dropout: Dropout,
}

impl Attention {
    /// Under the official names `to_qkv` and `to_out.0`.
    ///
    /// # Errors
    /// When there are no heads, heads of no width, or `vb` lacks a tensor.
    pub fn new(cfg: &Config, spec: &MixerSpec, vb: VarBuilder) -> Result<Self> {
        let inner = spec.heads.checked_mul(cfg.head_dim).filter(|n| *n > 0 && n.checked_mul(3).is_some());
        let Some(inner) = inner else {
            bail!("bvit: no attention of {} heads of {} channels", spec.heads, cfg.head_dim)
        };
        let to_out = || linear(inner, spec.dim, vb.pp("to_out").pp(0));
        Ok(Self {
            to_qkv: linear_no_bias(spec.dim, 3 * inner, vb.pp("to_qkv"))?,
            to_out: (spec.heads != 1 || cfg.head_dim != spec.dim).then(to_out).transpose()?,
            heads: spec.heads,
            dropout: Dropout::new(spec.proj_drop),
        })
    }

    /// Queries, keys and values, each `(B, heads, N, D)`.
    ///
    /// # Errors
    /// When the input does not fit.
    pub fn project(&self, xs: &Tensor) -> Result<Qkv> {
        let qkv = self.to_qkv.forward(xs)?; // (B, N, 3 heads D)
        let (b, n, outputs) = qkv.dims3()?;
        let qkv = qkv.reshape((b, n, 3, self.heads, outputs / 3 / self.heads))?.permute((2, 0, 3, 1, 4))?; // (3, B, heads, N, D)
        Ok(Qkv { q: qkv.get(0)?, k: qkv.get(1)?, v: qkv.get(2)? })
    }
}

impl TokenMixer for Attention {
    fn forward_t(&self, xs: &Tensor, train: bool) -> Result<Tensor> {
        Ok(self.forward_qkv(xs, TokenLayout { prefix: 0, height: 0, width: 0 }, train)?.0)
    }

    fn forward_qkv(&self, xs: &Tensor, _: TokenLayout, train: bool) -> Result<(Tensor, Option<Qkv>)> {
        let qkv = self.project(xs)?;
        let mixed = sconce_ops::attention(&qkv.q, &qkv.k, &qkv.v, &AttentionOptions::default())?; // (B, heads, N, D)
        let mixed = mixed.transpose(1, 2)?.flatten_from(2)?; // (B, N, heads D)
        let ys = match &self.to_out {
            Some(to_out) => self.dropout.forward_t(&to_out.forward(&mixed)?, train)?,
            None => mixed,
        };
        Ok((ys, Some(qkv)))
    }

    fn attention_weights(&self, xs: &Tensor) -> Result<Option<Tensor>> {
        let Qkv { q, k, .. } = self.project(xs)?;
        sconce_ops::attention_weights(&q, &k, &AttentionOptions::default()).map(Some) // (B, heads, N, N)
    }
}
