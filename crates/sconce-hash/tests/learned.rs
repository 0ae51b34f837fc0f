//! Learned methods: every parameter trains, the same seed gives the same bits, interrupted or not, from files or not.

use std::path::Path;

use candle_core::{DType, Device, Tensor};
use sconce_hash::*;
use sconce_ops::Generator;
use sconce_train::{Interrupt, Outcome};

type Bits = Vec<(String, Vec<f32>)>;

/// Features around a centre for each of four classes.
fn features(n: usize, d: usize) -> Tensor {
    let centers = Generator::new(7).normal(0.0, 1.0, (4, d), DType::F32, &Device::Cpu).unwrap();
    let noise = Generator::new(8).normal(0.0, 0.3, (n, d), DType::F32, &Device::Cpu).unwrap();
    let labels = Tensor::from_iter((0..n as u32).map(|i| i % 4), &Device::Cpu).unwrap();
    (centers.index_select(&labels, 0).unwrap() + noise).unwrap()
}

fn labels(n: usize) -> Labels {
    Labels::Single((0..n as u32).map(|i| i % 4).collect())
}

fn short(encoder_lr: f64) -> TrainConfig {
    TrainConfig { epochs: 2, batch_size: 8, lr: 1e-2, encoder_lr, ..TrainConfig::default() }
}

fn weights<O>(hasher: &LearnedHasher<O>) -> Bits {
    let values = |p: sconce_nn::Param| (p.name.to_string(), p.var.flatten_all().unwrap().to_vec1().unwrap());
    hasher.store.iter().map(values).collect()
}

fn fitted<O: Objective>(config: &O, inputs: &Tensor, options: &FitOptions) -> (LearnedHasher<O>, FitReport) {
    let labels = labels(inputs.dims()[0]);
    let mut hasher = LearnedHasher::new(config, DType::F32, &Device::Cpu).unwrap();
    let report = hasher.fit(&TrainSet::labelled(inputs, &labels), options).unwrap();
    (hasher, report)
}

/// Every tensor changes, the fit repeats to the bit, and a file brings it back to the bit.
fn trains<O: Objective>(config: &O, inputs: &Tensor) {
    let before = weights(&LearnedHasher::new(config, DType::F32, &Device::Cpu).unwrap());
    let (hasher, report) = fitted(config, inputs, &FitOptions::default());
    assert_eq!((report.losses.len(), report.outcome), (config.train().epochs as usize, Outcome::Completed));
    let after = weights(&hasher);
    for (before, after) in before.iter().zip(&after) {
        let moves = config.train().encoder_lr > 0.0 || !before.0.starts_with("backbone.");
        assert_eq!(before != after, moves, "{}: {}", O::METHOD, before.0);
    }
    let (again, second) = fitted(config, inputs, &FitOptions::default());
    assert!(after == weights(&again) && report == second, "{} does not repeat", O::METHOD);

    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("hasher.safetensors");
    hasher.save(&path).unwrap();
    let loaded = load_hasher(&path, &Device::Cpu).unwrap();
    assert_eq!((loaded.method(), loaded.bits()), (O::METHOD, config.bits()));
    assert_eq!(loaded.encode(inputs).unwrap(), hasher.encode(inputs).unwrap());
    assert_eq!(loaded.encode_all(inputs, 5).unwrap().len(), inputs.dims()[0]);
    let copy = folder.path().join("copy.safetensors");
    loaded.save(&copy).unwrap();
    assert!(std::fs::read(&path).unwrap() == std::fs::read(&copy).unwrap());
}

#[test]
fn every_method_trains_on_features() {
    let xs = features(24, 12);
    trains(&ViT2HashConfig { train: short(1e-2), ..ViT2HashConfig::features(12, 8) }, &xs);
    trains(&CibHashConfig { hidden: 16, train: short(0.0), ..CibHashConfig::features(12, 8) }, &xs);
    trains(&GreedyHashConfig { train: short(0.0), ..GreedyHashConfig::features(12, 8) }, &xs);
    trains(&CsqConfig { train: short(0.0), ..CsqConfig::features(12, 8, 4) }, &xs);
}

#[test]
fn every_method_trains_a_backbone_on_pictures() {
    let xs = Generator::new(3).normal(0.0, 1.0, (8, 3, 32, 32), DType::F32, &Device::Cpu).unwrap();
    let encoder = || EncoderConfig::registry("test_vit").unwrap();
    let corruption = vec![Corruption::PatchMask { patch: 8, ratio: 0.25 }, Corruption::Cutout { size: 4 }];
    let shift = vec![Corruption::Shift { pixels: 2, mirror: true }];
    trains(&ViT2HashConfig { bits: 8, encoder: encoder(), corruption, train: short(1e-3), ..Default::default() }, &xs);
    let (hidden, train) = (16, short(1e-3));
    trains(&CibHashConfig { bits: 8, encoder: encoder(), corruption: shift, hidden, train, ..Default::default() }, &xs);
    trains(&GreedyHashConfig { bits: 8, encoder: encoder(), train: short(1e-3), ..Default::default() }, &xs);
    trains(&CsqConfig { bits: 8, classes: 4, encoder: encoder(), train: short(1e-3), ..Default::default() }, &xs);
}

