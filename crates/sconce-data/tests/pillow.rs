//! Decoding and resizing against what Pillow made of the same files (`data/pillow.py`).

use candle_core::safetensors::load_buffer;
use candle_core::{Device, Tensor};
use image::RgbImage;
use sconce_data::resize::resize;
use sconce_data::{Filter, PassOrder, Picture, ResizeOptions, Size};
use std::collections::HashMap;

const DATA: &[u8] = include_bytes!("data/pillow.safetensors");

fn bytes(tensor: &Tensor) -> Vec<u8> {
    tensor.flatten_all().and_then(|t| t.to_vec1()).expect("bytes")
}

fn tensors() -> HashMap<String, Tensor> {
    load_buffer(DATA, &Device::Cpu).expect("the data of this test")
}

fn filter(name: &str) -> Filter {
    serde_json::from_value(name.into()).expect("a filter")
}

fn size(name: &str) -> Size {
    let (width, height) = name.split_once('x').expect("WxH");
    Size::new(width.parse().expect("width"), height.parse().expect("height"))
}

fn check(name: &str, found: &RgbImage, reference: &Tensor) {
    assert_eq!([found.height() as usize, found.width() as usize, 3], reference.dims(), "{name}");
    let reference = bytes(reference);
    let differing = found.as_raw().iter().zip(&reference).filter(|(a, b)| a != b).count();
    assert_eq!(differing, 0, "{name}: {differing} of {} samples differ", reference.len());
}

#[test]
fn every_mode_converts_to_the_rgb_of_pillow() {
    let tensors = tensors();
    let mut checked = 0;
    for (name, reference) in &tensors {
        let file = match name.split_once('.') {
            Some(("rgb", mode)) => format!("png.{mode}"),
            Some(("webp_rgb", mode)) => format!("webp.{mode}"),
            _ => continue,
        };
        let picture = Picture::decode(&bytes(&tensors[&file])).expect(&file);
        check(name, &picture.to_rgb(), reference);
        checked += 1;
    }
    assert_eq!(checked, 17);
}

#[test]
fn every_mode_resizes_as_in_pillow() {
    let tensors = tensors();
    let order = PassOrder::Pillow13;
    let mut checked = 0;
    for (name, reference) in &tensors {
        // Regions have dots in their numbers, so the name is split from both ends.
        let parts: Vec<&str> = name.splitn(3, '.').collect();
        let (found, kind) = match parts[..] {
            ["resize", mode, rest] => {
                let (kind, to) = rest.split_once('.').expect("a filter and a size");
                let picture = Picture::decode(&bytes(&tensors[&format!("png.{mode}")])).expect(mode);
                let options = ResizeOptions { filter: filter(kind), order, region: None };
                (picture.resize(size(to), options).expect(name).to_rgb(), kind)
            }
            ["region", kind, rest] => {
                let (region, to) = rest.rsplit_once('.').expect("a region and a size");
                let region: Vec<f32> = region.split(',').map(|x| x.parse().expect("a number")).collect();
                let region = Some(region.try_into().expect("four numbers"));
                let image = Picture::decode(&bytes(&tensors["png.rgb8"])).expect("the picture").into_rgb();
                let options = ResizeOptions { filter: filter(kind), order, region };
                (resize(&image, size(to), options).expect(name), kind)
            }
            _ => continue,
        };
        check(&format!("{name} ({kind})"), &found, reference);
        checked += 1;
    }
    assert_eq!(checked, 98);
}
