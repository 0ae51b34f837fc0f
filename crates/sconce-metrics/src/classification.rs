//! Accuracy of classifiers.

use candle_core::{DType, Tensor};

use crate::rank::{Scores, best_rank};
use crate::{Error, Result, Ties};

/// Top-k accuracy over any number of batches.
///
/// ```
/// # use candle_core::{Device, Tensor};
/// # use sconce_metrics::TopK;
/// # fn main() -> sconce_metrics::Result<()> {
/// let logits = Tensor::new(&[[0.1f32, 0.7, 0.2], [0.5, 0.3, 0.2]], &Device::Cpu)?;
/// let targets = Tensor::new(&[1u32, 2], &Device::Cpu)?;
/// let mut accuracy = TopK::new(&[1, 3])?;
/// accuracy.update(&logits, &targets)?;
/// assert_eq!(accuracy.values()?, [0.5, 1.]);
/// # Ok(()) }
/// ```
#[derive(Clone, Debug)]
pub struct TopK {
    ks: Vec<usize>,
    ties: Ties,
    hits: Vec<u64>,
    total: u64,
}

impl TopK {
    /// Counts for each of these `k`.
    ///
    /// # Errors
    /// A `k` of zero.
    pub fn new(ks: &[usize]) -> Result<Self> {
        Self::with_ties(ks, Ties::default())
    }

    /// Counts with another rule for equal scores.
    ///
    /// # Errors
    /// A `k` of zero.
    pub fn with_ties(ks: &[usize], ties: Ties) -> Result<Self> {
        if ks.contains(&0) {
            return Err(Error::ZeroK);
        }
        Ok(Self { ks: ks.to_vec(), ties, hits: vec![0; ks.len()], total: 0 })
    }

    /// Adds a batch.
    ///
    /// # Shapes
    /// - `scores` `(B, K)`, of any type
    /// - `targets` `(B)`, integers below `K`
    ///
    /// # Errors
    /// Other shapes; a class out of range; a NaN. Nothing of the batch is then counted.
    pub fn update(&mut self, scores: &Tensor, targets: &Tensor) -> Result<()> {
        let scores = Scores::read("scores", scores)?;
        let targets = classes("targets", targets, scores.columns)?;
        if targets.len() != scores.rows {
            return Err(length("targets", scores.rows, targets.len()));
        }
        for (row, &target) in targets.iter().enumerate() {
            let rank = best_rank(scores.row(row), &[target], self.ties);
            for (hits, &k) in self.hits.iter_mut().zip(&self.ks) {
                *hits += u64::from(rank.is_some_and(|rank| rank <= k));
            }
        }
        self.total += scores.rows as u64;
        Ok(())
    }

    /// Number of samples counted.
    pub fn total(&self) -> u64 {
        self.total
    }

    /// Fraction of samples whose class is among the best `k`, for each `k`.
    ///
    /// # Errors
    /// No sample was counted.
    pub fn values(&self) -> Result<Vec<f64>> {
        if self.total == 0 {
            return Err(Error::Empty);
        }
        Ok(self.hits.iter().map(|&hits| hits as f64 / self.total as f64).collect())
    }
}

/// Top-k accuracy of one batch for each `k`; see [`TopK`].
///
/// # Errors
/// Those of [`TopK`].
pub fn top_k_accuracy(scores: &Tensor, targets: &Tensor, ks: &[usize]) -> Result<Vec<f64>> {
    let mut accuracy = TopK::new(ks)?;
    accuracy.update(scores, targets)?;
    accuracy.values()
}

/// How often each class was taken for each other.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Confusion {
    classes: usize,
    counts: Vec<u64>,
}

impl Confusion {
    /// No counts yet, for this number of classes.
    pub fn new(classes: usize) -> Self {
        Self { classes, counts: vec![0; classes * classes] }
    }

