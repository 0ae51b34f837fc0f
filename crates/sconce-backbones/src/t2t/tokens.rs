//! From a picture to tokens, in three soft splits with attention between them.

use candle_core::{Result, Tensor, bail};
use sconce_attention::linear::{Epsilon, OrthogonalScaling, kernel_attention, orthogonal_features};
use sconce_nn::init::{self, CustomInit, Init};
use sconce_nn::{DropPath, Dropout, LayerNorm, Linear, Mlp, MlpOptions, Module, ModuleT, VarBuilder, layer_norm};
use sconce_ops::{AttentionOptions, exp, gelu, matmul, unfold};

use super::{Config, TokensType};

pub(super) const INIT: Init = Init::TruncNormal { std: 0.02 };
/// Epsilon of every layer norm.
pub(super) const EPS: f64 = 1e-5;

/// Overlapping windows whose pixels become one token.
#[derive(Debug, Clone, Copy)]
pub(super) struct Split {
    kernel: usize,
    stride: usize,
    padding: usize,
}

pub(super) const SPLITS: [Split; 3] = [
    Split { kernel: 7, stride: 4, padding: 2 },
    Split { kernel: 3, stride: 2, padding: 1 },
    Split { kernel: 3, stride: 2, padding: 1 },
];

impl Split {
    /// Windows along a side; 0 when none fits.
    pub(super) fn count(self, side: usize) -> usize {
        side.saturating_add(2 * self.padding).checked_sub(self.kernel).map_or(0, |rest| rest / self.stride + 1)
    }

    /// `(B, C, H, W)` to `(B, N, C kernel^2)`, channel slowest, and the grid.
    fn apply(self, map: &Tensor) -> Result<(Tensor, (usize, usize))> {
        let (_, _, h, w) = map.dims4()?;
        let columns = unfold(map, [self.kernel; 2], [self.stride; 2], [self.padding; 2], [1; 2])?; // (B, C k k, N)
        Ok((columns.transpose(1, 2)?, (self.count(h), self.count(w))))
    }
}

/// Attention through random features that also narrows the tokens, the official `Token_performer`: features are
/// `exp(w . x - |x|^2 / 2) / sqrt(m)` of unscaled queries and keys, nothing is subtracted against overflow, and the residual
/// is that of the values.
///
/// Exponentials overflow single precision where a key or query reaches about `w . x - |x|^2 / 2 > 88`.
///
/// # Shapes
/// - input `(B, N, dim)`, output `(B, N, emb)`
#[derive(Debug, Clone)]
pub struct TokenPerformer {
    /// Before the projection.
    pub norm1: LayerNorm,
    /// To keys, queries and values, in this order.
    pub kqv: Linear,
    /// `(m, emb)`, `m = emb / 2`: orthogonal rows of length `sqrt(m)`, not trained.
    pub w: Tensor,
    /// Of what was mixed.
    pub proj: Linear,
    /// Dropout of the projection and after the MLP.
    pub dropout: Dropout,
    /// Before the MLP.
    pub norm2: LayerNorm,
    /// `mlp.0`.
    pub fc1: Linear,
    /// `mlp.2`.
    pub fc2: Linear,
}

impl TokenPerformer {
    fn new(dim: usize, emb: usize, dropout: f64, vb: VarBuilder) -> Result<Self> {
        let linear = |from, to, vb| Linear::with_init(from, to, true, INIT, vb);
        Ok(Self {
            norm1: layer_norm(dim, EPS, vb.pp("norm1"))?,
            kqv: linear(dim, 3 * emb, vb.pp("kqv"))?,
            w: init::frozen(&vb, (emb / 2, emb), "w", FEATURES)?,
            proj: linear(emb, emb, vb.pp("proj"))?,
            dropout: Dropout::new(dropout),
            norm2: layer_norm(emb, EPS, vb.pp("norm2"))?,
            fc1: linear(emb, emb, vb.pp("mlp").pp(0))?,
            fc2: linear(emb, emb, vb.pp("mlp").pp(2))?,
        })
    }

