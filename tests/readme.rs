//! The README's snippet, kept true.

use sconce::candle::{DType, Tensor};
use sconce::nn::{Generator, ParamStore};
use sconce::train::{AdamW, AdamWConfig, Optimizer, ParamGroups};

#[test]
fn the_snippet_of_the_readme_runs_and_every_parameter_moves() -> Result<(), Box<dyn std::error::Error>> {
    let device = sconce::device("cpu")?;
    let images = Generator::new(2).normal(0.0, 1.0, (2, 3, 224, 224), DType::F32, &device)?;
    let labels = Tensor::new(&[3u32, 7], &device)?;

    let store = ParamStore::new(1, DType::F32, &device);
    let model = sconce::backbones::create("vit_tiny_patch16_224", store.vb())?;
    let before: Vec<Tensor> = store.parameters().iter().map(|p| p.var.copy()).collect::<Result<_, _>>()?;
    let mut optimizer =
        AdamW::new(ParamGroups::builder(store.parameters()).exclude_vit().build()?, AdamWConfig::default());
    let logits = model.forward_t(&images, true)?; // (B, 1000)
    optimizer.backward_step(&sconce::ops::cross_entropy(&logits, &labels, 0.1)?)?;

    for (param, before) in store.parameters().iter().zip(before) {
        let moved = (param.var.as_tensor() - before)?.abs()?.flatten_all()?.max(0)?.to_scalar::<f32>()?;
        assert!(moved > 0.0 && moved.is_finite(), "{}", param.name);
    }
    Ok(())
}
