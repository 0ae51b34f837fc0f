//! The feature maps of Performer, and attention with them.

use candle_core::{Result, Tensor, bail};
use sconce_ops::{Activation, exp, matmul, softmax};
use serde::{Deserialize, Serialize};

use crate::linear::{Epsilon, kernel_attention, wide};

/// Which kernel the features stand for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PerformerKernel {
    /// That of softmax attention: [`softmax_features`].
    #[default]
    Softmax,
    /// [`generalized_features`] with this function; ReLU in the paper.
    Generalized(Activation),
    /// No random features: queries pass a softmax over their features, keys one over the tokens, or the plain exponential
    /// when causal.
    NoProjection,
}

/// What is subtracted in the exponent of [`softmax_features`] to keep it from overflowing. It cancels in the quotient, but for
/// the 1e-4 beside the exponential: the choice shows in the numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Stabilizer {
    /// A query's own largest feature; for keys the largest of the head. No gradient passes through it.
    #[default]
    PerHead,
    /// As in CXV: for keys the largest of the whole batch, all heads included, so that what comes out for one picture depends
    /// on the others; and the gradient passes through, to the one element that is largest.
    Batch,
}

/// Which side of the product the features are for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Side {
    /// The queries.
    Query,
    /// The keys.
    Key,
}

/// Positive random features whose products average to `exp(q . k / sqrt(D))`, Choromanski et al. 2021 (`arXiv:2009.14794`),
/// lemma 1 and section B.1: `m^-1/2 (exp(w . x - |x|^2 / 2 - s) + 1e-4)` for `x` scaled by `D^-1/4`, `s` the
/// [`Stabilizer`].
///
/// # Shapes
/// - `xs` `(B, heads, N, D)`, `projection` `(m, D)`
/// - output `(B, heads, N, m)`; half precision gives f32
///
/// # Errors
/// When shapes or devices do not agree.
pub fn softmax_features(xs: &Tensor, projection: &Tensor, side: Side, stabilizer: Stabilizer) -> Result<Tensor> {
    let (scaled, projected) = project(xs, projection)?;
    let (b, h, n, m) = projected.dims4()?;
    if projected.elem_count() == 0 {
        return Ok(projected);
    }
    let half_norm = (scaled.sqr()?.sum_keepdim(3)? * 0.5)?; // (B, heads, N, 1)
    let largest = match (stabilizer, side) {
        (Stabilizer::PerHead, Side::Query) => projected.detach().max_keepdim(3)?,
        (Stabilizer::PerHead, Side::Key) => {
            projected.detach().reshape((b, h, 1, n * m))?.max_keepdim(3)? // (B, heads, 1, 1)
        }
        (Stabilizer::Batch, Side::Query) => pick_largest(&projected)?,
        (Stabilizer::Batch, Side::Key) => pick_largest(&projected.reshape((1, 1, 1, ()))?)?,
    };
    let exponent = projected.broadcast_sub(&half_norm.broadcast_add(&largest)?)?;
    let ratio = (m as f64).powf(-0.5);
    exp(&exponent)?.affine(ratio, 1e-4 * ratio)
}

/// The largest along the last axis. One of several equal ones takes the gradient; candle's `max` would give it to each of
/// them in full.
fn pick_largest(xs: &Tensor) -> Result<Tensor> {
    xs.gather(&xs.detach().argmax_keepdim(3)?, 3)
}

/// Features of a kernel that is not the softmax's, Choromanski et al. 2021, section 2.2: `f(w . x) + 1e-3` for `x` scaled by
/// `D^-1/4`; without a projection `f(x) + 1e-3`.
///
/// # Shapes
/// - `xs` `(B, heads, N, D)`, `projection` `(m, D)`
/// - output `(B, heads, N, m)`, or `(B, heads, N, D)`; half precision gives f32
///
/// # Errors
/// When shapes or devices do not agree.
pub fn generalized_features(xs: &Tensor, projection: Option<&Tensor>, f: Activation) -> Result<Tensor> {
    let projected = match projection {
        Some(projection) => project(xs, projection)?.1,
        None => scale(xs)?,
    };
    f.forward(&projected)? + 1e-3
}

fn scale(xs: &Tensor) -> Result<Tensor> {
    let d = xs.dim(candle_core::D::Minus1)?;
    xs.to_dtype(wide(xs.dtype()))? * (d.max(1) as f64).powf(-0.25)
}

/// `x` scaled by `D^-1/4`, and its products with the rows of the projection.
fn project(xs: &Tensor, projection: &Tensor) -> Result<(Tensor, Tensor)> {
    let ((_, _, _, d), (_, pd)) = (xs.dims4()?, projection.dims2()?);
    if d != pd {
        bail!("performer: a projection {:?} for vectors {:?}", projection.dims(), xs.dims())
    }
    let xs = scale(xs)?;
    let projected = matmul(&xs, &projection.to_dtype(xs.dtype())?.t()?)?; // (B, heads, N, m)
    Ok((xs, projected))
}