    /// Features of queries or keys.
    ///
    /// # Shapes
    /// - `xs` `(B, N, emb)`, output `(B, N, m)`; half precision gives f32
    ///
    /// # Errors
    /// When the input does not fit.
    pub fn features(&self, xs: &Tensor) -> Result<Tensor> {
        let dtype = if xs.dtype() == candle_core::DType::F64 { xs.dtype() } else { candle_core::DType::F32 };
        let xs = xs.to_dtype(dtype)?;
        let half_norm = (xs.sqr()?.sum_keepdim(2)? * 0.5)?; // (B, N, 1)
        let products = matmul(&xs.contiguous()?, &self.w.to_dtype(dtype)?.t()?)?; // (B, N, m)
        exp(&products.broadcast_sub(&half_norm)?)? * (self.w.dim(0)? as f64).powf(-0.5)
    }

    /// What the projection sees: values mixed by the products of features.
    ///
    /// # Shapes
    /// - `kqv` `(B, N, 3 emb)`, output `(B, N, emb)`
    ///
    /// # Errors
    /// When the input does not fit.
    pub fn mix(&self, kqv: &Tensor) -> Result<Tensor> {
        let (k, q, v) = (part(kqv, 0)?, part(kqv, 1)?, part(kqv, 2)?);
        let head = |xs: &Tensor| xs.unsqueeze(1); // (B, 1, N, _)
        let (k, q) = (head(&self.features(&k)?)?, head(&self.features(&q)?)?);
        kernel_attention(&q, &k, &head(&v)?, false, Epsilon::Weights(1e-8))?.squeeze(1)
    }

    /// The attention without the MLP.
    ///
    /// # Shapes
    /// - `xs` `(B, N, dim)`, output `(B, N, emb)`
    ///
    /// # Errors
    /// When the input does not fit.
    pub fn attend(&self, xs: &Tensor, train: bool) -> Result<Tensor> {
        let kqv = self.kqv.forward(&self.norm1.forward(xs)?)?; // (B, N, 3 emb)
        part(&kqv, 2)? + self.dropout.forward_t(&self.proj.forward(&self.mix(&kqv)?)?, train)?
    }
}

/// One of three equal parts of the last axis.
fn part(packed: &Tensor, i: usize) -> Result<Tensor> {
    let width = packed.dim(2)? / 3;
    packed.narrow(2, i * width, width)
}

impl ModuleT for TokenPerformer {
    fn forward_t(&self, xs: &Tensor, train: bool) -> Result<Tensor> {
        let xs = self.attend(xs, train)?;
        let hidden = gelu(&self.fc1.forward(&self.norm2.forward(&xs)?)?)?;
        &xs + self.dropout.forward_t(&self.fc2.forward(&hidden)?, train)?
    }
}

/// Orthogonal rows of length `sqrt(m)`.
const FEATURES: Init = Init::Custom(CustomInit {
    name: "orthogonal token features",
    draw: |shape, generator| {
        let (m, emb) = shape.dims2()?;
        orthogonal_features(m, emb, OrthogonalScaling::SqrtDim, generator)? * (m as f64 / emb as f64).sqrt()
    },
    nearest: candle_nn::Init::Randn { mean: 0.0, stdev: 1.0 },
});

/// The attention of a [`TokenTransformer`]: one head that narrows the tokens. The residual is that of the values, and scores
/// are scaled by the width of the input, not of the head.
///
/// # Shapes
/// - input `(B, N, dim)`, output `(B, N, emb)`
#[derive(Debug, Clone)]
pub struct TokenAttention {
    /// To queries, keys and values.
    pub qkv: Linear,
    /// Of what was mixed.
    pub proj: Linear,
    /// Factor on the scores.
    pub scale: f64,
    /// Dropout probability of attention weights.
    pub attn_drop: f64,
    /// Dropout of the projection.
    pub proj_drop: Dropout,
}

