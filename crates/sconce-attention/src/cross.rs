//! Attention from one sequence to another.

use candle_core::{Result, Tensor, bail};
use sconce_nn::{Dropout, Init, Linear, Module, ModuleT, VarBuilder};
use sconce_ops::{AttentionOptions, Mask};

use crate::{MixerSpec, Qkv, TokenMixer};

/// Sizes of a [`CrossAttention`].
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct CrossAttentionConfig {
    /// Channels of a token that asks, and of the output.
    pub dim: usize,
    /// Channels of a token that is looked at.
    pub context_dim: usize,
    /// Number of heads.
    pub heads: usize,
    /// Channels of a head; `heads * dim_head` need not be `dim`.
    pub dim_head: usize,
    /// Whether queries, keys and values have a bias.
    pub qkv_bias: bool,
    /// Dropout probability of attention weights.
    pub attn_drop: f64,
    /// Dropout probability of the output.
    pub proj_drop: f64,
    /// How the weights of the projections start; biases start at 0.
    pub init: Init,
}

impl CrossAttentionConfig {
    /// `dim / heads` channels a head, with bias, without dropout, weights from a normal distribution of standard deviation
    /// 0.02 cut at 2.
    pub fn new(dim: usize, context_dim: usize, heads: usize) -> Self {
        let init = Init::TruncNormal { std: 0.02 };
        let dim_head = dim.checked_div(heads).unwrap_or(0);
        Self { dim, context_dim, heads, dim_head, qkv_bias: true, attn_drop: 0.0, proj_drop: 0.0, init }
    }
}

impl From<&MixerSpec> for CrossAttentionConfig {
    /// Tokens of the same width on both sides.
    fn from(spec: &MixerSpec) -> Self {
        Self {
            qkv_bias: spec.qkv_bias,
            attn_drop: spec.attn_drop,
            proj_drop: spec.proj_drop,
            ..Self::new(spec.dim, spec.dim, spec.heads)
        }
    }
}

/// Multi-head attention whose queries come from one sequence and whose keys and values come from another, Vaswani et al. 2017
/// (`arXiv:1706.03762`), section 3.2.3.
///
/// As a [`TokenMixer`] it looks at the tokens themselves, which then need `context_dim` channels. Cost for `N` queries and
/// `M` keys: `O(N M)`.
///
/// # Shapes
/// - `xs` and output `(B, N, dim)`, `context` `(B, M, context_dim)`
#[derive(Debug, Clone)]
pub struct CrossAttention {
    /// To queries.
    pub q: Linear,
    /// To keys.
    pub k: Linear,
    /// To values.
    pub v: Linear,
    /// Output projection.
    pub proj: Linear,
    /// Number of heads.
    pub heads: usize,
    /// Dropout probability of attention weights.
    pub attn_drop: f64,
    /// Dropout of the output.
    pub proj_drop: Dropout,
}

impl CrossAttention {
    /// Under the names `q`, `k`, `v`, `proj`.
    ///
    /// # Errors
    /// When a size is 0 or `vb` lacks a tensor.
    pub fn new(cfg: &CrossAttentionConfig, vb: VarBuilder) -> Result<Self> {
        Self::with_names(cfg, ["q", "k", "v", "proj"], vb)
    }

    /// Under other names of the projections to queries, keys, values and output.
    ///
    /// # Errors
    /// As [`new`](Self::new).
    pub fn with_names(cfg: &CrossAttentionConfig, names: [&str; 4], vb: VarBuilder) -> Result<Self> {
        let CrossAttentionConfig { dim, context_dim, heads, dim_head, qkv_bias, attn_drop, proj_drop, init } = *cfg;
        let Some(inner) = heads.checked_mul(dim_head).filter(|inner| *inner > 0 && dim > 0 && context_dim > 0) else {
            bail!("cross-attention: no {heads} heads of {dim_head} channels between {dim} and {context_dim} channels")
        };
        let [q, k, v, proj] = names;
        let part = |from, name: &str| Linear::with_init(from, inner, qkv_bias, init, vb.pp(name));
        Ok(Self {
            q: part(dim, q)?,
            k: part(context_dim, k)?,
            v: part(context_dim, v)?,
            proj: Linear::with_init(inner, dim, true, init, vb.pp(proj))?,
            heads,
            attn_drop,
            proj_drop: Dropout::new(proj_drop),
        })
    }

    /// Queries of `xs`, keys and values of `context`, each `(B, heads, N or M, D)`.
    ///
    /// # Errors
    /// When the inputs do not fit.
    pub fn project(&self, xs: &Tensor, context: &Tensor) -> Result<Qkv> {
        let part = |layer: &Linear, xs: &Tensor| {
            let ys = layer.forward(xs)?;
            let (b, n, c) = ys.dims3()?;
            ys.reshape((b, n, self.heads, c / self.heads))?.transpose(1, 2) // (B, heads, N, D)
        };
        Ok(Qkv { q: part(&self.q, xs)?, k: part(&self.k, context)?, v: part(&self.v, context)? })
    }

