//! Accuracy, and what several seeds say together.

use candle_core::Tensor;
use sconce_metrics::Confusion;
use serde::{Deserialize, Serialize};

use crate::Result;

/// How well pictures were classified.
#[derive(Clone, Debug, PartialEq)]
pub struct Score {
    /// Fraction of right answers.
    pub accuracy: f64,
    /// Mean of the classes' own fractions of right answers: what VisDA counts.
    pub mean_class_accuracy: f64,
    /// Which class was taken for which.
    pub confusion: Confusion,
}

impl Score {
    /// Counts the highest logit of each picture as its class, the first of several equal ones.
    ///
    /// # Shapes
    /// - `logits` `(N, K)`, `labels` `(N)`, below `K`
    ///
    /// # Errors
    /// Without pictures, for other shapes, a label out of range, a logit that is not a number.
    pub fn new(logits: &Tensor, labels: &[u32]) -> Result<Self> {
        let mut confusion = Confusion::new(logits.dims2()?.1);
        confusion.update(logits, &Tensor::new(labels, logits.device())?)?;
        let (accuracy, mean_class_accuracy) = (confusion.accuracy()?, confusion.mean_class_accuracy()?);
        Ok(Self { accuracy, mean_class_accuracy, confusion })
    }
}

/// Results of one experiment with several seeds.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct OverSeeds {
    /// A value for each seed.
    pub values: Vec<f64>,
    /// Their mean.
    pub mean: f64,
    /// Their sample standard deviation (divided by `n - 1`); 0 for a single value.
    pub std: f64,
}

impl OverSeeds {
    /// Mean and spread of values.
    ///
    /// # Errors
    /// Without values, or when one is not finite.
    pub fn new(values: Vec<f64>) -> Result<Self> {
        if values.is_empty() || values.iter().any(|value| !value.is_finite()) {
            return Err(crate::Error::Data(format!("no mean of {values:?}")));
        }
        let n = values.len() as f64;
        let mean = values.iter().sum::<f64>() / n;
        let squares: f64 = values.iter().map(|value| (value - mean).powi(2)).sum();
        let std = (squares / (n - 1.0).max(1.0)).sqrt();
        Ok(Self { values, mean, std })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::Device;

    #[test]
    fn small_classes_count_as_much_as_large_ones_in_the_mean() {
        let logits = [[2f32, 1.0, 0.0], [3.0, 1.0, 0.0], [1.0, 0.0, 0.5], [0.0, 1.0, 0.5]];
        let score = Score::new(&Tensor::new(&logits, &Device::Cpu).unwrap(), &[0, 0, 0, 2]).unwrap();
        assert_eq!((score.accuracy, score.mean_class_accuracy), (0.75, 0.5));
        assert_eq!(score.confusion.count(2, 1), 1);
        let none = Tensor::zeros((0, 3), candle_core::DType::F32, &Device::Cpu).unwrap();
        assert!(Score::new(&none, &[]).is_err());
    }

    #[test]
    fn spread_is_the_sample_deviation() {
        // CoOp's own example: Caltech101, 16 shots, three seeds.
        let found = OverSeeds::new(vec![91.81, 92.01, 92.17]).unwrap();
        assert!((found.mean - 92.00).abs() < 0.005 && (found.std - 0.18).abs() < 0.005, "{found:?}");
        assert_eq!(OverSeeds::new(vec![0.5]).unwrap().std, 0.0);
        assert!(OverSeeds::new(vec![]).is_err() && OverSeeds::new(vec![f64::NAN]).is_err());
    }
}
