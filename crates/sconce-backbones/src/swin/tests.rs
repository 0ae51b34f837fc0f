use std::sync::Arc;

use candle_core::{DType, Device, IndexOp, Result, Tensor};
use sconce_attention::{GlobalAttention, GlobalAttentionConfig, TokenLayout, TokenMixer, broad_attention};
use sconce_nn::{DropPath, Generator, LayerNorm, Module, ModuleT, ParamStore, SaveOptions, save_tensors};

use super::*;
use crate::{Backbone, BackboneConfig, pretrained};

fn store() -> ParamStore {
    ParamStore::new(1, DType::F32, &Device::Cpu)
}

fn normal(seed: u64, shape: &[usize]) -> Tensor {
    Generator::new(seed).normal(0.0, 1.0, shape, DType::F32, &Device::Cpu).unwrap()
}

fn distance(a: &Tensor, b: &Tensor) -> f32 {
    assert_eq!(a.dims(), b.dims());
    (a - b).unwrap().abs().unwrap().flatten_all().unwrap().max(0).unwrap().to_scalar().unwrap()
}

fn named(store: &ParamStore) -> Vec<(String, Tensor)> {
    store.iter().map(|p| (p.name.to_string(), p.var.as_detached_tensor())).collect()
}

/// Loads tensors strictly as a file of the model and says which were resized.
fn load(cfg: &Config, tensors: Vec<(String, Tensor)>) -> (SwinTransformer, Vec<String>) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.safetensors");
    save_tensors(&path, tensors, &SaveOptions::default()).unwrap();
    let record = crate::Pretrained { config: BackboneConfig::Swin(cfg.clone()), ..pretrained("test_swin").unwrap() };
    let store = ParamStore::new(2, DType::F32, &Device::Cpu);
    let model = SwinTransformer::new(cfg, store.vb()).unwrap();
    let report = store.load(&record.open(&path).unwrap(), &record.load_options()).unwrap();
    assert_eq!(report.loaded.len(), store.names().len(), "{report}");
    (model, report.resized)
}

#[test]
fn files_of_both_flavours_are_read_with_what_they_hold_beyond() {
    let (cfg, store) = (Config::test_swin(), store());
    let model = SwinTransformer::new(&cfg, store.vb()).unwrap();
    let xs = normal(3, &[1, 3, 32, 32]);
    let ys = model.forward_t(&xs, false).unwrap();

    let mut official = named(&store);
    let index = Tensor::zeros((16, 16), DType::I64, &Device::Cpu).unwrap();
    official.push(("layers.0.blocks.0.attn.relative_position_index".into(), index));
    official.push(("layers.0.blocks.1.attn_mask".into(), normal(1, &[4, 16, 16])));
    let official: Vec<_> = official.into_iter().map(|(name, t)| (format!("model.{name}"), t)).collect();
    assert_eq!(distance(&ys, &load(&cfg, official.clone()).0.forward_t(&xs, false).unwrap()), 0.0);

    let rename = |name: String| {
        name.replace("layers.0.downsample", "layers.1.downsample").replace("head.", "head.fc.").replace("model.", "")
    };
    let timm: Vec<_> = official.into_iter().map(|(name, t)| (rename(name), t)).collect();
    assert!(timm.iter().any(|(name, _)| name == "layers.1.downsample.norm.weight"));
    assert_eq!(distance(&ys, &load(&cfg, timm.clone()).0.forward_t(&xs, false).unwrap()), 0.0);

    // Without classifier, from files with one and, of timm's, also from one without.
    let bare = Config { num_classes: 0, ..cfg };
    let features = model.forward_head(&model.forward_features(&xs, false).unwrap(), true, false).unwrap();
    let headless = timm.iter().filter(|(name, _)| !name.starts_with("head.")).cloned().collect();
    for tensors in [timm, headless] {
        assert_eq!(distance(&features, &load(&bare, tensors).0.forward_t(&xs, false).unwrap()), 0.0);
    }
}

#[test]
fn tables_and_positions_follow_the_size_on_loading() {
    let (small, store) = (Config { ape: true, window_size: 2, ..Config::test_swin() }, store());
    SwinTransformer::new(&small, store.vb()).unwrap();
    let large = Config { img_size: [64, 48], window_size: 4, ..small };
    let (model, resized) = load(&large, named(&store));
    assert_eq!(resized.len(), 5, "{resized:?}");
    assert!(model.forward_t(&normal(1, &[1, 3, 64, 48]), false).is_ok());
}

