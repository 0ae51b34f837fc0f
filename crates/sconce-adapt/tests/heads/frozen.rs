//! Training moves what a head learns, all of it, and nothing else.

use candle_core::{DType, Tensor};
use sconce_adapt::{
    ClassPosition, ClipAdapter, ClipAdapterConfig, CoCoOp, CoOp, FitConfig, FitOptions, PromptConfig, Result,
    TipAdapter, fit, templates,
};
use sconce_nn::ParamStore;

use crate::support::{CLASSES, CPU, E, Tiny, both_adapters, bytes, tiny, two_tokens};

/// Scores of features.
type Logits = Box<dyn Fn(&Tensor) -> candle_core::Result<Tensor>>;

/// Builds a head in a store, trains it, and compares bytes.
fn only_these_move(names: &[&str], build: impl FnOnce(&Tiny, &ParamStore) -> Result<Logits>) -> Result<()> {
    let tiny = tiny(DType::F32)?;
    let (features, labels) = (tiny.features(6, 3)?, Tensor::new(&[0u32, 1, 2, 0, 1, 2], CPU)?);
    let store = ParamStore::new(5, DType::F32, CPU);
    let logits = build(&tiny, &store)?;
    assert_eq!(store.names(), names);
    let (towers, head) = (bytes(&tiny.towers)?, bytes(&store)?);
    let inputs = features.to_vec2::<f32>()?;
    let cfg = FitConfig { epochs: 2, batch_size: 3, lr: 0.1, ..FitConfig::default() };
    let report = fit(&store, &features, &labels, &cfg, &FitOptions::default(), logits)?;
    assert_eq!(report.history.len(), 2);
    assert!(bytes(&tiny.towers)? == towers, "a tower has changed");
    assert_eq!(features.to_vec2::<f32>()?, inputs);
    for (before, after) in head.iter().zip(bytes(&store)?) {
        assert_ne!(*before, after, "{} was not trained", before.0);
    }
    Ok(())
}

#[test]
fn coop_moves_its_context() -> Result<()> {
    for (class_specific, position) in [(false, ClassPosition::End), (true, ClassPosition::Middle)] {
        let cfg = PromptConfig { class_specific, position, ..two_tokens() };
        only_these_move(&["ctx"], |tiny, store| {
            let head = CoOp::new(&cfg, &tiny.model, &tiny.tokenizer, &CLASSES, store.vb())?;
            Ok(Box::new(move |xs| head.logits(xs)))
        })?;
    }
    Ok(())
}

#[test]
fn cocoop_moves_its_context_and_its_small_network() -> Result<()> {
    let network = ["linear1.weight", "linear1.bias", "linear2.weight", "linear2.bias"].map(|n| format!("meta_net.{n}"));
    let names: Vec<&str> = std::iter::once("ctx").chain(network.iter().map(String::as_str)).collect();
    only_these_move(&names, |tiny, store| {
        let head = CoCoOp::new(&two_tokens(), &tiny.model, &tiny.tokenizer, &CLASSES, store.vb())?;
        Ok(Box::new(move |xs| head.logits(xs)))
    })
}

#[test]
fn clip_adapter_moves_its_layers() -> Result<()> {
    let build = |cfg: ClipAdapterConfig| {
        move |tiny: &Tiny, store: &ParamStore| -> Result<Logits> {
            let texts = templates::class_weights(&tiny.model, &tiny.tokenizer, &CLASSES, templates::PHOTO)?;
            let (head, scale) = (ClipAdapter::new(&cfg, store.vb())?, tiny.model.scale()?);
            Ok(Box::new(move |xs: &Tensor| head.logits(xs, &texts, &scale)))
        }
    };
    let released = ClipAdapterConfig { text_ratio: None, ..both_adapters() };
    only_these_move(&["fc.0.weight", "fc.2.weight"], build(released))?;
    let layers = ["visual_adapter.fc.0.weight", "visual_adapter.fc.2.weight"];
    let texts = ["text_adapter.fc.0.weight", "text_adapter.fc.2.weight"];
    only_these_move(&[layers, texts].concat(), build(both_adapters()))?;
    only_these_move(&texts, build(ClipAdapterConfig { visual_ratio: None, ..both_adapters() }))
}

#[test]
fn tip_adapter_moves_its_keys() -> Result<()> {
    only_these_move(&["weight"], |tiny, store| {
        let cache = TipAdapter::new(&tiny.features(4, 9)?, &[0, 1, 2, 1], 3)?;
        let trained = cache.trainable(store.vb())?;
        assert_eq!(trained.keys.to_vec2::<f32>()?, cache.keys.to_vec2::<f32>()?);
        let texts = Tensor::zeros((3, E), DType::F32, CPU)?;
        Ok(Box::new(move |xs| trained.logits(&xs.matmul(&texts.t()?)?, xs, 1.17, 1.0)))
    })
}
