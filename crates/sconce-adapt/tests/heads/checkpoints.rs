//! Files of heads: the official code's, and round trips.

use std::path::Path;

use candle_core::{DType, Tensor};
use sconce_adapt::{ClipAdapter, ClipAdapterConfig, CoCoOp, CoOp, Error, PromptConfig, Result, TipAdapter, load_head};
use sconce_nn::{Checkpoint, ParamStore, save_tensors};

use crate::support::{C, CLASSES, CPU, E, both_adapters, bytes, tiny, two_tokens};

/// As CoOp's training code writes it: weights among epoch, optimiser and schedule, the latter with objects in it.
fn official() -> std::path::PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/prompt_learner.pth.tar")
}

#[test]
fn an_official_context_serves_other_classes() -> Result<()> {
    let tiny = tiny(DType::F32)?;
    let cfg = PromptConfig { n_ctx: 4, ..two_tokens() };
    for classes in [&["cat"][..], &["a", "b", "c", "d", "e"]] {
        let store = ParamStore::new(1, DType::F32, CPU);
        let head = CoOp::new(&cfg, &tiny.model, &tiny.tokenizer, classes, store.vb())?;
        assert_eq!(load_head(&store, official())?.loaded, ["ctx"]);
        let ctx = head.ctx.to_vec2::<f32>()?;
        assert_eq!((ctx[0][0], ctx[3][15]), (-0.003_810_000_1, 0.980_563_1));
        assert_eq!(head.logits(&tiny.features(2, 1)?)?.dims(), [2, classes.len()]);
    }
    // Another number of tokens, or a head with more parameters, does not take it, and stays as it was.
    let store = ParamStore::new(1, DType::F32, CPU);
    CoOp::new(&two_tokens(), &tiny.model, &tiny.tokenizer, &CLASSES, store.vb())?;
    let before = bytes(&store)?;
    assert!(load_head(&store, official()).is_err());
    assert_eq!(bytes(&store)?, before);
    let store = ParamStore::new(1, DType::F32, CPU);
    CoCoOp::new(&cfg, &tiny.model, &tiny.tokenizer, &CLASSES, store.vb())?;
    assert!(load_head(&store, official()).is_err());
    Ok(())
}

#[test]
fn a_trained_context_stays_when_other_classes_come() -> Result<()> {
    let tiny = tiny(DType::F32)?;
    let cfg = PromptConfig { ctx_init: Some("a photo of a".into()), ..two_tokens() };
    let store = ParamStore::new(1, DType::F32, CPU);
    let head = CoOp::new(&cfg, &tiny.model, &tiny.tokenizer, &CLASSES, store.vb())?;
    let trained = (&head.ctx + 1.0)?.detach();
    store.set("ctx", &trained)?;
    let other = CoOp::new(&cfg, &tiny.model, &tiny.tokenizer, &["dog", "bird"], store.vb())?;
    assert_eq!(other.ctx.to_vec2::<f32>()?, trained.to_vec2::<f32>()?);
    let cache = TipAdapter::new(&tiny.features(3, 1)?, &[0, 1, 2], 3)?;
    let store = ParamStore::new(1, DType::F32, CPU);
    cache.trainable(store.vb())?;
    store.set("weight", &Tensor::ones((3, E), DType::F32, CPU)?)?;
    assert_eq!(cache.trainable(store.vb())?.keys.to_vec2::<f32>()?, vec![vec![1.0; E]; 3]);
    Ok(())
}

