//! Multi-index hashing: exact search that looks at a small part of the codes (Norouzi, Punjani and Fleet 2014, arXiv 1307.2982).
//!
//! Codes are cut into m substrings, each with a table from its value to the codes that have it. Two codes within m * q + a
//! bits differ in at most q bits of one of the first a + 1 substrings, or in at most q - 1 of one of the others. So a growing
//! radius looks at one more table and distance at a time, and stops as soon as nothing nearer can be missing.

use std::fmt;

use rayon::prelude::*;
use sconce_ops::hamming::{Instructions, distances_at};

use crate::search::{same_width, top_k, within};
use crate::{Codes, Error, Neighbor, Result, Search};

/// The widest substring: a table has an entry for each of its values.
const MAX_WIDTH: usize = 24;

/// Words that a comparison with all codes goes through in the time of one look into a table or at one candidate, which wait
/// for memory.
const WORDS_PER_LOOK: usize = 64;

/// Codes in memory with tables for searches at small distances.
///
/// Results equal those of the comparison with every code. Where looking into the tables would take longer than that, for a
/// query without near codes or a large radius, the comparison is made instead; so a search never takes much longer than
/// without tables.
#[derive(Clone)]
pub struct MultiIndex {
    codes: Codes,
    tables: Vec<Table>,
    /// Looks at entries and candidates after which a query is compared with every code.
    patience: usize,
}

/// Places of codes by the value of one substring.
#[derive(Clone)]
struct Table {
    /// The first bit of the substring.
    first: usize,
    width: usize,
    /// Where the places of each value begin; one more than there are values.
    starts: Vec<u32>,
    places: Vec<u32>,
}

/// What a search looks for.
#[derive(Clone, Copy)]
enum Goal {
    Nearest(usize),
    Within(usize),
}

/// Memory that queries use one after the other.
struct Scratch {
    /// A bit for each code that has been seen.
    seen: Vec<u64>,
    candidates: Vec<u32>,
    distances: Vec<u32>,
}

impl MultiIndex {
    /// Makes tables for substrings of about log2(N) bits, at most 24.
    ///
    /// # Errors
    /// When there are 2^32 codes or more.
    pub fn new(codes: Codes) -> Result<Self> {
        let width = codes.len().max(2).ilog2() as usize;
        let tables = codes.bits().div_ceil(width.min(MAX_WIDTH));
        Self::with_tables(codes, tables)
    }

    /// Makes a number of tables, each for a substring of `bits / tables` bits. A table takes 4 bytes for every code and for every
    /// value of the substring.
    ///
    /// # Errors
    /// When substrings would be empty or wider than 24 bits, or there are 2^32 codes or more.
    pub fn with_tables(codes: Codes, tables: usize) -> Result<Self> {
        let bits = codes.bits();
        if !(bits.div_ceil(MAX_WIDTH)..=bits).contains(&tables) {
            let least = bits.div_ceil(MAX_WIDTH);
            return Err(Error::Config(format!("codes of {bits} bits have {least} to {bits} tables, not {tables}")));
        }
        if u32::try_from(codes.len()).is_err() {
            return Err(Error::Input(format!("{} codes are too many for tables", codes.len())));
        }
        let cut = |i: usize| i * bits / tables;
        let tables = (0..tables).into_par_iter().map(|i| Table::new(&codes, cut(i), cut(i + 1) - cut(i))).collect();
        let patience = codes.words().len() / WORDS_PER_LOOK;
        Ok(Self { codes, tables, patience })
    }

    /// The codes.
    pub fn codes(&self) -> &Codes {
        &self.codes
    }

    /// Number of tables.
    pub fn tables(&self) -> usize {
        self.tables.len()
    }

    /// What the tables find for each query; nothing where patience ends first.
    fn probe_all(&self, queries: &Codes, goal: Goal) -> Vec<Option<Vec<Neighbor>>> {
        let scratch =
            || Scratch { seen: vec![0; self.codes.len().div_ceil(64)], candidates: vec![], distances: vec![] };
        let rows: Vec<&[u64]> = queries.rows().collect();
        let probe = |scratch: &mut Scratch, query: &&[u64]| {
            let mut found = vec![];
            let complete = self.probe(query, goal, scratch, &mut found);
            for neighbor in &found {
                scratch.seen[neighbor.index / 64] = 0;
            }
            complete.then(|| goal.rank(found))
        };
        // A block of queries shares the bits.
        rows.par_iter().with_min_len(16).map_init(scratch, probe).collect()
    }

