//! Ranks of scores, with a stated rule for ties.

use candle_core::{DType, Tensor};

use crate::{Error, Result};

/// Which of several equal scores comes first.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Ties {
    /// The wrong ones: a model that gives the same score to everything finds nothing. The default,
    /// because a result does not depend on the order of the data.
    #[default]
    Pessimistic,
    /// The one with the smaller index, as a stable sort has it.
    ByIndex,
}

/// Scores row by row.
pub(crate) struct Scores {
    pub(crate) values: Vec<f64>,
    pub(crate) rows: usize,
    pub(crate) columns: usize,
}

impl Scores {
    /// Reads a matrix of any floating point or integer type, on any device.
    pub(crate) fn read(what: &'static str, scores: &Tensor) -> Result<Self> {
        let &[rows, columns] = scores.dims() else {
            return Err(Error::Shape { what, expected: "(rows, columns)".to_owned(), found: scores.dims().to_vec() });
        };
        let values = scores.to_dtype(DType::F64)?.flatten_all()?.to_vec1::<f64>()?;
        match values.iter().position(|value| value.is_nan()) {
            Some(at) => Err(Error::Nan { row: at / columns, column: at % columns }),
            None => Ok(Self { values, rows, columns }),
        }
    }

    pub(crate) fn row(&self, index: usize) -> &[f64] {
        &self.values[index * self.columns..(index + 1) * self.columns]
    }

    pub(crate) fn transposed(&self) -> Self {
        let values = (0..self.columns)
            .flat_map(|column| (0..self.rows).map(move |row| self.values[row * self.columns + column]))
            .collect();
        Self { values, rows: self.columns, columns: self.rows }
    }
}

/// Place, from 1, of the best of `positives` (sorted) among `scores`. Other positives are never in its way.
pub(crate) fn best_rank(scores: &[f64], positives: &[usize], ties: Ties) -> Option<usize> {
    let better = |a: usize, b: usize| scores[a].total_cmp(&scores[b]).then(b.cmp(&a));
    let &best = positives.iter().max_by(|&&a, &&b| better(a, b))?;
    let score = scores[best];
    let mut ahead = 0;
    for (index, &other) in scores.iter().enumerate() {
        let tie_ahead = match ties {
            Ties::Pessimistic => other == score,
            Ties::ByIndex => other == score && index < best,
        };
        if (other > score || tie_ahead) && positives.binary_search(&index).is_err() {
            ahead += 1;
        }
    }
    Some(ahead + 1)
}
