//! Attention over the queries, keys and values of many blocks at once.

use candle_core::{Result, Tensor, bail};
use sconce_ops::AttentionOptions;
use serde::{Deserialize, Serialize};

use crate::Qkv;

/// BViT's broad connection, Li et al. 2022 (`arXiv:2202.06268`): what all blocks of a stack attended to, added to the output
/// of the last one.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct BroadConnection {
    /// Share of the broad attention in the sum; a constant, not learned.
    pub gamma: f64,
}

impl Default for BroadConnection {
    /// The official share, 0.4.
    fn default() -> Self {
        Self { gamma: 0.4 }
    }
}

impl BroadConnection {
    /// `xs + gamma * broad_attention(layers)`, see [`broad_attention`].
    ///
    /// # Shapes
    /// - `xs` and output `(B, N, C)`, the output of the last block
    /// - `layers` each `(B, heads, N, D)`, of all blocks in order
    ///
    /// # Errors
    /// As [`broad_attention`], and when the tokens are not those of the layers.
    pub fn forward(&self, xs: &Tensor, layers: &[Qkv]) -> Result<Tensor> {
        let (_, _, c) = xs.dims3()?;
        xs + (broad_attention(layers, c)? * self.gamma)?
    }
}

impl Qkv {
    /// Queries, keys and values of several blocks side by side, head by head: head `j` joins head `j` of every block.
    ///
    /// # Shapes
    /// - `layers` each `(B, heads, N, D)`
    /// - output `(B, heads, N, L D)` for `L` layers
    ///
    /// # Errors
    /// When there are no layers or their shapes differ.
    pub fn concat(layers: &[Qkv]) -> Result<Self> {
        let Some(first) = layers.first() else { bail!("broad attention: no layers") };
        if let Some(other) = layers.iter().find(|l| [&l.q, &l.k, &l.v].iter().any(|t| t.shape() != first.q.shape())) {
            let found = [&other.q, &other.k, &other.v].map(Tensor::dims);
            bail!("broad attention: a layer of {found:?} beside one of {:?}", first.q.dims())
        }
        let join = |part: fn(&Qkv) -> &Tensor| Tensor::cat(&layers.iter().map(part).collect::<Vec<_>>(), 3);
        Ok(Self { q: join(|l| &l.q)?, k: join(|l| &l.k)?, v: join(|l| &l.v)? })
    }
}

/// Parameter-free attention over several blocks, Li et al. 2022 (`arXiv:2202.06268`), section 3.2: one softmax over the sum of
/// the blocks' scores, whose weights mix the values of every block; the `heads L D` features of a token are then averaged
/// in `out_dim` bins of neighbours. Quadratic in the number of tokens; the weights are never held in memory.
///
/// Convention: scores are scaled by `D^-1/2` of one block. Features are laid out `head | layer | d`, so a bin averages
/// neighbouring channels of, mostly, one block: what the released code computes. Bin `i` of `o` over `n` features covers
/// `floor(i n / o)..ceil((i + 1) n / o)`.
///
/// # Shapes
/// - `layers` each `(B, heads, N, D)`, queries before any scaling: what [`TokenMixer::forward_qkv`] gives
/// - output `(B, N, out_dim)`
///
/// # Errors
/// When there are no layers, their shapes differ, or `out_dim` is 0.
///
/// [`TokenMixer::forward_qkv`]: crate::TokenMixer::forward_qkv
pub fn broad_attention(layers: &[Qkv], out_dim: usize) -> Result<Tensor> {
    sconce_ops::adaptive_avg_pool1d(&broad_features(layers)?, out_dim)
}

/// What [`broad_attention`] averages: all features of a token, head-major, then by layer.
///
/// # Shapes
/// - `layers` each `(B, heads, N, D)`
/// - output `(B, N, heads L D)`
///
/// # Errors
/// As [`broad_attention`].
pub fn broad_features(layers: &[Qkv]) -> Result<Tensor> {
    let Qkv { q, k, v } = Qkv::concat(layers)?;
    let (_, _, _, features) = q.dims4()?;
    let d = features / layers.len();
    let options = AttentionOptions::default().with_scale((d.max(1) as f64).powf(-0.5));
    let mixed = sconce_ops::attention(&q, &k, &v, &options)?; // (B, heads, N, L D)
    mixed.transpose(1, 2)?.flatten_from(2) // (B, N, heads L D)
}

#[cfg(test)]
mod tests {
    use candle_core::{D, DType, Device, Var};
    use sconce_nn::Generator;

