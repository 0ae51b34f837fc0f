//! Attention by two softmaxes, one of the queries and one of the keys.

use candle_core::{Result, Tensor};
use sconce_nn::VarBuilder;
use sconce_ops::{matmul, softmax};

use super::{LinearAttentionConfig, Projections, wide};
use crate::{Qkv, TokenMixer};

/// Efficient attention, Shen et al. 2021 (`arXiv:1812.01243`), equation 4 with softmax normalisation: queries pass a softmax
/// over their features, keys one over the tokens, and `out_i = (sum_j k_j v_j^T)^T q_i`. Both are first scaled by `D^-1/4`.
/// There is nothing to divide by: the weights of a query sum to one already.
///
/// Without `norm_queries` the queries stay as they are. Half precision is computed in f32. Cost: `O(N D E)`.
///
/// # Shapes
/// - `q` `(B, heads, Nq, D)`, `k` `(B, heads, N, D)`, `v` `(B, heads, N, E)`
/// - output `(B, heads, Nq, E)`
///
/// # Errors
/// When shapes, types or devices do not agree.
pub fn efficient_attention(q: &Tensor, k: &Tensor, v: &Tensor, norm_queries: bool) -> Result<Tensor> {
    let (b, h, nq, d) = q.dims4()?;
    let (dtype, scale) = (wide(v.dtype()), (d.max(1) as f64).powf(-0.25));
    let scaled = |t: &Tensor| t.to_dtype(dtype)? * scale;
    let q = match norm_queries {
        true => softmax(&scaled(q)?, 3)?,
        false => scaled(q)?,
    };
    let k = softmax(&scaled(k)?.transpose(2, 3)?, 3)?; // (B, heads, D, N)
    let context = matmul(&k, &v.to_dtype(dtype)?)?; // (B, heads, D, E)
    matmul(&q, &context)?.reshape((b, h, nq, ()))?.to_dtype(v.dtype())
}

/// [`efficient_attention`] as a mixer of tokens. Cost in `N` tokens: linear.
///
/// # Shapes
/// - input and output `(B, N, C)`
#[derive(Debug, Clone)]
pub struct EfficientAttention {
    /// `to_q`, `to_k`, `to_v`, `to_out`.
    pub projections: Projections,
    /// Whether queries pass a softmax over their features.
    pub norm_queries: bool,
}

impl EfficientAttention {
    /// With queries normalised; clear [`norm_queries`](Self::norm_queries) for the other kind.
    ///
    /// # Errors
    /// When a size is 0 or `vb` lacks a tensor.
    pub fn new(cfg: &LinearAttentionConfig, vb: VarBuilder) -> Result<Self> {
        Ok(Self { projections: Projections::new(cfg, vb)?, norm_queries: true })
    }

    /// As [`TokenMixer::forward_t`] with further tokens to look at.
    ///
    /// # Shapes
    /// - `xs` and output `(B, N, C)`, `context` `(B, M, C)`
    ///
    /// # Errors
    /// When the inputs do not fit.
    pub fn forward_context(&self, xs: &Tensor, context: &Tensor, train: bool) -> Result<Tensor> {
        let Qkv { q, k, v } = self.projections.qkv(xs, &Tensor::cat(&[xs, context], 1)?)?;
        self.projections.out(&efficient_attention(&q, &k, &v, self.norm_queries)?, train)
    }
}

impl TokenMixer for EfficientAttention {
    fn forward_t(&self, xs: &Tensor, train: bool) -> Result<Tensor> {
        let Qkv { q, k, v } = self.projections.qkv(xs, xs)?;
        self.projections.out(&efficient_attention(&q, &k, &v, self.norm_queries)?, train)
    }
}

#[cfg(test)]
mod tests {
    use candle_core::{D, DType, Device};
    use sconce_nn::{Generator, ParamStore};

    use super::*;
    use crate::testing::{assert_close, check_gradients, distance};

    fn draw(seed: u64, shape: &[usize]) -> Tensor {
        Generator::new(seed).normal(0.0, 1.0, shape, DType::F64, &Device::Cpu).unwrap()
    }

    #[test]
    fn weights_of_a_query_sum_to_one() {
        let (q, k) = (draw(1, &[2, 2, 5, 4]), draw(2, &[2, 2, 7, 4]));
        let ones = Tensor::ones((2, 2, 7, 1), DType::F64, &Device::Cpu).unwrap();
        let sums = efficient_attention(&q, &k, &ones, true).unwrap();
        assert_close(&sums, &sums.ones_like().unwrap(), 1e-12);
        let plain = efficient_attention(&q, &k, &ones, false).unwrap();
        let want = (q.sum_keepdim(D::Minus1).unwrap() * 4f64.powf(-0.25)).unwrap();
        assert_close(&plain, &want, 1e-12);
    }

    #[test]
    fn gradients_are_exact() {
        let inputs = [draw(1, &[1, 2, 3, 2]), draw(2, &[1, 2, 4, 2]), draw(3, &[1, 2, 4, 3])];
        for norm_queries in [true, false] {
            check_gradients(&inputs, |t| efficient_attention(&t[0], &t[1], &t[2], norm_queries));
        }
    }

    #[test]
    fn further_tokens_are_seen_and_not_mixed() {
        let store = ParamStore::new(1, DType::F64, &Device::Cpu);
        let mixer = EfficientAttention::new(&LinearAttentionConfig::new(8, 2), store.vb()).unwrap();
        let (xs, context) = (draw(1, &[2, 6, 8]), draw(2, &[2, 3, 8]));
        let all = mixer.forward_t(&Tensor::cat(&[&xs, &context], 1).unwrap(), false).unwrap();
        let found = mixer.forward_context(&xs, &context, false).unwrap();
        assert_close(&found, &all.narrow(1, 0, 6).unwrap(), 1e-12);
        assert!(distance(&found, &mixer.forward_t(&xs, false).unwrap()) > 1e-3);
    }
}
