//! Data sets on real files: the shards and idx files of this repository, and folders made for the test.

use candle_core::Device;
use image::RgbImage;
use sconce_data::{
    DataLoader, Dataset, Error, Generator, IdxArray, ImageFolder, LoaderOptions, Preprocess, SampleStream, WebDataset,
    image_files,
};
use serde::Deserialize;
use std::path::PathBuf;

fn assets() -> PathBuf {
    PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../../assets"))
}

#[derive(Deserialize)]
struct Emoji {
    codepoint: String,
    domain: String,
    name: String,
    name_zh: String,
    keywords: Vec<String>,
    subcategory: String,
}

#[test]
fn every_emoji_of_every_shard_is_readable() {
    let shards = [("noto", 1351), ("noto-v1", 977), ("fluent-flat", 1333), ("fluent-3d", 1335), ("fluent-line", 1333)];
    for (domain, count) in shards {
        let path = assets().join(format!("emoji/{domain}-64.tar.gz"));
        let (dataset, report) = WebDataset::open([&path], Default::default()).unwrap();
        report.into_result().unwrap();
        assert_eq!(dataset.len(), count);
        let stream = SampleStream::open([&path], Default::default());
        for (index, sample) in stream.enumerate() {
            assert_eq!(sample, dataset.sample(index).unwrap());
            let picture = sample.picture().unwrap();
            assert_eq!((picture.size().width, picture.size().height), (64, 64));
            assert!(picture.nearest_only(), "{} has a palette", sample.key);
            let emoji: Emoji = sample.json("json").unwrap();
            assert_eq!((emoji.codepoint, emoji.domain), (sample.key, domain.to_owned()));
            assert!(!emoji.name.is_empty() && !emoji.subcategory.is_empty());
            let _ = (emoji.name_zh, emoji.keywords);
        }
    }
}

#[test]
fn emoji_become_batches() {
    let shards = ["noto-v1", "fluent-line"].map(|domain| assets().join(format!("emoji/{domain}-64.tar.gz")));
    let (dataset, _) = WebDataset::open(shards, Default::default()).unwrap();
    let preprocess = Preprocess::clip(32);
    let dataset = dataset.map(move |sample, _| {
        let emoji: Emoji = sample.json("json")?;
        Ok((preprocess.tensor(&sample.picture()?, &Device::Cpu)?, emoji.name))
    });
    let options = LoaderOptions { batch_size: 100, shuffle: true, drop_last: true, ..Default::default() };
    let mut batches = 0;
    for batch in DataLoader::new(dataset, options).unwrap().epoch(0) {
        let (images, names) = batch.unwrap();
        assert_eq!((images.dims(), names.len()), (&[100, 3, 32, 32][..], 100));
        batches += 1;
    }
    assert_eq!(batches, 23);
}

#[test]
fn plain_shards_are_read_from_the_file_and_equal_the_stream() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("plain.tar");
    let mut builder = tar::Builder::new(std::fs::File::create(&path).unwrap());
    let long = "x".repeat(150);
    for (name, text) in [
        ("a/1.TXT", "one"),
        ("a/1.cls", "0"),
        ("README", "no extension"),
        ("a/.hidden.txt", "hidden"),
        ("a/2.seg.txt", "two"),
        ("b/2.txt", "three"),
        ("b/2.txt", "again"),
    ] {
        let mut header = tar::Header::new_ustar();
        header.set_size(text.len() as u64);
        builder.append_data(&mut header, name, text.as_bytes()).unwrap();
    }
    builder.append_pax_extensions([("path", format!("pax/{long}.txt").as_bytes())]).unwrap();
    let mut header = tar::Header::new_ustar();
    header.set_size(3);
    builder.append_data(&mut header, "short.txt", &b"pax"[..]).unwrap();
    builder.into_inner().unwrap();

    let (dataset, report) = WebDataset::open([&path], Default::default()).unwrap();
    assert_eq!(report.len(), 1, "{report}");
    assert!(report.to_string().contains("b/2.txt: a second member"), "{report}");
    let samples: Vec<_> = SampleStream::open([&path], Default::default()).collect();
    let random: Vec<_> = (0..dataset.len()).rev().map(|index| dataset.sample(index).unwrap()).collect();
    assert_eq!(random.into_iter().rev().collect::<Vec<_>>(), samples);
    let keys: Vec<_> = dataset.keys().collect();
    assert_eq!(keys, ["a/1", "a/2", "b/2", &format!("pax/{long}")]);
    assert_eq!(samples[0].text("txt").unwrap(), "one");
    assert_eq!(samples[1].text("seg.txt").unwrap(), "two");
    let missing = samples[1].json::<u32>("json").unwrap_err().to_string();
    assert!(missing.contains("sample `a/2` has no member `.json`, only [\"seg.txt\"]"), "{missing}");
    assert!(samples[1].picture().is_err());
}

