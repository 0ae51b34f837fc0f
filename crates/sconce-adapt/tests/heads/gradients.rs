//! Gradients against central differences in double precision.

use candle_core::{DType, Tensor};
use sconce_adapt::{ClassPosition, ClipAdapter, CoCoOp, CoOp, PromptConfig, Result, TipAdapter};
use sconce_nn::ParamStore;
use sconce_ops::{Generator, cross_entropy};

use crate::support::{CLASSES, CPU, both_adapters, tiny, two_tokens};

fn check(store: &ParamStore, logits: impl Fn() -> candle_core::Result<Tensor>) -> Result<()> {
    // Away from the start, where contexts are next to nothing.
    let generator = Generator::new(11);
    for param in store.parameters() {
        let noise = generator.normal(0.0, 0.3, param.var.shape(), DType::F64, CPU)?;
        param.var.set(&(param.var.as_tensor() + noise)?)?;
    }
    let labels = Tensor::new(&[2u32, 0], CPU)?;
    let loss = || cross_entropy(&logits()?, &labels, 0.0);
    let grads = loss()?.backward()?;
    for param in store.parameters() {
        let found = grads.get(param.var.as_tensor()).expect("a gradient").flatten_all()?.to_vec1::<f64>()?;
        let values = param.var.as_tensor().flatten_all()?.to_vec1::<f64>()?;
        let largest = found.iter().fold(0.0f64, |most, g| most.max(g.abs()));
        assert!(largest > 0.0, "{} has no gradient", param.name);
        for (i, &gradient) in found.iter().enumerate() {
            let at = |h: f64| -> Result<f64> {
                let mut moved = values.clone();
                moved[i] += h;
                param.var.set(&Tensor::from_vec(moved, param.var.shape(), CPU)?)?;
                Ok(loss()?.to_scalar::<f64>()?)
            };
            let numeric = (at(1e-5)? - at(-1e-5)?) / 2e-5;
            assert!((gradient - numeric).abs() < 1e-6 * largest + 1e-9, "{} {i}: {gradient} {numeric}", param.name);
        }
        param.var.set(&Tensor::from_vec(values, param.var.shape(), CPU)?)?;
    }
    Ok(())
}

#[test]
fn of_contexts() -> Result<()> {
    let tiny = tiny(DType::F64)?;
    let images = tiny.features(2, 3)?;
    for position in [ClassPosition::End, ClassPosition::Middle, ClassPosition::Front] {
        for class_specific in [false, true] {
            let cfg = PromptConfig { class_specific, position, ..two_tokens() };
            let store = ParamStore::new(5, DType::F64, CPU);
            let head = CoOp::new(&cfg, &tiny.model, &tiny.tokenizer, &CLASSES, store.vb())?;
            check(&store, || head.logits(&images))?;
        }
    }
    Ok(())
}

#[test]
fn of_contexts_and_the_network_that_shifts_them() -> Result<()> {
    let tiny = tiny(DType::F64)?;
    let images = tiny.features(2, 3)?;
    let store = ParamStore::new(5, DType::F64, CPU);
    let head = CoCoOp::new(&two_tokens(), &tiny.model, &tiny.tokenizer, &CLASSES, store.vb())?;
    check(&store, || head.logits(&images))
}

#[test]
fn of_adapters_and_keys() -> Result<()> {
    let tiny = tiny(DType::F64)?;
    let (images, texts) = (tiny.features(2, 3)?, tiny.features(3, 4)?);
    let store = ParamStore::new(5, DType::F64, CPU);
    let head = ClipAdapter::new(&both_adapters(), store.vb())?;
    check(&store, || head.logits(&images, &texts, &tiny.model.scale()?))?;
    let store = ParamStore::new(5, DType::F64, CPU);
    let trained = TipAdapter::new(&tiny.features(4, 9)?, &[0, 1, 2, 1], 3)?.trainable(store.vb())?;
    let clip_logits = tiny.model.logits(&images, &texts)?;
    check(&store, || trained.logits(&clip_logits, &images, 1.17, 5.5))
}
