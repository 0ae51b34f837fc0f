//! Reading of every format: names, shapes, values, views.

mod support;

use std::collections::BTreeMap;
use std::path::PathBuf;

use candle_core::{DType, Device, Tensor};
use sconce_nn::{Checkpoint, Error, LoadOptions, SaveOptions, Source, save_tensors};
use support::*;

fn fixture(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(name)
}

fn values(checkpoint: &Checkpoint, name: &str) -> Vec<f64> {
    let tensor = checkpoint.tensor(name, &Device::Cpu).unwrap();
    tensor.to_dtype(DType::F64).unwrap().flatten_all().unwrap().to_vec1().unwrap()
}

fn eighths(range: impl IntoIterator<Item = usize>) -> Vec<f64> {
    range.into_iter().map(|i| i as f64 / 8.).collect()
}

#[test]
fn torch_save_of_every_protocol_and_byte_order() {
    for name in ["protocol2.pth", "protocol4.pth", "protocol5.pth", "big_endian.pth"] {
        let all = Checkpoint::open(fixture(name)).unwrap();
        let state = all.select("state_dict").unwrap();
        assert_eq!(state.len(), 17, "{name}");
        assert_eq!(values(&state, "head.weight"), eighths(0..24), "{name}");
        let transposed: Vec<usize> = (0..24).map(|i| i / 4 + i % 4 * 6).collect();
        assert_eq!(state.shape("head.transposed").unwrap(), [6, 4]);
        assert_eq!(values(&state, "head.transposed"), eighths(transposed));
        assert_eq!(values(&state, "head.row"), eighths(6..12));
        assert_eq!(values(&state, "head.broadcast"), eighths([1, 2, 1, 2, 1, 2]));
        assert_eq!(values(&state, "scalar"), eighths([2]));
        assert_eq!(state.shape("scalar").unwrap(), [0usize; 0]);
        assert_eq!(state.shape("empty").unwrap(), [0, 5]);
        assert!(values(&state, "empty").is_empty());
        assert_eq!(values(&state, "parameter"), eighths(0..2));
        let whole = vec![0., 1., 2., 3.];
        let kinds = [
            ("FloatStorage", DType::F32, eighths(0..4)),
            ("DoubleStorage", DType::F64, eighths(0..4)),
            ("HalfStorage", DType::F16, eighths(0..4)),
            ("BFloat16Storage", DType::BF16, eighths(0..4)),
            ("LongStorage", DType::I64, whole.clone()),
            ("IntStorage", DType::I32, whole.clone()),
            ("ShortStorage", DType::I16, whole.clone()),
            ("CharStorage", DType::I16, whole.clone()),
            ("ByteStorage", DType::U8, whole),
            ("BoolStorage", DType::U8, vec![0., 1., 1., 1.]),
        ];
        for (kind, dtype, expected) in kinds {
            let key = format!("kinds.{kind}");
            assert_eq!(state.dtype(&key).unwrap(), dtype, "{name} {kind}");
            assert_eq!(values(&state, &key), expected, "{name} {kind}");
        }
        assert_eq!(values(&all, "optimizer.state.0.exp_avg"), eighths(0..6));
        let text = |key: &str| all.metadata().get(key).map(String::as_str);
        assert_eq!(text("epoch"), Some("7"));
        assert_eq!(text("args.name"), Some("tiny"));
        assert_eq!(text("args.nested.1.0"), Some("2"));
        assert_eq!(text("args.3"), Some("true"));
    }
}

#[test]
fn a_pickled_module_has_the_names_of_its_state_dict() {
    let checkpoint = Checkpoint::open(fixture("module.pt")).unwrap();
    assert_eq!(checkpoint.names().collect::<Vec<_>>(), ["fc.weight", "mean"]);
    assert_eq!(values(&checkpoint, "fc.weight"), eighths(0..4));
    assert_eq!(values(&checkpoint, "mean"), eighths(0..3));
}

