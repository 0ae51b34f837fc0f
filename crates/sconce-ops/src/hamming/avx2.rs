//! Distances of four codes at once: without an instruction that counts, AVX2 looks the ones of half bytes up (Muła, Kurz and
//! Lemire 2018, arXiv 1611.07612) and adds the bytes of a word.

use std::arch::x86_64::*;

use super::{Block, Hit, Lanes, Scan, plain};

/// Codes in a vector.
const HALF: usize = Lanes::WIDTH / 2;

/// Words whose ones a byte can count: eight a word.
const BYTE: usize = 31;

#[target_feature(enable = "avx2,popcnt")]
pub(super) fn scan(scan: Scan, hits: &mut Vec<Hit>) {
    match scan.query.len() {
        1 => fixed::<1>(scan, hits),
        2 => fixed::<2>(scan, hits),
        4 => fixed::<4>(scan, hits),
        _ => any(scan, hits),
    }
}

/// The plain code, compiled for machines that count the ones of a word in one instruction.
#[target_feature(enable = "avx2,popcnt")]
pub(super) fn distances_at(query: &[u64], codes: &[u64], places: &[u32], out: &mut Vec<u32>) {
    plain::distances_at(query, codes, places, out);
}

/// Codes of `W` words, at most 31: the compiler unrolls.
#[target_feature(enable = "avx2")]
#[inline]
fn fixed<const W: usize>(scan: Scan, hits: &mut Vec<Hit>) {
    const { assert!(W <= BYTE) };
    let mut query = [_mm256_setzero_si256(); W];
    for (lanes, &word) in query.iter_mut().zip(scan.query) {
        *lanes = _mm256_set1_epi64x(word as i64);
    }
    let limit = _mm256_set1_epi64x(i64::from(scan.limit));
    let (blocks, rest) = scan.memory.as_chunks::<W>();
    debug_assert!(rest.is_empty());
    for (first, block) in (scan.first..).step_by(Lanes::WIDTH).zip(blocks) {
        let mut bytes = [_mm256_setzero_si256(); 2];
        for (lanes, q) in block.iter().zip(query) {
            add(&mut bytes, lanes, q);
        }
        report([words(bytes[0]), words(bytes[1])], limit, first, hits);
    }
}

/// Codes of any number of words.
#[target_feature(enable = "avx2")]
#[inline]
fn any(scan: Scan, hits: &mut Vec<Hit>) {
    let limit = _mm256_set1_epi64x(i64::from(scan.limit));
    for (first, block) in (scan.first..).step_by(Lanes::WIDTH).zip(scan.memory.chunks_exact(scan.query.len())) {
        let mut sums = [_mm256_setzero_si256(); 2];
        for (part, query) in block.chunks(BYTE).zip(scan.query.chunks(BYTE)) {
            let mut bytes = [_mm256_setzero_si256(); 2];
            for (lanes, &q) in part.iter().zip(query) {
                add(&mut bytes, lanes, _mm256_set1_epi64x(q as i64));
            }
            for (sum, bytes) in sums.iter_mut().zip(bytes) {
                *sum = _mm256_add_epi64(*sum, words(bytes));
            }
        }
        report(sums, limit, first, hits);
    }
}

/// Adds, byte by byte, the bits in which eight words differ from a ninth.
#[target_feature(enable = "avx2")]
#[inline]
fn add(bytes: &mut [__m256i; 2], lanes: &Block, query: __m256i) {
    let (halves, _) = lanes.0.as_chunks::<HALF>();
    for (bytes, half) in bytes.iter_mut().zip(halves) {
        #[expect(unsafe_code, reason = "a vector is loaded from memory")]
        // SAFETY: half a block is 32 readable bytes.
        let words = unsafe { _mm256_loadu_si256(half.as_ptr().cast()) };
        *bytes = _mm256_add_epi8(*bytes, ones(_mm256_xor_si256(words, query)));
    }
}

/// The number of ones in each byte.
#[target_feature(enable = "avx2")]
#[inline]
fn ones(x: __m256i) -> __m256i {
    let table = _mm256_broadcastsi128_si256(_mm_setr_epi8(0, 1, 1, 2, 1, 2, 2, 3, 1, 2, 2, 3, 2, 3, 3, 4));
    let low = _mm256_set1_epi8(15);
    let lower = _mm256_shuffle_epi8(table, _mm256_and_si256(x, low));
    let upper = _mm256_shuffle_epi8(table, _mm256_and_si256(_mm256_srli_epi16::<4>(x), low));
    _mm256_add_epi8(lower, upper)
}

/// The sums of the bytes of each word.
#[target_feature(enable = "avx2")]
#[inline]
fn words(bytes: __m256i) -> __m256i {
    _mm256_sad_epu8(bytes, _mm256_setzero_si256())
}

/// Appends those of eight codes whose distance is below the limit.
#[target_feature(enable = "avx2")]
#[inline]
fn report(distances: [__m256i; 2], limit: __m256i, first: u32, hits: &mut Vec<Hit>) {
    let [lower, upper] = distances;
    // Distances fit into the lower halves of the words.
    let nearest = _mm256_min_epu32(lower, upper);
    if mask(limit, nearest) == 0 {
        return;
    }
    for (first, distances) in (first..).step_by(HALF).zip(distances) {
        let mut near = mask(limit, distances);
        let mut values = [0u64; HALF];
        #[expect(unsafe_code, reason = "a vector is stored to memory")]
        // SAFETY: four words are 32 writable bytes.
        unsafe {
            _mm256_storeu_si256(values.as_mut_ptr().cast(), distances);
        }
        while near != 0 {
            let lane = near.trailing_zeros();
            hits.push(Hit { index: first + lane, distance: values[lane as usize] as u32 });
            near &= near - 1;
        }
    }
}

/// Which of four distances are below the limit, a bit each.
#[target_feature(enable = "avx2")]
#[inline]
fn mask(limit: __m256i, distances: __m256i) -> u32 {
    _mm256_movemask_pd(_mm256_castsi256_pd(_mm256_cmpgt_epi64(limit, distances))) as u32
}
