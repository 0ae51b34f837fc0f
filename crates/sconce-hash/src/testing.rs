//! What the tests of this crate share.

use crate::{Codes, Neighbor};

/// Codes that follow from a seed. With `centres` they lie near a few of them, so that there are small distances and equal
/// codes.
pub(crate) fn draw(seed: u64, bits: usize, len: usize, centres: Option<usize>) -> Codes {
    let mut state = seed;
    let mut next = move || {
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (state ^ state >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ z >> 31
    };
    let mut row = |density: u32| -> Vec<bool> { (0..bits).map(|_| (0..density).all(|_| next() >> 63 == 1)).collect() };
    // The centres do not depend on the seed: queries and codes share them.
    let centre = |i: usize, k: usize| (i * 37 + k * k * 11 + k) % 7 < 3;
    let mut flags = Vec::with_capacity(bits * len);
    for i in 0..len {
        match centres {
            None => flags.extend(row(1)),
            Some(n) => flags.extend(row(4).into_iter().enumerate().map(|(k, noise)| centre(i * 5 % n, k) != noise)),
        }
    }
    Codes::from_bools(bits, &flags).unwrap()
}

/// Every code, by distance, then place.
fn ranked(database: &Codes, queries: &Codes, query: usize) -> Vec<Neighbor> {
    let distance = |index| queries.distance(query, database, index).unwrap();
    let mut all: Vec<_> = (0..database.len()).map(|index| Neighbor { distance: distance(index), index }).collect();
    all.sort_by_key(|n| (n.distance, n.index));
    all
}

/// What [`crate::Search::top_k`] should give.
pub(crate) fn naive_top_k(database: &Codes, queries: &Codes, k: usize) -> Vec<Vec<Neighbor>> {
    let all = (0..queries.len()).map(|query| ranked(database, queries, query));
    all.map(|mut all| {
        all.truncate(k);
        all
    })
    .collect()
}

/// What [`crate::Search::within`] should give.
pub(crate) fn naive_within(database: &Codes, queries: &Codes, radius: u32) -> Vec<Vec<Neighbor>> {
    let all = (0..queries.len()).map(|query| ranked(database, queries, query));
    all.map(|all| all.into_iter().filter(|n| n.distance <= radius).collect()).collect()
}
