//! Metrics of ranked lists: average precision in its published conventions, precision and recall at k, R-precision.

use std::ops::Range;

use candle_core::{DType, Tensor};

use crate::rank::Scores;
use crate::{Error, Result};

/// What the sum of precisions is divided by to give the average precision of the first `k` places.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Denominator {
    /// The relevant items among the first `k`, as hashing papers have it: finding one item early and no other counts as
    /// perfect. A query that finds nothing counts 0.
    #[default]
    Found,
    /// The smaller of `k` and the number of relevant items, as information retrieval has it.
    Possible,
}

/// Queries with every item of a database ranked for each of them.
///
/// Items are ordered by distance, equal distances by index, unless a metric says that it averages over ties.
///
/// ```
/// use candle_core::{Device, Tensor};
/// use sconce_metrics::{Denominator, Ranking};
///
/// let distances = Tensor::new(&[[0.1f32, 0.2, 0.3]], &Device::Cpu)?;
/// let relevant = Tensor::new(&[[1u8, 0, 1]], &Device::Cpu)?;
/// let ranking = Ranking::by_distance(&distances, &relevant)?;
/// assert_eq!(ranking.map_at(3, Denominator::Found)?, (1.0 + 2.0 / 3.0) / 2.0);
/// # Ok::<(), sconce_metrics::Error>(())
/// ```
#[derive(Clone, Debug)]
pub struct Ranking {
    queries: Vec<Query>,
    items: usize,
}

/// One query: its items from the nearest to the farthest.
#[derive(Clone, Debug)]
struct Query {
    relevant: Vec<bool>,
    distances: Vec<f64>,
    total: usize,
}

impl Query {
    fn new(distances: &[f64], relevant: &[f64]) -> Self {
        let mut order: Vec<usize> = (0..distances.len()).collect();
        order.sort_by(|&a, &b| distances[a].total_cmp(&distances[b])); // stable: ties by index
        let relevant: Vec<bool> = order.iter().map(|&i| relevant[i] != 0.0).collect();
        let total = relevant.iter().filter(|r| **r).count();
        Self { relevant, distances: order.into_iter().map(|i| distances[i]).collect(), total }
    }

    fn found(&self, k: usize) -> usize {
        self.relevant[..k.min(self.relevant.len())].iter().filter(|r| **r).count()
    }

    /// Sum of the precisions at the relevant places among the first `k`.
    fn precisions(&self, k: usize) -> f64 {
        let mut found = 0;
        let mut sum = 0.0;
        for (place, _) in self.relevant.iter().take(k).enumerate().filter(|(_, relevant)| **relevant) {
            found += 1;
            sum += found as f64 / (place + 1) as f64;
        }
        sum
    }

    /// Runs of equal distance, in order.
    fn ties(&self) -> impl Iterator<Item = Range<usize>> + '_ {
        let mut start = 0;
        std::iter::from_fn(move || {
            let first = *self.distances.get(start)?;
            let length = self.distances[start..].iter().take_while(|d| **d == first).count();
            start += length;
            Some(start - length..start)
        })
    }

    /// Average precision, the mean over all orders of items that are equally far.
    fn expected_average_precision(&self) -> f64 {
        let (mut before, mut found, mut sum) = (0.0, 0.0, 0.0);
        for tie in self.ties() {
            let size = tie.len() as f64;
            let relevant = self.relevant[tie].iter().filter(|r| **r).count() as f64;
            let others = if size > 1.0 { (relevant - 1.0) / (size - 1.0) } else { 0.0 };
            if relevant > 0.0 {
                let place = |i: f64| (found + 1.0 + (i - 1.0) * others) / (before + i);
                sum += relevant / size * (1..=size as usize).map(|i| place(i as f64)).sum::<f64>();
            }
            before += size;
            found += relevant;
        }
        sum / self.total as f64
    }
}

/// Precision and recall of everything within a radius.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct RadiusPoint {
    /// The radius.
    pub radius: f64,
    /// Mean over the queries that find anything; `None` when none does.
    pub precision: Option<f64>,
    /// Mean over all queries.
    pub recall: f64,
}

impl Ranking {
    /// # Shapes
    /// - `distances` and `relevant` `(queries, items)`; an item is relevant where the value is not 0
    ///
    /// # Errors
    /// Other or different shapes, a NaN, a query without a relevant item.
    pub fn by_distance(distances: &Tensor, relevant: &Tensor) -> Result<Self> {
        let (distances, relevant) = (Scores::read("distances", distances)?, Scores::read("relevance", relevant)?);
        if (distances.rows, distances.columns) != (relevant.rows, relevant.columns) {
            let expected = format!("({}, {})", distances.rows, distances.columns);
            let found = vec![relevant.rows, relevant.columns];
            return Err(Error::Shape { what: "relevance", expected, found });
        }
        if distances.rows == 0 {
            return Err(Error::Empty);
        }
        let queries: Vec<_> = (0..distances.rows).map(|i| Query::new(distances.row(i), relevant.row(i))).collect();
        match queries.iter().position(|query| query.total == 0) {
            Some(query) => Err(Error::NoPositive { query }),
            None => Ok(Self { queries, items: distances.columns }),
        }
    }

    /// As [`by_distance`](Self::by_distance) with the largest similarity first.
    ///
    /// # Errors
    /// As [`by_distance`](Self::by_distance).
    pub fn by_similarity(similarities: &Tensor, relevant: &Tensor) -> Result<Self> {
        Self::by_distance(&similarities.to_dtype(DType::F64)?.neg()?, relevant)
    }

