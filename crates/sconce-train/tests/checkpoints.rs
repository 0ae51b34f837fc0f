//! Files of checkpoints: exact, replaced whole, and never taken for intact when they are not.

use std::path::Path;

use candle_core::{DType, Device, Tensor};
use sconce_ops::Generator;
use sconce_train::*;

fn state(step: u64) -> TrainingState {
    let generator = Generator::new(step);
    generator.next_u64();
    let normal = |shape: &[usize], dtype| generator.normal(0., 1., shape, dtype, &Device::Cpu).unwrap();
    let mut state = TrainingState { position: Position { step, epoch: 1, batch: 2 }, ..TrainingState::default() };
    let model = vec![
        ("b.weight".to_owned(), normal(&[3, 4], DType::F32)),
        ("a.bias".to_owned(), normal(&[3], DType::F16)),
        ("empty".to_owned(), normal(&[0, 2], DType::F32)),
        ("scalar".to_owned(), Tensor::new(7i64, &Device::Cpu).unwrap()),
    ];
    state.sections.insert("model".to_owned(), Section { kind: None, tensors: model });
    let optimizer = vec![("exp_avg.b.weight".to_owned(), normal(&[3, 4], DType::F64))];
    state.sections.insert("optimizer".to_owned(), Section { kind: Some("adamw".to_owned()), tensors: optimizer });
    state.generators.insert("layers".to_owned(), generator.state());
    state.metadata.insert("note".to_owned(), "größer".into());
    state
}

fn bits(section: &Section) -> Vec<(String, DType, Vec<usize>, Vec<u64>)> {
    let bits = |tensor: &Tensor| -> Vec<u64> {
        let wide = tensor.to_dtype(DType::F64).unwrap().flatten_all().unwrap().to_vec1::<f64>().unwrap();
        wide.into_iter().map(f64::to_bits).collect()
    };
    let tensors = section.tensors.iter();
    tensors.map(|(name, t)| (name.clone(), t.dtype(), t.dims().to_vec(), bits(t))).collect()
}

fn assert_equal(a: &TrainingState, b: &TrainingState) {
    assert_eq!((a.position, &a.generators, &a.metadata), (b.position, &b.generators, &b.metadata));
    assert!(a.sections.keys().eq(b.sections.keys()));
    for (x, y) in a.sections.values().zip(b.sections.values()) {
        assert_eq!((&x.kind, bits(x)), (&y.kind, bits(y)));
    }
}

fn read(path: &Path) -> Result<TrainingState> {
    TrainingState::read(path, &Device::Cpu)
}

#[test]
fn what_is_written_is_read() -> Result<()> {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a");
    let written = state(5);
    written.write(&path)?;
    assert_equal(&read(&path)?, &written);
    let first = std::fs::read(&path).unwrap();
    written.write(&path)?;
    assert!(first == std::fs::read(&path).unwrap(), "the same state gives the same bytes");
    // Any reader of the format finds the weights.
    let weights = candle_core::safetensors::load(&path, &Device::Cpu)?;
    assert_eq!(weights["model.b.weight"].dims(), [3, 4]);
    Ok(())
}

#[test]
fn names_that_cannot_be_told_apart_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let mut dotted = state(1);
    dotted.sections.insert("a.b".to_owned(), Section::default());
    assert!(matches!(dotted.write(folder.path().join("a")), Err(Error::Config(_))));
    let mut twice = state(1);
    let model = twice.sections.get_mut("model").unwrap();
    model.tensors.push(model.tensors[0].clone());
    assert!(twice.write(folder.path().join("a")).is_err());
    assert!(matches!(state(1).section("teacher"), Err(Error::MissingTensor { .. })));
}

#[test]
fn every_flipped_bit_and_every_truncation_is_noticed() -> Result<()> {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a");
    let written = state(5);
    written.write(&path)?;
    let intact = std::fs::read(&path).unwrap();
    // All of the lengths and a bit of every byte: some 4,000 files, in memory.
    let damaged = folder.path().join("b");
    let check = |bytes: &[u8], what: String| {
        std::fs::write(&damaged, bytes).unwrap();
        match read(&damaged) {
            Err(Error::CorruptCheckpoint { .. }) => {}
            Err(Error::CheckpointVersion { .. }) => panic!("{what}: read as another version"),
            Err(other) => panic!("{what}: {other}"),
            Ok(_) => panic!("{what}: read as intact"),
        }
    };
    for length in (0..intact.len()).step_by(3) {
        // A file without bytes cannot be mapped on every system.
        if length > 0 {
            check(&intact[..length], format!("{length} bytes"));
        }
    }
    for byte in 0..intact.len() {
        let mut altered = intact.clone();
        altered[byte] ^= 1 << (byte % 8);
        check(&altered, format!("bit {} of byte {byte}", byte % 8));
    }
    assert_equal(&read(&path)?, &written);
    std::fs::write(&damaged, b"").unwrap();
    assert!(read(&damaged).is_err());
    assert!(matches!(read(&folder.path().join("none")), Err(Error::Io { .. })));
    // Any other file of this format is not a checkpoint.
    candle_core::safetensors::save(
        &std::collections::HashMap::from([("x", Tensor::new(1f32, &Device::Cpu)?)]),
        &damaged,
    )?;
    assert!(matches!(read(&damaged), Err(Error::CorruptCheckpoint { reason, .. }) if reason.contains("missing")));
    Ok(())
}