impl TokenAttention {
    /// What the projection sees.
    ///
    /// # Shapes
    /// - `qkv` `(B, N, 3 emb)`, output `(B, N, emb)`
    ///
    /// # Errors
    /// When the input does not fit.
    pub fn mix(&self, qkv: &Tensor, train: bool) -> Result<Tensor> {
        let head = |i: usize| part(qkv, i)?.unsqueeze(1); // (B, 1, N, emb)
        let dropout = if train { self.attn_drop } else { 0.0 };
        let options = AttentionOptions::default().with_scale(self.scale).with_dropout(dropout);
        sconce_ops::attention(&head(0)?, &head(1)?, &head(2)?, &options)?.squeeze(1)
    }
}

impl ModuleT for TokenAttention {
    fn forward_t(&self, xs: &Tensor, train: bool) -> Result<Tensor> {
        let qkv = self.qkv.forward(xs)?; // (B, N, 3 emb)
        part(&qkv, 2)? + self.proj_drop.forward_t(&self.proj.forward(&self.mix(&qkv, train)?)?, train)?
    }
}

/// Softmax attention that also narrows the tokens, the official `Token_transformer`.
///
/// # Shapes
/// - input `(B, N, dim)`, output `(B, N, emb)`
#[derive(Debug, Clone)]
pub struct TokenTransformer {
    /// Before the attention.
    pub norm1: LayerNorm,
    /// Narrows the tokens.
    pub attn: TokenAttention,
    /// Before the MLP.
    pub norm2: LayerNorm,
    /// Mixes the channels of each token.
    pub mlp: Mlp,
    /// Drop path of the MLP's branch.
    pub drop_path: DropPath,
}

impl TokenTransformer {
    fn new(dim: usize, emb: usize, vb: VarBuilder) -> Result<Self> {
        let attn = vb.pp("attn");
        Ok(Self {
            norm1: layer_norm(dim, EPS, vb.pp("norm1"))?,
            attn: TokenAttention {
                qkv: Linear::with_init(dim, 3 * emb, false, INIT, attn.pp("qkv"))?,
                proj: Linear::with_init(emb, emb, true, INIT, attn.pp("proj"))?,
                scale: (dim as f64).powf(-0.5),
                attn_drop: 0.0,
                proj_drop: Dropout::new(0.0),
            },
            norm2: layer_norm(emb, EPS, vb.pp("norm2"))?,
            mlp: Mlp::new(emb, &MlpOptions::new(emb), vb.pp("mlp"))?,
            drop_path: DropPath::new(0.0),
        })
    }
}

impl ModuleT for TokenTransformer {
    fn forward_t(&self, xs: &Tensor, train: bool) -> Result<Tensor> {
        let xs = self.attn.forward_t(&self.norm1.forward(xs)?, train)?;
        let ys = self.mlp.forward_t(&self.norm2.forward(&xs)?, train)?;
        &xs + self.drop_path.forward_t(&ys, train)?
    }
}

/// What lets the tokens of a soft split see each other.
#[derive(Debug, Clone)]
pub enum TokenModule {
    /// By random features.
    Performer(TokenPerformer),
    /// By softmax attention.
    Transformer(TokenTransformer),
}

impl ModuleT for TokenModule {
    fn forward_t(&self, xs: &Tensor, train: bool) -> Result<Tensor> {
        match self {
            Self::Performer(module) => module.forward_t(xs, train),
            Self::Transformer(module) => module.forward_t(xs, train),
        }
    }
}

/// The official `T2T_module`: windows of 7 pixels, attention, windows of 3 tokens, attention, windows of 3 tokens, projection.
///
/// # Shapes
/// - input `(B, in_chans, H, W)`, output `(B, N, C)` with `N` about `H W / 256`
#[derive(Debug, Clone)]
pub struct TokensToToken {
    /// After the first split.
    pub attention1: TokenModule,
    /// After the second split.
    pub attention2: TokenModule,
    /// After the third split.
    pub project: Linear,
}

