//! Classic methods: what they promise, what they refuse, their files, and that ITQ learns from real pictures.

use std::path::Path;

use candle_core::{DType, Device, Tensor};
use sconce_data::IdxArray;
use sconce_hash::*;
use sconce_metrics::{Denominator, Ranking};
use sconce_ops::{Generator, matmul};

fn features(n: usize, d: usize, seed: u64) -> Tensor {
    let noise = Generator::new(seed).normal(0.0, 1.0, (n, d), DType::F64, &Device::Cpu).unwrap();
    let mix = Generator::new(seed + 1).normal(0.0, 1.0, (d, d), DType::F64, &Device::Cpu).unwrap();
    matmul(&noise, &mix).unwrap()
}

fn lsh(bits: usize, seed: u64) -> Lsh {
    Lsh::new(&LshConfig { bits, seed }).unwrap()
}

fn itq(bits: usize) -> Itq {
    Itq::new(&ItqConfig { bits, ..Default::default() }).unwrap()
}

fn spectral(bits: usize) -> SpectralHashing {
    SpectralHashing::new(&SpectralHashingConfig { bits }).unwrap()
}

fn methods(bits: usize) -> Vec<Box<dyn Hasher>> {
    vec![Box::new(lsh(bits, 1)), Box::new(itq(bits)), Box::new(spectral(bits))]
}

fn fit(hasher: &mut dyn Hasher, xs: &Tensor) -> Result<FitReport> {
    hasher.fit(&TrainSet::new(xs), &FitOptions::default())
}

#[test]
fn the_rotation_stays_orthogonal_and_its_loss_never_rises() {
    let xs = features(300, 24, 1);
    let mut itq = itq(16);
    let losses = fit(&mut itq, &xs).unwrap().losses;
    assert_eq!(losses.len(), 51);
    assert!(losses.windows(2).all(|pair| pair[1] <= pair[0] * (1.0 + 1e-12)), "{losses:?}");
    assert!(losses[50] < losses[0]);
    let rotation = itq.model.unwrap().rotation;
    let product = matmul(&rotation.t().unwrap(), &rotation).unwrap();
    let off = (product - Tensor::eye(16, DType::F64, &Device::Cpu).unwrap()).unwrap().abs().unwrap();
    assert!(off.max_all().unwrap().to_scalar::<f64>().unwrap() < 1e-12);
}

#[test]
fn files_bring_back_every_bit_and_damage_is_found() {
    let xs = features(100, 20, 2);
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("hasher.safetensors");
    for mut hasher in methods(12) {
        assert!(hasher.save(&path).is_err() && hasher.encode(&xs).is_err(), "{} is not fitted", hasher.method());
        fit(&mut *hasher, &xs).unwrap();
        hasher.save(&path).unwrap();
        let loaded = load_hasher(&path, &Device::Cpu).unwrap();
        assert_eq!(loaded.method(), hasher.method());
        let values = |hasher: &dyn Hasher| hasher.project(&xs).unwrap().to_vec2::<f64>().unwrap();
        assert_eq!(values(&*loaded), values(&*hasher));
        assert_eq!(loaded.encode_all(&xs, 7).unwrap(), hasher.encode(&xs).unwrap());

        let bytes = std::fs::read(&path).unwrap();
        let broken = folder.path().join("broken.safetensors");
        let opens = |bytes: &[u8]| {
            std::fs::write(&broken, bytes).unwrap();
            load_hasher(&broken, &Device::Cpu)
        };
        for at in (0..bytes.len()).step_by(97) {
            let mut flipped = bytes.clone();
            flipped[at] ^= 4;
            assert!(opens(&flipped).is_err(), "a bit of byte {at} was flipped unseen");
            assert!(opens(&bytes[..at]).is_err(), "{at} bytes are a file");
        }
    }
    assert!(matches!(Itq::load(&path, &Device::Cpu), Err(Error::Corrupt { .. })));
    assert!(load_hasher(folder.path().join("none"), &Device::Cpu).is_err());
}