/// Asks to stop when the n-th view is drawn.
struct Stopping {
    xs: Tensor,
    after: usize,
    interrupt: Interrupt,
    seen: std::cell::Cell<usize>,
}

impl Inputs for Stopping {
    fn len(&self) -> usize {
        Inputs::len(&self.xs)
    }

    fn batch(&self, indices: &[u32]) -> Result<Tensor> {
        self.xs.batch(indices)
    }

    fn view(&self, indices: &[u32], _: &Generator) -> Result<Tensor> {
        self.seen.set(self.seen.get() + 1);
        if self.seen.get() == self.after {
            self.interrupt.request();
        }
        self.batch(indices)
    }
}

/// Trains until the n-th step, of which there are three in an epoch.
fn interrupted(config: &ViT2HashConfig, xs: &Tensor, after: usize, folder: &Path) -> ViT2Hash {
    let interrupt = Interrupt::new();
    let inputs = Stopping { xs: xs.clone(), after, interrupt: interrupt.clone(), seen: Default::default() };
    let mut hasher = ViT2Hash::new(config, DType::F32, &Device::Cpu).unwrap();
    let options = FitOptions { out: Some(folder.into()), interrupt, ..Default::default() };
    assert_eq!(hasher.fit(&TrainSet::new(&inputs), &options).unwrap().outcome, Outcome::Interrupted);
    hasher
}

#[test]
fn the_first_of_two_stages_leaves_the_hash_layer_and_a_frozen_second_the_encoder() {
    let xs = features(24, 12);
    let config = |preserve_epochs| ViT2HashConfig {
        stages: Stages::Two { preserve_epochs, freeze: true },
        train: TrainConfig { cosine: false, ..short(1e-2) },
        ..ViT2HashConfig::features(12, 8)
    };
    let first = weights(&ViT2Hash::new(&config(1), DType::F32, &Device::Cpu).unwrap());
    let (hasher, _) = fitted(&config(0), &xs, &FitOptions::default());
    for (a, b) in first.iter().zip(&weights(&hasher)) {
        assert_eq!(a == b, a.0.starts_with("backbone."), "{}", a.0);
    }
    let folder = tempfile::tempdir().unwrap();
    let hasher = interrupted(&config(1), &xs, 2, folder.path());
    for (a, b) in first.iter().zip(&weights(&hasher)) {
        assert_eq!(a == b, a.0.starts_with("hash."), "{}", a.0);
    }
}

#[test]
fn a_resumed_training_ends_with_the_same_bits() {
    let xs = features(24, 12);
    let config = ViT2HashConfig { train: short(1e-2), ..ViT2HashConfig::features(12, 8) };
    let (whole, report) = fitted(&config, &xs, &FitOptions::default());
    for after in [2, 4] {
        let folder = tempfile::tempdir().unwrap();
        assert!(weights(&interrupted(&config, &xs, after, folder.path())) != weights(&whole));
        let options = FitOptions { out: Some(folder.path().into()), resume: true, ..Default::default() };
        let (resumed, second) = fitted(&config, &xs, &options);
        assert!(weights(&resumed) == weights(&whole) && second == report, "after {after} steps");
        // Another training does not go on from it.
        let other = ViT2HashConfig { corruption: vec![], ..config.clone() };
        let mut hasher = ViT2Hash::new(&other, DType::F32, &Device::Cpu).unwrap();
        assert!(matches!(hasher.fit(&TrainSet::new(&xs), &options), Err(Error::Config(_))));
    }
}

#[test]
fn what_cannot_be_trained_on_is_refused() {
    let xs = features(8, 12);
    let config = ViT2HashConfig { train: short(1e-2), ..ViT2HashConfig::features(12, 8) };
    let fit = |inputs: &Tensor| {
        let mut hasher = ViT2Hash::new(&config, DType::F32, &Device::Cpu).unwrap();
        hasher.fit(&TrainSet::new(inputs), &FitOptions::default())
    };
    let nan = xs.affine(f64::NAN, 0.0).unwrap();
    assert!(matches!(fit(&nan), Err(Error::NonFiniteLoss { step: 0, .. })));
    assert!(matches!(fit(&xs.narrow(0, 0, 1).unwrap()), Err(Error::Input(_))));
    assert!(fit(&xs.narrow(1, 0, 5).unwrap()).is_err());
    let csq = CsqConfig { train: short(0.0), ..CsqConfig::features(12, 8, 4) };
    let fit = |labels: Option<&Labels>| {
        let mut hasher = Csq::new(&csq, DType::F32, &Device::Cpu).unwrap();
        hasher.fit(&TrainSet { inputs: &xs, labels }, &FitOptions::default())
    };
    assert!(matches!(fit(None), Err(Error::Config(_))));
    assert!(matches!(fit(Some(&labels(7))), Err(Error::Input(_))));
    assert!(matches!(fit(Some(&Labels::Single(vec![4; 8]))), Err(Error::Input(_))));
    assert!(matches!(fit(Some(&Labels::Multi(vec![vec![false; 4]; 8]))), Err(Error::Input(_))));
}

