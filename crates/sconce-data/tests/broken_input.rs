//! Hundreds of truncated and damaged files: errors or reports, never a panic, never a hang, never much memory.

use flate2::Compression;
use flate2::write::GzEncoder;
use image::{DynamicImage, ImageFormat, RgbaImage};
use sconce_data::{
    DecodeLimits, Error, Generator, IdxArray, Picture, Preprocess, SampleStream, WebDataset, WebDatasetOptions,
};
use std::io::{Cursor, Read, Write};

const MUTATIONS: usize = 400;

/// A damaged copy: cut, flipped bits, changed, removed, repeated or inserted bytes.
fn mutate(bytes: &[u8], generator: &Generator) -> Vec<u8> {
    let mut out = bytes.to_vec();
    for _ in 0..=generator.index(3) {
        if out.is_empty() {
            return out;
        }
        let at = generator.index(out.len());
        let end = (at + 1 + generator.index(40)).min(out.len());
        match generator.index(6) {
            0 => out.truncate(at),
            1 | 2 => out[at] ^= 1 << generator.index(8),
            3 => out[at..end].fill([0, 0xff, b'9', 0x80][generator.index(4)]),
            4 => drop(out.drain(at..end)),
            _ => {
                let copy = out[at..end].to_vec();
                let to = generator.index(out.len());
                out.splice(to..to, copy);
            }
        }
    }
    out
}

fn picture() -> RgbaImage {
    RgbaImage::from_fn(33, 21, |x, y| image::Rgba([(x * 7) as u8, (y * 11) as u8, (x * y) as u8, (255 - x) as u8]))
}

fn encoded(format: ImageFormat) -> Vec<u8> {
    let mut out = Cursor::new(Vec::new());
    let image = match format {
        ImageFormat::Jpeg => DynamicImage::ImageRgba8(picture()).into_rgb8().into(),
        _ => DynamicImage::ImageRgba8(picture()),
    };
    image.write_to(&mut out, format).unwrap();
    out.into_inner()
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::default());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