#[test]
fn input_that_cannot_be_used_is_refused() {
    let xs = features(40, 8, 3);
    let nan = xs.affine(f64::NAN, 0.0).unwrap();
    for mut hasher in methods(4) {
        for bad in [xs.narrow(0, 0, 0).unwrap(), xs.narrow(0, 0, 1).unwrap(), nan.clone()] {
            assert!(matches!(fit(&mut *hasher, &bad), Err(Error::Input(_))), "{}", hasher.method());
        }
        assert!(matches!(fit(&mut *hasher, &xs.to_dtype(DType::U8).unwrap()), Err(Error::Input(_))));
        fit(&mut *hasher, &xs).unwrap();
        assert!(matches!(hasher.encode(&xs.narrow(1, 0, 5).unwrap()), Err(Error::Input(_))));
        // A projection that is NaN has no sign.
        assert!(matches!(hasher.encode(&nan), Err(Error::Input(_))));
    }
    for bits in [0, 1025] {
        assert!(Lsh::new(&LshConfig { bits, seed: 1 }).is_err());
    }
}

#[test]
fn directions_that_are_missing_are_an_error_for_itq_alone() {
    let zeros = Tensor::zeros((40, 5), DType::F64, &Device::Cpu).unwrap();
    // Three directions, five constant features.
    let xs = Tensor::cat(&[&features(40, 3, 4), &zeros], 1).unwrap();
    assert!(fit(&mut itq(6), &xs).unwrap_err().to_string().contains("have 3"));
    let hashers: [Box<dyn Hasher>; 2] = [Box::new(lsh(6, 1)), Box::new(spectral(6))];
    for mut hasher in hashers {
        fit(&mut *hasher, &xs).unwrap();
        assert_eq!(hasher.encode(&xs).unwrap().bits(), 6);
    }
    let constant = Tensor::ones((40, 5), DType::F64, &Device::Cpu).unwrap();
    assert!(fit(&mut itq(2), &constant).is_err() && fit(&mut spectral(2), &constant).is_err());
}

#[test]
fn codes_follow_the_seed() {
    let xs = features(60, 10, 5);
    let codes = |seed| {
        let mut lsh = lsh(40, seed);
        fit(&mut lsh, &xs).unwrap();
        let mut itq = Itq::new(&ItqConfig { bits: 8, seed, iterations: 3 }).unwrap();
        fit(&mut itq, &xs).unwrap();
        (lsh.encode(&xs).unwrap(), itq.encode(&xs).unwrap())
    };
    let (first, second) = (codes(1), codes(2));
    assert_eq!(first, codes(1));
    assert!(first.0 != second.0 && first.1 != second.1);
}

/// Pictures as `(N, 1, 28, 28)` in `[0, 1]`, and their classes.
fn fashion(split: &str, n: usize) -> (Tensor, Vec<u8>) {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../assets/fashion-mnist");
    let open = |name: String| IdxArray::open(folder.join(name)).unwrap();
    let pictures = open(format!("{split}-images-idx3-ubyte.gz")).tensor(&Device::Cpu).unwrap();
    let pictures = pictures.narrow(0, 0, n).unwrap().unsqueeze(1).unwrap().to_dtype(DType::F32).unwrap();
    let labels = open(format!("{split}-labels-idx1-ubyte.gz")).as_u8().unwrap()[..n].to_vec();
    ((pictures / 255.0).unwrap(), labels)
}

#[test]
fn itq_finds_clothes_of_a_kind_better_than_random_planes() {
    let ((items, item_labels), (queries, query_labels)) = (fashion("train", 1000), fashion("t10k", 200));
    let relevant: Vec<u8> =
        query_labels.iter().flat_map(|q| item_labels.iter().map(move |i| u8::from(i == q))).collect();
    let relevant = Tensor::from_vec(relevant, (200, 1000), &Device::Cpu).unwrap();
    let map = |hasher: &mut dyn Hasher| {
        fit(hasher, &items).unwrap();
        let (items, queries) = (hasher.encode(&items).unwrap(), hasher.encode(&queries).unwrap());
        let products = matmul(&queries.to_signs().unwrap(), &items.to_signs().unwrap().t().unwrap()).unwrap();
        let distances = products.affine(-0.5, 16.0).unwrap(); // (K - q x) / 2
        let map = Ranking::by_distance(&distances, &relevant).unwrap().map_at(1000, Denominator::Found).unwrap();
        (map, CodeStats::new(&items).unwrap())
    };
    let ((lsh, _), (itq, stats)) = (map(&mut lsh(32, 1)), map(&mut itq(32)));
    println!("mAP of 32 bits: LSH {lsh:.4}, ITQ {itq:.4}; {stats:?}");
    assert!(itq > lsh + 0.02 && itq > 0.3, "mAP of LSH {lsh}, of ITQ {itq}");
    assert!(stats.balance.iter().all(|share| (0.2..0.8).contains(share)), "{:?}", stats.balance);
}
