//! A cache of labelled pictures beside the text classifier.

use candle_core::{D, DType, Tensor, Var};
use sconce_clip::normalize;
use sconce_nn::{Init, VarBuilder, init};
use sconce_ops::matmul;
use serde::{Deserialize, Serialize};

use crate::{Error, Result};

/// Zhang et al. 2022, "Tip-Adapter: Training-free Adaption of CLIP for Few-shot Classification" (`arXiv:2111.03930`): pictures
/// are compared with a cache of labelled ones, `alpha * exp(-beta * (1 - cosine)) * labels` is added to the logits of the texts.
///
/// Tip-Adapter-F trains the keys: [`trainable`](Self::trainable) makes them a parameter. The official code chooses their epoch,
/// and on `ImageNet` also `alpha` and `beta`, by the pictures of the test, which this library does not offer: give validation
/// pictures to [`fit`](crate::fit) and to [`search`](Self::search).
#[derive(Clone, Debug)]
pub struct TipAdapter {
    /// Features of the labelled pictures at unit length, `(N, E)`; of any length once they were trained.
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
    /// For other shapes; [`Error::Label`] for a label that is no class.
    pub fn new(features: &Tensor, labels: &[u32], classes: usize) -> Result<Self> {
        let n = rows("features", features, None)?;
        one_for_each("labels", labels, n)?;
        if let Some(index) = labels.iter().position(|&label| label as usize >= classes) {
            return Err(Error::Label { index, label: labels[index], classes });
        }
        let one_hot: Vec<f32> = labels
            .iter()
            .flat_map(|label| (0..classes).map(move |k| f32::from(u8::from(k == *label as usize))))
            .collect();
        let values = Tensor::from_vec(one_hot, (n, classes), features.device())?.to_dtype(features.dtype())?;
        Ok(Self { keys: normalize(features)?.detach(), values })
    }

    /// The features of pictures from several views of each: the normalised mean of the features as the image tower gives them,
    /// not yet normalised, so that a view with longer features counts for more. The official cache is of ten views: crops of 0.5
    /// to 1 of the area, mirrored at random.
    ///
    /// # Shapes
    /// - `views` `(V, N, E)`, output `(N, E)`
    ///
    /// # Errors
    /// For another rank, and without a view.
    pub fn mean_of_views(views: &Tensor) -> candle_core::Result<Tensor> {
        let (count, _, _) = views.dims3()?;
        if count == 0 {
            candle_core::bail!("tip-adapter: the mean of no views")
        }
        normalize(&views.mean(0)?)
    }

    /// The same cache with keys that are trained, Tip-Adapter-F: a parameter `weight` that begins as the keys. One that `vb`
    /// holds already stays as it is.
    ///
    /// # Errors
    /// When `vb` holds keys of another shape.
    pub fn trainable(&self, vb: VarBuilder) -> candle_core::Result<Self> {
        let is_new = !vb.contains_tensor("weight");
        let keys = init::param(&vb, self.keys.shape(), "weight", Init::Zeros)?;
        if is_new && keys.is_variable() {
            Var::from_tensor(&keys)?.set(&self.keys.to_dtype(keys.dtype())?.to_device(keys.device())?)?;
        }
        Ok(Self { keys, values: self.values.clone() })
    }

    /// How near pictures are to each key: cosines, as long as the keys are at unit length.
    ///
    /// # Shapes
    /// - `image_features` `(B, E)`, normalised or not; output `(B, N)`
    ///
    /// # Errors
    /// When the width is another.
    pub fn affinity(&self, image_features: &Tensor) -> candle_core::Result<Tensor> {
        matmul(&normalize(&image_features.to_dtype(self.keys.dtype())?)?, &self.keys.t()?)
    }

    /// What the cache says, before `alpha`.
    ///
    /// # Shapes
    /// - `image_features` `(B, E)`, normalised or not; output `(B, K)`
    ///
    /// # Errors
    /// When the width is another.
    pub fn cache_logits(&self, image_features: &Tensor, beta: f64) -> candle_core::Result<Tensor> {
        self.votes(&self.affinity(image_features)?, beta)
    }

    /// Affinities `(B, N)` to scores of the classes `(B, K)`.
    fn votes(&self, affinity: &Tensor, beta: f64) -> candle_core::Result<Tensor> {
        matmul(&((affinity - 1.0)? * beta)?.exp()?, &self.values.to_dtype(affinity.dtype())?)
    }

    /// The text classifier's logits and the cache's together.
    ///
    /// # Shapes
    /// - `clip_logits` `(B, K)`, `image_features` `(B, E)`, output `(B, K)`
    ///
    /// # Errors
    /// When shapes do not agree.
    pub fn logits(
        &self,
        clip_logits: &Tensor,
        image_features: &Tensor,
        alpha: f64,
        beta: f64,
    ) -> candle_core::Result<Tensor> {
        let cache = self.cache_logits(image_features, beta)?;
        clip_logits.to_dtype(cache.dtype())? + (cache * alpha)?
    }

