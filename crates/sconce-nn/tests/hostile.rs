//! Damaged and malicious files: an error or a sound result, never a panic, a hang or a huge allocation.

mod support;

use std::path::Path;

use candle_core::{DType, Device, Tensor};
use sconce_nn::{Checkpoint, Error, Generator, SaveOptions, save_tensors};
use support::*;

/// Opens the bytes and reads all that they offer; true when all went well.
fn read_all(bytes: &[u8]) -> bool {
    let Ok(checkpoint) = Checkpoint::from_bytes(bytes.to_vec(), "mutated") else { return false };
    let mut sound = true;
    for name in checkpoint.names() {
        let shape = checkpoint.shape(name).unwrap();
        match checkpoint.tensor(name, &Device::Cpu) {
            Ok(tensor) => assert_eq!(tensor.dims(), shape),
            Err(_) => sound = false,
        }
    }
    sound
}

/// Several hundred mutations of one file: cut at many lengths, flip bits, overwrite, insert and remove bytes.
fn mutate(original: &[u8], seed: u64) -> (usize, usize) {
    mutate_with(original, seed, read_all)
}

/// How many mutations were tried and how many of them `read` refused.
fn mutate_with(original: &[u8], seed: u64, read: impl Fn(&[u8]) -> bool) -> (usize, usize) {
    assert!(read(original));
    let random = Generator::new(seed);
    let (mut tried, mut refused) = (0, 0);
    let mut attempt = |bytes: &[u8]| {
        tried += 1;
        refused += usize::from(!read(bytes));
    };
    for i in 0..100 {
        attempt(&original[..original.len() * i / 100]);
    }
    for lost in 1..=20 {
        attempt(&original[..original.len().saturating_sub(lost)]);
    }
    for _ in 0..300 {
        let mut bytes = original.to_vec();
        for _ in 0..=random.index(3) {
            let at = random.index(bytes.len());
            match random.index(5) {
                0 | 1 => bytes[at] ^= 1 << random.index(8),
                2 => bytes[at] = [0, 0xff, 0x7f, 0x80, b'.', b'(', b'}', b'9'][random.index(8)],
                3 => bytes.insert(at, random.index(256) as u8),
                _ => {
                    bytes.remove(at);
                }
            }
        }
        attempt(&bytes);
    }
    (tried, refused)
}

fn fixture(name: &str) -> Vec<u8> {
    std::fs::read(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(name)).unwrap()
}

fn safetensors() -> Vec<u8> {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.safetensors");
    let tensors =
        (0..6).map(|i| (format!("layer.{i}.weight"), Tensor::ones((i, 2), DType::F32, &Device::Cpu).unwrap()));
    save_tensors(&path, tensors, &SaveOptions::default().with_metadata("k", "v")).unwrap();
    std::fs::read(path).unwrap()
}

#[test]
fn mutated_safetensors() {
    let (tried, refused) = mutate(&safetensors(), 1);
    assert!(tried >= 400 && refused > 150, "{refused} of {tried} refused");
}

