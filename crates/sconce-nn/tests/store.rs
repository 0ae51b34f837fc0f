//! The parameter store: determinism, groups, saving and loading.

use candle_core::{DType, Device, Module, ModuleT, Tensor};
use sconce_nn::*;

const CPU: &Device = &Device::Cpu;

struct Net {
    fc1: Linear,
    norm: BatchNorm,
    head: Linear,
}

impl Net {
    fn new(vb: VarBuilder) -> candle_core::Result<Self> {
        Ok(Self {
            fc1: linear(4, 3, vb.pp("body.fc1"))?,
            norm: batch_norm(3, vb.pp("body.norm"))?,
            head: linear(3, 2, vb.pp("head"))?,
        })
    }

    fn forward(&self, xs: &Tensor) -> candle_core::Result<Tensor> {
        self.head.forward(&self.norm.forward_t(&self.fc1.forward(xs)?, true)?)
    }
}

fn net(seed: u64) -> (ParamStore, Net) {
    let store = ParamStore::new(seed, DType::F32, CPU);
    let net = Net::new(store.vb()).unwrap();
    (store, net)
}

fn values(store: &ParamStore) -> Vec<(String, Vec<u32>)> {
    let bits = |p: &Param| p.var.flatten_all().unwrap().to_vec1::<f32>().unwrap().iter().map(|x| x.to_bits()).collect();
    store.iter().map(|p| (p.name.to_string(), bits(&p))).collect()
}

#[test]
fn the_same_seed_gives_the_same_bits_in_any_order() {
    let (a, _) = net(1);
    assert_eq!(values(&a), values(&net(1).0));
    assert_ne!(values(&a), values(&net(2).0));
    // Built backwards, among other parameters, and from another thread.
    let b = ParamStore::new(1, DType::F32, CPU);
    let store = b.clone();
    let build = move || {
        linear(9, 9, store.vb().pp("other")).unwrap();
        linear(3, 2, store.vb().pp("head")).unwrap();
        linear(4, 3, store.vb().pp("body").pp("fc1")).unwrap();
    };
    std::thread::spawn(build).join().unwrap();
    let of = |store: &ParamStore, name: &str| store.get(name).unwrap().flatten_all().unwrap().to_vec1::<f32>().unwrap();
    for name in ["head.weight", "head.bias", "body.fc1.weight"] {
        assert_eq!(of(&a, name), of(&b, name), "{name}");
    }
    // Equal shapes under other names are other draws.
    assert_ne!(of(&a, "head.weight")[0], of(&a, "body.fc1.weight")[0]);
}

#[test]
fn names_counts_groups_and_freezing() {
    let (store, _) = net(1);
    let names = [
        "body.fc1.weight",
        "body.fc1.bias",
        "body.norm.weight",
        "body.norm.bias",
        "body.norm.running_mean",
        "body.norm.running_var",
        "head.weight",
        "head.bias",
    ];
    assert_eq!(store.names(), names);
    assert_eq!((store.count(), store.count_trainable()), (12 + 3 + 6 + 6 + 2, 29));
    assert_eq!(store.buffers().len(), 2);
    let group = |pattern: &str| store.group(pattern).iter().map(|p| p.name.to_string()).collect::<Vec<_>>();
    assert_eq!(group("*.bias"), ["body.fc1.bias", "body.norm.bias", "head.bias"]);
    assert_eq!(group("body.*.weight"), ["body.fc1.weight", "body.norm.weight"]);
    assert!(group("nothing").is_empty());

    assert_eq!(store.freeze("body.*").unwrap(), 4);
    assert_eq!((store.count(), store.count_trainable(), store.vars().len()), (29, 8, 2));
    assert_eq!(store.unfreeze("*.norm.*").unwrap(), 2);
    assert_eq!(store.count_trainable(), 14);
    match store.freeze("haed.*") {
        Err(Error::NoMatch { pattern, names }) => assert_eq!((pattern.as_str(), names.len()), ("haed.*", 8)),
        other => panic!("{other:?}"),
    }
    // Buffers are no parameters.
    assert!(store.freeze("*running_mean").is_err());
}

#[test]
fn fixed_parameters_get_no_gradient_and_follow_the_store() {
    let store = ParamStore::new(1, DType::F32, CPU);
    let fixed = linear(4, 3, store.vb_fixed().pp("fixed")).unwrap();
    let head = linear(3, 2, store.vb().pp("head")).unwrap();
    assert_eq!((store.parameters().len(), store.count(), store.count_trainable()), (2, 23, 8));
    let xs = Tensor::ones((2, 4), DType::F32, CPU).unwrap();
    let forward = || head.forward(&fixed.forward(&xs).unwrap()).unwrap();
    let gradients = forward().sum_all().unwrap().backward().unwrap();
    assert!(gradients.get(&store.get("head.weight").unwrap()).is_some());
    assert!(gradients.get(&store.get("fixed.weight").unwrap()).is_none());
    assert!(!fixed.weight.track_op());
    store.set("fixed.weight", &Tensor::zeros((3, 4), DType::F32, CPU).unwrap()).unwrap();
    assert_eq!(fixed.weight.sqr().unwrap().sum_all().unwrap().to_scalar::<f32>().unwrap(), 0.);
    assert!(matches!(store.unfreeze("*"), Err(Error::NotTrainable { name }) if name == "fixed.weight"));
    // A second request, tracked or not, gets the same values.
    let again = linear(4, 3, store.vb().pp("fixed")).unwrap();
    assert!(!again.weight.track_op());
    let teacher = linear(3, 2, store.vb_fixed().pp("head")).unwrap();
    assert!(!teacher.weight.track_op());
    assert_eq!(store.names().len(), 4);
}