/// Options of [`performer_attention`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct PerformerOptions {
    /// The kernel.
    pub kernel: PerformerKernel,
    /// What the exponent of the softmax kernel is shifted by.
    pub stabilizer: Stabilizer,
    /// Whether a query sees only keys up to its own place. The stabiliser of the keys still looks at all of them, as in the
    /// official code; it reaches the result through the 1e-4 beside the exponential alone.
    pub causal: bool,
}

/// FAVOR+, Choromanski et al. 2021 (`arXiv:2009.14794`): attention by products of random features. Nothing is added to the
/// sums of weights but, when causal, 1e-6 to each feature of the keys' sum.
///
/// Half precision is computed in f32. Cost: `O(N m (D + E))`.
///
/// # Shapes
/// - `q`, `k` `(B, heads, N, D)`, `v` `(B, heads, N, E)`, `projection` `(m, D)`
/// - output `(B, heads, N, E)`
///
/// # Errors
/// When shapes, types or devices do not agree.
pub fn performer_attention(
    q: &Tensor,
    k: &Tensor,
    v: &Tensor,
    projection: &Tensor,
    options: &PerformerOptions,
) -> Result<Tensor> {
    let PerformerOptions { kernel, stabilizer, causal } = *options;
    let (q, k) = match kernel {
        PerformerKernel::Softmax => (
            softmax_features(q, projection, Side::Query, stabilizer)?,
            softmax_features(k, projection, Side::Key, stabilizer)?,
        ),
        PerformerKernel::Generalized(f) => {
            (generalized_features(q, Some(projection), f)?, generalized_features(k, Some(projection), f)?)
        }
        PerformerKernel::NoProjection => {
            let k = k.to_dtype(wide(k.dtype()))?;
            let k = if causal { exp(&k)? } else { softmax(&k, 2)? };
            (softmax(&q.to_dtype(wide(q.dtype()))?, 3)?, k)
        }
    };
    let eps = if causal { Epsilon::Keys(1e-6) } else { Epsilon::Weights(0.0) };
    kernel_attention(&q, &k, v, causal, eps)
}

#[cfg(test)]
mod tests {
    use candle_core::{DType, Device, Var};
    use sconce_nn::Generator;
    use sconce_ops::AttentionOptions;

    use super::*;
    use crate::linear::{OrthogonalScaling, orthogonal_features};
    use crate::testing::{assert_close, check_gradients, distance};

    fn draw(seed: u64, shape: [usize; 4], std: f64) -> Tensor {
        Generator::new(seed).normal(0.0, std, &shape[..], DType::F64, &Device::Cpu).unwrap()
    }

    fn projection(m: usize, d: usize, seed: u64) -> Tensor {
        orthogonal_features(m, d, OrthogonalScaling::Norms, &Generator::new(seed)).unwrap()
    }

    #[test]
    fn more_features_come_nearer_to_softmax_attention() {
        let [q, k, v] = [1, 2, 3].map(|seed| draw(seed, [1, 2, 12, 8], 0.7));
        let want = sconce_ops::attention(&q, &k, &v, &AttentionOptions::default()).unwrap();
        // Averaged over draws of the projection, since a single one may be lucky.
        let error = |m: usize| {
            let one =
                |seed| performer_attention(&q, &k, &v, &projection(m, 8, seed), &PerformerOptions::default()).unwrap();
            (0..8).map(|seed| distance(&one(seed), &want)).sum::<f64>() / 8.0
        };
        let (few, many) = (error(8), error(2048));
        assert!(many < 0.4 * few && many < 0.2, "{few} {many}");
    }

    #[test]
    fn products_of_features_average_to_the_exponential() {
        let (q, k) = (draw(1, [1, 1, 3, 6], 0.25), draw(2, [1, 1, 3, 6], 0.25));
        let want = (q.matmul(&k.t().unwrap().contiguous().unwrap()).unwrap() / 6f64.sqrt()).unwrap().exp().unwrap();
        for scaling in [OrthogonalScaling::Norms, OrthogonalScaling::SqrtDim] {
            let w = orthogonal_features(6000, 6, scaling, &Generator::new(4)).unwrap();
            // Without the shift and the offset, which have the quotient in view.
            let plain = |xs: &Tensor| {
                let (xs, projected) = project(xs, &w).unwrap();
                let norm = (xs.sqr().unwrap().sum_keepdim(3).unwrap() * 0.5).unwrap();
                projected.broadcast_sub(&norm).unwrap().exp().unwrap()
            };
            let found = (plain(&q).matmul(&plain(&k).t().unwrap().contiguous().unwrap()).unwrap() / 6000.0).unwrap();
            assert!(distance(&found, &want) < 0.05, "{scaling:?}: {}", distance(&found, &want));
        }
    }