fn archive() -> Vec<u8> {
    let mut builder = tar::Builder::new(Vec::new());
    let long = format!("{}/b", "folder".repeat(30));
    for key in ["a", &long, "c.d", "e"] {
        for (extension, bytes) in
            [("png", encoded(ImageFormat::Png)), ("json", br#"{"name": "x", "n": [1, 2]}"#.into())]
        {
            let mut header = tar::Header::new_gnu();
            header.set_size(bytes.len() as u64);
            header.set_mode(0o644);
            builder.append_data(&mut header, format!("{key}.{extension}"), bytes.as_slice()).unwrap();
        }
    }
    builder.into_inner().unwrap()
}

#[test]
fn cut_images_are_errors_at_every_length() {
    for format in [ImageFormat::Png, ImageFormat::Jpeg, ImageFormat::WebP] {
        let bytes = encoded(format);
        assert!(Picture::decode(&bytes).is_ok());
        for length in 0..bytes.len() {
            assert!(Picture::decode(&bytes[..length]).is_err(), "{format:?} cut to {length} of {}", bytes.len());
        }
    }
}

#[test]
fn flipped_bits_in_a_png_are_errors() {
    let bytes = encoded(ImageFormat::Png);
    for bit in 0..bytes.len() * 8 {
        let mut damaged = bytes.clone();
        damaged[bit / 8] ^= 1 << (bit % 8);
        assert!(Picture::decode(&damaged).is_err(), "bit {bit}");
    }
}

#[test]
fn damaged_images_never_panic() {
    let generator = Generator::new(1);
    let limits = DecodeLimits { max_pixels: 1 << 20, ..Default::default() };
    for format in [ImageFormat::Png, ImageFormat::Jpeg, ImageFormat::WebP] {
        let bytes = encoded(format);
        for _ in 0..MUTATIONS {
            // What still decodes must also go through the preprocessing.
            if let Ok(picture) = Picture::decode_with(&mutate(&bytes, &generator), &limits) {
                let _ = Preprocess::clip(8).image(&picture);
            }
        }
    }
}

#[test]
fn decompression_bombs_are_refused_before_decoding() {
    // A header that promises 60000 x 60000 pixels.
    let mut bytes = encoded(ImageFormat::Png);
    bytes[16..24].copy_from_slice(&[0, 0, 0xea, 0x60, 0, 0, 0xea, 0x60]);
    let sum = crc32fast::hash(&bytes[12..29]).to_be_bytes();
    bytes[29..33].copy_from_slice(&sum);
    assert!(matches!(Picture::decode(&bytes), Err(Error::TooLarge { .. })), "{:?}", Picture::decode(&bytes));
    let narrow = DecodeLimits { max_side: 30, ..Default::default() };
    assert!(matches!(Picture::decode_with(&encoded(ImageFormat::WebP), &narrow), Err(Error::TooLarge { .. })));
    let small = DecodeLimits { max_pixels: 100, ..Default::default() };
    assert!(matches!(Picture::decode_with(&encoded(ImageFormat::WebP), &small), Err(Error::TooLarge { .. })));
}

#[test]
fn damaged_shards_never_panic() {
    let generator = Generator::new(2);
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("shard.tar");
    let options = WebDatasetOptions { max_member: 1 << 20, max_memory: 1 << 24 };
    for bytes in [archive(), gzip(&archive())] {
        for _ in 0..MUTATIONS / 2 {
            std::fs::write(&path, mutate(&bytes, &generator)).unwrap();
            for sample in SampleStream::open([&path], options) {
                let _ = sample.picture();
                let _ = sample.json::<serde_json::Value>("json");
            }
            if let Ok((dataset, _)) = WebDataset::open([&path], options) {
                for index in 0..dataset.keys().len() {
                    dataset.sample(index).unwrap();
                }
            }
        }
    }
}

#[test]
fn cut_shards_are_told_in_the_report() {
    let whole = archive();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("shard.tar");
    // Half of a plain archive's end marks is as good as both.
    let packed = gzip(&whole);
    for (bytes, end, step) in [(&whole, whole.len() - 1024, 97), (&packed, packed.len(), 3)] {
        for length in (1..end).step_by(step) {
            std::fs::write(&path, &bytes[..length]).unwrap();
            let stream = SampleStream::open([&path], Default::default());
            let report = stream.report();
            let samples = stream.count();
            assert!(!report.get().is_empty(), "cut to {length}: {samples} samples, no report");
        }
    }
}

#[test]
fn a_wrong_gzip_sum_is_told_in_the_report() {
    let mut bytes = gzip(&archive());
    let at = bytes.len() - 8;
    bytes[at] ^= 1;
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("shard.tar.gz");
    std::fs::write(&path, bytes).unwrap();
    let (_, report) = WebDataset::open([&path], Default::default()).unwrap();
    assert!(report.to_string().contains("any of which may be damaged"), "{report}");
    assert!(matches!(report.into_result(), Err(Error::Unreadable(_))));
}

#[test]
fn one_broken_member_costs_one_sample() {
    let whole = archive();
    // The header of `c.json`'s neighbour: damage the name, so that the checksum fails.
    let at = whole.windows(7).position(|w| w == b"c.d.png").unwrap();
    let mut damaged = whole.clone();
    damaged[at] ^= 1;
    let stream = SampleStream::from_reader(Cursor::new(damaged), "shard", Default::default());
    let report = stream.report();
    let keys: Vec<_> = stream.map(|sample| (sample.key, sample.members.len())).collect();
    let found: Vec<_> = keys.iter().map(|(key, members)| (&key[key.len() - 1..], *members)).collect();
    assert_eq!(found, [("a", 2), ("b", 2), ("c", 1), ("e", 2)]);
    assert_eq!(report.get().len(), 1, "{}", report.get());
}

#[test]
fn damaged_idx_files_never_panic() {
    let generator = Generator::new(3);
    let mut plain = vec![0, 0, 8, 3, 0, 0, 0, 5, 0, 0, 0, 4, 0, 0, 0, 3];
    plain.extend(0..60);
    let packed = gzip(&plain);
    assert_eq!(IdxArray::read(plain.as_slice()).unwrap(), IdxArray::read(packed.as_slice()).unwrap());
    for bytes in [&plain, &packed] {
        for length in 0..bytes.len() {
            assert!(IdxArray::read(&bytes[..length]).is_err(), "cut to {length}");
        }
        for _ in 0..MUTATIONS {
            let _ = IdxArray::read(mutate(bytes, &generator).as_slice());
        }
    }
}

#[test]
fn idx_headers_are_checked_before_memory_is_taken() {
    let huge = [0, 0, 8, 3, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff];
    assert!(matches!(IdxArray::read(&huge[..]), Err(Error::TooLarge { .. })));
    let lying = [0, 0, 8, 1, 0x7f, 0xff, 0xff, 0xff, 1, 2, 3];
    assert!(matches!(IdxArray::read(&lying[..]), Err(Error::Malformed { .. })));
    for wrong in
        [&[1, 0, 8, 1, 0, 0, 0, 0][..], &[0, 0, 7, 1, 0, 0, 0, 0], &[0, 0, 8, 0], &[0, 0, 8, 1, 0, 0, 0, 1, 5, 6]]
    {
        assert!(matches!(IdxArray::read(wrong), Err(Error::Malformed { .. })), "{wrong:?}");
    }
}

#[test]
fn damaged_json_is_an_error_that_names_the_member() {
    let generator = Generator::new(4);
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../assets/emoji/noto-v1-64.tar.gz");
    let mut sample = SampleStream::open([path], Default::default()).next().unwrap();
    let whole = sample.bytes("json").unwrap().to_vec();
    let mut broken = 0;
    for _ in 0..MUTATIONS {
        sample.members = vec![("json".into(), mutate(&whole, &generator).into())];
        if let Err(error) = sample.json::<serde_json::Value>("json") {
            assert!(error.to_string().contains(&format!("{}.json", sample.key)), "{error}");
            broken += 1;
        }
    }
    assert!(broken > MUTATIONS / 4);
    // Nesting that would exhaust the stack.
    sample.members = vec![("json".into(), "[".repeat(100_000).into_bytes().into())];
    assert!(sample.json::<serde_json::Value>("json").is_err());
}

#[test]
fn a_gzip_bomb_in_a_header_is_refused() {
    // A long-name extension of a gigabyte, which a reader might take into memory.
    let mut header = tar::Header::new_gnu();
    header.set_path("././@LongLink").unwrap();
    header.set_entry_type(tar::EntryType::GNULongName);
    header.set_size(1 << 30);
    header.set_cksum();
    let stream = SampleStream::from_reader(
        Cursor::new(header.as_bytes().to_vec()).chain(std::io::repeat(0).take(1 << 20)),
        "bomb",
        Default::default(),
    );
    let report = stream.report();
    assert_eq!(stream.count(), 0);
    assert!(report.get().to_string().contains("extension header"), "{}", report.get());
}
