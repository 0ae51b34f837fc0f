//! Attention of every token over every token.

use candle_core::{Result, Tensor, bail};
use sconce_nn::{Dropout, Init, Linear, Module, ModuleT, VarBuilder};
use sconce_ops::{AttentionOptions, Mask};

use crate::{MixerSpec, Qkv, TokenLayout, TokenMixer};

/// Sizes of a [`GlobalAttention`].
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct GlobalAttentionConfig {
    /// Channels of a token, a multiple of `heads`.
    pub dim: usize,
    /// Number of heads.
    pub heads: usize,
    /// Whether queries, keys and values have a bias.
    pub qkv_bias: bool,
    /// Factor on the scores; `(dim / heads)^-1/2` when `None`.
    pub scale: Option<f64>,
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
        Self { dim, heads, qkv_bias: true, scale: None, attn_drop: 0.0, proj_drop: 0.0, init }
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
    /// Factor on the scores; `D^-1/2` when `None`.
    pub scale: Option<f64>,
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
        Ok(Self { qkv, proj, heads: cfg.heads, scale: cfg.scale, attn_drop: cfg.attn_drop, proj_drop })
    }

    /// As [`TokenMixer::forward_t`] with a mask on the scores.
    ///
    /// # Shapes
    /// - `xs` and output `(B, N, C)`
    ///
    /// # Errors
    /// When the input or the mask does not fit.
    pub fn forward_masked(&self, xs: &Tensor, mask: Mask, train: bool) -> Result<Tensor> {
        let mixed = match &self.qkv {
            QkvProjection::Packed(qkv) => {
                sconce_ops::attention_packed(&qkv.forward(xs)?, self.heads, &self.options(mask, train))? // (B, N, C)
            }
            QkvProjection::Split { .. } => self.attend(&self.project(xs)?, mask, train)?,
        };
        self.output(&mixed, train)
    }

    /// Queries, keys and values, each `(B, heads, N, D)`.
    ///
    /// # Shapes
    /// - `xs` `(B, N, C)`
    ///
    /// # Errors
    /// When the input does not fit.
    pub fn project(&self, xs: &Tensor) -> Result<Qkv> {
        let heads_of = |xs: &Tensor| {
            let (b, n, c) = xs.dims3()?;
            xs.reshape((b, n, self.heads, c / self.heads))?.transpose(1, 2) // (B, heads, N, D)
        };
        let (q, k, v) = match &self.qkv {
            QkvProjection::Packed(qkv) => {
                let qkv = qkv.forward(xs)?; // (B, N, 3C)
                let dim = qkv.dim(2)? / 3;
                (qkv.narrow(2, 0, dim)?, qkv.narrow(2, dim, dim)?, qkv.narrow(2, 2 * dim, dim)?)
            }
            QkvProjection::Split { q, k, v } => (q.forward(xs)?, k.forward(xs)?, v.forward(xs)?),
        };
        Ok(Qkv { q: heads_of(&q)?, k: heads_of(&k)?, v: heads_of(&v)? })
    }

    fn options(&self, mask: Mask, train: bool) -> AttentionOptions {
        let dropout = if train { self.attn_drop } else { 0.0 };
        AttentionOptions { scale: self.scale, mask, dropout, ..Default::default() }
    }

    fn attend(&self, Qkv { q, k, v }: &Qkv, mask: Mask, train: bool) -> Result<Tensor> {
        let mixed = sconce_ops::attention(q, k, v, &self.options(mask, train))?; // (B, heads, N, D)
        mixed.transpose(1, 2)?.flatten_from(2) // (B, N, C)
    }

    fn output(&self, mixed: &Tensor, train: bool) -> Result<Tensor> {
        self.proj_drop.forward_t(&self.proj.forward(mixed)?, train)
    }
}

impl TokenMixer for GlobalAttention {
    fn forward_t(&self, xs: &Tensor, train: bool) -> Result<Tensor> {
        self.forward_masked(xs, Mask::None, train)
    }

    fn forward_qkv(&self, xs: &Tensor, _: TokenLayout, train: bool) -> Result<(Tensor, Option<Qkv>)> {
        let qkv = self.project(xs)?;
        let mixed = self.attend(&qkv, Mask::None, train)?;
        Ok((self.output(&mixed, train)?, Some(qkv)))
    }

    fn attention_weights(&self, xs: &Tensor) -> Result<Option<Tensor>> {
        let Qkv { q, k, .. } = self.project(xs)?;
        sconce_ops::attention_weights(&q, &k, &self.options(Mask::None, false)).map(Some) // (B, heads, N, N)
    }
}

#[cfg(test)]
mod tests {
    use candle_core::{D, DType, Device};
    use sconce_nn::{Checkpoint, Generator, ParamStore};

    use super::*;

    fn tokens(seed: u64) -> Tensor {
        Generator::new(seed).normal(0.0, 1.0, (2, 5, 12), DType::F64, &Device::Cpu).unwrap()
    }

    /// A store whose weights are large enough for attention to be far from uniform.
    fn store() -> (ParamStore, GlobalAttentionConfig) {
        let init = Init::Normal { mean: 0.0, std: 0.5 };
        (
            ParamStore::new(1, DType::F64, &Device::Cpu),
            GlobalAttentionConfig { init, ..GlobalAttentionConfig::new(12, 3) },
        )
    }

    fn distance(a: &Tensor, b: &Tensor) -> f64 {
        (a - b).unwrap().abs().unwrap().flatten_all().unwrap().max(0).unwrap().to_scalar().unwrap()
    }

