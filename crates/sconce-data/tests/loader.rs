//! The loader: order, determinism, memory, errors, shutdown.

use candle_core::Tensor;
use sconce_data::{
    DataLoader, Dataset, Error, Generator, InMemory, LoaderOptions, OnError, Result, batched, ordered_map,
    shuffle_buffer,
};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

fn numbers(count: u32) -> InMemory<u32> {
    (0..count).collect()
}

/// Each sample with a random number of its own generator, some slower than others.
fn noisy(count: u32) -> impl Dataset<Item = (u32, f64)> {
    numbers(count).map(|x, generator: &Generator| {
        std::thread::sleep(Duration::from_micros(u64::from(x % 7) * 100));
        Ok((x, generator.f64()))
    })
}

fn read((x, noise): (Tensor, Tensor)) -> (Vec<u32>, Vec<f64>) {
    (x.to_vec1().unwrap(), noise.to_vec1().unwrap())
}

fn options(workers: usize) -> LoaderOptions {
    LoaderOptions { batch_size: 8, shuffle: true, workers, seed: 5, ..Default::default() }
}

fn all(workers: usize, epoch: u64) -> Vec<(Vec<u32>, Vec<f64>)> {
    let loader = DataLoader::new(noisy(50), options(workers)).unwrap();
    loader.epoch(epoch).map(|batch| read(batch.unwrap())).collect()
}

#[test]
fn the_number_of_workers_changes_nothing() {
    let reference = all(0, 3);
    for workers in [1, 4] {
        assert_eq!(all(workers, 3), reference);
    }
    assert_eq!(reference.len(), 7);
    assert_eq!(reference[6].0.len(), 2);
}

#[test]
fn epochs_are_permutations_of_their_own() {
    let order = |epoch| all(2, epoch).into_iter().flat_map(|batch| batch.0).collect::<Vec<_>>();
    let (mut first, second) = (order(0), order(1));
    assert_ne!(first, second);
    assert_eq!(first, order(0));
    first.sort();
    assert_eq!(first, (0..50).collect::<Vec<_>>());
}

#[test]
fn augmentation_depends_on_seed_epoch_and_index_alone() {
    let noise = |epoch, shuffle| {
        let loader = DataLoader::new(noisy(50), LoaderOptions { shuffle, ..options(2) }).unwrap();
        let mut pairs = Vec::new();
        for batch in loader.epoch(epoch) {
            let (x, noise) = read(batch.unwrap());
            pairs.extend(x.into_iter().zip(noise));
        }
        pairs.sort_by_key(|pair| pair.0);
        pairs
    };
    assert_eq!(noise(0, true), noise(0, false));
    assert_ne!(noise(0, true), noise(1, true));
    let distinct: std::collections::BTreeSet<u64> = noise(0, true).iter().map(|pair| pair.1.to_bits()).collect();
    assert_eq!(distinct.len(), 50);
}

#[test]
fn resuming_within_an_epoch_continues_it() {
    let loader = DataLoader::new(noisy(50), options(3)).unwrap();
    let rest: Vec<_> = loader.epoch_from(2, 4).map(|batch| read(batch.unwrap())).collect();
    assert_eq!(rest, all(3, 2)[4..]);
    assert_eq!(loader.epoch_from(2, 99).count(), 0);
}

#[test]
fn the_last_batch_may_be_dropped() {
    let loader = DataLoader::new(numbers(50), LoaderOptions { drop_last: true, ..options(2) }).unwrap();
    assert_eq!((loader.batches(), loader.epoch(0).count()), (6, 6));
    let empty = DataLoader::new(numbers(0), options(2)).unwrap();
    assert_eq!((empty.batches(), empty.epoch(0).count()), (0, 0));
    assert!(matches!(
        DataLoader::new(numbers(3), LoaderOptions { batch_size: 0, ..options(0) }),
        Err(Error::Invalid { argument: "batch_size", .. })
    ));
}

fn faulty() -> impl Dataset<Item = u32> {
    numbers(30).map(|x, _| if x % 10 == 3 || x >= 24 { Err(broken(x)) } else { Ok(x) })
}

fn broken(x: u32) -> Error {
    Error::Invalid { argument: "sample", reason: format!("{x} is broken") }
}

#[test]
fn errors_take_the_place_of_their_batch() {
    for workers in [0, 2] {
        let loader = DataLoader::new(faulty(), LoaderOptions { shuffle: false, ..options(workers) }).unwrap();
        let results: Vec<Result<Tensor>> = loader.epoch(0).collect();
        let fine: Vec<bool> = results.iter().map(Result::is_ok).collect();
        assert_eq!(fine, [false, false, false, false]);
        let message = results[1].as_ref().unwrap_err().to_string();
        assert!(message.contains("sample 13") && message.contains("13 is broken"), "{message}");
    }
}