#[test]
fn shards_that_cannot_be_opened_or_are_empty_are_errors() {
    let folder = tempfile::tempdir().unwrap();
    let missing = folder.path().join("missing.tar");
    assert!(matches!(WebDataset::open([&missing], Default::default()), Err(Error::Io { .. })));
    let stream = SampleStream::open([&missing], Default::default());
    let report = stream.report();
    assert_eq!((stream.count(), report.get().len()), (0, 1));
    let empty = folder.path().join("empty.tar");
    std::fs::write(&empty, [0; 1024]).unwrap();
    assert!(matches!(WebDataset::open([&empty], Default::default()), Err(Error::Empty { .. })));
    let options = sconce_data::WebDatasetOptions { max_memory: 10_000, ..Default::default() };
    let error = WebDataset::open([assets().join("emoji/noto-64.tar.gz")], options).unwrap_err().to_string();
    assert!(error.contains("over the limit of 10000"), "{error}");
}

#[test]
fn fashion_mnist_has_its_classes_in_equal_parts() {
    for (part, per_class) in [("train", 204), ("t10k", 200)] {
        let open = |name: &str| IdxArray::open(assets().join(format!("fashion-mnist/{part}-{name}-ubyte.gz"))).unwrap();
        let (images, labels) = (open("images-idx3"), open("labels-idx1"));
        assert_eq!(images.shape(), [per_class * 10, 28, 28]);
        assert_eq!(labels.shape(), [per_class * 10]);
        for class in 0..10 {
            assert_eq!(labels.as_u8().unwrap().iter().filter(|label| **label == class).count(), per_class);
        }
        assert_eq!(images.item(3).unwrap(), &images.as_u8().unwrap()[3 * 784..4 * 784]);
        assert!(images.item(per_class * 10).is_none());
        assert_eq!(images.tensor(&Device::Cpu).unwrap().dims(), [per_class * 10, 28, 28]);
    }
}

#[test]
fn idx_values_of_every_type_become_tensors() {
    let file =
        |kind: u8, values: &[u8]| IdxArray::read([&[0, 0, kind, 1, 0, 0, 0, 2], values].concat().as_slice()).unwrap();
    let integers = |array: IdxArray| array.tensor(&Device::Cpu).unwrap().to_vec1::<i64>().unwrap();
    assert_eq!(integers(file(0x09, &[0xff, 2])), [-1, 2]);
    assert_eq!(integers(file(0x0b, &[0xff, 0xfe, 1, 0])), [-2, 256]);
    assert_eq!(integers(file(0x0c, &[0, 1, 0, 0, 0xff, 0xff, 0xff, 0xfd])), [65536, -3]);
    let floats = file(0x0d, &[0x3f, 0x80, 0, 0, 0xc0, 0, 0, 0]).tensor(&Device::Cpu).unwrap();
    assert_eq!(floats.to_vec1::<f32>().unwrap(), [1.0, -2.0]);
    assert!(file(0x0b, &[0; 4]).as_u8().is_err());
}

#[test]
fn image_folders_sort_their_classes() {
    let folder = tempfile::tempdir().unwrap();
    for (name, value) in [("zebra/b.png", 1), ("ant/2.png", 2), ("ant/deep/1.PNG", 3), ("zebra/notes.txt", 0)] {
        let path = folder.path().join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        match value {
            0 => std::fs::write(path, "text").unwrap(),
            value => RgbImage::from_pixel(2, 2, image::Rgb([value; 3]))
                .save_with_format(path, image::ImageFormat::Png)
                .unwrap(),
        }
    }
    std::fs::write(folder.path().join("zebra/c.jpg"), "not a jpeg").unwrap();
    let dataset = ImageFolder::open(folder.path()).unwrap();
    assert_eq!(dataset.classes(), ["ant", "zebra"]);
    let generator = Generator::new(0);
    let labels: Vec<u32> = dataset.files().iter().map(|(_, label)| *label).collect();
    assert_eq!(labels, [0, 0, 1, 1]);
    let (picture, label) = dataset.get(2, &generator).unwrap();
    assert_eq!((picture.to_rgb().get_pixel(0, 0)[0], label), (1, 1));
    let error = dataset.get(3, &generator).unwrap_err().to_string();
    assert!(error.contains("c.jpg: not a png, jpeg or webp image"), "{error}");
    assert!(matches!(dataset.get(4, &generator), Err(Error::OutOfRange { index: 4, len: 4 })));
    assert_eq!(image_files(folder.path()).unwrap().len(), 4);
}

#[test]
fn folders_without_images_are_errors_that_say_so() {
    let folder = tempfile::tempdir().unwrap();
    let missing = folder.path().join("nowhere");
    for error in [ImageFolder::open(&missing).unwrap_err(), image_files(&missing).unwrap_err()] {
        assert!(matches!(error, Error::Io { .. }));
        assert!(error.to_string().contains("nowhere"), "{error}");
    }
    assert!(matches!(ImageFolder::open(folder.path()), Err(Error::Empty { .. })));
    std::fs::create_dir(folder.path().join("cat")).unwrap();
    let error = ImageFolder::open(folder.path()).unwrap_err().to_string();
    assert!(error.contains("cat") && error.contains("no image file"), "{error}");
}