    /// Fills `found` with all codes that `goal` may want, and others; false where patience ends first.
    fn probe(&self, query: &[u64], goal: Goal, scratch: &mut Scratch, found: &mut Vec<Neighbor>) -> bool {
        let bits = self.codes.bits();
        let mut counts = vec![0usize; bits + 1];
        let mut looks = 0usize;
        for radius in 0..=bits {
            let table = &self.tables[radius % self.tables.len()];
            let distance = radius / self.tables.len();
            if looks.saturating_add(table.cost(distance)) > self.patience {
                return false;
            }
            let value = table.value(query);
            scratch.candidates.clear();
            for mask in masks(table.width, distance) {
                let places = table.places(value ^ mask);
                looks += 1 + places.len();
                if looks > self.patience {
                    // Those that are seen but not found must be forgotten as well.
                    scratch.candidates.iter().for_each(|&place| scratch.seen[place as usize / 64] = 0);
                    return false;
                }
                for &place in places {
                    let (word, bit) = (&mut scratch.seen[place as usize / 64], 1 << (place % 64));
                    if *word & bit == 0 {
                        *word |= bit;
                        scratch.candidates.push(place);
                    }
                }
            }
            scratch.distances.clear();
            let (candidates, distances) = (&scratch.candidates, &mut scratch.distances);
            distances_at(query, self.codes.words(), candidates, distances, Instructions::best());
            for (&place, &distance) in candidates.iter().zip(distances.iter()) {
                counts[distance as usize] += 1;
                found.push(Neighbor { distance, index: place as usize });
            }
            // From here on no code at this distance is missing.
            let reached = match goal {
                Goal::Nearest(k) => counts[..=radius].iter().sum::<usize>() >= k,
                Goal::Within(wanted) => radius >= wanted,
            };
            if reached {
                break;
            }
        }
        true
    }

    /// The tables' findings, and comparisons with every code where there are none.
    fn search(
        &self,
        queries: &Codes,
        goal: Goal,
        compare: impl FnOnce(&Codes) -> Result<Vec<Vec<Neighbor>>>,
    ) -> Result<Vec<Vec<Neighbor>>> {
        let mut found = self.probe_all(queries, goal);
        let missing: Vec<usize> = (0..found.len()).filter(|&i| found[i].is_none()).collect();
        if !missing.is_empty() {
            for (&i, neighbors) in missing.iter().zip(compare(&queries.select(&missing)?)?) {
                found[i] = Some(neighbors);
            }
        }
        Ok(found.into_iter().flatten().collect())
    }
}

impl Search for MultiIndex {
    fn bits(&self) -> usize {
        self.codes.bits()
    }

    fn len(&self) -> usize {
        self.codes.len()
    }

    fn top_k(&self, queries: &Codes, k: usize) -> Result<Vec<Vec<Neighbor>>> {
        same_width(self.codes.bits(), queries)?;
        match k.min(self.codes.len()) {
            0 => Ok(vec![vec![]; queries.len()]),
            k => self.search(queries, Goal::Nearest(k), |rest| top_k(&self.codes, rest, k)),
        }
    }

    fn within(&self, queries: &Codes, radius: u32) -> Result<Vec<Vec<Neighbor>>> {
        same_width(self.codes.bits(), queries)?;
        self.search(queries, Goal::Within(radius as usize), |rest| within(&self.codes, rest, radius))
    }
}

impl fmt::Debug for MultiIndex {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MultiIndex").field("codes", &self.codes).field("tables", &self.tables.len()).finish()
    }
}

impl Goal {
    /// What is wanted of the codes that were found, in order.
    fn rank(self, mut found: Vec<Neighbor>) -> Vec<Neighbor> {
        if let Self::Within(radius) = self {
            found.retain(|neighbor| neighbor.distance as usize <= radius);
        }
        found.sort_unstable();
        if let Self::Nearest(k) = self {
            found.truncate(k);
        }
        found
    }
}

impl Table {
    fn new(codes: &Codes, first: usize, width: usize) -> Self {
        let mut table = Self { first, width, starts: vec![0; (1 << width) + 1], places: vec![0; codes.len()] };
        // The places of a value first end where those of the next begin, and move to the front one by one.
        for code in codes.rows() {
            table.starts[value(code, first, width)] += 1;
        }
        let mut end = 0;
        for start in &mut table.starts {
            end += *start;
            *start = end;
        }
        for (place, code) in codes.rows().enumerate().rev() {
            let start = &mut table.starts[value(code, first, width)];
            *start -= 1;
            table.places[*start as usize] = place as u32;
        }
        table
    }

    fn value(&self, code: &[u64]) -> usize {
        value(code, self.first, self.width)
    }

    fn places(&self, value: usize) -> &[u32] {
        &self.places[self.starts[value] as usize..self.starts[value + 1] as usize]
    }

    /// About how many looks it takes to see all codes whose substring is at a distance.
    fn cost(&self, distance: usize) -> usize {
        if distance > self.width {
            return 0;
        }
        let masks = (0..distance).fold(1usize, |n, i| n * (self.width - i) / (i + 1));
        masks + masks.saturating_mul(self.places.len()) / (self.starts.len() - 1)
    }
}