    /// Counts one sample.
    ///
    /// # Errors
    /// A class out of range.
    pub fn add(&mut self, target: usize, predicted: usize) -> Result<()> {
        for (what, index) in [("target", target), ("prediction", predicted)] {
            if index >= self.classes {
                return Err(Error::OutOfRange { what, index, count: self.classes });
            }
        }
        self.counts[target * self.classes + predicted] += 1;
        Ok(())
    }

    /// Adds a batch of scores; the prediction is the highest, the first of several.
    ///
    /// # Shapes
    /// - `scores` `(B, K)` with `K` the number of classes
    /// - `targets` `(B)`, integers below `K`
    ///
    /// # Errors
    /// Other shapes; a class out of range; a NaN. Nothing of the batch is then counted.
    pub fn update(&mut self, scores: &Tensor, targets: &Tensor) -> Result<()> {
        let read = Scores::read("scores", scores)?;
        if read.columns != self.classes {
            let expected = format!("(rows, {})", self.classes);
            return Err(Error::Shape { what: "scores", expected, found: scores.dims().to_vec() });
        }
        let targets = classes("targets", targets, self.classes)?;
        if targets.len() != read.rows {
            return Err(length("targets", read.rows, targets.len()));
        }
        for (row, &target) in targets.iter().enumerate() {
            let scores = read.row(row);
            let better = |&a: &usize, &b: &usize| scores[a].total_cmp(&scores[b]).then(b.cmp(&a));
            if let Some(predicted) = (0..self.classes).max_by(better) {
                self.add(target, predicted)?;
            }
        }
        Ok(())
    }

    /// Number of classes.
    pub fn classes(&self) -> usize {
        self.classes
    }

    /// Number of samples of class `target` that were taken for `predicted`; 0 for classes that do not
    /// exist.
    pub fn count(&self, target: usize, predicted: usize) -> u64 {
        if target >= self.classes || predicted >= self.classes {
            return 0;
        }
        self.counts[target * self.classes + predicted]
    }

    /// Number of samples counted.
    pub fn total(&self) -> u64 {
        self.counts.iter().sum()
    }

    /// Fraction of samples that were taken for what they are.
    ///
    /// # Errors
    /// No sample was counted.
    pub fn accuracy(&self) -> Result<f64> {
        match self.total() {
            0 => Err(Error::Empty),
            total => Ok(self.diagonal().sum::<u64>() as f64 / total as f64),
        }
    }

    /// Accuracy within each class (its recall); `None` for a class without a sample.
    pub fn per_class_accuracy(&self) -> Vec<Option<f64>> {
        let row = |class: usize| (0..self.classes).map(|p| self.count(class, p)).sum();
        self.diagonal().enumerate().map(|(class, hits)| ratio(hits, row(class))).collect()
    }

    /// Fraction of what was taken for each class that belongs to it; `None` for a class that nothing
    /// was taken for.
    pub fn per_class_precision(&self) -> Vec<Option<f64>> {
        let column = |class: usize| (0..self.classes).map(|t| self.count(t, class)).sum();
        self.diagonal().enumerate().map(|(class, hits)| ratio(hits, column(class))).collect()
    }

    /// Mean of the accuracies within the classes that have a sample, each class counting the same.
    ///
    /// # Errors
    /// No sample was counted.
    pub fn mean_class_accuracy(&self) -> Result<f64> {
        let known: Vec<f64> = self.per_class_accuracy().into_iter().flatten().collect();
        if known.is_empty() {
            return Err(Error::Empty);
        }
        Ok(known.iter().sum::<f64>() / known.len() as f64)
    }

    fn diagonal(&self) -> impl Iterator<Item = u64> + '_ {
        (0..self.classes).map(|class| self.count(class, class))
    }
}

fn ratio(part: u64, whole: u64) -> Option<f64> {
    (whole > 0).then(|| part as f64 / whole as f64)
}

/// Reads class numbers of any integer type.
fn classes(what: &'static str, tensor: &Tensor, count: usize) -> Result<Vec<usize>> {
    let &[_] = tensor.dims() else {
        return Err(Error::Shape { what, expected: "(rows)".to_owned(), found: tensor.dims().to_vec() });
    };
    let values = tensor.to_dtype(DType::I64)?.to_vec1::<i64>()?;
    values
        .into_iter()
        .map(|value| {
            let index = usize::try_from(value).unwrap_or(usize::MAX);
            if index < count { Ok(index) } else { Err(Error::OutOfRange { what: "class", index, count }) }
        })
        .collect()
}

