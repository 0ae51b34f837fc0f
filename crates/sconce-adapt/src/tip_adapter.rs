//! A cache of labelled pictures beside the text classifier.

use candle_core::{D, DType, Result, Tensor};
use sconce_clip::normalize;
use sconce_nn::{Init, VarBuilder, init};
use sconce_ops::matmul;
use serde::{Deserialize, Serialize};

/// Zhang et al. 2022, "Tip-Adapter: Training-free Adaption of CLIP for Few-shot Classification" (`arXiv:2111.03930`): pictures
/// are compared with a cache of labelled ones, `alpha * exp(-beta * (1 - cosine)) * labels` is added to the logits of the texts.
///
/// Tip-Adapter-F trains the keys: [`trainable`](Self::trainable) makes them a parameter.
#[derive(Clone, Debug)]
pub struct TipAdapter {
    /// Features of the labelled pictures at unit length, `(N, E)`.
    pub keys: Tensor,
    /// Their classes, one-hot, `(N, K)`.
    pub values: Tensor,
}

impl TipAdapter {
    /// From the features of labelled pictures, each the mean over augmented views of it ([`mean_of_views`](Self::mean_of_views)).
    ///
    /// # Shapes
    /// - `features` `(N, E)`, normalised here; `labels` `(N)`, below `classes`
    ///
    /// # Errors
    /// For other shapes and for a label that is too large.
    pub fn new(features: &Tensor, labels: &[u32], classes: usize) -> crate::Result<Self> {
        let (n, _) = features.dims2()?;
        if n == 0 || labels.len() != n {
            let found = vec![labels.len()];
            return Err(crate::Error::Shape { what: "labels", expected: format!("({n}), at least one"), found });
        }
        if let Some(label) = labels.iter().find(|label| **label as usize >= classes) {
            return Err(crate::Error::Config(format!("label {label} among {classes} classes")));
        }
        let one_hot: Vec<f32> = labels
            .iter()
            .flat_map(|label| (0..classes).map(move |k| f32::from(u8::from(k == *label as usize))))
            .collect();
        let values = Tensor::from_vec(one_hot, (n, classes), features.device())?.to_dtype(features.dtype())?;
        Ok(Self { keys: normalize(features)?.detach(), values })
    }

    /// The features of pictures from several views of each: the mean of the features before they are normalised, as the
    /// official code has it.
    ///
    /// # Shapes
    /// - `views` `(V, N, E)`, output `(N, E)`
    ///
    /// # Errors
    /// For another rank.
    pub fn mean_of_views(views: &Tensor) -> Result<Tensor> {
        views.dims3()?;
        normalize(&views.mean(0)?)
    }

    /// The same cache with keys that are trained, Tip-Adapter-F: a parameter `weight` that begins as the keys.
    ///
    /// # Errors
    /// When `vb` holds keys of another shape.
    pub fn trainable(&self, vb: VarBuilder) -> Result<Self> {
        let keys = init::param(&vb, self.keys.shape(), "weight", Init::Zeros)?;
        if keys.is_variable() {
            candle_core::Var::from_tensor(&keys)?.set(&self.keys.to_dtype(keys.dtype())?.to_device(keys.device())?)?;
        }
        Ok(Self { keys, values: self.values.clone() })
    }

    /// What the cache says, before `alpha`.
    ///
    /// # Shapes
    /// - `image_features` `(B, E)`, normalised or not; output `(B, K)`
    ///
    /// # Errors
    /// When the width is another.
    pub fn cache_logits(&self, image_features: &Tensor, beta: f64) -> Result<Tensor> {
        let affinity = matmul(&normalize(image_features)?, &self.keys.t()?)?; // (B, N)
        matmul(&((affinity - 1.0)? * beta)?.exp()?, &self.values)
    }

    /// The text classifier's logits and the cache's together.
    ///
    /// # Shapes
    /// - `clip_logits` `(B, K)`, `image_features` `(B, E)`, output `(B, K)`
    ///
    /// # Errors
    /// When shapes do not agree.
    pub fn logits(&self, clip_logits: &Tensor, image_features: &Tensor, alpha: f64, beta: f64) -> Result<Tensor> {
        clip_logits + (self.cache_logits(image_features, beta)? * alpha)?
    }

    /// The pair of the grid that classifies the given pictures best; use validation pictures, not those of the test. The first
    /// of several equally good ones wins.
    ///
    /// # Shapes
    /// - `clip_logits` `(B, K)`, `image_features` `(B, E)`, `labels` `(B)`
    ///
    /// # Errors
    /// When shapes do not agree or the grid is empty.
    pub fn search(
        &self,
        clip_logits: &Tensor,
        image_features: &Tensor,
        labels: &[u32],
        grid: &Grid,
    ) -> crate::Result<TipSearch> {
        let count = clip_logits.dim(0)?;
        if labels.len() != count || count == 0 {
            let expected = format!("({count}), at least one");
            return Err(crate::Error::Shape { what: "labels", expected, found: vec![labels.len()] });
        }
        let labels = Tensor::new(labels, clip_logits.device())?;
        let mut best: Option<TipSearch> = None;
        for beta in grid.betas() {
            let cache = self.cache_logits(image_features, beta)?;
            for alpha in grid.alphas() {
                let found = (clip_logits + (&cache * alpha)?)?.argmax(D::Minus1)?;
                let right = found.eq(&labels)?.to_dtype(DType::F64)?.sum_all()?.to_scalar::<f64>()?;
                let accuracy = right / count as f64;
                if best.is_none_or(|best| accuracy > best.accuracy) {
                    best = Some(TipSearch { alpha, beta, accuracy });
                }
            }
        }
        best.ok_or_else(|| crate::Error::Config("a grid without points".into()))
    }
}

/// Values of `alpha` and `beta` to try: steps from 0.1 up to the scale, the end left out, as the official code has it.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Grid {
    /// Upper ends of `beta` and `alpha`, in this order.
    pub scale: [f64; 2],
    /// Number of values of each.
    pub steps: [usize; 2],
}

impl Default for Grid {
    /// The official code's for ImageNet.
    fn default() -> Self {
        Self { scale: [7.0, 3.0], steps: [200, 20] }
    }
}

impl Grid {
    fn axis(&self, axis: usize) -> impl Iterator<Item = f64> + use<> {
        let (scale, steps) = (self.scale[axis], self.steps[axis]);
        (0..steps).map(move |i| i as f64 * (scale - 0.1) / steps as f64 + 0.1)
    }

    /// The values of `beta`.
    pub fn betas(&self) -> impl Iterator<Item = f64> + use<> {
        self.axis(0)
    }

    /// The values of `alpha`.
    pub fn alphas(&self) -> impl Iterator<Item = f64> + use<> {
        self.axis(1)
    }
}

/// What [`TipAdapter::search`] found.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct TipSearch {
    /// Weight of the cache.
    pub alpha: f64,
    /// Sharpness of the affinity.
    pub beta: f64,
    /// Fraction of right answers on the pictures that were searched with.
    pub accuracy: f64,
}
