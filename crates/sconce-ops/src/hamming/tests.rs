use proptest::prelude::*;

use super::*;

/// Numbers that have few ones where `sparse`, so that small distances occur.
fn draw(seed: u64, len: usize, sparse: bool) -> Vec<u64> {
    let mut state = seed;
    let mut next = || {
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (state ^ state >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ z >> 31
    };
    (0..len).map(|_| if sparse { next() & next() & next() } else { next() }).collect()
}

fn naive(query: &[u64], codes: &[u64]) -> Vec<u32> {
    let distance = |code: &[u64]| code.iter().zip(query).map(|(x, q)| (x ^ q).count_ones()).sum();
    codes.chunks_exact(query.len()).map(distance).collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn all_instructions_find_the_same(words in 1usize..36, len in 0usize..200, seed: u64, sparse: bool, limit in 0u32..2400) {
        let codes = draw(seed, len * words, sparse);
        let query = draw(!seed, words, sparse);
        let limit = limit % (64 * words as u32 + 2);
        let distances = naive(&query, &codes);
        let bytes: Vec<u8> = codes.iter().flat_map(|word| word.to_le_bytes()).collect();
        let (mut lanes, mut again) = (Lanes::new(words), Lanes::new(words));
        // What was there before must not show.
        lanes.load(&vec![u64::MAX; 300 * words]);
        lanes.load(&codes);
        again.load_le_bytes(&bytes);
        prop_assert_eq!((lanes.len(), again.len(), lanes.blocks()), (len, len, len.div_ceil(8)));
        let parts = [0..lanes.blocks(), 0..lanes.blocks() / 2, lanes.blocks() / 3..lanes.blocks()];
        let places: Vec<u32> = (0..len as u32).rev().collect();
        for &instructions in Instructions::available() {
            for (lanes, part) in [&lanes, &again].into_iter().flat_map(|lanes| parts.iter().map(move |p| (lanes, p))) {
                let inside = part.start * 8..(part.end * 8).min(len);
                let near = inside.map(|i| Hit { index: i as u32, distance: distances[i] });
                let want: Vec<Hit> = near.filter(|hit| hit.distance < limit).collect();
                let mut hits = vec![];
                nearer_than(&query, lanes, part.clone(), limit, &mut hits, instructions);
                prop_assert_eq!(hits, want, "{}", instructions.name());
            }
            let mut found = vec![];
            distances_at(&query, &codes, &places, &mut found, instructions);
            found.reverse();
            prop_assert_eq!(&found, &distances);
        }
    }
}

#[test]
fn the_extremes_of_distance_are_counted() {
    // All ones against none: the largest counts that the bytes of the AVX2 code hold, and more words than they can.
    for words in [1, 2, 3, 4, 16, 31, 32, 62, 63] {
        let mut lanes = Lanes::new(words);
        lanes.load(&vec![u64::MAX; 9 * words]);
        for &instructions in Instructions::available() {
            let mut hits = vec![];
            nearer_than(&vec![0; words], &lanes, 0..2, u32::MAX, &mut hits, instructions);
            let want = (0..9).map(|index| Hit { index, distance: 64 * words as u32 });
            assert_eq!(hits, want.collect::<Vec<_>>(), "{}", instructions.name());
            hits.clear();
            nearer_than(&vec![u64::MAX; words], &lanes, 0..2, 0, &mut hits, instructions);
            assert!(hits.is_empty());
        }
    }
}

#[test]
fn plain_code_is_always_there() {
    let names: Vec<_> = Instructions::available().iter().map(|i| i.name()).collect();
    assert_eq!(names.last(), Some(&"plain"));
    assert_eq!(Instructions::best(), Instructions::available()[0]);
    println!("{names:?}");
}