#[test]
fn a_real_file_older_than_torch_1_6() {
    let checkpoint = Checkpoint::open(fixture("legacy.pth")).unwrap();
    let shapes: Vec<_> = checkpoint.names().map(|n| (n, checkpoint.shape(n).unwrap())).collect();
    assert_eq!(
        shapes,
        [
            ("lin0.model.1.weight", vec![1, 64, 1, 1]),
            ("lin1.model.1.weight", vec![1, 192, 1, 1]),
            ("lin2.model.1.weight", vec![1, 384, 1, 1]),
            ("lin3.model.1.weight", vec![1, 256, 1, 1]),
            ("lin4.model.1.weight", vec![1, 256, 1, 1]),
        ]
    );
    // Learned weights of a distance: none is negative, none is large.
    for name in checkpoint.names() {
        let weights = values(&checkpoint, name);
        assert!(weights.iter().all(|w| (0. ..10.).contains(w)) && weights.iter().any(|&w| w > 0.01), "{name}");
    }
}

#[test]
fn numpy_pickles_of_every_protocol() {
    for protocol in 2..=5 {
        let checkpoint = Checkpoint::open(fixture(&format!("numpy{protocol}.pkl"))).unwrap();
        let shape = |name: &str| checkpoint.shape(name).unwrap();
        assert_eq!(values(&checkpoint, "visual.conv.weight"), eighths(0..12), "protocol {protocol}");
        assert_eq!(shape("visual.conv.weight"), [2, 3, 2]);
        assert_eq!(values(&checkpoint, "visual.fortran"), eighths(0..12), "protocol {protocol}");
        assert_eq!(values(&checkpoint, "big_endian"), eighths(0..5));
        assert_eq!((values(&checkpoint, "half"), checkpoint.dtype("half").unwrap()), (eighths(0..16), DType::F16));
        assert_eq!(values(&checkpoint, "long"), [0.0, 1.0, 2.0]);
        assert_eq!(values(&checkpoint, "byte"), [0.0, 1.0, 2.0, 3.0]);
        assert_eq!(values(&checkpoint, "flag"), [0.0, 1.0, 0.0, 1.0]);
        assert_eq!((shape("empty"), values(&checkpoint, "empty")), (vec![0, 3], vec![]));
        assert_eq!((shape("scalar"), values(&checkpoint, "scalar")), (vec![], vec![1.5]));
        assert_eq!((shape("zero_dimensional"), values(&checkpoint, "zero_dimensional")), (vec![], vec![2.5]));
        assert_eq!(values(&checkpoint, "layers.1"), [0.0, 1.0]);
        assert_eq!(checkpoint.metadata()["epoch"], "7");
        let error = checkpoint.tensor("text", &Device::Cpu).unwrap_err();
        assert!(matches!(error, Error::Unsupported { .. }), "{error}");
        assert_eq!(checkpoint.len(), 13);
    }
    let alone = Checkpoint::open(fixture("prompts.p")).unwrap();
    assert_eq!((alone.names().collect::<Vec<_>>(), values(&alone, "array")), (vec!["array"], eighths(0..16)));
}

#[test]
fn torch_script_modules_are_dictionaries_of_their_attributes() {
    let checkpoint = Checkpoint::from_bytes(torch_script(), "net.pt").unwrap();
    assert_eq!(checkpoint.names().collect::<Vec<_>>(), ["logit_scale", "visual.proj"]);
    assert_eq!(values(&checkpoint, "logit_scale"), [4.5]);
    assert_eq!(checkpoint.dtype("visual.proj").unwrap(), DType::F16);
    assert_eq!(values(&checkpoint, "visual.proj"), [1., 2., 3., 4.]);
    assert_eq!(checkpoint.metadata()["visual.input_resolution"], "224");
}