#[test]
fn frozen_parameters_count_and_rest_and_custom_initialisers_are_held_to_the_shape() {
    use candle_core::Shape;
    let ramp =
        |shape: &Shape, _: &Generator| Tensor::arange(0f64, shape.elem_count() as f64, CPU)?.reshape(shape.clone());
    let custom = |draw| Init::Custom(CustomInit { name: "ramp", draw, nearest: candle_nn::Init::Const(0.0) });
    let store = ParamStore::new(1, DType::F32, CPU);
    let vb = store.vb();
    let frozen = init::frozen(&vb, (2, 3), "features", custom(ramp)).unwrap();
    let weight = init::param(&vb, (2, 3), "weight", Init::Ones).unwrap();
    let buffer = init::buffer_with(&vb, 3, "matrix", custom(ramp)).unwrap();
    assert_eq!(frozen.to_vec2::<f32>().unwrap(), [[0., 1., 2.], [3., 4., 5.]]);
    assert_eq!(buffer.to_vec1::<f32>().unwrap(), [0., 1., 2.]);
    assert_eq!((store.count(), store.count_trainable()), (12, 6));
    let grads = (frozen.clone() * &weight).unwrap().sum_all().unwrap().backward().unwrap();
    assert!(grads.get(&weight).is_some());
    assert!(grads.get(store.get("features").unwrap().as_tensor()).is_none());
    // A load is seen by the model all the same.
    store.set("features", &Tensor::ones((2, 3), DType::F32, CPU).unwrap()).unwrap();
    assert_eq!(frozen.to_vec2::<f32>().unwrap(), [[1.; 3]; 2]);
    let wrong = |_: &Shape, _: &Generator| Tensor::zeros(1, DType::F32, CPU);
    let error = init::param(&vb, (2, 3), "other", custom(wrong)).unwrap_err().to_string();
    assert!(error.contains("ramp") && error.contains("[2, 3]"), "{error}");
}

#[test]
fn a_second_request_shares_and_another_shape_is_refused() {
    let (store, net) = net(1);
    let again = linear(4, 3, store.vb().pp("body.fc1")).unwrap();
    store.set("body.fc1.bias", &Tensor::new(&[1f64, 2., 3.], CPU).unwrap()).unwrap();
    for layer in [&net.fc1, &again] {
        assert_eq!(layer.bias.as_ref().unwrap().to_vec1::<f32>().unwrap(), [1., 2., 3.]);
    }
    let error = linear(5, 3, store.vb().pp("body.fc1")).unwrap_err().to_string();
    assert!(error.contains("`body.fc1.weight`: expected shape [3, 5], found [3, 4]"), "{error}");
    assert!(matches!(store.set("no", &Tensor::new(1f32, CPU).unwrap()), Err(Error::Missing { .. })));
    assert!(matches!(store.set("head.bias", &Tensor::new(1f32, CPU).unwrap()), Err(Error::Shape { .. })));
    assert!(store.vb().get_unchecked("head.bias").is_ok());
    assert!(store.vb().get_unchecked("head.none").is_err());
    assert!(store.vb().contains_tensor("head.bias") && !store.vb().contains_tensor("x"));
    // Other types on request.
    assert_eq!(store.vb().to_dtype(DType::F64).get(2, "head.bias").unwrap().dtype(), DType::F64);
}

#[test]
fn save_and_load_is_exact_and_makes_models_equal() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("net.safetensors");
    let (trained, net_a) = net(1);
    let xs = Generator::new(5).normal(0., 1., (6, 4), DType::F32, CPU).unwrap();
    net_a.forward(&xs).unwrap(); // moves the running statistics
    trained.save_with(&path, &SaveOptions::default().with_metadata("epoch", "3")).unwrap();
    let checkpoint = Checkpoint::open(&path).unwrap();
    assert_eq!(checkpoint.metadata()["epoch"], "3");
    let (other, net_b) = net(2);
    let report = other.load(&checkpoint, &LoadOptions::default()).unwrap();
    assert!(report.is_clean());
    assert_eq!(report.loaded, other.names());
    assert_eq!(values(&trained), values(&other));
    let output = |net: &Net| net.forward(&xs).unwrap().flatten_all().unwrap().to_vec1::<f32>().unwrap();
    assert_eq!(output(&net_a), output(&net_b));
    // A save over the mapped file does not disturb it.
    other.save(&path).unwrap();
    assert_eq!(checkpoint.metadata()["epoch"], "3");
    assert!(checkpoint.tensor("head.weight", CPU).is_ok());
    // The same weights as constants.
    let frozen = Net::new(checkpoint.vb(DType::F32, CPU)).unwrap();
    assert_eq!(output(&frozen), output(&net_a));
}