#[test]
fn a_newer_format_is_named() -> Result<()> {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a");
    let header = r#"{"version":99,"something":"else"}"#;
    let options = sconce_nn::SaveOptions::default()
        .with_metadata("sconce_train", header)
        .with_metadata("sconce_train_crc32", format!("{:08x}", crc32fast::hash(header.as_bytes())));
    sconce_nn::save_tensors(&path, [], &options)?;
    assert!(matches!(read(&path), Err(Error::CheckpointVersion { found: 99, .. })));
    Ok(())
}

#[test]
fn a_failed_save_leaves_the_old_checkpoint() -> Result<()> {
    let folder = tempfile::tempdir().unwrap();
    let checkpoints = CheckpointFolder::new(folder.path(), 3)?;
    let first = checkpoints.save(&state(1))?;
    // A folder in the way of the file: the rename fails after everything else has worked.
    std::fs::create_dir_all(folder.path().join("step-0000000002.safetensors/x")).unwrap();
    assert!(checkpoints.save(&state(2)).is_err());
    assert_eq!(checkpoints.latest()?.as_deref(), Some(first.as_path()));
    assert_equal(&checkpoints.load_latest(&Device::Cpu)?.unwrap(), &state(1));
    let left: Vec<_> = std::fs::read_dir(folder.path()).unwrap().map(|e| e.unwrap().file_name()).collect();
    assert!(left.iter().all(|name| !name.to_string_lossy().contains("tmp")), "{left:?}");
    Ok(())
}

#[test]
fn the_last_few_are_kept() -> Result<()> {
    let folder = tempfile::tempdir().unwrap();
    let checkpoints = CheckpointFolder::new(folder.path().join("new/folder"), 2)?;
    assert!(checkpoints.latest()?.is_none() && checkpoints.load_latest(&Device::Cpu)?.is_none());
    let steps = |checkpoints: &CheckpointFolder| -> Vec<u64> {
        checkpoints.list().unwrap().into_iter().map(|(step, _)| step).collect()
    };
    for step in [1, 2, 10] {
        checkpoints.save(&state(step))?;
    }
    assert_eq!(steps(&checkpoints), [2, 10]);
    // Training was taken back to step 2 and goes on from there.
    checkpoints.save(&state(3))?;
    assert_eq!(steps(&checkpoints), [2, 3]);
    assert_eq!(checkpoints.load_latest(&Device::Cpu)?.unwrap().position.step, 3);
    assert!(matches!(CheckpointFolder::new(folder.path(), 0), Err(Error::Config(_))));
    Ok(())
}

#[test]
fn a_bad_pointer_is_an_error_and_a_missing_one_is_not() -> Result<()> {
    let folder = tempfile::tempdir().unwrap();
    let checkpoints = CheckpointFolder::new(folder.path(), 2)?;
    let newest = {
        checkpoints.save(&state(1))?;
        checkpoints.save(&state(2))?
    };
    let pointer = folder.path().join("latest");
    for text in
        ["", "step-0000000009.safetensors\n", "../step-0000000001.safetensors", "/etc/passwd", "step-x.safetensors"]
    {
        std::fs::write(&pointer, text).unwrap();
        assert!(matches!(checkpoints.latest(), Err(Error::CorruptCheckpoint { .. })), "{text:?}");
    }
    std::fs::write(&pointer, [0xff, 0xfe]).unwrap();
    assert!(matches!(checkpoints.latest(), Err(Error::CorruptCheckpoint { .. })));
    std::fs::remove_file(&pointer).unwrap();
    assert_eq!(checkpoints.latest()?, Some(newest.clone()));
    // A damaged latest checkpoint is reported, not passed over.
    std::fs::write(&newest, b"damaged").unwrap();
    assert!(matches!(checkpoints.load_latest(&Device::Cpu), Err(Error::CorruptCheckpoint { .. })));
    Ok(())
}