#[test]
fn a_class_specific_context_is_bound_to_its_classes() -> Result<()> {
    let tiny = tiny(DType::F32)?;
    let folder = tempfile::tempdir().map_err(candle_core::Error::wrap)?;
    let path = folder.path().join("ctx.safetensors");
    let cfg = PromptConfig { class_specific: true, ..two_tokens() };
    let store = ParamStore::new(1, DType::F32, CPU);
    CoOp::new(&cfg, &tiny.model, &tiny.tokenizer, &CLASSES, store.vb())?;
    store.save(&path)?;
    let other = ParamStore::new(2, DType::F32, CPU);
    CoOp::new(&cfg, &tiny.model, &tiny.tokenizer, &["dog", "bird"], other.vb())?;
    let found = load_head(&other, &path);
    assert!(matches!(found, Err(Error::OtherClasses { found: 3, classes: 2 })), "{found:?}");
    let unified = ParamStore::new(2, DType::F32, CPU);
    CoOp::new(&two_tokens(), &tiny.model, &tiny.tokenizer, &CLASSES, unified.vb())?;
    assert!(load_head(&unified, &path).is_err());
    let vb = Checkpoint::open(&path)?.vb(DType::F32, CPU);
    assert!(CoOp::new(&cfg, &tiny.model, &tiny.tokenizer, &["dog", "bird"], vb).is_err());
    Ok(())
}

#[test]
fn round_trips_are_exact_in_every_type() -> Result<()> {
    let folder = tempfile::tempdir().map_err(candle_core::Error::wrap)?;
    for dtype in [DType::F32, DType::F64, DType::F16, DType::BF16] {
        let tiny = tiny(dtype)?;
        let build = |store: &ParamStore, head: usize| -> Result<()> {
            let (model, tokenizer, vb) = (&tiny.model, &tiny.tokenizer, store.vb());
            match head {
                0 => CoOp::new(&two_tokens(), model, tokenizer, &CLASSES, vb).map(|_| ()),
                1 => CoCoOp::new(&two_tokens(), model, tokenizer, &CLASSES, vb).map(|_| ()),
                2 => ClipAdapter::new(&both_adapters(), vb).map(|_| ()),
                _ => Ok(TipAdapter::new(&tiny.features(3, 1)?, &[0, 1, 2], 3)?.trainable(vb).map(|_| ())?),
            }
        };
        for head in 0..4 {
            let path = folder.path().join(format!("{head}-{dtype:?}.safetensors"));
            let store = ParamStore::new(1, dtype, CPU);
            build(&store, head)?;
            store.save(&path)?;
            let other = ParamStore::new(2, dtype, CPU);
            build(&other, head)?;
            load_head(&other, &path)?;
            assert_eq!(bytes(&other)?, bytes(&store)?, "{head} {dtype:?}");
        }
    }
    Ok(())
}

#[test]
fn the_released_clip_adapter_has_its_names() -> Result<()> {
    let folder = tempfile::tempdir().map_err(candle_core::Error::wrap)?;
    let path = folder.path().join("clip_adapter.safetensors");
    let layer = |shape: (usize, usize)| Tensor::ones(shape, DType::F32, CPU);
    let tensors =
        [("module.fc.0.weight".to_owned(), layer((8, E))?), ("module.fc.2.weight".to_owned(), layer((E, 8))?)];
    save_tensors(&path, tensors, &Default::default())?;
    let store = ParamStore::new(1, DType::F32, CPU);
    let cfg = ClipAdapterConfig { text_ratio: None, ..both_adapters() };
    let head = ClipAdapter::new(&cfg, store.vb())?;
    load_head(&store, &path)?;
    let visual = head.visual.expect("an adapter of images");
    assert_eq!(visual.up.weight.sum_all()?.to_scalar::<f32>()?, (E * 8) as f32);
    for cfg in [
        ClipAdapterConfig { reduction: 0, ..cfg },
        ClipAdapterConfig { reduction: E + 1, ..cfg },
        ClipAdapterConfig { visual_ratio: None, ..cfg },
        ClipAdapterConfig { visual_ratio: Some(f64::NAN), ..cfg },
    ] {
        assert!(ClipAdapter::new(&cfg, ParamStore::new(1, DType::F32, CPU).vb()).is_err(), "{cfg:?}");
    }
    assert_eq!(C * 2, E);
    Ok(())
}