fn length(what: &'static str, expected: usize, found: usize) -> Error {
    Error::Shape { what, expected: format!("({expected})"), found: vec![found] }
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::Device;

    fn batch() -> (Tensor, Tensor) {
        let scores = [[0.1f32, 0.5, 0.4], [0.9, 0.05, 0.05], [0.2, 0.2, 0.6], [0.3, 0.3, 0.3]];
        let scores = Tensor::new(&scores, &Device::Cpu).unwrap();
        (scores, Tensor::new(&[2u32, 0, 0, 0], &Device::Cpu).unwrap())
    }

    #[test]
    fn top_k_with_either_rule_for_ties() -> Result<()> {
        let (scores, targets) = batch();
        assert_eq!(top_k_accuracy(&scores, &targets, &[1, 2, 3])?, [0.25, 0.5, 1.]);
        let mut by_index = TopK::with_ties(&[1, 2], Ties::ByIndex)?;
        by_index.update(&scores, &targets)?;
        assert_eq!(by_index.values()?, [0.5, 1.]);
        by_index.update(&scores.narrow(0, 1, 1)?, &targets.narrow(0, 1, 1)?)?;
        assert_eq!((by_index.values()?, by_index.total()), (vec![0.6, 1.], 5));
        Ok(())
    }

    #[test]
    fn confusion_counts_and_their_means() -> Result<()> {
        let (scores, targets) = batch();
        let mut confusion = Confusion::new(3);
        confusion.update(&scores, &targets)?;
        assert_eq!([confusion.count(2, 1), confusion.count(0, 0), confusion.count(0, 2)], [1, 2, 1]);
        assert_eq!((confusion.total(), confusion.count(9, 0)), (4, 0));
        assert_eq!(confusion.accuracy()?, 0.5);
        assert_eq!(confusion.per_class_accuracy(), [Some(2. / 3.), None, Some(0.)]);
        assert_eq!(confusion.per_class_precision(), [Some(1.), Some(0.), Some(0.)]);
        assert_eq!(confusion.mean_class_accuracy()?, 1. / 3.);
        Ok(())
    }

    #[test]
    fn wrong_input_is_an_error() -> Result<()> {
        let (scores, targets) = batch();
        let cpu = &Device::Cpu;
        let one = [1];
        let top = |s: &Tensor, t: &Tensor| top_k_accuracy(s, t, &one);
        assert!(matches!(top(&targets, &targets), Err(Error::Shape { what: "scores", .. })));
        assert!(matches!(top(&scores, &scores), Err(Error::Shape { what: "targets", .. })));
        assert!(matches!(top(&scores, &Tensor::new(&[0u32], cpu)?), Err(Error::Shape { .. })));
        let outside = Tensor::new(&[0i64, 1, 2, -1], cpu)?;
        assert!(matches!(top(&scores, &outside), Err(Error::OutOfRange { count: 3, .. })));
        let nan = Tensor::new(&[[0f32, f32::NAN]], cpu)?;
        assert!(matches!(top(&nan, &Tensor::new(&[0u32], cpu)?), Err(Error::Nan { row: 0, column: 1 })));
        assert!(matches!(TopK::new(&[1, 0]), Err(Error::ZeroK)));
        assert!(matches!(TopK::new(&[1])?.values(), Err(Error::Empty)));
        assert!(matches!(Confusion::new(2).accuracy(), Err(Error::Empty)));
        assert!(matches!(Confusion::new(2).mean_class_accuracy(), Err(Error::Empty)));
        assert!(matches!(Confusion::new(2).add(0, 2), Err(Error::OutOfRange { .. })));
        assert!(matches!(Confusion::new(2).update(&scores, &targets), Err(Error::Shape { .. })));
        Ok(())
    }
}
