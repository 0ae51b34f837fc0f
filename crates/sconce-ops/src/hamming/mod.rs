//! Hamming distances between packed binary codes.
//!
//! A search compares one query with all codes and keeps the few that are near. [`Lanes`] holds a part of the codes, small
//! enough for the nearest cache, in the order that vectors want; [`nearer_than`] reports those of them that are nearer to a
//! query than a limit. AVX-512 with VPOPCNTDQ, AVX2 and plain code give the same hits; which of them runs is found out at run
//! time.

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
mod lanes;
mod plain;
#[cfg(test)]
mod tests;

use std::{ops::Range, sync::LazyLock};

use lanes::Block;
pub use lanes::Lanes;

/// A code that is near enough.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Hit {
    /// Its place.
    pub index: u32,
    /// Bits that differ from the query.
    pub distance: u32,
}

/// A set of instructions that this machine has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Instructions(Kind);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    #[cfg(target_arch = "x86_64")]
    Avx512,
    #[cfg(target_arch = "x86_64")]
    Avx2,
    Plain,
}

static AVAILABLE: LazyLock<Vec<Instructions>> = LazyLock::new(|| {
    let mut kinds = vec![];
    #[cfg(target_arch = "x86_64")]
    {
        let avx2 = is_x86_feature_detected!("avx2") && is_x86_feature_detected!("popcnt");
        if avx2 && is_x86_feature_detected!("avx512f") && is_x86_feature_detected!("avx512vpopcntdq") {
            kinds.push(Kind::Avx512);
        }
        if avx2 {
            kinds.push(Kind::Avx2);
        }
    }
    kinds.push(Kind::Plain);
    kinds.into_iter().map(Instructions).collect()
});

impl Instructions {
    /// The fastest.
    pub fn best() -> Self {
        AVAILABLE[0]
    }

    /// All that this machine has, the fastest first; plain code is always among them.
    pub fn available() -> &'static [Self] {
        &AVAILABLE
    }

    /// What they are called.
    pub fn name(self) -> &'static str {
        match self.0 {
            #[cfg(target_arch = "x86_64")]
            Kind::Avx512 => "avx512vpopcntdq",
            #[cfg(target_arch = "x86_64")]
            Kind::Avx2 => "avx2",
            Kind::Plain => "plain",
        }
    }
}

/// Appends to `hits`, in order, the codes of some of the blocks of eight of `lanes` whose distance to `query` is below
/// `limit`.
///
/// The cost is one exclusive or, one count and one addition for every word of eight codes, whatever the limit; hits cost more.
///
/// # Panics
/// When the query has another number of words than the codes, or `blocks` does not lie within [`Lanes::blocks`].
pub fn nearer_than(
    query: &[u64],
    lanes: &Lanes,
    blocks: Range<usize>,
    limit: u32,
    hits: &mut Vec<Hit>,
    instructions: Instructions,
) {
    let words = lanes.words();
    assert_eq!(query.len(), words, "words of the query and of the codes");
    let first = (blocks.start * Lanes::WIDTH) as u32;
    let memory = &lanes.memory()[blocks.start * words..blocks.end * words];
    let scan = Scan { query, memory, first, limit };
    match instructions.0 {
        #[cfg(target_arch = "x86_64")]
        Kind::Avx512 => {
            #[expect(unsafe_code, reason = "code for instructions that not every machine has")]
            // SAFETY: `Instructions` of this kind are made only where the machine has what the function is compiled for.
            unsafe {
                avx512::scan(scan, hits)
            }
        }
        #[cfg(target_arch = "x86_64")]
        Kind::Avx2 => {
            #[expect(unsafe_code, reason = "code for instructions that not every machine has")]
            // SAFETY: `Instructions` of this kind are made only where the machine has what the function is compiled for.
            unsafe {
                avx2::scan(scan, hits)
            }
        }
        Kind::Plain => plain::scan(scan, hits),
    }
    // The last block is filled up with zeros, which are no codes.
    while hits.last().is_some_and(|hit| hit.index as usize >= lanes.len()) {
        hits.pop();
    }
}

/// Distances of single codes: those at `places` of `codes`, a row of words each, to `query`. `out` gets one for each place.
///
/// # Panics
/// When a place is beyond the codes.
pub fn distances_at(query: &[u64], codes: &[u64], places: &[u32], out: &mut Vec<u32>, instructions: Instructions) {
    match instructions.0 {
        Kind::Plain => plain::distances_at(query, codes, places, out),
        #[cfg(target_arch = "x86_64")]
        Kind::Avx2 | Kind::Avx512 => {
            #[expect(unsafe_code, reason = "code for instructions that not every machine has")]
            // SAFETY: `Instructions` of these kinds are made only where the machine has what the function is compiled for.
            unsafe {
                avx2::distances_at(query, codes, places, out)
            }
        }
    }
}

/// What a kernel goes through.
#[derive(Clone, Copy)]
struct Scan<'a> {
    query: &'a [u64],
    /// Whole blocks of eight codes.
    memory: &'a [Block],
    /// Place of the first code.
    first: u32,
    limit: u32,
}
