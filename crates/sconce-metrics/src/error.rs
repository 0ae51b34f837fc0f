//! What can be wrong with the input of a metric.

/// Result of this crate.
pub type Result<T> = std::result::Result<T, Error>;

/// Errors of metrics.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A tensor operation failed.
    #[error(transparent)]
    Candle(#[from] candle_core::Error),
    /// A tensor of the wrong shape.
    #[error("{what} has shape {found:?}, expected {expected}")]
    Shape {
        /// Which argument.
        what: &'static str,
        /// The shape wanted, in words.
        expected: String,
        /// The shape given.
        found: Vec<usize>,
    },
    /// A class, row or column that does not exist.
    #[error("{what} {index} is out of range: there are {count}")]
    OutOfRange {
        /// What the index counts.
        what: &'static str,
        /// The index.
        index: usize,
        /// How many there are.
        count: usize,
    },
    /// A score that is NaN cannot be ranked.
    #[error("the score in row {row}, column {column} is NaN")]
    Nan {
        /// Row of the score.
        row: usize,
        /// Column of the score.
        column: usize,
    },
    /// A query that nothing is relevant to.
    #[error("query {query} has no positive")]
    NoPositive {
        /// Row of the query.
        query: usize,
    },
    /// A rank of zero: the best place has rank 1.
    #[error("k is zero: the best place is 1")]
    ZeroK,
    /// Positives and negatives are both needed.
    #[error("only one of the two classes occurs")]
    OneClass,
    /// Nothing has been measured yet.
    #[error("there is nothing to average over")]
    Empty,
}