    #[test]
    fn packed_and_split_projections_agree_with_the_definition() {
        let (store, cfg) = store();
        let packed = GlobalAttention::new(&cfg, store.vb()).unwrap();
        store.set("qkv.bias", &Generator::new(3).normal(0.0, 1.0, 36, DType::F64, &Device::Cpu).unwrap()).unwrap();
        let xs = tokens(2);
        let ys = packed.forward_t(&xs, false).unwrap();

        let QkvProjection::Packed(qkv) = &packed.qkv else { panic!("packed") };
        let all = qkv.forward(&xs).unwrap().reshape((2, 5, 3, 3, 4)).unwrap(); // (B, N, which, heads, D)
        let part = |i| all.narrow(2, i, 1).unwrap().squeeze(2).unwrap().transpose(1, 2).unwrap().contiguous().unwrap();
        let scores = (part(0).matmul(&part(1).t().unwrap().contiguous().unwrap()).unwrap() / 2.0).unwrap();
        let weights = scores.exp().unwrap();
        let weights = weights.broadcast_div(&weights.sum_keepdim(D::Minus1).unwrap()).unwrap();
        let mixed = weights.matmul(&part(2)).unwrap().transpose(1, 2).unwrap().reshape((2, 5, 12)).unwrap();
        assert!(distance(&ys, &packed.proj.forward(&mixed).unwrap()) < 1e-12);
        let found = packed.attention_weights(&xs).unwrap().unwrap();
        assert!(distance(&found, &weights) < 1e-12);

        let (weight, bias) = (qkv.weight.chunk(3, 0).unwrap(), qkv.bias.as_ref().unwrap().chunk(3, 0).unwrap());
        let named = ["q", "k", "v"].into_iter().zip(weight.into_iter().zip(bias));
        let mut tensors: Vec<_> =
            named.flat_map(|(n, (w, b))| [(format!("{n}.weight"), w), (format!("{n}.bias"), b)]).collect();
        tensors.push(("o.weight".into(), packed.proj.weight.clone()));
        tensors.push(("o.bias".into(), packed.proj.bias.clone().unwrap()));
        let vb = Checkpoint::from_tensors(tensors).vb(DType::F64, &Device::Cpu);
        let split = GlobalAttention::split(&cfg, ["q", "k", "v", "o"], vb).unwrap();
        assert!(distance(&ys, &split.forward_t(&xs, false).unwrap()) < 1e-12);
        assert!(distance(&found, &split.attention_weights(&xs).unwrap().unwrap()) < 1e-12);
    }

    #[test]
    fn a_factor_on_the_scores_is_used_by_all_ways() {
        let (store, cfg) = store();
        let usual = GlobalAttention::new(&cfg, store.vb()).unwrap();
        let xs = tokens(2);
        let weights = |attention: &GlobalAttention| attention.attention_weights(&xs).unwrap().unwrap();
        let layout = TokenLayout { prefix: 0, height: 1, width: 5 };
        for (scale, same) in [(0.5, true), (0.1, false)] {
            let scaled =
                GlobalAttention::new(&GlobalAttentionConfig { scale: Some(scale), ..cfg }, store.vb()).unwrap();
            let ys = scaled.forward_t(&xs, false).unwrap();
            assert_eq!(distance(&ys, &usual.forward_t(&xs, false).unwrap()) < 1e-12, same);
            assert_eq!(distance(&weights(&scaled), &weights(&usual)) < 1e-12, same);
            assert!(distance(&ys, &scaled.forward_qkv(&xs, layout, false).unwrap().0) < 1e-12);
        }
    }

    #[test]
    fn a_causal_mask_hides_what_comes_later() {
        let (store, cfg) = store();
        let attention = GlobalAttention::new(&cfg, store.vb()).unwrap();
        let xs = tokens(2);
        let changed = Tensor::cat(&[xs.narrow(1, 0, 3).unwrap(), tokens(4).narrow(1, 3, 2).unwrap()], 1).unwrap();
        let run = |xs: &Tensor| attention.forward_masked(xs, Mask::Causal, false).unwrap();
        let difference =
            |from, len| distance(&run(&xs).narrow(1, from, len).unwrap(), &run(&changed).narrow(1, from, len).unwrap());
        assert_eq!(difference(0, 3), 0.0);
        assert!(difference(3, 2) > 1e-3);
    }

    #[test]
    fn dropout_acts_in_training_only_and_follows_the_generator() {
        let (store, cfg) = store();
        let cfg = GlobalAttentionConfig { attn_drop: 0.5, proj_drop: 0.5, ..cfg };
        let attention = GlobalAttention::new(&cfg, store.vb()).unwrap();
        let xs = tokens(2);
        let run = |seed, train| Generator::new(seed).scope(|| attention.forward_t(&xs, train).unwrap());
        assert_eq!(distance(&run(1, false), &run(2, false)), 0.0);
        assert_eq!(distance(&run(1, true), &run(1, true)), 0.0);
        assert!(distance(&run(1, true), &run(2, true)) > 1e-3);
    }

    #[test]
    fn heads_that_do_not_divide_are_refused() {
        let (store, cfg) = store();
        for heads in [0, 5] {
            let error = GlobalAttention::new(&GlobalAttentionConfig { heads, ..cfg }, store.vb()).unwrap_err();
            assert!(error.to_string().contains("12 channels"), "{error}");
        }
    }
}
