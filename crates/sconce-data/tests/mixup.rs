//! Mixup and CutMix: what is mixed with what, and by how much.

use candle_core::{DType, Device, Tensor};
use sconce_data::{Error, Generator, MixMode, Mixup};

const CLASSES: usize = 10;

/// A batch in which every value of picture `i` is `i`, and labels `i`.
fn batch(count: usize) -> (Tensor, Tensor) {
    let images: Vec<f32> = (0..count).flat_map(|i| vec![i as f32; 3 * 8 * 6]).collect();
    let labels: Vec<u32> = (0..count as u32).collect();
    let images = Tensor::from_vec(images, (count, 3, 8, 6), &Device::Cpu).unwrap();
    (images, Tensor::from_vec(labels, count, &Device::Cpu).unwrap())
}

fn plain(mode: MixMode) -> Mixup {
    Mixup { mode, label_smoothing: 0.0, num_classes: CLASSES, ..Default::default() }
}

/// Pictures and targets of a mixed batch as numbers.
fn mixed(mixup: &Mixup, count: usize, seed: u64) -> (Vec<Vec<f32>>, Vec<Vec<f32>>) {
    let (images, labels) = batch(count);
    let (images, targets) = mixup.apply(&images, &labels, &Generator::new(seed)).unwrap();
    assert_eq!((images.dims(), targets.dims()), ([count, 3, 8, 6].as_slice(), [count, CLASSES].as_slice()));
    (images.flatten_from(1).unwrap().to_vec2().unwrap(), targets.to_vec2().unwrap())
}

/// The weight that picture `i` of 6 has in its target, checked against everything else in the row.
fn share(targets: &[Vec<f32>], i: usize) -> f32 {
    let (own, partner) = (targets[i][i], targets[i][5 - i]);
    assert!((own + partner - 1.0).abs() < 1e-6, "{:?}", targets[i]);
    assert!((0..CLASSES).all(|class| class == i || class == 5 - i || targets[i][class] == 0.0));
    own
}

#[test]
fn mixup_blends_a_picture_and_its_label_with_those_of_its_partner() {
    for (mode, draws) in [(MixMode::Batch, 1), (MixMode::Pair, 3), (MixMode::Elem, 6)] {
        let (images, targets) = mixed(&Mixup { cutmix_alpha: 0.0, ..plain(mode) }, 6, 3);
        let shares: Vec<f32> = (0..6).map(|i| share(&targets, i)).collect();
        for (i, image) in images.iter().enumerate() {
            let expected = i as f32 * shares[i] + (5 - i) as f32 * (1.0 - shares[i]);
            assert!(image.iter().all(|value| (value - expected).abs() < 1e-5), "{mode:?} {i}");
        }
        let mut different = shares.clone();
        different.sort_by(f32::total_cmp);
        different.dedup();
        assert_eq!(different.len(), draws, "{mode:?}: {shares:?}");
        assert!(mode != MixMode::Pair || shares[1] == shares[4]);
    }
}

#[test]
fn cutmix_pastes_a_rectangle_and_counts_its_pixels() {
    for mode in [MixMode::Batch, MixMode::Elem] {
        for seed in 0..20 {
            let (images, targets) = mixed(&Mixup { mixup_alpha: 0.0, ..plain(mode) }, 6, seed);
            for (i, image) in images.iter().enumerate() {
                let pasted: Vec<usize> = (0..48).filter(|&at| image[at] == (5 - i) as f32).collect();
                assert!(image.iter().all(|&value| value == i as f32 || value == (5 - i) as f32));
                assert!((0..48).all(|at| image[at] == image[48 + at] && image[at] == image[96 + at]));
                assert!((share(&targets, i) - (1.0 - pasted.len() as f32 / 48.0)).abs() < 1e-6);
                let (Some(first), Some(last)) = (pasted.first(), pasted.last()) else { continue };
                let (top, bottom, left, right) = (first / 6, last / 6, first % 6, last % 6);
                assert_eq!(pasted.len(), (bottom - top + 1) * (right - left + 1), "not a rectangle: {pasted:?}");
            }
        }
    }
}

