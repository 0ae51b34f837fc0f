//! Properties of resizing and cropping that hold for every image and size.

use image::{GrayImage, Luma, Rgb, RgbImage};
use proptest::prelude::*;
use sconce_data::crop::crop;
use sconce_data::resize::{resize, resize_bytes};
use sconce_data::{CropOffset, Error, Filter, PassOrder, ResizeOptions, Size, center_crop, pad_to_square};

const FILTERS: [Filter; 6] =
    [Filter::Nearest, Filter::Box, Filter::Bilinear, Filter::Hamming, Filter::Bicubic, Filter::Lanczos];

fn image(width: u32, height: u32, seed: u32) -> RgbImage {
    RgbImage::from_fn(width, height, |x, y| {
        let hash = (x * 7919 + y * 104_729 + seed).wrapping_mul(2_654_435_761);
        Rgb([(hash >> 24) as u8, (hash >> 16) as u8, (hash >> 8) as u8])
    })
}

fn sizes() -> impl Strategy<Value = (Size, Size)> {
    (1u32..50, 1u32..50, 1u32..50, 1u32..50).prop_map(|(a, b, c, d)| (Size::new(a, b), Size::new(c, d)))
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]

    #[test]
    fn a_flat_image_stays_flat((from, to) in sizes(), value: u8, which in 0usize..6) {
        let flat = GrayImage::from_pixel(from.width, from.height, Luma([value]));
        let found = resize(&flat, to, FILTERS[which]).unwrap();
        prop_assert!(found.iter().all(|&v| v == value));
    }

    #[test]
    fn positive_filters_stay_within_the_range((from, to) in sizes(), seed: u32, which in 0usize..3) {
        let source = image(from.width, from.height, seed % 1000);
        let found = resize(&source, to, FILTERS[which]).unwrap();
        let (min, max) = (source.iter().min().unwrap(), source.iter().max().unwrap());
        prop_assert!(found.iter().all(|v| (min..=max).contains(&v)));
    }

    #[test]
    fn channels_do_not_mix((from, to) in sizes(), seed: u32, which in 0usize..6) {
        let source = image(from.width, from.height, seed % 1000);
        let all = resize(&source, to, FILTERS[which]).unwrap();
        for channel in 0..3 {
            let plane = GrayImage::from_fn(from.width, from.height, |x, y| Luma([source.get_pixel(x, y)[channel]]));
            let found = resize(&plane, to, FILTERS[which]).unwrap();
            prop_assert!(found.pixels().zip(all.pixels()).all(|(a, b)| a[0] == b[channel]));
        }
    }

    #[test]
    fn turning_the_image_swaps_the_passes((from, to) in sizes(), seed: u32, which in 1usize..6) {
        // Only where one axis changes, as the order of the passes decides the last bit.
        let to = Size::new(to.width, from.height);
        let source = image(from.width, from.height, seed % 1000);
        let turned = RgbImage::from_fn(from.height, from.width, |x, y| *source.get_pixel(y, x));
        let found = resize(&source, to, FILTERS[which]).unwrap();
        let other = resize(&turned, Size::new(to.height, to.width), FILTERS[which]).unwrap();
        prop_assert!(found.enumerate_pixels().all(|(x, y, pixel)| pixel == other.get_pixel(y, x)));
    }

    #[test]
    fn a_region_in_whole_pixels_is_a_crop_for_the_nearest_neighbour(left in 0u32..10, top in 0u32..10, side in 1u32..20) {
        let source = image(40, 40, 3);
        let part = crop(&source, left.into(), top.into(), Size::square(side), Rgb([0; 3])).unwrap();
        let region = Some([left as f32, top as f32, (left + side) as f32, (top + side) as f32]);
        let options = ResizeOptions { filter: Filter::Nearest, order: PassOrder::default(), region };
        prop_assert_eq!(resize(&source, Size::square(side), options).unwrap(), part);
    }

    #[test]
    fn crops_copy_what_they_cover(left in -30i64..30, top in -30i64..30, width in 1u32..30, height in 1u32..30) {
        let source = image(17, 13, 5);
        let found = crop(&source, left, top, Size::new(width, height), Rgb([9, 8, 7])).unwrap();
        for (x, y, pixel) in found.enumerate_pixels() {
            let at = u32::try_from(i64::from(x) + left).ok().zip(u32::try_from(i64::from(y) + top).ok());
            let wanted = at.and_then(|(x, y)| source.get_pixel_checked(x, y)).copied();
            prop_assert_eq!(*pixel, wanted.unwrap_or(Rgb([9, 8, 7])));
        }
    }
}