/// A substring of a code, at most 24 bits.
fn value(code: &[u64], first: usize, width: usize) -> usize {
    let (word, bit) = (first / 64, first % 64);
    let low = code[word] >> bit;
    // Where the substring lies within a word, there may be no next one.
    let high = if bit + width > 64 { code[word + 1] << (64 - bit) } else { 0 };
    (low | high) as usize & ((1 << width) - 1)
}

/// All numbers of `width` bits, at most 24, of which `ones` are set.
fn masks(width: usize, ones: usize) -> impl Iterator<Item = usize> {
    let first = (ones <= width).then_some((1usize << ones.min(width)) - 1);
    std::iter::successors(first, move |&mask| {
        if mask == 0 {
            return None;
        }
        // The next larger number with as many ones (Gosper).
        let lowest = mask & mask.wrapping_neg();
        let ripple = mask + lowest;
        let next = ripple | (((mask ^ ripple) >> 2) / lowest);
        (next >> width == 0).then_some(next)
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::testing::{draw, naive_top_k, naive_within};

    #[test]
    fn masks_have_the_ones_and_are_all() {
        for width in 0..12usize {
            for ones in 0..14 {
                let found: Vec<_> = masks(width, ones).collect();
                let want: Vec<_> = (0..1usize << width).filter(|mask| mask.count_ones() as usize == ones).collect();
                assert_eq!(found, want, "{width} bits, {ones} ones");
            }
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(96))]

        #[test]
        fn tables_find_what_a_comparison_with_every_code_finds(
            bits in prop_oneof![1usize..30, Just(64), 60usize..140],
            tables in 1usize..12,
            len in 0usize..300,
            count in 0usize..40,
            k in prop_oneof![0usize..12, 0usize..320],
            radius in 0u32..14,
            centres in prop::option::of(1usize..40),
            patience in prop_oneof![Just(usize::MAX), 0usize..2000],
            seed: u64,
        ) {
            let (codes, queries) = (draw(seed, bits, len, centres), draw(!seed, bits, count, centres));
            let want = naive_top_k(&codes, &queries, k);
            let near = naive_within(&codes, &queries, radius);
            // Without patience for all that can be looked at, narrow substrings keep the test short.
            let tables = tables.clamp(bits.div_ceil(12), bits);
            let mut index = MultiIndex::with_tables(codes, tables).unwrap();
            index.patience = patience;
            prop_assert_eq!(index.top_k(&queries, k).unwrap(), want);
            prop_assert_eq!(index.within(&queries, radius).unwrap(), near);
            if patience == usize::MAX {
                prop_assert!(index.probe_all(&queries, Goal::Nearest(k.min(len))).iter().all(Option::is_some));
            }
        }
    }

    #[test]
    fn near_codes_are_found_without_a_comparison_with_every_code() {
        // Each query has a code at distance 2, and by chance hardly another below 64 / 4.
        let codes = draw(1, 64, 20_000, None);
        let words = codes.words().iter().step_by(200).map(|word| word ^ 0x8000_0100).collect();
        let queries = Codes::from_words(64, words).unwrap();
        let index = MultiIndex::new(codes.clone()).unwrap();
        assert_eq!(index.tables(), 5);
        for goal in [Goal::Nearest(1), Goal::Within(4)] {
            assert!(index.probe_all(&queries, goal).iter().all(Option::is_some));
        }
        assert_eq!(index.top_k(&queries, 1).unwrap(), codes.top_k(&queries, 1).unwrap());
        assert_eq!(index.within(&queries, 4).unwrap(), codes.within(&queries, 4).unwrap());
        // Far ones are not worth the looks.
        assert!(index.probe_all(&queries, Goal::Within(40)).iter().all(Option::is_none));
        assert_eq!(index.within(&queries, 40).unwrap(), codes.within(&queries, 40).unwrap());
    }

    #[test]
    fn the_edges_are_defined() {
        let codes = draw(1, 70, 30, None);
        for tables in [0, 2, 71] {
            assert!(matches!(MultiIndex::with_tables(codes.clone(), tables), Err(Error::Config(_))));
        }
        for len in [0, 1, 2, 30] {
            let index = MultiIndex::new(codes.slice(0..len).unwrap()).unwrap();
            assert_eq!((index.bits(), index.len(), index.is_empty()), (70, len, len == 0));
            let all = naive_top_k(index.codes(), &codes, 30);
            assert_eq!(index.top_k(&codes, usize::MAX).unwrap(), all);
            assert_eq!(index.within(&codes, u32::MAX).unwrap(), all);
            assert_eq!(index.top_k(&codes, 0).unwrap(), vec![vec![]; 30]);
            assert!(matches!(index.top_k(&draw(1, 64, 1, None), 1), Err(Error::Input(_))));
            assert!(matches!(index.within(&draw(1, 71, 1, None), 1), Err(Error::Input(_))));
        }
    }
}
