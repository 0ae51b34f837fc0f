//! What a query keeps of the codes that are near enough.

use sconce_ops::hamming::Hit;

use super::Neighbor;

/// Results of one query on a part of the codes. Hits come in the order of their places.
pub(super) trait Collect: Send {
    /// The distance from which on a code is of no use.
    fn limit(&self) -> u32;

    /// How many more codes will be taken whatever their distance.
    fn undemanding(&self) -> usize;

    /// Takes some hits below the limit; `base` is the place of the code whose index is 0.
    fn take(&mut self, base: usize, hits: &[Hit]);

    /// The results of all parts together, in order.
    fn finish(parts: Vec<Self>) -> Vec<Neighbor>
    where
        Self: Sized;
}

/// The k nearest.
///
/// Distances are small whole numbers, so the k-th best is known from counts alone. A code at that distance which comes
/// later loses to those that came before: the limit is strict, and few codes pass it.
pub(super) struct Nearest {
    k: usize,
    limit: u32,
    /// Found codes by distance.
    counts: Vec<usize>,
    /// How many of them are below the limit; always less than k.
    closer: usize,
    /// In the order of places; some have lost their rank since.
    found: Vec<Neighbor>,
}

impl Nearest {
    /// `k` is at least 1.
    pub(super) fn new(k: usize, bits: usize) -> Self {
        Self { k, limit: bits as u32 + 1, counts: vec![0; bits + 1], closer: 0, found: vec![] }
    }

    /// Those that have kept their rank, by distance, then place.
    fn ranked(self) -> Vec<Neighbor> {
        let mut starts = Vec::with_capacity(self.counts.len());
        let mut total = 0;
        for count in self.counts {
            starts.push(total);
            total += count;
        }
        let mut ranked = vec![Neighbor { distance: 0, index: 0 }; total.min(self.k)];
        for neighbor in self.found {
            let rank = &mut starts[neighbor.distance as usize];
            if let Some(place) = ranked.get_mut(*rank) {
                *place = neighbor;
            }
            *rank += 1;
        }
        ranked
    }
}

impl Collect for Nearest {
    fn limit(&self) -> u32 {
        self.limit
    }

    fn undemanding(&self) -> usize {
        if self.limit as usize == self.counts.len() { self.k - self.closer } else { 0 }
    }

    fn take(&mut self, base: usize, hits: &[Hit]) {
        for hit in hits {
            // The limit may have sunk since the hit was reported.
            if hit.distance < self.limit {
                self.found.push(Neighbor { distance: hit.distance, index: base + hit.index as usize });
                self.counts[hit.distance as usize] += 1;
                self.closer += 1;
                while self.closer >= self.k {
                    self.limit -= 1;
                    self.closer -= self.counts[self.limit as usize];
                }
            }
        }
    }

    fn finish(parts: Vec<Self>) -> Vec<Neighbor> {
        let k = parts.first().map_or(0, |part| part.k);
        let several = parts.len() > 1;
        let mut ranked: Vec<_> = parts.into_iter().flat_map(Self::ranked).collect();
        if several {
            ranked.sort_unstable();
            ranked.truncate(k);
        }
        ranked
    }
}

/// All within a radius.
pub(super) struct Within {
    limit: u32,
    found: Vec<Neighbor>,
}

impl Within {
    pub(super) fn new(radius: u32, bits: usize) -> Self {
        Self { limit: radius.min(bits as u32) + 1, found: vec![] }
    }
}

impl Collect for Within {
    fn limit(&self) -> u32 {
        self.limit
    }

    fn undemanding(&self) -> usize {
        0
    }

    fn take(&mut self, base: usize, hits: &[Hit]) {
        let neighbor = |hit: &Hit| Neighbor { distance: hit.distance, index: base + hit.index as usize };
        self.found.extend(hits.iter().map(neighbor));
    }

    fn finish(parts: Vec<Self>) -> Vec<Neighbor> {
        let mut found: Vec<_> = parts.into_iter().flat_map(|part| part.found).collect();
        found.sort_unstable();
        found
    }
}