/// Direct sums in 64 bits, without planes, tiles or vectors.
fn plain_pass(source: &GrayImage, width: u32) -> GrayImage {
    let cubic = |x: f64| match x.abs() {
        x if x < 1.0 => (1.5 * x - 2.5) * x * x + 1.0,
        x if x < 2.0 => ((-0.5 * x + 2.5) * x - 4.0) * x + 2.0,
        _ => 0.0,
    };
    let scale = f64::from(source.width()) / f64::from(width);
    let stretch = scale.max(1.0);
    GrayImage::from_fn(width, source.height(), |x, y| {
        let center = (f64::from(x) + 0.5) * scale;
        let lo = (center - 2.0 * stretch + 0.5).max(0.0) as u32;
        let hi = ((center + 2.0 * stretch + 0.5) as u32).min(source.width());
        let weights: Vec<f64> = (lo..hi).map(|i| cubic((f64::from(i) - center + 0.5) / stretch)).collect();
        let total: f64 = weights.iter().sum();
        let sum: i64 = (lo..hi)
            .zip(weights)
            .map(|(i, weight)| {
                let fixed = (weight / total * f64::from(1 << 22)).round() as i64;
                fixed * i64::from(source.get_pixel(i, y)[0])
            })
            .sum();
        Luma([((sum + (1 << 21)) >> 22).clamp(0, 255) as u8])
    })
}

#[test]
fn wide_images_agree_with_direct_sums() {
    // Wider than a tile, taller than a task, and with a remainder in both.
    let source = GrayImage::from_fn(333, 257, |x, y| Luma([(x * x + 3 * y * y + x * y) as u8]));
    for width in [47, 640] {
        assert_eq!(resize(&source, Size::new(width, 257), Filter::Bicubic).unwrap(), plain_pass(&source, width));
    }
}

#[test]
fn the_number_of_threads_changes_nothing() {
    let source = image(700, 500, 1);
    let run = |threads| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        pool.install(|| resize(&source, Size::new(224, 160), Filter::Lanczos).unwrap())
    };
    assert_eq!(run(1), run(3));
}

#[test]
fn sides_follow_torchvision() {
    // int(224 * 375 / 281) = 298, not 299.
    assert_eq!(Size::new(375, 281).with_shorter_side(224), Size::new(298, 224));
    assert_eq!(Size::new(281, 375).with_shorter_side(224), Size::new(224, 298));
    assert_eq!(Size::square(7).with_shorter_side(224), Size::square(224));
    assert_eq!(Size::new(300, 2).with_longer_side(30), Size::new(30, 1));
}

#[test]
fn crop_offsets_follow_their_library() {
    let offsets =
        |offset: CropOffset| [(7, 4), (9, 4), (8, 4), (4, 7), (4, 9)].map(|(len, crop)| offset.offset(len, crop));
    assert_eq!(offsets(CropOffset::RoundHalfEven), [2, 2, 2, -1, -2]);
    assert_eq!(offsets(CropOffset::Floor), [1, 2, 2, -2, -3]);
}

#[test]
fn small_images_are_padded() {
    let source = RgbImage::from_pixel(2, 5, Rgb([1, 2, 3]));
    let found = center_crop(&source, Size::new(5, 3), CropOffset::RoundHalfEven).unwrap();
    let row: Vec<u8> = (0..5).map(|x| found.get_pixel(x, 1)[0]).collect();
    assert_eq!(row, [0, 1, 1, 0, 0]);
    let square = pad_to_square(&source, [9; 3]).unwrap();
    assert_eq!(
        (square.dimensions(), square.get_pixel(0, 0), square.get_pixel(1, 0)),
        ((5, 5), &Rgb([9; 3]), &Rgb([1, 2, 3]))
    );
}

#[test]
fn impossible_requests_are_errors() {
    let source = image(4, 4, 0);
    let region = |region| ResizeOptions { region: Some(region), ..Filter::Bicubic.into() };
    assert!(matches!(resize(&source, Size::new(0, 3), Filter::Box), Err(Error::Invalid { .. })));
    assert!(resize(&source, Size::square(2), region([0.0, 0.0, 5.0, 4.0])).is_err());
    assert!(resize(&source, Size::square(2), region([0.0, f32::NAN, 4.0, 4.0])).is_err());
    assert!(resize(&source, Size::square(2), region([2.0, 0.0, 2.0, 4.0])).is_err());
    assert!(resize_bytes(&[0; 5], 3, Size::square(2), Size::square(1), &Filter::Box.into()).is_err());
    assert!(resize(&RgbImage::new(0, 3), Size::square(2), Filter::Box).is_err());
    assert!(crop(&source, 0, 0, Size::new(0, 1), Rgb([0; 3])).is_err());
    assert!(crop(&source, i64::MAX, i64::MIN, Size::square(2), Rgb([0; 3])).is_ok());
}