    use super::*;

    fn normal(seed: u64, shape: &[usize]) -> Tensor {
        Generator::new(seed).normal(0.0, 1.0, shape, DType::F64, &Device::Cpu).unwrap()
    }

    fn layers(count: u64) -> Vec<Qkv> {
        let layer = |l: u64| {
            let part = |p: u64| normal(3 * l + p, &[2, 2, 5, 3]);
            Qkv { q: part(0), k: part(1), v: part(2) }
        };
        (0..count).map(layer).collect()
    }

    fn distance(a: &Tensor, b: &Tensor) -> f64 {
        assert_eq!(a.dims(), b.dims());
        (a - b).unwrap().abs().unwrap().flatten_all().unwrap().max(0).unwrap().to_scalar().unwrap()
    }

    /// One softmax over the sum of the layers' scores, and bins counted out by hand.
    fn by_definition(layers: &[Qkv], out_dim: usize) -> Tensor {
        let scores = layers.iter().map(|l| l.q.matmul(&l.k.t().unwrap().contiguous().unwrap()).unwrap());
        let scores = (scores.reduce(|a, b| (a + b).unwrap()).unwrap() / 3f64.sqrt()).unwrap().exp().unwrap();
        let weights = scores.broadcast_div(&scores.sum_keepdim(D::Minus1).unwrap()).unwrap(); // (B, heads, N, N)
        let per_layer: Vec<_> = layers.iter().map(|l| weights.matmul(&l.v).unwrap()).collect();
        let mut features = vec![];
        for head in 0..2 {
            features.extend(per_layer.iter().map(|ys| ys.narrow(1, head, 1).unwrap().squeeze(1).unwrap()));
        }
        let features = Tensor::cat(&features, 2).unwrap(); // (B, N, heads L D)
        let n = features.dim(2).unwrap();
        let bin = |i: usize| {
            let (from, to) = (i * n / out_dim, ((i + 1) * n).div_ceil(out_dim));
            features.narrow(2, from, to - from).unwrap().mean_keepdim(2).unwrap()
        };
        Tensor::cat(&(0..out_dim).map(bin).collect::<Vec<_>>(), 2).unwrap()
    }

    #[test]
    fn agrees_with_the_sum_of_scores_and_bins_of_any_size() {
        for (count, out_dim) in [(1, 6), (3, 6), (3, 4), (2, 5), (2, 20)] {
            let layers = layers(count);
            let found = broad_attention(&layers, out_dim).unwrap();
            assert!(distance(&found, &by_definition(&layers, out_dim)) < 1e-12, "{count} layers, {out_dim} bins");
        }
        let xs = normal(9, &[2, 5, 6]);
        let expected = (&xs + (by_definition(&layers(2), 6) * 0.4).unwrap()).unwrap();
        let found = BroadConnection::default().forward(&xs, &layers(2)).unwrap();
        assert!(distance(&found, &expected) < 1e-12);
    }

    #[test]
    fn gradients_reach_every_layer() {
        let vars: Vec<_> =
            layers(2).into_iter().map(|l| [l.q, l.k, l.v].map(|t| Var::from_tensor(&t).unwrap())).collect();
        let run = |f: fn(&[Qkv], usize) -> Tensor| {
            let layers: Vec<_> = vars
                .iter()
                .map(|[q, k, v]| Qkv { q: q.as_tensor().clone(), k: k.as_tensor().clone(), v: v.as_tensor().clone() })
                .collect();
            (f(&layers, 4) * normal(7, &[2, 5, 4])).unwrap().sum_all().unwrap().backward().unwrap()
        };
        let found = run(|layers, n| broad_attention(layers, n).unwrap());
        let expected = run(by_definition);
        for var in vars.iter().flatten() {
            assert!(distance(found.get(var).unwrap(), expected.get(var).unwrap()) < 1e-12);
        }
    }

    #[test]
    fn layers_that_do_not_fit_each_other_are_refused() {
        assert!(broad_attention(&[], 4).unwrap_err().to_string().contains("no layers"));
        let mut layers = layers(2);
        assert!(broad_attention(&layers, 0).is_err());
        layers[1].v = normal(1, &[2, 2, 5, 4]);
        let error = broad_attention(&layers, 4).unwrap_err().to_string();
        assert!(error.contains("[2, 2, 5, 4]") && error.contains("[2, 2, 5, 3]"), "{error}");
    }
}