#[test]
fn mutated_index_files() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("1.safetensors"), safetensors()).unwrap();
    let path = folder.path().join("model.safetensors.index.json");
    let map: Vec<String> = (0..6).map(|i| format!(r#""layer.{i}.weight": "1.safetensors""#)).collect();
    let index = format!(r#"{{"metadata": {{"total_size": 120}}, "weight_map": {{{}}}}}"#, map.join(", "));
    let (tried, refused) = mutate_with(index.as_bytes(), 2, |bytes| {
        std::fs::write(&path, bytes).unwrap();
        Checkpoint::open(&path).is_ok_and(|all| all.names().all(|name| all.tensor(name, &Device::Cpu).is_ok()))
    });
    assert!(tried >= 400 && refused > 300, "{refused} of {tried} refused");
}

#[test]
fn mutated_torch_archives() {
    for (i, name) in ["protocol2.pth", "protocol5.pth", "big_endian.pth", "module.pt"].iter().enumerate() {
        let (tried, refused) = mutate(&fixture(name), 10 + i as u64);
        assert!(tried >= 400 && refused > 150, "{name}: {refused} of {tried} refused");
    }
}

/// No checksum guards a pickle alone: mutations reach the unpickler and the arrays.
#[test]
fn mutated_numpy_pickles() {
    let readable = |bytes: &[u8]| {
        let Ok(checkpoint) = Checkpoint::from_bytes(bytes.to_vec(), "mutated") else { return false };
        // What NumPy has no numbers for cannot be read from a sound file either.
        checkpoint.names().filter(|name| *name != "text").all(|name| {
            let shape = checkpoint.shape(name).unwrap();
            checkpoint.tensor(name, &Device::Cpu).is_ok_and(|tensor| tensor.dims() == shape)
        })
    };
    for (i, name) in ["numpy2.pkl", "numpy3.pkl", "numpy4.pkl", "numpy5.pkl"].iter().enumerate() {
        let (tried, refused) = mutate_with(&fixture(name), 50 + i as u64, readable);
        assert!(tried >= 400 && refused > 150, "{name}: {refused} of {tried} refused");
    }
    let (tried, refused) = mutate(&fixture("prompts.p"), 60);
    assert!(tried >= 400 && refused > 150, "prompts.p: {refused} of {tried} refused");
}

/// Every length that a file can be cut to, and every bit of a small one.
#[test]
fn numpy_pickles_cut_and_flipped_everywhere() {
    let sound = fixture("prompts.p");
    for length in 0..sound.len() {
        assert!(!read_all(&sound[..length]), "cut to {length} bytes");
    }
    let mut bytes = sound.clone();
    for at in 0..bytes.len() {
        for bit in 0..8 {
            bytes[at] ^= 1 << bit;
            read_all(&bytes);
            bytes[at] ^= 1 << bit;
        }
    }
}

#[test]
fn mutated_torch_script() {
    let (tried, refused) = mutate(&torch_script(), 20);
    assert!(tried >= 400 && refused > 150, "{refused} of {tried} refused");
}

/// No checksum guards the old format, so that mutations reach the unpickler.
#[test]
fn mutated_legacy_files() {
    let mut bytes = fixture("legacy.pth");
    let (tried, refused) = mutate(&bytes, 30);
    assert!(tried >= 400 && refused > 100, "{refused} of {tried} refused");
    // The pickles alone, over and over.
    let random = Generator::new(31);
    let head = 900.min(bytes.len());
    for _ in 0..600 {
        let (at, bit) = (random.index(head), random.index(8));
        bytes[at] ^= 1 << bit;
        read_all(&bytes);
        if random.index(4) > 0 {
            bytes[at] ^= 1 << bit;
        }
    }
}

/// Archives with a sound checksum around a damaged pickle.
#[test]
fn mutated_pickles_inside_sound_archives() {
    let pickle = Pickler::new()
        .entry("state_dict", |p| p.entry("w", |p| p.tensor("FloatStorage", "0", 6, 0, &[2, 3], &[3, 1])))
        .stop();
    let storage = floats((0..6).map(|i| i as f32));
    let random = Generator::new(40);
    let mut refused = 0;
    for _ in 0..500 {
        let mut bytes = pickle.clone();
        for _ in 0..=random.index(2) {
            let at = random.index(bytes.len());
            bytes[at] = random.index(256) as u8;
        }
        refused += usize::from(!read_all(&archive(&bytes, &[&storage])));
    }
    assert!(refused > 100, "{refused}");
    for length in 0..pickle.len() {
        assert!(!read_all(&archive(&pickle[..length], &[&storage])));
    }
}

#[test]
fn random_opcodes() {
    let opcodes = b"(.0123NKJMGX}]ltedsuabqhcRQ\x81\x85\x86\x87\x88\x89\x8a\x8c\x8f\x90\x91\x93\x94\x95)";
    let random = Generator::new(50);
    for _ in 0..2000 {
        let mut pickle = vec![0x80, 2];
        for _ in 0..random.index(60) {
            pickle.push(opcodes[random.index(opcodes.len())]);
            if random.index(4) == 0 {
                pickle.push(random.index(6) as u8);
            }
        }
        pickle.push(b'.');
        read_all(&archive(&pickle, &[]));
    }
}

fn reason(bytes: Vec<u8>) -> String {
    match Checkpoint::from_bytes(bytes, "hostile") {
        Err(Error::Corrupt { reason, .. }) => reason,
        other => panic!("{other:?}"),
    }
}

#[test]
fn tensors_that_leave_their_storage() {
    for (offset, size, stride) in [
        (1, &[2, 3][..], &[3, 1][..]),
        (0, &[2, 3], &[4, 1]),
        (0, &[7], &[1]),
        (6, &[], &[]),
        (i64::MAX, &[1], &[1]),
        (0, &[2], &[i64::MAX]),
        (0, &[1 << 40], &[0]),
        (0, &[1 << 32, 1 << 32], &[0, 0]),
        (0, &[i64::MAX, i64::MAX, 4], &[0, 0, 0]),
        (0, &[2, 3], &[1]),
        (0, &[0, 1 << 40, 1 << 40], &[0, 0, 0]),
    ] {
        assert!(reason(one_tensor(offset, size, stride)).contains("does not fit"), "{offset} {size:?} {stride:?}");
    }
    for (offset, size, stride) in
        [(-1, &[1][..], &[1][..]), (0, &[-2], &[1]), (0, &[2], &[-1]), (0, &[1; 65], &[1; 65])]
    {
        assert!(reason(one_tensor(offset, size, stride)).contains("malformed"), "{offset} {size:?} {stride:?}");
    }
    // No element, so none outside.
    assert!(read_all(&one_tensor(0, &[0, 1 << 40], &[1, 1])));
}

#[test]
fn storages_that_are_missing_or_short() {
    let tensor = |len| Pickler::new().entry("w", |p| p.tensor("FloatStorage", "0", len, 0, &[1], &[1])).stop();
    assert!(reason(archive(&tensor(1), &[])).contains("archive/data/0"));
    assert!(reason(archive(&tensor(2), &[&floats([1.])])).contains("holds less"));
    assert!(reason(archive(&tensor(i64::MAX), &[&floats([1.])])).contains("holds less"));
}

/// Lists of lists of lists, each twice the one before: 2^60 visits for a naive walk.
#[test]
fn billion_laughs() {
    let pickle =
        (0..60u8).fold(Pickler::new().op(b"]q\x00"), |p, i| p.op(&[b'0', b'h', i, b'h', i, 0x86, b'q', i + 1]));
    assert!(reason(archive(&pickle.stop(), &[])).contains("shared too often"));
}

#[test]
fn cycles_end_and_depth_is_bounded() {
    let itself = Pickler::new().op(b"]q\x00h\x00a").stop();
    assert!(Checkpoint::from_bytes(archive(&itself, &[]), "cycle").unwrap().is_empty());
    let deep = Pickler::new().op(&b"]".repeat(100_000)).op(&b"a".repeat(99_999)).stop();
    assert!(reason(archive(&deep, &[])).contains("nested deeper"));
}

#[test]
fn long_names_do_not_multiply() {
    let name = "n".repeat(5000);
    let long = Pickler::new().entry(&name, |p| p.int(1)).stop();
    assert!(reason(archive(&long, &[])).contains("longer"));
    // One text of a megabyte as the value of every item.
    let text = "t".repeat(1 << 20);
    let mut many = Pickler::new().op(b"}(").text("0").text(&text).op(b"q\x00");
    for i in 1..5000 {
        many = many.text(&i.to_string()).op(b"h\x00");
    }
    assert!(reason(archive(&many.op(b"u").stop(), &[])).contains("more room than the file"));
}

/// What Python would run on loading stays a record of names here.
#[test]
fn calls_are_never_made() {
    let pickle = Pickler::new()
        .op(b"}")
        .text("w")
        .tensor("FloatStorage", "0", 1, 0, &[1], &[1])
        .op(b"s")
        .text("x")
        .global("os", "system")
        .text("touch /tmp/should-not-exist")
        .op(b"\x85Rs");
    let checkpoint = Checkpoint::from_bytes(archive(&pickle.stop(), &[&floats([1.])]), "calls").unwrap();
    assert_eq!(checkpoint.names().collect::<Vec<_>>(), ["w"]);
}

#[test]
fn a_flipped_weight_fails_its_checksum() {
    let mut bytes = one_tensor(0, &[2, 3], &[3, 1]);
    let data = floats((0..6).map(|i| i as f32));
    let at = bytes.windows(data.len()).position(|window| window == data).unwrap();
    bytes[at + 5] ^= 1;
    let checkpoint = Checkpoint::from_bytes(bytes, "flipped").unwrap();
    assert!(
        matches!(checkpoint.tensor("w", &Device::Cpu), Err(Error::Corrupt { reason, .. }) if reason.contains("checksum"))
    );
}

#[test]
fn safetensors_headers_that_lie() {
    let file = |header: &str, data: usize| {
        let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
        bytes.extend(header.as_bytes());
        bytes.resize(bytes.len() + data, 0);
        bytes
    };
    for (header, data) in [
        (r#"{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,4]}}"#, 4),
        (r#"{"a":{"dtype":"F32","shape":[1],"data_offsets":[4,8]}}"#, 8),
        (r#"{"a":{"dtype":"F32","shape":[18446744073709551615,2],"data_offsets":[0,8]}}"#, 8),
        (
            r#"{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},"b":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}"#,
            4,
        ),
        (r#"{"a":{"dtype":"F32","shape":[-1],"data_offsets":[0,4]}}"#, 4),
        (r#"{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}"#, 5),
        (r#"{"a":1}"#, 0),
    ] {
        assert!(!read_all(&file(header, data)), "{header}");
    }
    let mut huge = file("{}", 0);
    huge[..8].copy_from_slice(&u64::MAX.to_le_bytes());
    assert!(!read_all(&huge));
}
