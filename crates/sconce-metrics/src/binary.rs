//! Metrics of a score for one class against the rest.

use crate::{Error, Result};

/// Scores with their labels, from the highest to the lowest.
///
/// ```
/// use sconce_metrics::BinaryScores;
///
/// let scores = BinaryScores::new(&[0.9, 0.4, 0.4, 0.1], &[true, true, false, false])?;
/// assert_eq!(scores.roc_auc()?, 0.875); // the tie counts one half
/// # Ok::<(), sconce_metrics::Error>(())
/// ```
#[derive(Clone, Debug)]
pub struct BinaryScores {
    sorted: Vec<(f64, bool)>,
    positives: usize,
}

/// One threshold of a ROC curve: everything at or above it counts as positive.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct RocPoint {
    /// The threshold; infinite at the first point, where nothing is positive.
    pub threshold: f64,
    /// Fraction of positives found.
    pub sensitivity: f64,
    /// Fraction of negatives left alone.
    pub specificity: f64,
}

/// Counts of a decision at a threshold.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Positives called positive.
    pub true_positive: u64,
    /// Negatives called positive.
    pub false_positive: u64,
    /// Negatives called negative.
    pub true_negative: u64,
    /// Positives called negative.
    pub false_negative: u64,
}

fn ratio(part: u64, rest: u64) -> Option<f64> {
    (part + rest > 0).then(|| part as f64 / (part + rest) as f64)
}

impl Counts {
    /// Adds one decision.
    pub fn add(&mut self, predicted: bool, actual: bool) {
        *match (predicted, actual) {
            (true, true) => &mut self.true_positive,
            (true, false) => &mut self.false_positive,
            (false, false) => &mut self.true_negative,
            (false, true) => &mut self.false_negative,
        } += 1;
    }

    /// Fraction of positives found, also called recall; `None` without a positive.
    pub fn sensitivity(&self) -> Option<f64> {
        ratio(self.true_positive, self.false_negative)
    }

    /// Fraction of negatives left alone; `None` without a negative.
    pub fn specificity(&self) -> Option<f64> {
        ratio(self.true_negative, self.false_positive)
    }

    /// Fraction of positive calls that are right; `None` when nothing was called positive.
    pub fn precision(&self) -> Option<f64> {
        ratio(self.true_positive, self.false_positive)
    }

    /// Fraction of right decisions; `None` without a decision.
    pub fn accuracy(&self) -> Option<f64> {
        ratio(self.true_positive + self.true_negative, self.false_positive + self.false_negative)
    }

    /// Dice coefficient, which is also F1; `None` when neither side has a positive.
    pub fn dice(&self) -> Option<f64> {
        ratio(2 * self.true_positive, self.false_positive + self.false_negative)
    }

    /// Jaccard index, intersection over union; `None` when neither side has a positive.
    pub fn jaccard(&self) -> Option<f64> {
        ratio(self.true_positive, self.false_positive + self.false_negative)
    }
}

impl BinaryScores {
    /// # Errors
    /// Lengths that differ, no score at all, a NaN.
    pub fn new(scores: &[f64], labels: &[bool]) -> Result<Self> {
        if scores.len() != labels.len() {
            let expected = format!("({})", scores.len());
            return Err(Error::Shape { what: "labels", expected, found: vec![labels.len()] });
        }
        if scores.is_empty() {
            return Err(Error::Empty);
        }
        if let Some(row) = scores.iter().position(|s| s.is_nan()) {
            return Err(Error::Nan { row, column: 0 });
        }
        let mut sorted: Vec<_> = scores.iter().copied().zip(labels.iter().copied()).collect();
        sorted.sort_by(|a, b| b.0.total_cmp(&a.0));
        Ok(Self { sorted, positives: labels.iter().filter(|l| **l).count() })
    }

    /// Calls after each group of equal scores: the group's score, positives and negatives so far.
    fn groups(&self) -> Vec<(f64, usize, usize)> {
        let mut groups: Vec<(f64, usize, usize)> = vec![];
        let (mut positives, mut negatives) = (0, 0);
        for &(score, label) in &self.sorted {
            if label {
                positives += 1
            } else {
                negatives += 1
            }
            match groups.last_mut() {
                Some(last) if last.0 == score => *last = (score, positives, negatives),
                _ => groups.push((score, positives, negatives)),
            }
        }
        groups
    }

    fn both_classes(&self) -> Result<(f64, f64)> {
        let negatives = self.sorted.len() - self.positives;
        if self.positives == 0 || negatives == 0 {
            return Err(Error::OneClass);
        }
        Ok((self.positives as f64, negatives as f64))
    }

    /// Area under the ROC curve: the chance that a positive scores above a negative, a tie counting one half.
    ///
    /// # Errors
    /// Only one of the classes occurs.
    pub fn roc_auc(&self) -> Result<f64> {
        let (positives, negatives) = self.both_classes()?;
        let (mut area, mut above) = (0.0, (0, 0));
        for (_, p, n) in self.groups() {
            area += (n - above.1) as f64 * (p + above.0) as f64 / 2.0;
            above = (p, n);
        }
        Ok(area / positives / negatives)
    }

    /// Average precision: precisions weighted by the steps of recall, not interpolated; equal scores come at once.
    ///
    /// # Errors
    /// There is no positive.
    pub fn average_precision(&self) -> Result<f64> {
        if self.positives == 0 {
            return Err(Error::OneClass);
        }
        let (mut sum, mut before) = (0.0, 0);
        for (_, p, n) in self.groups() {
            sum += (p - before) as f64 * p as f64 / (p + n) as f64;
            before = p;
        }
        Ok(sum / self.positives as f64)
    }

    /// The ROC curve from the highest threshold to the lowest.
    ///
    /// # Errors
    /// Only one of the classes occurs.
    pub fn roc_curve(&self) -> Result<Vec<RocPoint>> {
        let (positives, negatives) = self.both_classes()?;
        let mut curve = vec![RocPoint { threshold: f64::INFINITY, sensitivity: 0.0, specificity: 1.0 }];
        curve.extend(self.groups().into_iter().map(|(threshold, p, n)| RocPoint {
            threshold,
            sensitivity: p as f64 / positives,
            specificity: 1.0 - n as f64 / negatives,
        }));
        Ok(curve)
    }

    /// The best specificity among the thresholds that find at least the fraction `sensitivity` of the positives.
    ///
    /// # Errors
    /// Only one of the classes occurs.
    pub fn specificity_at(&self, sensitivity: f64) -> Result<f64> {
        let curve = self.roc_curve()?;
        let enough = curve.iter().filter(|point| point.sensitivity >= sensitivity);
        Ok(enough.map(|point| point.specificity).fold(0.0, f64::max))
    }

    /// Counts of calling positive what scores at or above `threshold`.
    pub fn counts_at(&self, threshold: f64) -> Counts {
        let mut counts = Counts::default();
        for &(score, label) in &self.sorted {
            counts.add(score >= threshold, label);
        }
        counts
    }
}
