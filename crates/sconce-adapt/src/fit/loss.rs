//! Labels and their cross entropy.

use candle_core::{DType, Tensor};
use sconce_ops::{cross_entropy, cross_entropy_soft};

use crate::{Error, Result};

/// The classes of all pictures.
pub(super) struct Labels(Vec<u32>);

impl Labels {
    /// Of the rows of `features`.
    pub(super) fn new(features: &Tensor, labels: &Tensor) -> Result<Self> {
        let n = features.dims().first().copied().unwrap_or(0);
        if n == 0 || labels.dims() != [n] {
            let expected = format!("({n}), a label for each of the pictures, at least one");
            return Err(Error::Shape { what: "labels", expected, found: labels.dims().to_vec() });
        }
        if labels.dtype() != DType::U32 {
            return Err(Error::Config(format!("labels are {}, not u32", labels.dtype().as_str())));
        }
        Ok(Self(labels.to_vec1()?))
    }

    pub(super) fn len(&self) -> usize {
        self.0.len()
    }

    pub(super) fn all(&self) -> Vec<u32> {
        (0..self.0.len() as u32).collect()
    }

    /// That each is one of `classes`.
    pub(super) fn check(&self, classes: usize) -> Result<()> {
        match self.0.iter().position(|&label| label as usize >= classes) {
            Some(index) => Err(Error::Label { index, label: self.0[index], classes }),
            None => Ok(()),
        }
    }

    fn of(&self, indices: &[u32]) -> Vec<u32> {
        indices.iter().map(|&i| self.0[i as usize]).collect()
    }

    /// How many of these pictures have the highest score where they should.
    pub(super) fn right(&self, logits: &Tensor, indices: &[u32]) -> Result<usize> {
        let answers = super::answers(logits)?;
        if answers.len() != indices.len() {
            let expected = format!("({}, K)", indices.len());
            return Err(Error::Shape { what: "logits", expected, found: logits.dims().to_vec() });
        }
        Ok(answers.iter().zip(self.of(indices)).filter(|(answer, label)| **answer == *label).count())
    }

    /// Mean cross entropy, weighted where there are weights: `sum_b w[y_b] l_b / sum_b w[y_b]`.
    pub(super) fn loss(&self, logits: &Tensor, indices: &[u32], weights: Option<&[f32]>) -> Result<Tensor> {
        let labels = self.of(indices);
        let Some(weights) = weights else {
            return Ok(cross_entropy(logits, &Tensor::new(labels, logits.device())?, 0.0)?);
        };
        let classes = logits.dim(1)?;
        let total: f64 = labels.iter().map(|&label| f64::from(weights[label as usize])).sum();
        let mut targets = vec![0f64; labels.len() * classes];
        for (row, &label) in labels.iter().enumerate() {
            targets[row * classes + label as usize] = f64::from(weights[label as usize]) * labels.len() as f64 / total;
        }
        // Half precision would round the weights.
        let wide = if logits.dtype() == DType::F64 { DType::F64 } else { DType::F32 };
        let targets = Tensor::from_vec(targets, (labels.len(), classes), logits.device())?.to_dtype(wide)?;
        Ok(cross_entropy_soft(&logits.to_dtype(wide)?, &targets)?)
    }
}

pub(super) fn check_weights(weights: Option<&[f32]>, classes: usize) -> Result<()> {
    match weights {
        Some(weights) if weights.len() != classes => {
            Err(Error::Config(format!("{} weights for {classes} classes", weights.len())))
        }
        _ => Ok(()),
    }
}
