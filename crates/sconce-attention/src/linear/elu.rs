//! Linear attention with the features `elu(x) + 1`.

use candle_core::{Result, Tensor};
use sconce_nn::VarBuilder;
use sconce_ops::exp;

use super::{Epsilon, LinearAttentionConfig, Projections, kernel_attention, wide};
use crate::{Qkv, TokenMixer};

/// `elu(x) + 1`: `x + 1` above 0 and `e^x` below, never negative.
///
/// # Shapes
/// - output: as `xs`; half precision gives f32
///
/// # Errors
/// When the type is not floating-point.
pub fn elu_features(xs: &Tensor) -> Result<Tensor> {
    let xs = xs.to_dtype(wide(xs.dtype()))?;
    let above = xs.gt(0.0)?;
    // Emptied above 0, where the exponential could overflow.
    let below = above.where_cond(&xs.zeros_like()?, &xs)?;
    above.where_cond(&(&xs + 1.0)?, &exp(&below)?)
}

/// Linear attention with the features `elu(x) + 1`, Katharopoulos et al. 2020 (`arXiv:2006.16236`), equation 7; 1e-6 is
/// added to each sum of weights. Queries and keys are not scaled.
///
/// Cost: `O(N D^2)`. With `causal` a query sees keys up to its own place, see [`kernel_attention`].
///
/// # Shapes
/// - `q`, `k` `(B, heads, N, D)`, `v` `(B, heads, N, E)`
/// - output `(B, heads, N, E)`
///
/// # Errors
/// When shapes, types or devices do not agree.
pub fn elu_attention(q: &Tensor, k: &Tensor, v: &Tensor, causal: bool) -> Result<Tensor> {
    kernel_attention(&elu_features(q)?, &elu_features(k)?, v, causal, Epsilon::Weights(1e-6))
}

/// [`elu_attention`] as a mixer. Cost in `N` tokens: linear.
///
/// # Shapes
/// - input and output `(B, N, C)`
#[derive(Debug, Clone)]
pub struct EluAttention {
    /// `to_q`, `to_k`, `to_v`, `to_out`.
    pub projections: Projections,
    /// Whether a token sees only those before it and itself.
    pub causal: bool,
}

impl EluAttention {
    /// Over all tokens; set [`causal`](Self::causal) for the other kind.
    ///
    /// # Errors
    /// When a size is 0 or `vb` lacks a tensor.
    pub fn new(cfg: &LinearAttentionConfig, vb: VarBuilder) -> Result<Self> {
        Ok(Self { projections: Projections::new(cfg, vb)?, causal: false })
    }
}

impl TokenMixer for EluAttention {
    fn forward_t(&self, xs: &Tensor, train: bool) -> Result<Tensor> {
        let Qkv { q, k, v } = self.projections.qkv(xs, xs)?;
        self.projections.out(&elu_attention(&q, &k, &v, self.causal)?, train)
    }
}

#[cfg(test)]
mod tests {
    use candle_core::{DType, Device, Var};
    use sconce_nn::{Generator, ParamStore};

    use super::*;
    use crate::testing::{check_gradients, distance};

    #[test]
    fn features_are_those_of_the_definition_also_far_out() {
        let xs = Tensor::new(&[-1e4f32, -2.0, 0.0, 3.0, 1e4], &Device::Cpu).unwrap();
        let found = elu_features(&xs).unwrap().to_vec1::<f32>().unwrap();
        assert_eq!((found[0], found[2], found[3], found[4]), (0.0, 1.0, 4.0, 10001.0));
        assert!((found[1] - (-2f32).exp()).abs() < 1e-7);
        check_gradients(&[Tensor::new(&[-1.5f64, -0.2, 0.7], &Device::Cpu).unwrap()], |t| elu_features(&t[0]));
        // At 0, where padding lies, both branches have slope 1.
        let zero = Var::from_tensor(&Tensor::zeros(3, DType::F32, &Device::Cpu).unwrap()).unwrap();
        let grads = elu_features(&zero).unwrap().sum_all().unwrap().backward().unwrap();
        assert_eq!(grads.get(&zero).unwrap().to_vec1::<f32>().unwrap(), [1.0; 3]);
    }

    #[test]
    fn the_causal_mixer_hides_what_comes_later() {
        let store = ParamStore::new(1, DType::F64, &Device::Cpu);
        let mut mixer = EluAttention::new(&LinearAttentionConfig::new(12, 3), store.vb()).unwrap();
        let tokens = |seed| Generator::new(seed).normal(0.0, 1.0, (2, 9, 12), DType::F64, &Device::Cpu).unwrap();
        let xs = tokens(2);
        let changed = Tensor::cat(&[xs.narrow(1, 0, 6).unwrap(), tokens(3).narrow(1, 6, 3).unwrap()], 1).unwrap();
        for (causal, seen) in [(true, false), (false, true)] {
            mixer.causal = causal;
            let part = |xs: &Tensor| mixer.forward_t(xs, false).unwrap().narrow(1, 0, 6).unwrap();
            assert_eq!(distance(&part(&xs), &part(&changed)) > 1e-6, seen);
        }
    }

    #[test]
    fn half_precision_comes_back_as_it_went_in() {
        let q = Generator::new(1).normal(0.0, 1.0, (1, 2, 20, 8), DType::F32, &Device::Cpu).unwrap();
        let want = elu_attention(&q, &q, &q, true).unwrap();
        for dtype in [DType::F16, DType::BF16] {
            let half = q.to_dtype(dtype).unwrap();
            let found = elu_attention(&half, &half, &half, true).unwrap();
            assert_eq!(found.dtype(), dtype);
            assert!(distance(&found, &want) < 0.05);
        }
    }

    #[test]
    fn sizes_that_make_no_sense_are_refused() {
        let vb = || ParamStore::new(1, DType::F32, &Device::Cpu).vb();
        assert!(EluAttention::new(&LinearAttentionConfig::new(12, 0), vb()).is_err());
        assert!(EluAttention::new(&LinearAttentionConfig::new(2, 3), vb()).is_err());
        let huge = LinearAttentionConfig { dim_head: usize::MAX, ..LinearAttentionConfig::new(12, 3) };
        assert!(EluAttention::new(&huge, vb()).is_err());
    }
}