    #[test]
    fn gradients_are_exact_also_through_the_maxima_of_cxv() {
        let w = projection(5, 3, 9);
        let inputs = [draw(1, [2, 2, 3, 3], 1.0), draw(2, [2, 2, 3, 3], 1.0), draw(3, [2, 2, 3, 2], 1.0)];
        for (kernel, stabilizer, causal) in [
            (PerformerKernel::Softmax, Stabilizer::Batch, false),
            (PerformerKernel::Generalized(Activation::Gelu), Stabilizer::PerHead, true),
            (PerformerKernel::NoProjection, Stabilizer::PerHead, false),
            (PerformerKernel::NoProjection, Stabilizer::PerHead, true),
        ] {
            let options = PerformerOptions { kernel, stabilizer, causal };
            check_gradients(&inputs, |t| performer_attention(&t[0], &t[1], &t[2], &w, &options));
        }
    }

    #[test]
    fn equal_maxima_share_no_gradient_twice() {
        // All keys alike: every token has the largest feature.
        let k = Tensor::ones((1, 1, 4, 3), DType::F64, &Device::Cpu).unwrap();
        let w = projection(5, 3, 9);
        let var = Var::from_tensor(&k).unwrap();
        let features = softmax_features(&var, &w, Side::Key, Stabilizer::Batch).unwrap();
        let grad = features.sum_all().unwrap().backward().unwrap().get(&var).unwrap().clone();
        // The shift takes what the tokens get from it away from one of them.
        let exponentials = (features.affine(5f64.sqrt(), -1e-4).unwrap() / 5f64.sqrt()).unwrap();
        let c = 3f64.powf(-0.25);
        let own = exponentials.reshape((4, 5)).unwrap().matmul(&(&w * c).unwrap()).unwrap();
        let norm = (exponentials.sum_keepdim(3).unwrap().reshape((4, 1)).unwrap() * (c * c)).unwrap();
        let without = own.broadcast_sub(&norm.broadcast_mul(&k.reshape((4, 3)).unwrap()).unwrap()).unwrap();
        let sum = |t: &Tensor| t.reshape((4, 3)).unwrap().sum(0).unwrap();
        let total = exponentials.sum_all().unwrap().to_scalar::<f64>().unwrap();
        let products = w.sum_keepdim(1).unwrap().flatten_all().unwrap().to_vec1::<f64>().unwrap();
        let best = (0..5).max_by(|a, b| products[*a].total_cmp(&products[*b])).unwrap();
        let taken = (w.narrow(0, best, 1).unwrap().squeeze(0).unwrap() * (c * total)).unwrap();
        assert_close(&sum(&grad), &(sum(&without) - taken).unwrap(), 1e-10);
    }

    #[test]
    fn heads_and_pictures_do_not_see_each_other_unless_told_so() {
        let w = projection(20, 8, 1);
        let [q, k, v] = [1, 2, 3].map(|seed| draw(seed, [2, 2, 6, 8], 1.0));
        for (stabilizer, independent) in [(Stabilizer::PerHead, true), (Stabilizer::Batch, false)] {
            let options = PerformerOptions { stabilizer, ..Default::default() };
            let all = performer_attention(&q, &k, &v, &w, &options).unwrap();
            let first = |t: &Tensor| t.narrow(0, 0, 1).unwrap();
            let alone = performer_attention(&first(&q), &first(&k), &first(&v), &w, &options).unwrap();
            let second = |t: &Tensor| t.narrow(0, 1, 1).unwrap();
            let other = performer_attention(&second(&q), &second(&k), &second(&v), &w, &options).unwrap();
            let change = distance(&first(&all), &alone).max(distance(&second(&all), &other));
            assert_eq!(change < 1e-12, independent, "{stabilizer:?}: {change}");
        }
    }

    #[test]
    fn half_precision_stays_finite_where_its_exponential_would_not() {
        let w = projection(44, 16, 1);
        let q = (draw(1, [1, 2, 20, 16], 1.0) * 6.0).unwrap();
        let want = performer_attention(&q, &q, &q, &w, &PerformerOptions::default()).unwrap();
        for dtype in [DType::F16, DType::BF16] {
            let half = q.to_dtype(dtype).unwrap();
            let wide = half.to_dtype(DType::F32).unwrap();
            let w = w.to_dtype(dtype).unwrap();
            let found = performer_attention(&half, &half, &half, &w, &PerformerOptions::default()).unwrap();
            let single = performer_attention(&wide, &wide, &wide, &w, &PerformerOptions::default()).unwrap();
            assert!(distance(&found, &single) < 0.2 && found.dtype() == dtype);
        }
        assert!(distance(&want, &want) == 0.0);
        assert!(performer_attention(&q, &q, &q, &projection(4, 8, 1), &PerformerOptions::default()).is_err());
    }
}