#[test]
fn views_select_strip_and_refuse_ambiguity() {
    let tensor = |x: f32| Tensor::new(x, &Device::Cpu).unwrap();
    let names = ["teacher.module.backbone.norm.weight", "teacher.module.head.weight", "student.w", "epoch"];
    let all = Checkpoint::from_tensors(names.iter().zip([1., 2., 3., 4.]).map(|(n, x)| (n.to_string(), tensor(x))));
    let teacher = all.select("teacher").unwrap().strip_prefix(&["module.", "backbone."]).unwrap();
    assert_eq!(teacher.names().collect::<Vec<_>>(), ["head.weight", "norm.weight"]);
    assert_eq!(all.select("teacher.module.backbone").unwrap().names().collect::<Vec<_>>(), ["norm.weight"]);
    assert_eq!(all.select_first(&Checkpoint::WRAPPERS).len(), 2);
    assert_eq!(teacher.select_first(&["no"]).len(), 2);
    match all.select("model") {
        Err(Error::NoSuchKey { found, .. }) => assert_eq!(found, ["epoch", "student", "teacher"]),
        other => panic!("{other:?}"),
    }
    let twice = Checkpoint::from_tensors([("a.w".to_string(), tensor(0.)), ("w".to_string(), tensor(1.))]);
    assert!(matches!(twice.strip_prefix(&["a."]), Err(Error::Duplicate { name, .. }) if name == "w"));
}

#[test]
fn key_maps_transpose_join_and_split() {
    let range = |n: i64, shape: (usize, usize)| {
        Tensor::arange(0, n, &Device::Cpu).unwrap().to_dtype(DType::F32).unwrap().reshape(shape).unwrap()
    };
    let file = [("q", range(2, (1, 2))), ("k", range(4, (2, 2))), ("packed", range(6, (3, 2)))];
    let file = Checkpoint::from_tensors(file.map(|(n, t)| (n.to_string(), t)));
    let mapped = file.with_map(|name: &str| match name {
        "qk" => Source::Concat { names: vec!["q".into(), "k".into()], dim: 0 },
        "proj" => Source::Transposed("packed".into()),
        "second" => Source::Chunk { name: "packed".into(), dim: 0, index: 1, of: 3 },
        "uneven" => Source::Chunk { name: "packed".into(), dim: 0, index: 0, of: 2 },
        "bad" => Source::Concat { names: vec!["q".into(), "packed".into()], dim: 1 },
        "none" => Source::Missing,
        other => Source::Tensor(other.into()),
    });
    assert_eq!(mapped.shape("qk").unwrap(), [3, 2]);
    assert_eq!(values(&mapped, "qk"), [0., 1., 0., 1., 2., 3.]);
    assert_eq!(mapped.shape("proj").unwrap(), [2, 3]);
    assert_eq!(values(&mapped, "proj"), [0., 2., 4., 1., 3., 5.]);
    assert_eq!(values(&mapped, "second"), [2., 3.]);
    assert_eq!(values(&mapped, "q"), [0., 1.]);
    assert!(matches!(mapped.tensor("uneven", &Device::Cpu), Err(Error::Shape { .. })));
    assert!(matches!(mapped.tensor("bad", &Device::Cpu), Err(Error::Shape { .. })));
    assert!(matches!(mapped.tensor("none", &Device::Cpu), Err(Error::Missing { .. })));
    assert!(matches!(mapped.tensor("absent", &Device::Cpu), Err(Error::Missing { .. })));
    assert!(mapped.contains("qk") && !mapped.contains("none"));
}

#[test]
fn the_builder_for_inference_is_strict() {
    let file = Checkpoint::from_tensors([("a.w".to_string(), Tensor::ones((2, 3), DType::F64, &Device::Cpu).unwrap())]);
    let vb = file.vb(DType::F32, &Device::Cpu);
    let tensor = vb.pp("a").get((2, 3), "w").unwrap();
    assert_eq!((tensor.dtype(), tensor.is_variable()), (DType::F32, false));
    assert!(vb.contains_tensor("a.w") && !vb.contains_tensor("b"));
    let missing = vb.pp("b").get((2, 3), "w").unwrap_err().to_string();
    assert!(missing.contains("no tensor `b.w`") && missing.contains("a.w"), "{missing}");
    let shape = vb.pp("a").get((3, 3), "w").unwrap_err().to_string();
    assert!(shape.contains("expected shape [3, 3], found [2, 3]"), "{shape}");
    let options = LoadOptions::default().resize(|name, tensor, wanted| {
        assert_eq!((name, wanted), ("a.w", &[3, 2][..]));
        Ok(Some(tensor.t()?))
    });
    let resized = file.vb_with(DType::F32, &Device::Cpu, &options).get((3, 2), "a.w").unwrap();
    assert_eq!(resized.dims(), [3, 2]);
}

