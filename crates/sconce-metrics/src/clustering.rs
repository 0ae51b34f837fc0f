//! How well one partition tells another.

use std::collections::BTreeMap;

use crate::{Error, Result};

/// How the two entropies are averaged in [`Contingency::nmi`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum EntropyMean {
    /// Half the sum: the usual NMI of metric learning.
    #[default]
    Arithmetic,
    /// Square root of the product.
    Geometric,
}

/// How often each pair of a cluster and a class occurs.
///
/// ```
/// use sconce_metrics::{Contingency, EntropyMean};
///
/// let table = Contingency::new(&[0, 0, 1, 1], &[7, 7, 3, 3])?;
/// assert!((table.nmi(EntropyMean::Arithmetic) - 1.0).abs() < 1e-12);
/// # Ok::<(), sconce_metrics::Error>(())
/// ```
#[derive(Clone, Debug)]
pub struct Contingency {
    pairs: BTreeMap<(usize, usize), usize>,
    clusters: BTreeMap<usize, usize>,
    classes: BTreeMap<usize, usize>,
    total: usize,
}

impl Contingency {
    /// # Errors
    /// Lengths that differ, nothing to count.
    pub fn new(clusters: &[usize], classes: &[usize]) -> Result<Self> {
        if clusters.len() != classes.len() {
            let expected = format!("({})", clusters.len());
            return Err(Error::Shape { what: "classes", expected, found: vec![classes.len()] });
        }
        if clusters.is_empty() {
            return Err(Error::Empty);
        }
        let mut table =
            Self { pairs: BTreeMap::new(), clusters: BTreeMap::new(), classes: BTreeMap::new(), total: clusters.len() };
        for (&cluster, &class) in clusters.iter().zip(classes) {
            *table.pairs.entry((cluster, class)).or_default() += 1;
            *table.clusters.entry(cluster).or_default() += 1;
            *table.classes.entry(class).or_default() += 1;
        }
        Ok(table)
    }

    fn entropy(&self, counts: &BTreeMap<usize, usize>) -> f64 {
        let total = self.total as f64;
        counts.values().map(|&n| n as f64 / total).map(|p| -p * p.ln()).sum()
    }

    /// Mutual information in nats.
    pub fn mutual_information(&self) -> f64 {
        let total = self.total as f64;
        let one = |((cluster, class), &n): (&(usize, usize), &usize)| {
            let (n, a, b) = (n as f64, self.clusters[cluster] as f64, self.classes[class] as f64);
            n / total * (n * total / (a * b)).ln()
        };
        self.pairs.iter().map(one).sum::<f64>().max(0.0)
    }

    fn mean_entropy(&self, mean: EntropyMean) -> f64 {
        let (a, b) = (self.entropy(&self.clusters), self.entropy(&self.classes));
        match mean {
            EntropyMean::Arithmetic => (a + b) / 2.0,
            EntropyMean::Geometric => (a * b).sqrt(),
        }
    }

    /// Normalised mutual information, 0 to 1; 1 when there is but one cluster and one class.
    pub fn nmi(&self, mean: EntropyMean) -> f64 {
        match self.mean_entropy(mean) {
            0.0 if self.clusters.len() == 1 && self.classes.len() == 1 => 1.0,
            0.0 => 0.0,
            entropy => self.mutual_information() / entropy,
        }
    }

    /// Adjusted mutual information (Vinh et al. 2010): 0 for partitions that agree by chance, whatever their sizes.
    pub fn ami(&self) -> f64 {
        if self.clusters.len() == 1 && self.classes.len() == 1 {
            return 1.0;
        }
        let expected = self.expected_information();
        let range = self.mean_entropy(EntropyMean::Arithmetic) - expected;
        let range = if range.abs() < f64::EPSILON { f64::EPSILON.copysign(range) } else { range };
        (self.mutual_information() - expected) / range
    }

    /// Mean of the mutual information over all tables with the same margins: the hypergeometric model.
    fn expected_information(&self) -> f64 {
        let total = self.total;
        // ln n! for n up to the total.
        let mut factorial = vec![0.0; total + 1];
        for n in 1..=total {
            factorial[n] = factorial[n - 1] + (n as f64).ln();
        }
        let mut sum = 0.0;
        for &a in self.clusters.values() {
            for &b in self.classes.values() {
                for n in (a + b).saturating_sub(total).max(1)..=a.min(b) {
                    let weight = factorial[a] + factorial[b] + factorial[total - a] + factorial[total - b]
                        - factorial[total]
                        - factorial[n]
                        - factorial[a - n]
                        - factorial[b - n]
                        - factorial[total + n - a - b];
                    let (n, a, b, total) = (n as f64, a as f64, b as f64, total as f64);
                    sum += n / total * (n * total / (a * b)).ln() * weight.exp();
                }
            }
        }
        sum
    }
}
