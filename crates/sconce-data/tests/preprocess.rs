//! Presets, their serialised form, and the batch path. Agreement with Pillow and torchvision is in the goldens.

use candle_core::Device;
use image::{DynamicImage, Rgb, RgbImage, RgbaImage};
use sconce_data::{
    CropOffset, Filter, PassOrder, Picture, Preprocess, ResizeMode, ResizeOptions, RgbConversion, Size, center_crop,
    transform,
};

fn picture(width: u32, height: u32) -> Picture {
    RgbImage::from_fn(width, height, |x, y| Rgb([(x * 3) as u8, (y * 5) as u8, (x + y) as u8])).into()
}

#[test]
fn presets_have_the_published_numbers() {
    assert_eq!(Preprocess::imagenet(224, 0.9).resize, ResizeMode::ShorterSide(248));
    assert_eq!(Preprocess::imagenet(224, 0.875).resize, ResizeMode::ShorterSide(256));
    assert_eq!(Preprocess::imagenet(224, 0.96).resize, ResizeMode::ShorterSide(233));
    assert_eq!(Preprocess::imagenet(224, 0.95).resize, ResizeMode::ShorterSide(235));
    let torchvision = Preprocess::imagenet_torchvision();
    assert_eq!((torchvision.resize, torchvision.filter), (ResizeMode::ShorterSide(256), Filter::Bilinear));
    let dino = Preprocess::dino();
    assert_eq!(
        (dino.resize, dino.filter, dino.size),
        (ResizeMode::ShorterSide(256), Filter::Bicubic, Size::square(224))
    );
    let clip = Preprocess::clip(336);
    assert_eq!((clip.resize, clip.normalize), (ResizeMode::ShorterSide(336), transform::CLIP));
    assert_eq!(Preprocess::clip_hf(224).offset, CropOffset::Floor);
}

#[test]
fn a_preprocess_survives_its_json() {
    for preprocess in [Preprocess::clip_hf(224), Preprocess::imagenet_torchvision(), Preprocess::dino()] {
        let json = serde_json::to_string(&preprocess).unwrap();
        assert_eq!(serde_json::from_str::<Preprocess>(&json).unwrap(), preprocess, "{json}");
    }
    // Fields with a default may be left out.
    let short = r#"{"size": {"width": 8, "height": 6}, "resize": {"shorter_side": 9}, "filter": "lanczos",
        "mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5]}"#;
    let preprocess: Preprocess = serde_json::from_str(short).unwrap();
    assert_eq!(preprocess.conversion, RgbConversion::BeforeResize);
    assert_eq!(preprocess.tensor(&picture(20, 30), &Device::Cpu).unwrap().dims(), [3, 6, 8]);
}

#[test]
fn a_batch_is_its_pictures_stacked() {
    let pictures: Vec<_> = (1..9).map(|i| picture(10 * i, 90 - 9 * i)).collect();
    let preprocess = Preprocess::clip(24);
    let batch = preprocess.batch(&pictures, &Device::Cpu).unwrap();
    assert_eq!(batch.dims(), [8, 3, 24, 24]);
    for (index, picture) in pictures.iter().enumerate() {
        let one = preprocess.tensor(picture, &Device::Cpu).unwrap().flatten_all().unwrap().to_vec1::<f32>().unwrap();
        assert_eq!(batch.get(index).unwrap().flatten_all().unwrap().to_vec1::<f32>().unwrap(), one);
    }
    assert!(preprocess.batch(&[], &Device::Cpu).is_err());
}

#[test]
fn every_mode_of_resizing_ends_in_the_size() {
    let base = Preprocess::imagenet(12, 1.0);
    for resize in [
        ResizeMode::None,
        ResizeMode::ShorterSide(7),
        ResizeMode::ShorterSide(40),
        ResizeMode::Exact(Size::new(12, 30)),
        ResizeMode::PadToSquare(12),
    ] {
        let preprocess = Preprocess { resize, ..base.clone() };
        for source in [picture(5, 40), picture(40, 5), picture(12, 12)] {
            assert_eq!(preprocess.image(&source).unwrap().dimensions(), (12, 12), "{resize:?}");
        }
    }
    let padded = Preprocess { resize: ResizeMode::PadToSquare(12), ..base }.image(&picture(5, 40)).unwrap();
    assert_eq!(padded.get_pixel(0, 0), &Rgb([124, 116, 104]), "the mean colour");
}

#[test]
fn only_the_crop_is_computed_and_it_is_that_of_the_whole() {
    for filter in [Filter::Nearest, Filter::Bilinear, Filter::Lanczos] {
        for order in [PassOrder::HorizontalFirst, PassOrder::Pillow13] {
            for (width, height) in [(70, 41), (41, 90), (20, 9), (9, 31), (33, 33)] {
                let preprocess = Preprocess { filter, order, size: Size::new(19, 17), ..Preprocess::clip(24) };
                let source = picture(width, height);
                let size = source.size().with_shorter_side(24);
                let whole = source.resize(size, ResizeOptions { filter, order, region: None }).unwrap().to_rgb();
                let wanted = center_crop(&whole, preprocess.size, preprocess.offset).unwrap();
                assert_eq!(preprocess.image(&source).unwrap(), wanted, "{filter:?} {order:?} {width} x {height}");
            }
        }
    }
}

#[test]
fn extreme_pictures_and_sizes_are_errors_or_work() {
    assert!(Preprocess::clip(0).image(&picture(5, 5)).is_err());
    assert!(Preprocess::clip(1 << 20).image(&picture(5, 5)).is_err());
    // The resized picture would have three thousand million pixels, of which the crop needs few.
    let image = Preprocess::clip(224).image(&picture(1, 60_000)).unwrap();
    assert_eq!(image.dimensions(), (224, 224));
    // The longer side would have 2^33 pixels.
    assert!(Preprocess::clip(1 << 14).image(&picture(1, 1 << 19)).is_err());
}

#[test]
fn transparency_weighs_only_when_conversion_comes_last() {
    // Half of the picture is transparent red, half is opaque blue.
    let source = RgbaImage::from_fn(8, 8, |x, _| if x < 4 { [255, 0, 0, 0].into() } else { [0, 0, 255, 255].into() });
    let source = Picture::from(DynamicImage::from(source));
    let after = Preprocess::clip(1).image(&source).unwrap();
    let before = Preprocess::clip_hf(1).image(&source).unwrap();
    assert_eq!(after.get_pixel(0, 0), &Rgb([0, 0, 255]));
    assert_eq!(before.get_pixel(0, 0), &Rgb([127, 0, 127]));
}