impl TokensToToken {
    /// A module under the official names.
    ///
    /// # Errors
    /// When a size is 0 or `vb` lacks a tensor.
    pub fn new(cfg: &Config, vb: VarBuilder) -> Result<Self> {
        let emb = cfg.token_dim;
        let width = |i: usize, channels: usize| channels.checked_mul(SPLITS[i].kernel * SPLITS[i].kernel);
        let (Some(first), Some(later), Some(_)) = (width(0, cfg.in_chans), width(1, emb), emb.checked_mul(3)) else {
            bail!("t2t: {} channels of the picture and {emb} of the tokens are too many", cfg.in_chans)
        };
        if first == 0 || emb < 2 || cfg.embed_dim == 0 {
            bail!("t2t: no tokens of {emb} and {} channels from {} channels", cfg.embed_dim, cfg.in_chans)
        }
        let attention = |dim, name| {
            let vb = vb.pp(name);
            Ok::<_, candle_core::Error>(match cfg.tokens_type {
                TokensType::Performer => {
                    TokenModule::Performer(TokenPerformer::new(dim, emb, cfg.token_drop_rate, vb)?)
                }
                TokensType::Transformer => TokenModule::Transformer(TokenTransformer::new(dim, emb, vb)?),
            })
        };
        Ok(Self {
            attention1: attention(first, "attention1")?,
            attention2: attention(later, "attention2")?,
            project: Linear::with_init(later, cfg.embed_dim, true, INIT, vb.pp("project"))?,
        })
    }

    /// Soft split `i` of a map, or of the tokens of the split before on their grid.
    ///
    /// # Shapes
    /// - `map` `(B, C, H, W)`, output `(B, N, C k^2)` and the rows and columns of its tokens
    ///
    /// # Errors
    /// When `i` is not below 3 or the map is smaller than a window.
    pub fn split(i: usize, map: &Tensor) -> Result<(Tensor, (usize, usize))> {
        match SPLITS.get(i) {
            Some(split) => split.apply(map),
            None => bail!("t2t: no soft split {i} among {}", SPLITS.len()),
        }
    }

    /// The tokens, with the rows and columns in which they stand.
    ///
    /// # Errors
    /// When the picture has other channels or is smaller than a window.
    pub fn forward_grid(&self, xs: &Tensor, train: bool) -> Result<(Tensor, (usize, usize))> {
        let (mut tokens, mut grid) = Self::split(0, xs)?;
        for (i, attention) in [&self.attention1, &self.attention2].into_iter().enumerate() {
            let mixed = attention.forward_t(&tokens, train)?.transpose(1, 2)?; // (B, emb, N)
            let (b, emb, _) = mixed.dims3()?;
            (tokens, grid) = Self::split(i + 1, &mixed.reshape((b, emb, grid.0, grid.1))?)?;
        }
        Ok((self.project.forward(&tokens)?, grid))
    }
}

#[cfg(test)]
mod tests {
    use candle_core::{D, DType, Device};
    use sconce_nn::{Generator, ParamStore};

    use super::*;

    const DIM: usize = 12;
    const EMB: usize = 4;

    /// Weights and tokens large enough for attention to be far from uniform.
    fn setting() -> (ParamStore, Tensor) {
        let draw = |shape: &[usize]| Generator::new(2).normal(0.0, 1.0, shape, DType::F64, &Device::Cpu).unwrap();
        (ParamStore::new(1, DType::F64, &Device::Cpu), draw(&[2, 7, DIM]))
    }

    fn enlarge(store: &ParamStore, pattern: &str) {
        for param in store.group(pattern) {
            store.set(&param.name, &(param.var.as_tensor() * 30.0).unwrap()).unwrap();
        }
    }

    fn distance(a: &Tensor, b: &Tensor) -> f64 {
        assert_eq!(a.dims(), b.dims());
        (a - b).unwrap().abs().unwrap().max_all().unwrap().to_scalar().unwrap()
    }