#[test]
fn parameters_start_as_in_the_official_code() {
    let store = store();
    SwinTransformer::new(
        &Config { embed_dim: 64, num_heads: vec![2, 4], ape: true, ..Config::test_swin() },
        store.vb(),
    )
    .unwrap();
    let values = |name: &str| -> Vec<f32> { store.get(name).unwrap().flatten_all().unwrap().to_vec1().unwrap() };
    let std = |v: &[f32]| (v.iter().map(|x| x * x).sum::<f32>() / v.len() as f32).sqrt();
    let block = "layers.1.blocks.1";
    for name in ["attn.qkv.weight", "attn.proj.weight", "mlp.fc1.weight", "attn.relative_position_bias_table"] {
        let found = std(&values(&format!("{block}.{name}")));
        assert!((found / 0.02 - 1.0).abs() < 0.15, "{name}: {found}");
    }
    for name in ["layers.0.downsample.reduction.weight", "absolute_pos_embed", "head.weight"] {
        let found = std(&values(name));
        assert!((found / 0.02 - 1.0).abs() < 0.1, "{name}: {found}");
    }
    assert!(values(&format!("{block}.attn.qkv.bias")).iter().all(|v| *v == 0.0));
    assert!(values("norm.weight").iter().all(|v| *v == 1.0));
}

#[test]
fn a_second_mixer_stands_between_attention_and_mlp_and_is_never_dropped() {
    /// Twice its input.
    #[derive(Debug)]
    struct Twice;
    impl TokenMixer for Twice {
        fn forward_t(&self, xs: &Tensor, _: bool) -> Result<Tensor> {
            xs * 2.0
        }
    }
    let mut block = SwinTransformer::new(&Config::test_swin(), store().vb()).unwrap().layers[0].blocks[1].clone();
    let (xs, layout) = (normal(1, &[2, 64, 16]), TokenLayout { prefix: 0, height: 8, width: 8 });
    block.content = Some(Content { norm4: LayerNorm::plain(1e-5), attn_c: Arc::new(Twice) });
    let ys = block.forward_layout(&xs, layout, false).unwrap();
    let first = (&xs + block.attn.forward_layout(&block.norm1.forward(&xs).unwrap(), layout, false).unwrap()).unwrap();
    let second = (&first + (LayerNorm::plain(1e-5).forward(&first).unwrap() * 2.0).unwrap()).unwrap();
    let third = (&second + block.mlp.forward_t(&block.norm2.forward(&second).unwrap(), false).unwrap()).unwrap();
    assert!(distance(&ys, &third) < 1e-5);
    // With everything dropped that can be, the second mixer remains.
    (block.drop_path1, block.drop_path2) = (DropPath::new(0.999), DropPath::new(0.999));
    let ys = Generator::new(1).scope(|| block.forward_layout(&xs, layout, true)).unwrap();
    let alone = (&xs + (LayerNorm::plain(1e-5).forward(&xs).unwrap() * 2.0).unwrap()).unwrap();
    assert!(distance(&ys, &alone) < 1e-5);
}

#[test]
fn blocks_take_another_mixer_and_are_told_their_place() {
    let seen = std::cell::RefCell::new(vec![]);
    let model = SwinTransformer::with_mixer(&Config::test_swin(), store().vb(), |spec, vb| {
        seen.borrow_mut().push((spec.block, spec.stage, spec.stage_block, spec.dim, spec.heads, spec.layout.len()));
        Ok(Arc::new(GlobalAttention::new(&GlobalAttentionConfig::from(spec), vb)?))
    });
    assert_eq!(model.unwrap().forward_t(&normal(1, &[1, 3, 32, 32]), false).unwrap().dims(), [1, 10]);
    assert_eq!(
        *seen.borrow(),
        [(0, 0, 0, 16, 2, 64), (1, 0, 1, 16, 2, 64), (2, 1, 0, 32, 4, 16), (3, 1, 1, 32, 4, 16)]
    );
}

#[test]
fn odd_maps_are_merged_with_zeros() {
    let store = store();
    let merging = PatchMerging::new(2, 1e-5, store.vb()).unwrap();
    let xs = normal(1, &[1, 15, 2]);
    let (ys, layout) = merging.forward_layout(&xs, TokenLayout { prefix: 0, height: 3, width: 5 }).unwrap();
    assert_eq!(layout, TokenLayout { prefix: 0, height: 2, width: 3 });
    // The last token of the first row: (0, 4) and (1, 4) above each other, nothing right of them.
    let at = |y: usize, x: usize| xs.i((0, y * 5 + x)).unwrap();
    let zeros = Tensor::zeros(4, DType::F32, &Device::Cpu).unwrap();
    let four = Tensor::cat(&[at(0, 4), at(1, 4), zeros], 0).unwrap().unsqueeze(0).unwrap();
    let expected = merging.reduction.forward(&merging.norm.forward(&four).unwrap()).unwrap();
    assert!(distance(&ys.i((0, 2..3)).unwrap(), &expected) < 1e-6);
}