fn sample() -> Vec<(String, Tensor)> {
    let cpu = &Device::Cpu;
    vec![
        ("b.half".into(), Tensor::new(&[1f32, 2.5], cpu).unwrap().to_dtype(DType::F16).unwrap()),
        ("a.weight".into(), Tensor::new(&[[1f32, -2.], [3., f32::NAN]], cpu).unwrap().t().unwrap()),
        ("ids".into(), Tensor::new(&[1i64, -5], cpu).unwrap()),
        ("bytes".into(), Tensor::new(&[1u8, 2, 3], cpu).unwrap()),
        ("scalar".into(), Tensor::new(2.5f64, cpu).unwrap()),
        ("empty".into(), Tensor::zeros((0, 3), DType::F32, cpu).unwrap()),
    ]
}

#[test]
fn safetensors_round_trip_is_exact_and_the_bytes_are_reproducible() {
    let folder = tempfile::tempdir().unwrap();
    let paths = [folder.path().join("a.safetensors"), folder.path().join("b.safetensors")];
    let options = SaveOptions::default().with_metadata("z", "last \"quoted\"").with_metadata("a", "first\nline");
    for path in &paths {
        save_tensors(path, sample(), &options).unwrap();
    }
    let bytes = paths.each_ref().map(|path| std::fs::read(path).unwrap());
    assert_eq!(bytes[0], bytes[1]);
    let checkpoint = Checkpoint::open(&paths[0]).unwrap();
    assert_eq!(checkpoint.metadata(), &options.metadata);
    assert_eq!(checkpoint.len(), 6);
    for (name, tensor) in sample() {
        let back = checkpoint.tensor(&name, &Device::Cpu).unwrap();
        assert_eq!((back.dims(), back.dtype()), (tensor.dims(), tensor.dtype()), "{name}");
        assert_eq!(checkpoint.dtype(&name).unwrap(), tensor.dtype());
        let bits = |t: &Tensor| -> Vec<u64> {
            let t = t.to_dtype(DType::F64).unwrap().flatten_all().unwrap();
            t.to_vec1::<f64>().unwrap().into_iter().map(f64::to_bits).collect()
        };
        assert_eq!(bits(&back), bits(&tensor), "{name}");
    }
    // Any reader can read it.
    let theirs = candle_core::safetensors::load(&paths[0], &Device::Cpu).unwrap();
    assert_eq!(theirs.len(), 6);

    let halves = SaveOptions::default().with_dtype(DType::F16);
    save_tensors(&paths[0], sample(), &halves).unwrap();
    let checkpoint = Checkpoint::open(&paths[0]).unwrap();
    assert_eq!(checkpoint.dtype("scalar").unwrap(), DType::F16);
    assert_eq!(checkpoint.dtype("ids").unwrap(), DType::I64);

    let twice = vec![sample().remove(0), sample().remove(0)];
    assert!(matches!(save_tensors(&paths[0], twice, &halves), Err(Error::Duplicate { .. })));
}

#[test]
fn safetensors_types_that_candle_lacks_widen_or_say_why_not() {
    let header = br#"{"b":{"dtype":"BOOL","shape":[2],"data_offsets":[0,2]},"i":{"dtype":"I8","shape":[2],"data_offsets":[2,4]},"u":{"dtype":"U16","shape":[1],"data_offsets":[4,6]},"c":{"dtype":"C64","shape":[1],"data_offsets":[6,14]},"l":{"dtype":"U64","shape":[1],"data_offsets":[14,22]},"h":{"dtype":"U64","shape":[1],"data_offsets":[22,30]}}"#;
    let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
    bytes.extend(header);
    bytes.extend([0, 7, 0xff, 1, 0xff, 0xff, 0, 0, 0, 0, 0, 0, 0, 0, 9, 0, 0, 0, 0, 0, 0, 0]);
    bytes.extend(u64::MAX.to_le_bytes());
    let checkpoint = Checkpoint::from_bytes(bytes, "types").unwrap();
    assert_eq!(values(&checkpoint, "b"), [0., 1.]);
    assert_eq!(values(&checkpoint, "i"), [-1., 1.]);
    assert_eq!(values(&checkpoint, "u"), [65535.]);
    assert_eq!(values(&checkpoint, "l"), [9.]);
    assert!(checkpoint.tensor("h", &Device::Cpu).is_err());
    assert!(matches!(checkpoint.tensor("c", &Device::Cpu), Err(Error::Unsupported { .. })));
    assert!(matches!(checkpoint.dtype("c"), Err(Error::Unsupported { .. })));
}

