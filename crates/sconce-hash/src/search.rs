//! Exact search in binary codes, by comparing each query with every code.

mod collect;
mod scan;
#[cfg(test)]
mod tests;

pub(crate) use scan::Source;

use crate::{Codes, Error, Result};
use collect::{Nearest, Within};
use scan::scan;

/// A code that a search has found.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Neighbor {
    /// Bits that differ from the query.
    pub distance: u32,
    /// Its place among the codes.
    pub index: usize,
}

/// Codes in which one can search.
///
/// `Convention:` results are exact and ordered by distance, then by place; so they are the same for every implementation,
/// machine and number of threads. The threads are those of the current rayon pool.
pub trait Search {
    /// Bits of a code.
    fn bits(&self) -> usize;

    /// Number of codes.
    fn len(&self) -> usize;

    /// Whether there is no code.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The `k` nearest codes of each query, or all where there are fewer than `k`.
    ///
    /// # Errors
    /// When the queries have another width, or the codes cannot be read.
    fn top_k(&self, queries: &Codes, k: usize) -> Result<Vec<Vec<Neighbor>>>;

    /// All codes within a Hamming distance of each query, the distance included.
    ///
    /// # Errors
    /// When the queries have another width, or the codes cannot be read.
    fn within(&self, queries: &Codes, radius: u32) -> Result<Vec<Vec<Neighbor>>>;
}

/// The cost is linear in the number of codes; memory is needed for the results alone.
impl Search for Codes {
    fn bits(&self) -> usize {
        self.bits()
    }

    fn len(&self) -> usize {
        self.len()
    }

    fn top_k(&self, queries: &Codes, k: usize) -> Result<Vec<Vec<Neighbor>>> {
        top_k(self, queries, k)
    }

    fn within(&self, queries: &Codes, radius: u32) -> Result<Vec<Vec<Neighbor>>> {
        within(self, queries, radius)
    }
}

pub(crate) fn top_k(source: &impl Source, queries: &Codes, k: usize) -> Result<Vec<Vec<Neighbor>>> {
    same_width(source.bits(), queries)?;
    match k.min(source.len()) {
        0 => Ok(vec![vec![]; queries.len()]),
        k => scan(source, queries, || Nearest::new(k, source.bits())),
    }
}

pub(crate) fn within(source: &impl Source, queries: &Codes, radius: u32) -> Result<Vec<Vec<Neighbor>>> {
    same_width(source.bits(), queries)?;
    scan(source, queries, || Within::new(radius, source.bits()))
}

pub(crate) fn same_width(bits: usize, queries: &Codes) -> Result<()> {
    match queries.bits() == bits {
        true => Ok(()),
        false => Err(Error::Input(format!("queries of {} bits among codes of {bits} bits", queries.bits()))),
    }
}