    /// `weights v`, projected, on top of the values, then the MLP with its residual.
    fn rest(weights: &Tensor, eps: f64, v: &Tensor, proj: &Linear, mlp: impl Fn(&Tensor) -> Tensor) -> Tensor {
        let sums = (weights.sum_keepdim(D::Minus1).unwrap() + eps).unwrap();
        let weights = weights.broadcast_div(&sums).unwrap();
        let xs = (v + proj.forward(&weights.matmul(&v.contiguous().unwrap()).unwrap()).unwrap()).unwrap();
        (&xs + mlp(&xs)).unwrap()
    }

    fn parts(packed: &Tensor) -> [Tensor; 3] {
        [0, 1, 2].map(|i| part(packed, i).unwrap().contiguous().unwrap())
    }

    #[test]
    fn softmax_attention_is_scaled_by_the_width_of_its_input() {
        let (store, xs) = setting();
        let module = TokenTransformer::new(DIM, EMB, store.vb()).unwrap();
        enlarge(&store, "attn.*");
        let [q, k, v] = parts(&module.attn.qkv.forward(&module.norm1.forward(&xs).unwrap()).unwrap());
        let scores = (q.matmul(&k.t().unwrap().contiguous().unwrap()).unwrap() / (DIM as f64).sqrt()).unwrap();
        let mlp = |xs: &Tensor| module.mlp.forward_t(&module.norm2.forward(xs).unwrap(), false).unwrap();
        let want = rest(&scores.exp().unwrap(), 0.0, &v, &module.attn.proj, mlp);
        assert!(distance(&module.forward_t(&xs, false).unwrap(), &want) < 1e-12);
    }

    #[test]
    fn random_features_take_unscaled_keys_and_queries() {
        let (store, xs) = setting();
        let module = TokenPerformer::new(DIM, EMB, 0.5, store.vb()).unwrap();
        enlarge(&store, "kqv.*");
        let [k, q, v] = parts(&module.kqv.forward(&module.norm1.forward(&xs).unwrap()).unwrap());
        let features = |xs: &Tensor| {
            let products = xs.broadcast_matmul(&module.w.t().unwrap()).unwrap();
            let norms = (xs.sqr().unwrap().sum_keepdim(2).unwrap() / 2.0).unwrap();
            (products.broadcast_sub(&norms).unwrap().exp().unwrap() / 2f64.sqrt()).unwrap() // (B, N, m), m = 2
        };
        let weights = features(&q).matmul(&features(&k).t().unwrap().contiguous().unwrap()).unwrap();
        let mlp = |xs: &Tensor| {
            let hidden = gelu(&module.fc1.forward(&module.norm2.forward(xs).unwrap()).unwrap()).unwrap();
            module.fc2.forward(&hidden).unwrap()
        };
        let want = rest(&weights, 1e-8, &v, &module.proj, mlp);
        assert!(distance(&module.forward_t(&xs, false).unwrap(), &want) < 1e-12);
        let run = |seed| Generator::new(seed).scope(|| module.forward_t(&xs, true).unwrap());
        assert!(distance(&run(1), &run(2)) > 1e-3, "dropout in training");
    }

    #[test]
    fn windows_overlap_and_reach_beyond_the_edge() {
        assert_eq!([224, 56, 28].iter().zip(SPLITS).map(|(side, s)| s.count(*side)).collect::<Vec<_>>(), [56, 28, 14]);
        assert_eq!((SPLITS[0].count(2), SPLITS[0].count(3), SPLITS[1].count(1)), (0, 1, 1));
        let map = Tensor::arange(0f32, 32.0, &Device::Cpu).unwrap().reshape((1, 2, 4, 4)).unwrap();
        let (tokens, grid) = TokensToToken::split(1, &map).unwrap();
        assert_eq!((tokens.dims(), grid), (&[1, 4, 18][..], (2, 2)));
        let last = tokens.squeeze(0).unwrap().to_vec2::<f32>().unwrap().remove(3);
        assert_eq!(last[..9], [5., 6., 7., 9., 10., 11., 13., 14., 15.], "channel slowest, then rows");
        assert!(TokensToToken::split(3, &map).is_err());
    }
}
