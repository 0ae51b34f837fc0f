//! Metrics of masks.

use candle_core::{DType, Tensor};

use crate::{Counts, Error, Result};

/// Metrics of one mask, or their means over many.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct MaskScores {
    /// Intersection over union.
    pub jaccard: f64,
    /// Twice the intersection over the sum of both areas.
    pub dice: f64,
    /// Fraction of the true area that was found.
    pub sensitivity: f64,
    /// Fraction of the background that was left alone.
    pub specificity: f64,
    /// Fraction of right pixels.
    pub accuracy: f64,
}

impl From<&Counts> for MaskScores {
    /// A ratio without a denominator counts 1: nothing was there, and nothing was claimed.
    fn from(counts: &Counts) -> Self {
        Self {
            jaccard: counts.jaccard().unwrap_or(1.0),
            dice: counts.dice().unwrap_or(1.0),
            sensitivity: counts.sensitivity().unwrap_or(1.0),
            specificity: counts.specificity().unwrap_or(1.0),
            accuracy: counts.accuracy().unwrap_or(1.0),
        }
    }
}

/// Metrics of each mask of a batch; a pixel belongs to the mask where the value is not 0.
///
/// # Shapes
/// - `predicted` and `truth` `(B, ..)`, the same
///
/// # Errors
/// Shapes that differ or lack the batch axis, an empty batch.
pub fn mask_scores(predicted: &Tensor, truth: &Tensor) -> Result<Vec<MaskScores>> {
    if predicted.dims() != truth.dims() || predicted.rank() == 0 {
        let expected = format!("{:?}, with a batch axis", truth.dims());
        return Err(Error::Shape { what: "predicted masks", expected, found: predicted.dims().to_vec() });
    }
    let pixels = |masks: &Tensor| masks.to_dtype(DType::F64)?.flatten_from(1)?.to_vec2::<f64>();
    let flat = |masks: &Tensor| if masks.rank() == 1 { masks.unsqueeze(1) } else { Ok(masks.clone()) };
    let (predicted, truth) = (pixels(&flat(predicted)?)?, pixels(&flat(truth)?)?);
    if predicted.is_empty() {
        return Err(Error::Empty);
    }
    let one = |(predicted, truth): (&Vec<f64>, &Vec<f64>)| {
        let mut counts = Counts::default();
        predicted.iter().zip(truth).for_each(|(p, t)| counts.add(*p != 0.0, *t != 0.0));
        MaskScores::from(&counts)
    };
    Ok(predicted.iter().zip(&truth).map(one).collect())
}

/// Mean of the metrics of many masks, each image counting the same.
///
/// # Errors
/// There is none.
pub fn mean_mask_scores(scores: &[MaskScores]) -> Result<MaskScores> {
    if scores.is_empty() {
        return Err(Error::Empty);
    }
    let mean = |of: fn(&MaskScores) -> f64| scores.iter().map(of).sum::<f64>() / scores.len() as f64;
    Ok(MaskScores {
        jaccard: mean(|s| s.jaccard),
        dice: mean(|s| s.dice),
        sensitivity: mean(|s| s.sensitivity),
        specificity: mean(|s| s.specificity),
        accuracy: mean(|s| s.accuracy),
    })
}