#[test]
fn options_that_cannot_be_meant_are_refused() {
    let base = || ViT2HashConfig::features(12, 8);
    let train = |train| ViT2HashConfig { train, ..base() };
    let bad = [
        ViT2HashConfig { bits: 0, ..base() },
        ViT2HashConfig { bits: 1025, ..base() },
        ViT2HashConfig { encoder: EncoderConfig::Features { dim: 0, hidden: 0 }, ..base() },
        ViT2HashConfig { stages: Stages::Two { preserve_epochs: 50, freeze: true }, ..base() },
        train(TrainConfig { batch_size: 1, ..short(0.0) }),
        train(TrainConfig { lr: 0.0, ..short(0.0) }),
        train(TrainConfig { encoder_lr: f64::NAN, ..short(0.0) }),
        train(TrainConfig { optimizer: HashOptimizer::Sgd { momentum: 1.0 }, ..short(0.0) }),
    ];
    for config in bad {
        assert!(ViT2Hash::new(&config, DType::F32, &Device::Cpu).is_err(), "{config:?}");
    }
    assert!(EncoderConfig::registry("no_such_model").is_err());
    let unknown = serde_json::from_str::<ViT2HashConfig>(r#"{"temprature": 8}"#).unwrap_err().to_string();
    assert!(unknown.contains("temprature"), "{unknown}");
}

#[test]
fn half_precision_flows() {
    let xs = features(16, 12);
    for dtype in [DType::F16, DType::BF16, DType::F64] {
        let train = TrainConfig { optimizer: HashOptimizer::Sgd { momentum: 0.9 }, epochs: 1, ..short(1e-3) };
        let config = ViT2HashConfig { train, ..ViT2HashConfig::features(12, 8) };
        let mut hasher = ViT2Hash::new(&config, dtype, &Device::Cpu).unwrap();
        hasher.fit(&TrainSet::new(&xs), &FitOptions::default()).unwrap();
        assert_eq!(hasher.encode(&xs).unwrap().len(), 16);
    }
}

#[test]
fn centres_keep_their_distance() {
    // Half of the bits between any two rows of a Hadamard matrix, all between a row and its negative.
    let distance = |a: &[i8], b: &[i8]| a.iter().zip(b).filter(|(a, b)| a != b).count();
    let centers = hash_centers(32, 16, 1).unwrap();
    for i in 0..32 {
        for j in 0..i {
            assert_eq!(distance(&centers[i], &centers[j]), if i - j == 16 { 16 } else { 8 });
        }
    }
    // 48 is no power of two; 33 classes are more than 16 bits have rows for.
    for (classes, bits, least) in [(20, 48, 16), (33, 16, 2)] {
        let centers = hash_centers(classes, bits, 1).unwrap();
        assert_eq!(centers, hash_centers(classes, bits, 1).unwrap());
        assert!(centers.iter().all(|c| c.iter().filter(|x| **x == 1).count() == bits / 2));
        assert!((0..classes).all(|i| (0..i).all(|j| distance(&centers[i], &centers[j]) >= least)));
    }
    assert!(hash_centers(0, 16, 1).is_err() && hash_centers(100, 3, 1).is_err());
}

#[test]
fn several_classes_vote_and_ties_are_decided_once() {
    let centers = hash_centers(4, 8, 1).unwrap();
    let rows = |labels: &[[bool; 4]]| {
        let labels = Labels::Multi(labels.iter().map(|row| row.to_vec()).collect());
        hash_targets(&labels, &centers, 1, &Device::Cpu).unwrap().to_vec2::<f32>().unwrap()
    };
    let found = rows(&[[true, false, false, false], [true, true, false, false], [true, true, true, false]]);
    let sum = |k: usize, n: usize| (0..n).map(|c| i32::from(centers[c][k])).sum::<i32>();
    for k in 0..8 {
        assert_eq!(found[0][k], f32::from(centers[0][k]));
        assert_eq!(found[2][k], sum(k, 3).signum() as f32);
        if sum(k, 2) != 0 {
            assert_eq!(found[1][k], sum(k, 2).signum() as f32);
        }
    }
    // Other pairs that tie at a bit get the same there.
    let others = rows(&[[false, true, true, false], [false, false, true, true], [true, false, false, true]]);
    let pairs = [(1, 2), (2, 3), (0, 3)];
    let mut both = 0;
    for (other, (a, b)) in others.iter().zip(pairs) {
        for k in (0..8).filter(|&k| sum(k, 2) == 0 && centers[a][k] != centers[b][k]) {
            assert_eq!(found[1][k], other[k]);
            both += 1;
        }
    }
    assert!(both > 0);
}
