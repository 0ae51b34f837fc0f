//! Distances of eight codes at once: AVX-512 with VPOPCNTDQ counts the ones of eight words in one instruction.

use std::arch::x86_64::*;

use super::{Block, Hit, Lanes, Scan};

/// Blocks whose distances are compared with the limit at once: their minimum is, so that what is far, nearly everything,
/// costs one comparison in a group.
const GROUP: usize = 8;

#[target_feature(enable = "avx512f,avx512vpopcntdq")]
pub(super) fn scan(scan: Scan, hits: &mut Vec<Hit>) {
    match scan.query.len() {
        1 => fixed::<1>(scan, hits),
        2 => fixed::<2>(scan, hits),
        4 => fixed::<4>(scan, hits),
        _ => any(scan, hits),
    }
}

/// Codes of `W` words: the query stays in registers.
#[target_feature(enable = "avx512f,avx512vpopcntdq")]
#[inline]
fn fixed<const W: usize>(scan: Scan, hits: &mut Vec<Hit>) {
    let mut query = [_mm512_setzero_si512(); W];
    for (lanes, &word) in query.iter_mut().zip(scan.query) {
        *lanes = _mm512_set1_epi64(word as i64);
    }
    let limit = _mm512_set1_epi64(i64::from(scan.limit));
    let (blocks, rest) = scan.memory.as_chunks::<W>();
    debug_assert!(rest.is_empty());
    let (groups, rest) = blocks.as_chunks::<GROUP>();
    let mut first = scan.first;
    for group in groups {
        let mut distances = [_mm512_setzero_si512(); GROUP];
        for (distance, block) in distances.iter_mut().zip(group) {
            *distance = fixed_distance(&query, block);
        }
        let [a, b, c, d, e, f, g, h] = distances;
        let (ab, cd, ef, gh) = (min(a, b), min(c, d), min(e, f), min(g, h));
        let nearest = min(min(ab, cd), min(ef, gh));
        if _mm512_cmplt_epu64_mask(nearest, limit) != 0 {
            for (i, distance) in distances.into_iter().enumerate() {
                report(distance, limit, first + (i * Lanes::WIDTH) as u32, hits);
            }
        }
        first += (GROUP * Lanes::WIDTH) as u32;
    }
    for block in rest {
        report(fixed_distance(&query, block), limit, first, hits);
        first += Lanes::WIDTH as u32;
    }
}

#[target_feature(enable = "avx512f,avx512vpopcntdq")]
#[inline]
fn fixed_distance<const W: usize>(query: &[__m512i; W], block: &[Block; W]) -> __m512i {
    let mut sum = _mm512_setzero_si512();
    for (lanes, q) in block.iter().zip(query) {
        sum = _mm512_add_epi64(sum, ones(lanes, *q));
    }
    sum
}

/// Codes of any number of words.
#[target_feature(enable = "avx512f,avx512vpopcntdq")]
#[inline]
fn any(scan: Scan, hits: &mut Vec<Hit>) {
    let limit = _mm512_set1_epi64(i64::from(scan.limit));
    for (first, block) in (scan.first..).step_by(Lanes::WIDTH).zip(scan.memory.chunks_exact(scan.query.len())) {
        let mut sum = _mm512_setzero_si512();
        for (lanes, &q) in block.iter().zip(scan.query) {
            sum = _mm512_add_epi64(sum, ones(lanes, _mm512_set1_epi64(q as i64)));
        }
        report(sum, limit, first, hits);
    }
}

/// Bits in which eight words differ from a ninth.
#[target_feature(enable = "avx512f,avx512vpopcntdq")]
#[inline]
fn ones(lanes: &Block, query: __m512i) -> __m512i {
    #[expect(unsafe_code, reason = "a vector is loaded from memory")]
    // SAFETY: a block is 64 readable bytes.
    let words = unsafe { _mm512_loadu_si512(lanes.0.as_ptr().cast()) };
    _mm512_popcnt_epi64(_mm512_xor_si512(words, query))
}

/// The smaller distance of each lane. Distances fit into the lower halves; to compare 64 bits would take twice as long.
#[target_feature(enable = "avx512f")]
#[inline]
fn min(a: __m512i, b: __m512i) -> __m512i {
    _mm512_min_epu32(a, b)
}

/// Appends those of eight codes whose distance is below the limit.
#[target_feature(enable = "avx512f")]
#[inline]
fn report(distances: __m512i, limit: __m512i, first: u32, hits: &mut Vec<Hit>) {
    let mut near = _mm512_cmplt_epu64_mask(distances, limit);
    if near == 0 {
        return;
    }
    let mut values = [0u64; Lanes::WIDTH];
    #[expect(unsafe_code, reason = "a vector is stored to memory")]
    // SAFETY: eight words are 64 writable bytes.
    unsafe {
        _mm512_storeu_si512(values.as_mut_ptr().cast(), distances);
    }
    while near != 0 {
        let lane = near.trailing_zeros();
        hits.push(Hit { index: first + lane, distance: values[lane as usize] as u32 });
        near &= near - 1;
    }
}