    /// Lets the tokens of `xs` look at those of `context`.
    ///
    /// # Shapes
    /// - `xs` and output `(B, N, dim)`, `context` `(B, M, context_dim)`
    ///
    /// # Errors
    /// When the inputs or the mask do not fit.
    pub fn forward_context(&self, xs: &Tensor, context: &Tensor, mask: Mask, train: bool) -> Result<Tensor> {
        let Qkv { q, k, v } = self.project(xs, context)?;
        let dropout = if train { self.attn_drop } else { 0.0 };
        let options = AttentionOptions::default().with_mask(mask).with_dropout(dropout);
        let mixed = sconce_ops::attention(&q, &k, &v, &options)?; // (B, heads, N, D)
        let mixed = mixed.transpose(1, 2)?.flatten_from(2)?; // (B, N, heads D)
        self.proj_drop.forward_t(&self.proj.forward(&mixed)?, train)
    }

    /// How much each token of `xs` looks at each of `context`, `(B, heads, N, M)`.
    ///
    /// # Errors
    /// When the inputs or the mask do not fit.
    pub fn weights(&self, xs: &Tensor, context: &Tensor, mask: Mask) -> Result<Tensor> {
        let Qkv { q, k, .. } = self.project(xs, context)?;
        sconce_ops::attention_weights(&q, &k, &AttentionOptions::default().with_mask(mask))
    }
}

impl TokenMixer for CrossAttention {
    fn forward_t(&self, xs: &Tensor, train: bool) -> Result<Tensor> {
        self.forward_context(xs, xs, Mask::None, train)
    }

    fn attention_weights(&self, xs: &Tensor) -> Result<Option<Tensor>> {
        self.weights(xs, xs, Mask::None).map(Some)
    }
}

#[cfg(test)]
mod tests {
    use candle_core::{DType, Device};
    use sconce_nn::{Generator, ParamStore};

    use super::*;
    use crate::testing::{assert_close, distance};
    use crate::{GlobalAttention, GlobalAttentionConfig};

    const INIT: Init = Init::Normal { mean: 0.0, std: 0.4 };

    fn draw(seed: u64, shape: [usize; 3]) -> Tensor {
        Generator::new(seed).normal(0.0, 1.0, &shape[..], DType::F64, &Device::Cpu).unwrap()
    }

    #[test]
    fn on_its_own_tokens_it_is_global_attention() {
        let store = ParamStore::new(1, DType::F64, &Device::Cpu);
        let cross = CrossAttention::new(
            &CrossAttentionConfig { init: INIT, ..CrossAttentionConfig::new(12, 12, 3) },
            store.vb(),
        )
        .unwrap();
        let cfg = GlobalAttentionConfig { init: INIT, ..GlobalAttentionConfig::new(12, 3) };
        let global = GlobalAttention::split(&cfg, ["q", "k", "v", "proj"], store.vb()).unwrap();
        assert_eq!(store.names().len(), 8, "the same tensors");
        let xs = draw(2, [2, 5, 12]);
        assert_close(&cross.forward_t(&xs, false).unwrap(), &global.forward_t(&xs, false).unwrap(), 1e-13);
        let weights = |mixer: &dyn TokenMixer| mixer.attention_weights(&xs).unwrap().unwrap();
        assert_close(&weights(&cross), &weights(&global), 1e-13);
    }

    #[test]
    fn widths_and_lengths_may_differ_and_masked_tokens_are_not_seen() {
        let store = ParamStore::new(1, DType::F64, &Device::Cpu);
        let cfg = CrossAttentionConfig { dim_head: 5, init: INIT, ..CrossAttentionConfig::new(12, 7, 3) };
        let cross = CrossAttention::new(&cfg, store.vb()).unwrap();
        let (xs, context) = (draw(2, [2, 4, 12]), draw(3, [2, 6, 7]));
        let ys = cross.forward_context(&xs, &context, Mask::None, true).unwrap();
        assert_eq!(ys.dims(), [2, 4, 12]);
        let grads = ys.sqr().unwrap().sum_all().unwrap().backward().unwrap();
        for param in store.parameters() {
            assert!(grads.get(&param.var).is_some(), "{}", param.name);
        }
        let mask = Tensor::new(&[[1u8, 1, 1, 1, 0, 0], [1, 1, 1, 1, 0, 0]], &Device::Cpu).unwrap();
        let masked = cross.forward_context(&xs, &context, Mask::Padding(mask.clone()), false).unwrap();
        let short = cross.forward_context(&xs, &context.narrow(1, 0, 4).unwrap(), Mask::None, false).unwrap();
        assert_close(&masked, &short, 1e-13);
        assert!(distance(&masked, &ys) > 1e-3);
        let weights = cross.weights(&xs, &context, Mask::Padding(mask)).unwrap();
        assert_eq!(weights.dims(), [2, 3, 4, 6]);
        assert_eq!(weights.narrow(3, 4, 2).unwrap().sum_all().unwrap().to_scalar::<f64>().unwrap(), 0.0);
        assert!(cross.forward_t(&xs, false).is_err(), "tokens of another width");
    }

    #[test]
    fn sizes_that_make_no_sense_are_refused() {
        let vb = || ParamStore::new(1, DType::F32, &Device::Cpu).vb();
        for bad in [
            CrossAttentionConfig::new(12, 7, 0),
            CrossAttentionConfig::new(12, 0, 3),
            CrossAttentionConfig::new(0, 7, 3),
            CrossAttentionConfig { dim_head: usize::MAX, ..CrossAttentionConfig::new(12, 7, 3) },
        ] {
            assert!(CrossAttention::new(&bad, vb()).is_err(), "{bad:?}");
        }
    }
}
