use proptest::prelude::*;

use super::*;
use crate::testing::{draw, naive_top_k, naive_within};

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn search_equals_a_naive_sort(
        bits in prop_oneof![1usize..20, Just(64), Just(128), Just(256), 60usize..300, 1000usize..=1024],
        len in 0usize..600,
        count in 0usize..9,
        k in prop_oneof![0usize..20, 0usize..700],
        radius in 0u32..40,
        centres in prop::option::of(1usize..5),
        seed: u64,
    ) {
        let (database, queries) = (draw(seed, bits, len, centres), draw(!seed, bits, count, centres));
        prop_assert_eq!(database.top_k(&queries, k).unwrap(), naive_top_k(&database, &queries, k));
        prop_assert_eq!(database.within(&queries, radius).unwrap(), naive_within(&database, &queries, radius));
    }
}

#[test]
fn results_do_not_depend_on_the_number_of_threads() {
    // At 1,000 bits there are two full chunks and a part of a third; equal codes lie in all of them.
    let database = draw(1, 1000, 20_000, Some(300));
    for count in [1, 2, 5, 300] {
        let queries = draw(2, 1000, count, Some(300));
        let want = count.eq(&1).then(|| naive_top_k(&database, &queries, 77));
        let mut before = None;
        for threads in [1, 2, 3, 7] {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            let found = pool.install(|| {
                let near = database.top_k(&queries, 77).unwrap();
                assert!(want.is_none() || want.as_ref() == Some(&near));
                let radius = near[0][76].distance;
                let within = database.within(&queries, radius).unwrap();
                assert_eq!(within[0][..77], near[0]);
                (near, within)
            });
            assert!(before.is_none_or(|before| before == found), "{count} queries, {threads} threads");
            before = Some(found);
        }
    }
}

#[test]
fn tiles_and_blocks_of_queries_join_without_a_seam() {
    // More than two tiles of 2,048 codes and two blocks of 128 queries.
    let (database, queries) = (draw(3, 64, 5000, None), draw(4, 64, 261, None));
    for k in [1, 10, 3000] {
        assert_eq!(database.top_k(&queries, k).unwrap(), naive_top_k(&database, &queries, k));
    }
    assert_eq!(database.within(&queries, 21).unwrap(), naive_within(&database, &queries, 21));
}

#[test]
fn equal_codes_come_in_the_order_of_their_places() {
    let database = Codes::from_words(64, vec![7; 3000]).unwrap();
    let queries = Codes::from_words(64, vec![7, 6]).unwrap();
    let found = database.top_k(&queries, 2500).unwrap();
    for (neighbors, distance) in found.iter().zip([0, 1]) {
        let want: Vec<_> = (0..2500).map(|index| Neighbor { distance, index }).collect();
        assert_eq!(*neighbors, want);
    }
    assert_eq!(database.within(&queries, 0).unwrap().iter().map(Vec::len).collect::<Vec<_>>(), [3000, 0]);
}

#[test]
fn the_edges_are_defined() {
    let (database, empty) = (draw(5, 70, 30, None), Codes::new(70).unwrap());
    assert_eq!(database.top_k(&empty, 3).unwrap(), Vec::<Vec<_>>::new());
    assert_eq!(empty.top_k(&database, 3).unwrap(), vec![vec![]; 30]);
    assert_eq!(empty.within(&database, 70).unwrap(), vec![vec![]; 30]);
    assert_eq!(database.top_k(&database, 0).unwrap(), vec![vec![]; 30]);
    assert_eq!(database.top_k(&database, usize::MAX).unwrap(), naive_top_k(&database, &database, 30));
    assert_eq!(database.within(&database, u32::MAX).unwrap(), naive_top_k(&database, &database, 30));
    for wrong in [draw(6, 64, 3, None), draw(6, 128, 3, None), draw(6, 69, 0, None)] {
        assert!(matches!(database.top_k(&wrong, 3), Err(Error::Input(_))));
        assert!(matches!(database.top_k(&wrong, 0), Err(Error::Input(_))));
        assert!(matches!(database.within(&wrong, 3), Err(Error::Input(_))));
    }
}