#[test]
fn the_law_is_that_of_timm() {
    let generator = Generator::new(1);
    let (images, labels) = batch(2);
    let mixup = Mixup { probability: 0.6, ..plain(MixMode::Batch) };
    let (mut untouched, mut pasted, mut blended) = (0, 0, Vec::new());
    for _ in 0..4000 {
        let (out, targets) = mixup.apply(&images, &labels, &generator).unwrap();
        let values: Vec<f32> = out.get(0).unwrap().flatten_all().unwrap().to_vec1().unwrap();
        let lam = targets.to_vec2::<f32>().unwrap()[0][0];
        if values.iter().all(|&value| value == values[0]) && values[0] != 0.0 && values[0] != 1.0 {
            blended.push(f64::from(lam));
        } else if lam == 1.0 {
            untouched += 1; // or a rectangle of no pixels
        } else {
            pasted += 1;
        }
    }
    // 1600 are left alone and 1200 each mixed in the two ways, of which CutMix pastes nothing where lam > 0.94.
    assert!((1080..1320).contains(&blended.len()), "{}", blended.len());
    assert!((1550..1950).contains(&untouched), "{untouched}");
    assert_eq!(untouched + pasted + blended.len(), 4000);
    // Beta(0.8, 0.8): mean one half, variance 0.25 / 2.6.
    let mean = blended.iter().sum::<f64>() / blended.len() as f64;
    let variance = blended.iter().map(|lam| (lam - mean).powi(2)).sum::<f64>() / blended.len() as f64;
    assert!((mean - 0.5).abs() < 0.045 && (variance - 0.25 / 2.6).abs() < 0.01, "{mean} {variance}");
}

#[test]
fn smoothing_comes_before_mixing() {
    let mixup = Mixup { cutmix_alpha: 0.0, label_smoothing: 0.2, ..plain(MixMode::Batch) };
    let (_, targets) = mixed(&mixup, 6, 3);
    let (_, sharp) = mixed(&Mixup { label_smoothing: 0.0, ..mixup }, 6, 3);
    for (row, sharp) in targets.iter().zip(&sharp) {
        assert!(row.iter().zip(sharp).all(|(a, b)| (a - (0.8 * b + 0.02)).abs() < 1e-6));
    }
}

#[test]
fn types_and_odd_batches_are_taken_as_they_are() {
    let (images, labels) = batch(5);
    for dtype in [DType::F64, DType::BF16] {
        let typed = images.to_dtype(dtype).unwrap();
        let (out, targets) = plain(MixMode::Pair).apply(&typed, &labels, &Generator::new(2)).unwrap();
        assert_eq!((out.dtype(), targets.dtype(), out.dims()), (dtype, dtype, images.dims()));
        // The picture in the middle is its own partner.
        let middle = out.get(2).unwrap().to_dtype(DType::F32).unwrap().flatten_all().unwrap().to_vec1::<f32>().unwrap();
        assert!(middle.iter().all(|value| (value - 2.0).abs() < 0.02));
    }
    let off = Mixup { mixup_alpha: 0.0, cutmix_alpha: 0.0, ..plain(MixMode::Batch) };
    let (out, targets) = off.apply(&images, &labels, &Generator::new(2)).unwrap();
    assert_eq!((&out - &images).unwrap().abs().unwrap().sum_all().unwrap().to_scalar::<f32>().unwrap(), 0.0);
    assert!((0..5).all(|i| targets.to_vec2::<f32>().unwrap()[i][i] == 1.0));
}

#[test]
fn settings_and_labels_without_a_meaning_are_refused() {
    let (images, labels) = batch(4);
    let generator = Generator::new(1);
    let good = plain(MixMode::Batch);
    let argument = |mixup: Mixup| match mixup.apply(&images, &labels, &generator) {
        Err(Error::Invalid { argument, .. }) => argument,
        other => panic!("{other:?}"),
    };
    assert_eq!(argument(Mixup { mixup_alpha: -1.0, ..good }), "mixup_alpha");
    assert_eq!(argument(Mixup { cutmix_alpha: f64::NAN, ..good }), "cutmix_alpha");
    assert_eq!(argument(Mixup { probability: 1.5, ..good }), "probability");
    assert_eq!(argument(Mixup { label_smoothing: -0.1, ..good }), "label_smoothing");
    assert_eq!(argument(Mixup { num_classes: 3, ..good }), "labels");
    assert_eq!(argument(Mixup { num_classes: 0, ..good }), "num_classes");
    assert!(good.apply(&images, &labels.narrow(0, 0, 3).unwrap(), &generator).is_err());
    assert!(good.apply(&images.flatten_from(1).unwrap(), &labels, &generator).is_err());
    assert!(good.apply(&images.to_dtype(DType::U8).unwrap(), &labels, &generator).is_err());
}
