//! Attention of every token over every token.

use candle_core::{Result, Tensor, bail};
use sconce_nn::{Dropout, Init, Linear, Module, ModuleT, VarBuilder};
use sconce_ops::{AttentionOptions, Mask};

use crate::{MixerSpec, TokenMixer};

/// Sizes of a [`GlobalAttention`].
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct GlobalAttentionConfig {
    /// Channels of a token, a multiple of `heads`.
    pub dim: usize,
    /// Number of heads.
    pub heads: usize,
    /// Whether queries, keys and values have a bias.
    pub qkv_bias: bool,
    /// Dropout probability of attention weights.
    pub attn_drop: f64,
    /// Dropout probability of the output.
    pub proj_drop: f64,
    /// How the weights of the projections start; biases start at 0.
    pub init: Init,
}

impl GlobalAttentionConfig {
    /// With bias, without dropout, weights from a normal distribution of standard deviation 0.02 cut at 2.
    pub fn new(dim: usize, heads: usize) -> Self {
        let init = Init::TruncNormal { std: 0.02 };
        Self { dim, heads, qkv_bias: true, attn_drop: 0.0, proj_drop: 0.0, init }
    }
}

impl From<&MixerSpec> for GlobalAttentionConfig {
    fn from(spec: &MixerSpec) -> Self {
        Self {
            qkv_bias: spec.qkv_bias,
            attn_drop: spec.attn_drop,
            proj_drop: spec.proj_drop,
            ..Self::new(spec.dim, spec.heads)
        }
    }
}

/// The projection to queries, keys and values.
#[derive(Debug, Clone)]
pub enum QkvProjection {
    /// One layer with outputs laid out `which | head | d`: timm's `qkv`.
    Packed(Linear),
    /// Three layers: the `query`, `key`, `value` of Hugging Face's files.
    Split {
        /// To queries.
        q: Linear,
        /// To keys.
        k: Linear,
        /// To values.
        v: Linear,
    },
}

/// Multi-head self-attention over all tokens, Vaswani et al. 2017 (`arXiv:1706.03762`), section 3.2.2.
///
/// # Shapes
/// - input and output `(B, N, C)`, `C` a multiple of `heads`
#[derive(Debug, Clone)]
pub struct GlobalAttention {
    /// To queries, keys and values.
    pub qkv: QkvProjection,
    /// Output projection.
    pub proj: Linear,
    /// Number of heads.
    pub heads: usize,
    /// Dropout probability of attention weights.
    pub attn_drop: f64,
    /// Dropout of the output.
    pub proj_drop: Dropout,
}

impl GlobalAttention {
    /// One packed projection, under timm's names `qkv` and `proj`.
    ///
    /// # Errors
    /// When `heads` does not divide `dim` or `vb` lacks a tensor.
    pub fn new(cfg: &GlobalAttentionConfig, vb: VarBuilder) -> Result<Self> {
        let qkv = Linear::with_init(cfg.dim, 3 * cfg.dim, cfg.qkv_bias, cfg.init, vb.pp("qkv"))?;
        let proj = Linear::with_init(cfg.dim, cfg.dim, true, cfg.init, vb.pp("proj"))?;
        Self::from_parts(QkvProjection::Packed(qkv), proj, cfg)
    }

    /// Three projections and an output under the given names, `["q_proj", "k_proj", "v_proj", "out_proj"]` in many
    /// checkpoints.
    ///
    /// # Errors
    /// When `heads` does not divide `dim` or `vb` lacks a tensor.
    pub fn split(cfg: &GlobalAttentionConfig, names: [&str; 4], vb: VarBuilder) -> Result<Self> {
        let [q, k, v, out] = names;
        let part = |name: &str| Linear::with_init(cfg.dim, cfg.dim, cfg.qkv_bias, cfg.init, vb.pp(name));
        let qkv = QkvProjection::Split { q: part(q)?, k: part(k)?, v: part(v)? };
        let proj = Linear::with_init(cfg.dim, cfg.dim, true, cfg.init, vb.pp(out))?;
        Self::from_parts(qkv, proj, cfg)
    }

    /// From projections made elsewhere; `cfg.init` and `cfg.qkv_bias` are not looked at.
    ///
    /// # Errors
    /// When `heads` does not divide `dim`.
    pub fn from_parts(qkv: QkvProjection, proj: Linear, cfg: &GlobalAttentionConfig) -> Result<Self> {
        if cfg.heads == 0 || !cfg.dim.is_multiple_of(cfg.heads) {
            bail!("attention: {} channels do not divide into {} heads", cfg.dim, cfg.heads)
        }
        let proj_drop = Dropout::new(cfg.proj_drop);
        Ok(Self { qkv, proj, heads: cfg.heads, attn_drop: cfg.attn_drop, proj_drop })
    }

    /// As [`TokenMixer::forward_t`] with a mask on the scores.
    ///
    /// # Shapes
    /// - `xs` and output `(B, N, C)`
    ///
    /// # Errors
    /// When the input or the mask does not fit.
    pub fn forward_masked(&self, xs: &Tensor, mask: Mask, train: bool) -> Result<Tensor> {
        let dropout = if train { self.attn_drop } else { 0.0 };
        let options = AttentionOptions::default().with_mask(mask).with_dropout(dropout);
        let mixed = match &self.qkv {
            QkvProjection::Packed(qkv) => {
                sconce_ops::attention_packed(&qkv.forward(xs)?, self.heads, &options)? // (B, N, C)
            }
            QkvProjection::Split { v, .. } => {
                let (q, k) = self.queries_and_keys(xs)?;
                let v = self.heads_of(&v.forward(xs)?)?; // (B, heads, N, D)
                let mixed = sconce_ops::attention(&q, &k, &v, &options)?; // (B, heads, N, D)
                mixed.transpose(1, 2)?.flatten_from(2)? // (B, N, C)
            }
        };
        self.proj_drop.forward_t(&self.proj.forward(&mixed)?, train)
    }

    /// Queries and keys, each `(B, heads, N, D)`.
    fn queries_and_keys(&self, xs: &Tensor) -> Result<(Tensor, Tensor)> {
        match &self.qkv {
            QkvProjection::Packed(qkv) => {
                let qkv = qkv.forward(xs)?; // (B, N, 3C)
                let dim = qkv.dim(2)? / 3;
                Ok((self.heads_of(&qkv.narrow(2, 0, dim)?)?, self.heads_of(&qkv.narrow(2, dim, dim)?)?))
            }
            QkvProjection::Split { q, k, .. } => Ok((self.heads_of(&q.forward(xs)?)?, self.heads_of(&k.forward(xs)?)?)),
        }
    }

    fn heads_of(&self, xs: &Tensor) -> Result<Tensor> {
        let (b, n, c) = xs.dims3()?;
        xs.reshape((b, n, self.heads, c / self.heads))?.transpose(1, 2) // (B, heads, N, D)
    }
}

impl TokenMixer for GlobalAttention {
    fn forward_t(&self, xs: &Tensor, train: bool) -> Result<Tensor> {
        self.forward_masked(xs, Mask::None, train)
    }

    fn attention_weights(&self, xs: &Tensor) -> Result<Option<Tensor>> {
        let (q, k) = self.queries_and_keys(xs)?;
        sconce_ops::attention_weights(&q, &k, &AttentionOptions::default()).map(Some) // (B, heads, N, N)
    }
}