#[test]
fn the_broad_connection_works_in_windows_of_the_picture() {
    let cfg = Config { drop_path_rate: 0.0, ..Config::test_swin_broad() };
    let mut model = SwinTransformer::new(&cfg, store().vb()).unwrap();
    let (xs, layout) = (normal(1, &[1, 64, 16]), TokenLayout { prefix: 0, height: 8, width: 8 });
    let stage = &mut model.layers[0];
    let ys = stage.forward_blocks(&xs, layout, false).unwrap();
    let (mut plain, mut layers) = (xs.clone(), vec![]);
    for block in &stage.blocks {
        let (next, qkv) = block.forward_qkv(&plain, layout, false).unwrap();
        layers.push(qkv.unwrap());
        plain = next;
    }
    let found = ((&ys - &plain).unwrap() / 0.4).unwrap().reshape((8, 8, 16)).unwrap();
    // The window on the top right, cut by hand.
    let window = |t: &Tensor| {
        let t = t.reshape((1, 2, 8, 8, 8)).unwrap(); // (B, heads, rows, columns, D)
        t.narrow(2, 0, 4).unwrap().narrow(3, 4, 4).unwrap().reshape((1, 2, 16, 8)).unwrap()
    };
    for qkv in &mut layers {
        (qkv.q, qkv.k, qkv.v) = (window(&qkv.q), window(&qkv.k), window(&qkv.v));
    }
    let expected = broad_attention(&layers, 16).unwrap().reshape((4, 4, 16)).unwrap();
    assert!(distance(&found.narrow(0, 0, 4).unwrap().narrow(1, 4, 4).unwrap(), &expected) < 1e-5);

    stage.broad = None;
    assert_eq!(distance(&stage.forward_blocks(&xs, layout, false).unwrap(), &plain), 0.0);
    let last = Config { broad: Some(Broad::default()), ..cfg };
    assert!(last.stage_broad(0).is_none() && last.stage_broad(1).is_some());
}

#[test]
fn half_precision_flows() {
    for (dtype, name) in
        [(DType::BF16, "test_swin_broad"), (DType::F16, "test_swin_ape"), (DType::BF16, "test_bvit_stem")]
    {
        let store = ParamStore::new(1, dtype, &Device::Cpu);
        let model = pretrained(name).unwrap().config.build(store.vb()).unwrap();
        let ys = model.forward_t(&normal(1, &[2, 3, 32, 32]).to_dtype(dtype).unwrap(), true).unwrap();
        assert_eq!(ys.dtype(), dtype);
        let sum = ys.to_dtype(DType::F32).unwrap().sum_all().unwrap().to_scalar::<f32>().unwrap();
        assert!(sum.is_finite(), "{name}");
        let grads = ys.sum_all().unwrap().backward().unwrap();
        assert!(store.parameters().iter().all(|p| grads.get(p.var.as_tensor()).is_some()), "{name}");
    }
}

#[test]
fn options_that_contradict_each_other_are_refused() {
    for bad in [
        Config { depths: vec![], num_heads: vec![], ..Config::test_swin() },
        Config { num_heads: vec![2], ..Config::test_swin() },
        Config { num_heads: vec![3, 4], ..Config::test_swin() },
        Config { num_heads: vec![0, 4], ..Config::test_swin() },
        Config { window_size: 0, ..Config::test_swin() },
        Config { patch_size: 0, ..Config::test_swin() },
        Config { embed_dim: 0, ..Config::test_swin() },
        Config { embed_dim: 1 << (usize::BITS - 2), ..Config::test_swin() },
        Config { img_size: [3, 32], ..Config::test_swin() },
        Config { img_size: [usize::MAX; 2], ..Config::test_swin() },
    ] {
        assert!(SwinTransformer::new(&bad, store().vb()).is_err(), "{bad:?}");
    }
    let model = SwinTransformer::new(&Config::test_swin(), store().vb()).unwrap();
    let error = model.forward_t(&normal(1, &[1, 3, 30, 32]), false).unwrap_err().to_string();
    assert!(error.contains("30 x 32"), "{error}");
}