#[test]
fn a_model_in_several_files_and_a_folder() {
    let folder = tempfile::tempdir().unwrap();
    let mut map = BTreeMap::new();
    for (i, (name, tensor)) in sample().into_iter().enumerate() {
        let shard = format!("part-{}.safetensors", i % 2);
        map.insert(name, shard);
        let _ = tensor;
    }
    for shard in ["part-0.safetensors", "part-1.safetensors"] {
        let members = sample().into_iter().filter(|(name, _)| map[name] == shard);
        save_tensors(folder.path().join(shard), members, &SaveOptions::default()).unwrap();
    }
    let index = folder.path().join("model.safetensors.index.json");
    let write = |map: &BTreeMap<String, String>| {
        std::fs::write(&index, serde_json::json!({"metadata": {"total_size": 1}, "weight_map": map}).to_string())
            .unwrap();
    };
    write(&map);
    for path in [index.as_path(), folder.path()] {
        let checkpoint = Checkpoint::open(path).unwrap();
        assert_eq!(checkpoint.len(), 6);
        assert_eq!(values(&checkpoint, "b.half"), [1., 2.5]);
    }
    for shard in
        ["../model.safetensors.index.json", "/etc/passwd", "", "model.safetensors.index.json", "none.safetensors"]
    {
        let mut map = map.clone();
        map.insert("ids".into(), shard.into());
        write(&map);
        assert!(Checkpoint::open(&index).is_err(), "{shard}");
    }
    map.insert("unknown".into(), "part-0.safetensors".into());
    write(&map);
    assert!(matches!(Checkpoint::open(&index), Err(Error::Corrupt { reason, .. }) if reason.contains("`unknown`")));
}

#[test]
fn files_that_are_something_else_say_so() {
    let folder = tempfile::tempdir().unwrap();
    assert!(matches!(Checkpoint::open(folder.path().join("none.pth")), Err(Error::Io { .. })));
    assert!(matches!(Checkpoint::open(folder.path()), Err(Error::Unsupported { .. })));
    let message = |bytes: &[u8]| Checkpoint::from_bytes(bytes.to_vec(), "file").unwrap_err().to_string();
    assert!(message(b"version https://git-lfs.github.com/spec/v1\n").contains("git lfs pull"));
    assert!(message(b"<!DOCTYPE html>").contains("web page"));
    assert!(message(b"").contains("neither"));
    assert!(message(&zip(&[("a.txt", b"x")])).contains("data.pkl"));
    assert!(message(b"\x80\x02}.").contains("torch.save did not write"));
    std::fs::write(folder.path().join("empty.pth"), b"").unwrap();
    assert!(Checkpoint::open(folder.path().join("empty.pth")).is_err());
}

#[test]
fn a_safetensors_header_as_long_as_another_format_begins_is_safetensors() {
    // 640 is 0x0280, a pickle of protocol 2; 19280 is 0x4b50, `PK` of a zip.
    let folder = tempfile::tempdir().unwrap();
    for length in [640u64, 896, 1152, 1408, 19280] {
        let path = folder.path().join(format!("{length}.safetensors"));
        let tensor = Tensor::new(&[1f32, 2.], &Device::Cpu).unwrap();
        let save = |text: usize| {
            let options = SaveOptions::default().with_metadata("text", "x".repeat(text));
            save_tensors(&path, [("a".to_owned(), tensor.clone())], &options).unwrap();
            let bytes = std::fs::read(&path).unwrap();
            u64::from_le_bytes(*bytes.first_chunk().unwrap())
        };
        let empty = save(0);
        assert_eq!(save((length - empty) as usize), length);
        let checkpoint = Checkpoint::open(&path).unwrap();
        assert_eq!(values(&checkpoint, "a"), [1., 2.]);
    }
}
