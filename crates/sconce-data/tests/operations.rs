//! The operations of automatic augmentation against what Pillow makes of the same pictures (`data/operations.py`).

use candle_core::safetensors::load_buffer;
use candle_core::{Device, Tensor};
use image::RgbImage;
use sconce_data::augment::{Operation, Warp, affine};
use sconce_data::{Error, Filter};
use std::collections::BTreeMap;

const DATA: &[u8] = include_bytes!("data/operations.safetensors");

fn image(tensor: &Tensor) -> RgbImage {
    let (height, width, _) = tensor.dims3().expect("a picture");
    let bytes = tensor.flatten_all().and_then(|t| t.to_vec1()).expect("bytes");
    RgbImage::from_raw(width as u32, height as u32, bytes).expect("a picture")
}

/// The operation and the warp that a name stands for.
fn operation(words: &[&str]) -> (Operation, Warp) {
    let number = |i: usize| words[i].parse::<f64>().unwrap_or_else(|_| panic!("{words:?}"));
    let warp = || Warp { filter: serde_json::from_value(words[1].into()).expect("a filter"), fill: [124, 116, 104] };
    let plain = |operation| (operation, Warp::default());
    match words[0] {
        "autocontrast" => plain(Operation::AutoContrast),
        "equalize" => plain(Operation::Equalize),
        "invert" => plain(Operation::Invert),
        "posterize" => plain(Operation::Posterize(number(1) as u8)),
        "solarize" => plain(Operation::Solarize(number(1) as u16)),
        "solarize_add" => plain(Operation::SolarizeAdd(number(1) as u8)),
        "color" => plain(Operation::Color(number(1))),
        "contrast" => plain(Operation::Contrast(number(1))),
        "brightness" => plain(Operation::Brightness(number(1))),
        "sharpness" => plain(Operation::Sharpness(number(1))),
        "rotate" => (Operation::Rotate(number(2)), warp()),
        "shear_x" => (Operation::ShearX(number(2)), warp()),
        "shear_y" => (Operation::ShearY(number(2)), warp()),
        "translate_x" => (Operation::TranslateX(number(2)), warp()),
        "translate_y" => (Operation::TranslateY(number(2)), warp()),
        other => panic!("{other}"),
    }
}

#[test]
fn every_operation_has_the_bits_of_pillow() {
    let tensors = load_buffer(DATA, &Device::Cpu).expect("the data of this test");
    let mut checked = BTreeMap::new();
    let mut wrong = Vec::new();
    for (name, reference) in &tensors {
        let words: Vec<&str> = name.split('|').collect();
        let [picture, rest @ ..] = words.as_slice() else { continue };
        if rest.is_empty() {
            continue;
        }
        let (operation, warp) = operation(rest);
        let found = operation.apply(image(&tensors[*picture]), warp).expect(name);
        let reference = image(reference);
        assert_eq!(found.dimensions(), reference.dimensions(), "{name}");
        let differing = found.as_raw().iter().zip(reference.as_raw()).filter(|(a, b)| a != b).count();
        if differing > 0 {
            wrong.push(format!("{name}: {differing} of {} samples differ", reference.as_raw().len()));
        }
        *checked.entry(rest[0].to_owned()).or_insert(0) += 1;
    }
    wrong.sort();
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert_eq!(checked.len(), 15);
    assert_eq!(checked.values().sum::<usize>(), tensors.len() - 5);
}

#[test]
fn strengths_that_change_nothing_and_limits() {
    let source = RgbImage::from_fn(9, 7, |x, y| image::Rgb([(x * 20) as u8, (y * 30) as u8, 255]));
    let same = [
        Operation::Identity,
        Operation::Posterize(8),
        Operation::Posterize(200),
        Operation::Solarize(256),
        Operation::SolarizeAdd(0),
        Operation::Color(1.0),
        Operation::Contrast(1.0),
        Operation::Brightness(1.0),
        Operation::Sharpness(1.0),
        Operation::Rotate(720.0),
        Operation::ShearX(0.0),
        Operation::TranslateY(0.0),
    ];
    for filter in [Filter::Nearest, Filter::Bilinear, Filter::Bicubic] {
        let warp = Warp { filter, fill: [1, 2, 3] };
        for operation in same {
            assert_eq!(operation.apply(source.clone(), warp).unwrap(), source, "{operation:?} {filter:?}");
        }
        let gone = Operation::TranslateX(1e9).apply(source.clone(), warp).unwrap();
        assert!(gone.pixels().all(|pixel| pixel.0 == warp.fill));
        // Beyond the fixed-point numbers of the usual case.
        let far = affine(&source, [1.0, 1e-9, 0.0, 4e4, 1.0, -2e4], warp).unwrap();
        assert_eq!(far.dimensions(), (9, 7));
        assert_eq!(Operation::Rotate(30.0).apply(RgbImage::new(0, 5), warp).unwrap().dimensions(), (0, 5));
    }
    assert_eq!(Operation::Posterize(0).apply(source.clone(), Warp::default()).unwrap(), RgbImage::new(9, 7));
    let lanczos = Warp { filter: Filter::Lanczos, fill: [0; 3] };
    assert!(matches!(
        Operation::Rotate(3.0).apply(source.clone(), lanczos),
        Err(Error::Invalid { argument: "filter", .. })
    ));
    assert!(matches!(
        Operation::ShearX(f64::NAN).apply(source, Warp::default()),
        Err(Error::Invalid { argument: "matrix", .. })
    ));
}