#[test]
fn skipped_samples_are_reported_and_batches_stay_in_place() {
    for workers in [0, 3] {
        let options = LoaderOptions { shuffle: false, on_error: OnError::Skip, ..options(workers) };
        let mut epoch = DataLoader::new(faulty(), options).unwrap().epoch(0);
        let batches: Vec<Vec<u32>> = epoch.by_ref().map(|batch| batch.unwrap().to_vec1().unwrap()).collect();
        // The last batch is empty, so it is not delivered.
        assert_eq!(
            batches,
            [vec![0, 1, 2, 4, 5, 6, 7], vec![8, 9, 10, 11, 12, 14, 15], vec![16, 17, 18, 19, 20, 21, 22]]
        );
        let members: Vec<_> = epoch.report().failures.iter().map(|failure| failure.member.clone().unwrap()).collect();
        let wanted = [3, 13, 23, 24, 25, 26, 27, 28, 29].map(|x| format!("sample {x}"));
        assert_eq!(members, wanted);
    }
}

#[test]
fn a_panic_in_a_worker_is_an_error_and_ends_the_epoch() {
    for workers in [0, 3] {
        let dataset = numbers(40).map(|x, _| if x == 17 { panic!("no seventeen") } else { Ok(x) });
        let loader = DataLoader::new(dataset, LoaderOptions { shuffle: false, ..options(workers) }).unwrap();
        let results: Vec<Result<Tensor>> = loader.epoch(0).collect();
        assert_eq!(results.len(), 3);
        assert!(matches!(&results[2], Err(Error::Worker { message }) if message == "no seventeen"));
    }
}

#[test]
fn work_ahead_is_bounded() {
    let started = Arc::new(AtomicUsize::new(0));
    let counter = Arc::clone(&started);
    let mut map = ordered_map(0..100, 4, 3, move |x| {
        counter.fetch_add(1, Ordering::SeqCst);
        x
    })
    .unwrap();
    for taken in 0..10 {
        std::thread::sleep(Duration::from_millis(5));
        let ahead = started.load(Ordering::SeqCst) - taken;
        assert!(ahead <= 3, "{ahead} in the making after {taken}");
        assert_eq!(map.next().unwrap().unwrap(), taken);
    }
}

#[test]
fn dropping_an_epoch_stops_its_workers() {
    let started = Arc::new(AtomicUsize::new(0));
    let counter = Arc::clone(&started);
    let dataset = numbers(10_000).map(move |x, _| {
        counter.fetch_add(1, Ordering::SeqCst);
        Ok(x)
    });
    let loader =
        DataLoader::new(dataset, LoaderOptions { batch_size: 1, workers: 4, prefetch: 8, ..options(4) }).unwrap();
    let mut epoch = loader.epoch(0);
    epoch.next().unwrap().unwrap();
    drop(epoch);
    // All threads are joined: nothing is started any more.
    let count = started.load(Ordering::SeqCst);
    std::thread::sleep(Duration::from_millis(10));
    assert_eq!(started.load(Ordering::SeqCst), count);
    assert!(count <= 9, "{count}");
}

#[test]
fn a_panic_in_the_source_is_an_error() {
    let source = (0..10).map(|x| if x == 4 { panic!("source") } else { x });
    let results: Vec<_> = ordered_map(source, 2, 2, |x| x * 2).unwrap().collect();
    assert_eq!(results.len(), 5);
    assert!(matches!(&results[4], Err(Error::Worker { message }) if message == "source"));
}

#[test]
fn streams_are_shuffled_within_their_buffer_and_batched() {
    let shuffled: Vec<u32> = shuffle_buffer(0..100, 10, Generator::new(1)).collect();
    assert!(shuffled.iter().enumerate().all(|(place, &x)| x < place as u32 + 10));
    let mut sorted = shuffled.clone();
    sorted.sort();
    assert_eq!(sorted, (0..100).collect::<Vec<_>>());
    assert_ne!(shuffled, sorted);
    let lengths: Vec<usize> = batched(0..10, 4).map(|batch| batch.len()).collect();
    assert_eq!(lengths, [4, 4, 2]);
}

#[test]
fn subsets_refuse_indices_past_the_end() {
    let subset = numbers(5).subset(vec![4, 0, 4]).unwrap();
    let generator = Generator::new(0);
    assert_eq!((0..3).map(|i| subset.get(i, &generator).unwrap()).collect::<Vec<_>>(), [4, 0, 4]);
    assert!(subset.get(3, &generator).is_err());
    assert!(matches!(numbers(5).subset(vec![5]), Err(Error::OutOfRange { index: 5, len: 5 })));
}

#[test]
fn tuples_vectors_and_strings_collate() {
    let dataset = InMemory::new(vec![
        ("a".to_owned(), [1f32, 2.0], vec![1u32, 2, 3]),
        ("b".to_owned(), [3.0, 4.0], vec![4, 5, 6]),
    ]);
    let loader = DataLoader::new(dataset, LoaderOptions::default()).unwrap();
    let (names, pairs, views) = loader.epoch(0).next().unwrap().unwrap();
    assert_eq!(names, ["a", "b"]);
    assert_eq!(pairs.to_vec2::<f32>().unwrap(), [[1.0, 2.0], [3.0, 4.0]]);
    assert_eq!(views.iter().map(|v| v.to_vec1::<u32>().unwrap()).collect::<Vec<_>>(), [[1, 4], [2, 5], [3, 6]]);
    let ragged = InMemory::new(vec![vec![1u32], vec![1, 2]]);
    assert!(DataLoader::new(ragged, LoaderOptions::default()).unwrap().epoch(0).next().unwrap().is_err());
}