    /// The pair of the grid that classifies the given pictures best; use validation pictures, not those of the test. The first
    /// of several equally good ones wins, `beta` in the outer loop.
    ///
    /// # Shapes
    /// - `clip_logits` `(B, K)`, `image_features` `(B, E)`, `labels` `(B)`
    ///
    /// # Errors
    /// When shapes do not agree, a label is no class, or the grid is empty.
    pub fn search(
        &self,
        clip_logits: &Tensor,
        image_features: &Tensor,
        labels: &[u32],
        grid: &Grid,
    ) -> Result<TipSearch> {
        let classes = self.values.dim(1)?;
        let count = rows("clip_logits", clip_logits, Some(classes))?;
        one_for_each("labels", labels, count)?;
        if let Some(index) = labels.iter().position(|&label| label as usize >= classes) {
            return Err(Error::Label { index, label: labels[index], classes });
        }
        let labels = Tensor::new(labels, clip_logits.device())?;
        let affinity = self.affinity(image_features)?.detach(); // (B, N)
        let texts = clip_logits.detach().to_dtype(affinity.dtype())?;
        let mut best: Option<TipSearch> = None;
        for beta in grid.betas() {
            let cache = self.votes(&affinity, beta)?.detach(); // (B, K)
            for alpha in grid.alphas() {
                let found = (&texts + (&cache * alpha)?)?.argmax(D::Minus1)?;
                let right = found.eq(&labels)?.to_dtype(DType::F64)?.sum_all()?.to_scalar::<f64>()?;
                let accuracy = right / count as f64;
                if best.is_none_or(|best| accuracy > best.accuracy) {
                    best = Some(TipSearch { alpha, beta, accuracy });
                }
            }
        }
        best.ok_or_else(|| Error::Config("a grid without points".into()))
    }
}

/// Number of rows of a matrix that has some, and as many columns as wanted.
fn rows(what: &'static str, matrix: &Tensor, columns: Option<usize>) -> Result<usize> {
    match *matrix.dims() {
        [rows, found] if rows > 0 && columns.is_none_or(|wanted| wanted == found) => Ok(rows),
        _ => {
            let columns = columns.map_or("E".to_owned(), |columns| columns.to_string());
            Err(Error::Shape { what, expected: format!("(N, {columns}), N at least 1"), found: matrix.dims().to_vec() })
        }
    }
}

fn one_for_each(what: &'static str, labels: &[u32], rows: usize) -> Result<()> {
    if labels.len() != rows {
        return Err(Error::Shape { what, expected: format!("({rows})"), found: vec![labels.len()] });
    }
    Ok(())
}

/// What the cache starts with, and where [`TipAdapter::search`] looks.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct TipConfig {
    /// Weight of the cache.
    pub alpha: f64,
    /// Sharpness of the affinity.
    pub beta: f64,
    /// Values to try.
    pub grid: Grid,
}

impl Default for TipConfig {
    /// The official code's for `ImageNet` and several others.
    fn default() -> Self {
        Self { alpha: 1.17, beta: 1.0, grid: Grid::default() }
    }
}

impl TipConfig {
    /// The official code's settings for a data set, under the names of [`HAND_TEMPLATES`](crate::templates::HAND_TEMPLATES) in
    /// any case: `beta` is 1 and the grid has 200 by 20 points everywhere.
    #[must_use]
    pub fn official(data_set: &str) -> Option<Self> {
        let (_, alpha, scale) = OFFICIAL.iter().find(|(name, ..)| name.eq_ignore_ascii_case(data_set))?;
        Some(Self { alpha: *alpha, grid: Grid { scale: *scale, ..Grid::default() }, ..Self::default() })
    }
}

/// First `alpha`, and the ends of the grid for `beta` and `alpha`.
const OFFICIAL: [(&str, f64, [f64; 2]); 11] = [
    ("ImageNet", 1.17, [7.0, 3.0]),
    ("Caltech101", 3.0, [12.0, 5.0]),
    ("DescribableTextures", 2.0, [13.0, 13.0]),
    ("EuroSAT", 2.0, [12.0, 10.0]),
    ("FGVCAircraft", 5.0, [30.0, 30.0]),
    ("Food101", 1.17, [10.0, 10.0]),
    ("OxfordFlowers", 10.0, [50.0, 50.0]),
    ("OxfordPets", 1.17, [7.0, 3.0]),
    ("StanfordCars", 3.0, [20.0, 10.0]),
    ("SUN397", 1.17, [12.0, 10.0]),
    ("UCF101", 3.0, [7.0, 3.0]),
];

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