#[test]
fn snapshots_are_copies() {
    let (store, _) = net(1);
    let before = values(&store);
    let snapshot = store.snapshot().unwrap();
    assert_eq!(snapshot.iter().map(|(name, _)| name).collect::<Vec<_>>(), store.names());
    for param in store.iter() {
        store.set(&param.name, &param.var.affine(2., 1.).unwrap()).unwrap();
    }
    assert_ne!(values(&store), before);
    store.restore(&snapshot).unwrap();
    assert_eq!(values(&store), before);
}

fn checkpoint(tensors: &[(&str, &[usize])]) -> Checkpoint {
    let tensor = |dims: &[usize]| Tensor::ones(dims, DType::F32, CPU).unwrap();
    Checkpoint::from_tensors(tensors.iter().map(|(name, dims)| (name.to_string(), tensor(dims))))
}

#[test]
fn a_strict_load_changes_nothing_unless_everything_fits() {
    let (store, _) = net(1);
    let before = values(&store);
    let file = checkpoint(&[
        ("body.fc1.weight", &[3, 4]),
        ("body.fc1.bias", &[3]),
        ("body.norm.weight", &[3]),
        ("body.norm.bias", &[3]),
        ("body.norm.running_mean", &[3]),
        ("body.norm.num_batches_tracked", &[]),
        ("head.weight", &[10, 3]),
        ("head.bias", &[2]),
        ("extra", &[1]),
    ]);
    let expected = LoadReport {
        missing: vec!["body.norm.running_var".into()],
        unexpected: vec!["extra".into()],
        mismatched: vec![Mismatch { name: "head.weight".into(), expected: vec![2, 3], found: vec![10, 3] }],
        ..Default::default()
    };
    match store.load(&file, &LoadOptions::default()) {
        Err(Error::Load(report)) => assert_eq!(*report, expected),
        other => panic!("{other:?}"),
    }
    assert_eq!(values(&store), before);

    let report = store.load(&file, &LoadOptions::lenient()).unwrap();
    assert_eq!(
        (&report.missing, &report.unexpected, &report.mismatched),
        (&expected.missing, &expected.unexpected, &expected.mismatched)
    );
    assert_eq!(report.loaded.len(), 6);
    let text = report.to_string();
    for part in [
        "loaded 6 tensors",
        "1 missing from the file:\n  body.norm.running_var",
        "head.weight: expected [2, 3], found [10, 3]",
    ] {
        assert!(text.contains(part), "{text}");
    }
    assert_eq!(store.get("head.bias").unwrap().to_vec1::<f32>().unwrap(), [1., 1.]);
    assert_eq!(store.get("body.norm.running_var").unwrap().to_vec1::<f32>().unwrap(), [1., 1., 1.]);

    let options = LoadOptions::default().ignore("head.*").ignore("extra").ignore("*running_var");
    assert!(store.load(&file, &options).unwrap().is_clean());
}

#[test]
fn a_long_report_is_cut() {
    let report = LoadReport { missing: (0..30).map(|i| format!("m{i}")).collect(), ..Default::default() };
    let text = report.to_string();
    assert!(text.contains("m19") && !text.contains("m20") && text.contains("and 10 more"), "{text}");
}

#[test]
fn resize_hooks_and_key_maps_take_part_in_loading() {
    let store = ParamStore::new(1, DType::F32, CPU);
    let vb = store.vb();
    init::param(&vb, (1, 10, 2), "pos_embed", Init::Zeros).unwrap();
    init::param(&vb, (2, 3), "proj", Init::Zeros).unwrap();
    init::param(&vb, (4, 2), "qk", Init::Zeros).unwrap();
    let file = checkpoint(&[("pos", &[1, 5, 2]), ("projection.weight", &[3, 2]), ("q", &[2, 2]), ("k", &[2, 2])]);
    let file = file.with_map(|name: &str| match name {
        "pos_embed" => Source::Tensor("pos".into()),
        "proj" => Source::Transposed("projection.weight".into()),
        _ => Source::Concat { names: vec!["q".into(), "k".into()], dim: 0 },
    });
    assert!(matches!(store.load(&file, &LoadOptions::default()), Err(Error::Load(_))));
    let options = LoadOptions::default().resize(|_, _, _| Ok(None)).resize(|name, tensor, wanted| match name {
        "pos_embed" => pos_embed::resample_timm(tensor, 1, (3, wanted[1] / 3)).map(Some),
        _ => Ok(None),
    });
    let report = store.load(&file, &options).unwrap();
    assert_eq!((report.loaded.len(), &report.resized[..]), (3, &["pos_embed".to_string()][..]));
    let sum = |name: &str| store.get(name).unwrap().sum_all().unwrap().to_scalar::<f32>().unwrap();
    assert!((sum("pos_embed") - 20.).abs() < 1e-5);
    assert_eq!((sum("proj"), sum("qk")), (6., 8.));
}