    /// Every item is a query to the others: its own row and column are left out.
    ///
    /// # Shapes
    /// - `distances` `(N, N)`, `labels` `(N)`
    ///
    /// # Errors
    /// As [`by_distance`](Self::by_distance): a label that occurs once leaves its item without a relevant one.
    pub fn within(distances: &Tensor, labels: &[usize]) -> Result<Self> {
        let scores = Scores::read("distances", distances)?;
        if scores.rows != labels.len() || scores.columns != labels.len() {
            let expected = format!("({0}, {0})", labels.len());
            return Err(Error::Shape { what: "distances", expected, found: vec![scores.rows, scores.columns] });
        }
        let query = |i: usize| {
            let others = || (0..labels.len()).filter(move |&j| j != i);
            let distances: Vec<f64> = others().map(|j| scores.row(i)[j]).collect();
            let relevant: Vec<f64> = others().map(|j| f64::from(labels[i] == labels[j])).collect();
            Query::new(&distances, &relevant)
        };
        let queries: Vec<_> = (0..labels.len()).map(query).collect();
        if queries.is_empty() {
            return Err(Error::Empty);
        }
        match queries.iter().position(|query| query.total == 0) {
            Some(query) => Err(Error::NoPositive { query }),
            None => Ok(Self { items: labels.len() - 1, queries }),
        }
    }

    fn mean(&self, of: impl Fn(&Query) -> f64) -> f64 {
        self.queries.iter().map(of).sum::<f64>() / self.queries.len() as f64
    }

    fn places(&self, k: usize) -> Result<usize> {
        if k == 0 { Err(Error::ZeroK) } else { Ok(k.min(self.items)) }
    }

    /// Mean over the queries of the average precision of the first `k` places.
    ///
    /// # Errors
    /// `k` is 0.
    pub fn map_at(&self, k: usize, denominator: Denominator) -> Result<f64> {
        let values = self.average_precisions_at(k, denominator)?;
        Ok(values.iter().sum::<f64>() / values.len() as f64)
    }

    /// Average precision of the first `k` places of each query.
    ///
    /// # Errors
    /// `k` is 0.
    pub fn average_precisions_at(&self, k: usize, denominator: Denominator) -> Result<Vec<f64>> {
        let k = self.places(k)?;
        let one = |query: &Query| match denominator {
            Denominator::Found => query.precisions(k) / query.found(k).max(1) as f64,
            Denominator::Possible => query.precisions(k) / k.min(query.total) as f64,
        };
        Ok(self.queries.iter().map(one).collect())
    }

    /// Mean average precision over the whole list, expected over the orders of equally far items: McSherry and Najork
    /// 2008. Binary codes tie often, so that any fixed order flatters or punishes by luck.
    pub fn tie_aware_map(&self) -> f64 {
        self.mean(Query::expected_average_precision)
    }

    /// Fraction of relevant items among the first `k`, mean over the queries.
    ///
    /// # Errors
    /// `k` is 0.
    pub fn precision_at(&self, k: usize) -> Result<f64> {
        let k = self.places(k)?;
        Ok(self.mean(|query| query.found(k) as f64 / k as f64))
    }

    /// Fraction of queries with at least one relevant item among the first `k`: metric learning's Recall@K.
    ///
    /// # Errors
    /// `k` is 0.
    pub fn recall_at(&self, k: usize) -> Result<f64> {
        let k = self.places(k)?;
        Ok(self.mean(|query| f64::from(query.found(k) > 0)))
    }

    /// Precision among the first R places, R the number of relevant items of the query.
    pub fn r_precision(&self) -> f64 {
        self.mean(|query| query.found(query.total) as f64 / query.total as f64)
    }

    /// MAP@R of Musgrave et al. 2020 (`arXiv:2003.08505`): precisions at the relevant places among the first R, over R.
    pub fn map_at_r(&self) -> f64 {
        self.mean(|query| query.precisions(query.total) / query.total as f64)
    }

    /// Mean of one over the place of the first relevant item; a query without one among the first `k` counts 0.
    ///
    /// # Errors
    /// `k` is 0.
    pub fn mean_reciprocal_rank_at(&self, k: usize) -> Result<f64> {
        let k = self.places(k)?;
        Ok(self.mean(|query| query.relevant[..k].iter().position(|r| *r).map_or(0.0, |place| 1.0 / (place + 1) as f64)))
    }

    /// Precision of everything within `radius`, mean over all queries; a query that finds nothing counts 0, as hashing
    /// papers have it for radius 2.
    pub fn precision_within(&self, radius: f64) -> f64 {
        self.mean(|query| {
            let inside = query.distances.partition_point(|d| *d <= radius);
            query.found(inside) as f64 / inside.max(1) as f64
        })
    }

    /// Precision and recall within each of the radii.
    pub fn curve(&self, radii: impl IntoIterator<Item = f64>) -> Vec<RadiusPoint> {
        let point = |radius: f64| {
            let inside = |query: &Query| query.distances.partition_point(|d| *d <= radius);
            let counts: Vec<_> =
                self.queries.iter().map(|q| (inside(q), q.found(inside(q)))).filter(|c| c.0 > 0).collect();
            let precisions = counts.iter().map(|(inside, found)| *found as f64 / *inside as f64).sum::<f64>();
            RadiusPoint {
                radius,
                precision: (!counts.is_empty()).then(|| precisions / counts.len() as f64),
                recall: self.mean(|query| query.found(inside(query)) as f64 / query.total as f64),
            }
        };
        radii.into_iter().map(point).collect()
    }
}
