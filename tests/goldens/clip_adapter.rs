//! CLIP-Adapter in all its forms and Tip-Adapter with its search.

use candle_core::{DType, Tensor, Var};
use candle_nn::VarBuilder;
use sconce::adapt::{Adapter, ClipAdapter, ClipAdapterConfig, Grid, TipAdapter};
use sconce::nn::{Module, ParamStore};
use sconce::ops::{cross_entropy, matmul};
use sconce_tests::golden::{Case, GRADIENT, OUTPUT, Result, Tensors, Weights, compare, equal};

pub(crate) fn run(case: &Case) -> Result<()> {
    let file = case.tensors()?;
    match file.find("cache_values_NxK") {
        Some(values) => tip(&file, values),
        None => adapters(&file),
    }
}

/// Results are grouped by a name that says what is adapted and by how much: `both_a0.6_b0.8`.
fn adapters(file: &Tensors) -> Result<()> {
    let reduction = file.metadata("reduction").ok_or("no reduction")?.parse()?;
    let (images, texts) = (file.get("image_features")?, file.get("text_features")?);
    let (labels, scale) = (file.get("label")?.to_dtype(DType::U32)?, file.get("logit_scale")?.exp()?);
    let dim = images.dim(1)?;
    let raw = {
        let weights = Weights::new(file, "w.visual_adapter.", DType::F32)?;
        Adapter::new(dim, reduction, weights.vb(DType::F32))?.forward(images)?
    };
    let mut compared = 0;
    for (name, reference) in file.iter().filter_map(|(name, t)| Some((name.strip_suffix(".logits")?, t))) {
        let ratio = |letter: char| -> Result<Option<f64>> {
            let part = name.split('_').find_map(|part| part.strip_prefix(letter)?.parse::<f64>().ok());
            Ok(part)
        };
        let cfg = ClipAdapterConfig { dim, reduction, visual_ratio: ratio('a')?, text_ratio: ratio('b')? };
        let weights = Weights::new(file, "w.", DType::F32)?;
        let vb: VarBuilder = weights.vb(DType::F32);
        // The visual adapter alone has the names of the released code, without a prefix.
        let vb = if cfg.text_ratio.is_none() { vb.pp("visual_adapter") } else { vb };
        let logits = ClipAdapter::new(&cfg, vb)?.logits(images, texts, &scale)?;
        compare(&format!("{name}.logits"), &logits, reference, OUTPUT)?;
        let loss = cross_entropy(&logits, &labels, 0.0)?;
        compare(&format!("{name}.loss"), &loss, file.get(&format!("{name}.loss"))?, OUTPUT)?;
        let grads = loss.backward()?;
        for (key, reference) in file.with_prefix(&format!("{name}.grad.")) {
            let (tower, rest) = key.split_once('.').ok_or("no tower")?;
            let var = weights.get(&format!("{tower}_adapter.{rest}")).ok_or_else(|| format!("no weight {key}"))?;
            let found = grads.get(var.as_tensor()).ok_or_else(|| format!("{key} has no gradient"))?;
            compare(&format!("{name}.grad.{key}"), found, reference, GRADIENT)?;
            compared += 1;
        }
    }
    if compared == 0 {
        return Err("no gradient to compare".into());
    }
    compare("out.visual_adapter_raw", &raw, file.get("out.visual_adapter_raw")?, OUTPUT)
}

/// The numbers after the words of a note, in their order.
fn numbers(note: &str) -> Vec<f64> {
    note.split(|c: char| !c.is_ascii_digit() && c != '.').filter_map(|word| word.parse().ok()).collect()
}

fn tip(file: &Tensors, values: &Tensor) -> Result<()> {
    let number = |key: &str| -> Result<f64> { Ok(file.metadata(key).ok_or_else(|| format!("no {key}"))?.parse()?) };
    let (features, classifier) = (file.get("features")?, file.get("clip_weights_CxK")?);
    let keys = file.get("cache_keys_CxN")?.t()?.contiguous()?;
    let labels: Vec<u32> = file.get("labels")?.to_dtype(DType::U32)?.to_vec1()?;
    let tip = TipAdapter { keys: keys.clone(), values: values.clone() };
    let (alpha, beta) = (number("alpha")?, number("beta")?);
    let cosines = matmul(features, classifier)?;
    compare("out.affinity", &matmul(features, &keys.t()?)?, file.get("out.affinity")?, OUTPUT)?;
    compare("out.cache_logits", &tip.cache_logits(features, beta)?, file.get("out.cache_logits")?, OUTPUT)?;
    let logits = tip.logits(&(&cosines * 100.0)?, features, alpha, beta)?;
    compare("out.tip_logits", &logits, file.get("out.tip_logits")?, OUTPUT)?;

    // The note of the search: scale of both axes, steps of both, a factor, and that of the text logits.
    let [scale_b, scale_a, steps_b, steps_a, _, factor, ..] = numbers(file.metadata("search").ok_or("no search")?)[..]
    else {
        return Err("the note of the search names too few numbers".into());
    };
    let grid = Grid { scale: [scale_b, scale_a], steps: [steps_b as usize, steps_a as usize] };
    let found = tip.search(&(&cosines * factor)?, features, &labels, &grid)?;
    for (name, found) in [("search.best_alpha", found.alpha), ("search.best_beta", found.beta)] {
        let reference = file.get(name)?.to_dtype(DType::F64)?.to_scalar::<f64>()?;
        if (found - reference).abs() > 1e-6 {
            return Err(format!("{name}: {found} instead of {reference}").into());
        }
    }

    // Its loss: text factor, cache factor, beta.
    let [text, alpha, beta, ..] = numbers(file.metadata("tipF").ok_or("no tipF")?)[..] else {
        return Err("the note of the trained cache names too few numbers".into());
    };
    let store = ParamStore::new(1, DType::F32, keys.device());
    let trained = tip.trainable(store.vb())?;
    equal("keys to train", &trained.keys, &keys)?;
    let labels = Var::from_tensor(&file.get("labels")?.to_dtype(DType::U32)?)?;
    let loss = cross_entropy(&trained.logits(&(&cosines * text)?, features, alpha, beta)?, &labels, 0.0)?;
    compare("tipF.loss", &loss, file.get("tipF.loss")?, OUTPUT)?;
    let grads = loss.backward()?;
    let weight = store.get("weight").ok_or("no parameter")?;
    let found = grads.get(weight.as_tensor()).ok_or("the keys have no gradient")?.t()?;
    compare("tipF.grad_cache_keys_CxN", &found, file.get("tipF.grad_cache_keys_CxN")?, GRADIENT)
}
