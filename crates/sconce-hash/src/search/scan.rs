//! All queries against all codes, in parts that stay in the caches.
//!
//! Tiles of codes fit into the nearest cache and are put into the order of vectors once for a whole block of queries. Chunks
//! of tiles fit into the next cache; the blocks of queries meet a chunk at about the same time, so that codes which come from
//! a disk are read once. Where there are fewer blocks of queries than threads, several chunks are gone through at once.

use std::ops::Range;

use rayon::prelude::*;
use sconce_ops::hamming::{Hit, Instructions, Lanes, nearer_than};

use super::{Neighbor, collect::Collect};
use crate::{Codes, Result};

/// Words in a tile: 16 KiB.
const TILE: usize = 2048;

/// Tiles in a chunk: 1 MiB.
const CHUNK: usize = 64;

/// Queries that share the work of putting a tile into order: enough to make it small beside the comparisons.
const QUERIES: usize = 128;

/// Codes that are searched part by part.
pub(crate) trait Source: Sync {
    /// Bits of a code.
    fn bits(&self) -> usize;

    /// Number of codes.
    fn len(&self) -> usize;

    /// Reads up to `count` codes from `start` on, at least one, and returns how many.
    fn load(&self, start: usize, count: usize, lanes: &mut Lanes) -> Result<usize>;
}

impl Source for Codes {
    fn bits(&self) -> usize {
        self.bits()
    }

    fn len(&self) -> usize {
        self.len()
    }

    fn load(&self, start: usize, count: usize, lanes: &mut Lanes) -> Result<usize> {
        let words = self.words_per_code();
        lanes.load(&self.words()[start * words..(start + count) * words]);
        Ok(count)
    }
}

/// A block of queries on every `parts`-th chunk of codes.
struct Task<C> {
    queries: Range<usize>,
    part: usize,
    collectors: Vec<C>,
    lanes: Lanes,
    hits: Vec<Hit>,
}

/// The results of each query.
pub(super) fn scan<C: Collect>(
    source: &impl Source,
    queries: &Codes,
    make: impl Fn() -> C,
) -> Result<Vec<Vec<Neighbor>>> {
    let words = queries.words_per_code();
    let (tile, len, threads) = ((TILE / words).max(Lanes::WIDTH), source.len(), rayon::current_num_threads().max(1));
    let chunk = tile * CHUNK;
    let block = queries.len().div_ceil(threads).clamp(1, QUERIES);
    let blocks = queries.len().div_ceil(block);
    let parts = (threads / blocks.max(1)).clamp(1, len.div_ceil(chunk).max(1));

    let mut tasks = vec![];
    for start in (0..queries.len()).step_by(block) {
        let queries = start..(start + block).min(queries.len());
        for part in 0..parts {
            let collectors = queries.clone().map(|_| make()).collect();
            let (lanes, hits) = (Lanes::new(words), vec![]);
            tasks.push(Task { queries: queries.clone(), part, collectors, lanes, hits });
        }
    }
    for round in (0..len).step_by(chunk * parts) {
        tasks.par_iter_mut().try_for_each(|task| {
            let start = round + task.part * chunk;
            task.run(source, queries, start.min(len)..(start + chunk).min(len), tile)
        })?;
    }

    let mut collectors: Vec<Vec<C>> = (0..queries.len()).map(|_| Vec::with_capacity(parts)).collect();
    for task in tasks {
        for (query, collector) in task.queries.zip(task.collectors) {
            collectors[query].push(collector);
        }
    }
    Ok(collectors.into_par_iter().map(C::finish).collect())
}

impl<C: Collect> Task<C> {
    /// The queries against the codes in a range.
    fn run(&mut self, source: &impl Source, queries: &Codes, range: Range<usize>, tile: usize) -> Result<()> {
        let mut start = range.start;
        while start < range.end {
            let count = source.load(start, tile.min(range.end - start), &mut self.lanes)?;
            for (query, collector) in self.queries.clone().zip(&mut self.collectors) {
                meet(queries.row(query), &self.lanes, start, collector, &mut self.hits);
            }
            start += count;
        }
        Ok(())
    }
}

/// A query against a tile. The limit is as it was before each step, so while there is none yet, steps grow from a few codes on:
/// else the whole first tile would be collected.
fn meet(query: &[u64], lanes: &Lanes, base: usize, collector: &mut impl Collect, hits: &mut Vec<Hit>) {
    let blocks = lanes.blocks();
    let mut step = match collector.undemanding() {
        0 => blocks,
        some => some.div_ceil(Lanes::WIDTH),
    };
    let mut start = 0;
    while start < blocks && collector.limit() > 0 {
        let end = (start + step).min(blocks);
        hits.clear();
        nearer_than(query, lanes, start..end, collector.limit(), hits, Instructions::best());
        collector.take(base, hits);
        (start, step) = (end, end);
    }
}
