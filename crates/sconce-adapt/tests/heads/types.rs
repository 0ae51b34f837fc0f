//! Half precision, in the towers, the head or both; the cache's arithmetic.

use candle_core::{DType, Tensor};
use sconce_adapt::{
    ClipAdapter, CoCoOp, CoOp, Error, FitConfig, FitOptions, Grid, Result, TipAdapter, TipConfig, fit, templates,
};
use sconce_nn::ParamStore;

use crate::support::{CLASSES, CPU, E, both_adapters, tiny, two_tokens};

#[test]
fn heads_train_in_half_precision_and_beside_it() -> Result<()> {
    // The first of each pair is the official `fp16`, f32 beside f16 its `amp`.
    for (towers, head) in
        [(DType::F16, DType::F16), (DType::BF16, DType::BF16), (DType::F16, DType::F32), (DType::BF16, DType::F32)]
    {
        let tiny = tiny(towers)?;
        let (features, labels) = (tiny.features(4, 3)?, Tensor::new(&[0u32, 1, 2, 0], CPU)?);
        let texts = templates::class_weights(&tiny.model, &tiny.tokenizer, &CLASSES, templates::IMAGENET)?;
        let store = || ParamStore::new(5, head, CPU);
        let cfg = FitConfig { epochs: 2, batch_size: 2, lr: 0.01, ..FitConfig::default() };
        let run = |store: &ParamStore, logits: &dyn Fn(&Tensor) -> candle_core::Result<Tensor>| -> Result<()> {
            let scores = logits(&features)?;
            assert_eq!(scores.dims(), [4, 3]);
            assert!(scores.dtype() == towers || scores.dtype() == head);
            assert_eq!(fit(store, &features, &labels, &cfg, &FitOptions::default(), logits)?.history.len(), 2);
            Ok(())
        };
        let (model, tokenizer) = (&tiny.model, &tiny.tokenizer);
        let params = store();
        let coop = CoOp::new(&two_tokens(), model, tokenizer, &CLASSES, params.vb())?;
        run(&params, &|xs| coop.logits(xs))?;
        let params = store();
        let cocoop = CoCoOp::new(&two_tokens(), model, tokenizer, &CLASSES, params.vb())?;
        run(&params, &|xs| cocoop.logits(xs))?;
        let params = store();
        let adapter = ClipAdapter::new(&both_adapters(), params.vb())?;
        run(&params, &|xs| adapter.logits(xs, &texts, &model.scale()?))?;
        let params = store();
        let tip = TipAdapter::new(&features, &[0, 1, 2, 0], 3)?.trainable(params.vb())?;
        run(&params, &|xs| tip.logits(&model.logits(xs, &texts)?, xs, 1.17, 1.0))?;
    }
    Ok(())
}

#[test]
fn templates_classify_as_the_model_does() -> Result<()> {
    let tiny = tiny(DType::F32)?;
    let found = templates::class_weights(&tiny.model, &tiny.tokenizer, &CLASSES, templates::PHOTO)?;
    let texts = ["a photo of a cat.", "a photo of a golden retriever.", "a photo of a face."];
    let wanted = tiny.model.embed_texts(&tiny.tokenizer, &texts)?;
    assert!((found - wanted)?.abs()?.max_all()?.to_scalar::<f32>()? < 1e-6);
    assert!(templates::class_weights::<&str, _>(&tiny.model, &tiny.tokenizer, &[], templates::PHOTO).is_err());
    assert!(templates::class_weights::<_, &str>(&tiny.model, &tiny.tokenizer, &CLASSES, &[]).is_err());
    Ok(())
}

#[test]
fn views_are_averaged_before_they_are_normalised() -> Result<()> {
    let views = Tensor::new(&[[[3f32, 0.0]], [[0.0, 1.0]]], CPU)?; // (2, 1, 2)
    let mean = TipAdapter::mean_of_views(&views)?.to_vec2::<f32>()?;
    let length = 10f32.sqrt();
    assert!((mean[0][0] - 3.0 / length).abs() < 1e-6 && (mean[0][1] - 1.0 / length).abs() < 1e-6);
    assert!(TipAdapter::mean_of_views(&views.get(0)?).is_err());
    assert!(TipAdapter::mean_of_views(&Tensor::zeros((0, 1, 2), DType::F32, CPU)?).is_err());
    Ok(())
}

#[test]
fn the_grid_leaves_out_its_end_and_the_first_of_equals_wins() -> Result<()> {
    let grid = Grid { scale: [1.1, 2.1], steps: [2, 4] };
    let close = |found: Vec<f64>, wanted: &[f64]| {
        assert!(found.len() == wanted.len() && found.iter().zip(wanted).all(|(a, b)| (a - b).abs() < 1e-12));
    };
    close(grid.betas().collect(), &[0.1, 0.6]);
    close(grid.alphas().collect(), &[0.1, 0.6, 1.1, 1.6]);
    // The texts are wrong by 1 about every picture and the cache is right: alpha has to be large enough.
    let keys = Tensor::new(&[[1f32, 0.0], [0.0, 1.0]], CPU)?;
    let tip = TipAdapter::new(&keys, &[0, 1], 2)?;
    let texts = Tensor::new(&[[0f32, 0.3], [0.3, 0.0]], CPU)?;
    let found = tip.search(&texts, &keys, &[0, 1], &grid)?;
    // 1 - exp(-beta) is 0.095 and 0.45: only the latter beats 0.3, from alpha 1.1 on.
    assert_eq!(found.accuracy, 1.0);
    assert!((found.beta - 0.6).abs() < 1e-12 && (found.alpha - 1.1).abs() < 1e-12, "{found:?}");
    let [empty, labels] = [Grid { steps: [0, 3], ..grid }, Grid::default()];
    assert!(matches!(tip.search(&texts, &keys, &[0, 1], &empty), Err(Error::Config(_))));
    assert!(matches!(tip.search(&texts, &keys, &[0, 2], &labels), Err(Error::Label { index: 1, .. })));
    assert!(matches!(tip.search(&texts, &keys, &[0], &labels), Err(Error::Shape { .. })));
    assert!(matches!(tip.search(&keys.narrow(1, 0, 1)?, &keys, &[0, 0], &labels), Err(Error::Shape { .. })));
    assert!(matches!(TipAdapter::new(&keys, &[0, 3], 3), Err(Error::Label { index: 1, label: 3, classes: 3 })));
    assert!(matches!(TipAdapter::new(&keys, &[0], 3), Err(Error::Shape { what: "labels", .. })));
    assert!(TipAdapter::new(&Tensor::zeros((0, E), DType::F32, CPU)?, &[], 3).is_err());
    assert!(tip.cache_logits(&Tensor::zeros((2, 3), DType::F32, CPU)?, 1.0).is_err());
    Ok(())
}

#[test]
fn official_settings_by_name() {
    let dtd = TipConfig::official("describabletextures").expect("settings of DTD");
    assert_eq!((dtd.alpha, dtd.beta, dtd.grid.scale, dtd.grid.steps), (2.0, 1.0, [13.0, 13.0], [200, 20]));
    assert_eq!(TipConfig::official("ImageNet"), Some(TipConfig::default()));
    assert_eq!(TipConfig::official("ImageNetV2"), None);
}
