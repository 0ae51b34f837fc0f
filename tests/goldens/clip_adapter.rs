//! CLIP-Adapter in all its forms and Tip-Adapter with its search.

use candle_core::{DType, Tensor};
use sconce::adapt::{Adapter, ClipAdapter, ClipAdapterConfig, Grid, TipAdapter};
use sconce::nn::{Module, ParamStore};
use sconce::ops::{cross_entropy, matmul};
use sconce_tests::golden::{Case, GRADIENT, OUTPUT, Result, Tensors, Weights, compare, equal};

pub(crate) fn run(case: &Case) -> Result<()> {
    let file = case.tensors()?;
    let (keys, outputs): (&[&str], &[&str]) = match file.find("cache_values_NxK") {
        Some(_) => (&["alpha", "beta", "note", "search", "tipF"], &["affinity", "cache_logits", "tip_logits"]),
        None => (&["keys", "note", "reduction"], &["visual_adapter_raw"]),
    };
    if let Some(key) = file.metadata_keys().find(|key| !keys.contains(key)) {
        return Err(format!("nothing looks at the metadata {key}").into());
    }
    if let Some((name, _)) = file.with_prefix("out.").find(|(name, _)| !outputs.contains(name)) {
        return Err(format!("nothing looks at out.{name}").into());
    }
    match file.find("cache_values_NxK") {
        Some(values) => tip(&file, values),
        None => adapters(&file),
    }
}

/// Results are grouped by a name that says what is adapted and by how much: `both_a0.6_b0.8`.
fn adapters(file: &Tensors) -> Result<()> {
    let reduction = file.metadata("reduction").ok_or("no reduction")?.parse()?;
    let (images, texts) = (file.get("image_features")?, file.get("text_features")?);
    let dtype = images.dtype();
    let (labels, scale) = (file.get("label")?.to_dtype(DType::U32)?, file.get("logit_scale")?.exp()?);
    let dim = images.dim(1)?;
    if let Some(reference) = file.find("out.visual_adapter_raw") {
        let weights = Weights::new(file, "w.visual_adapter.", dtype)?;
        let raw = Adapter::new(dim, reduction, weights.vb(dtype))?.forward(images)?;
        compare("out.visual_adapter_raw", &raw, reference, OUTPUT)?;
    }
    let mut compared = 0;
    for (name, reference) in file.iter().filter_map(|(name, t)| Some((name.strip_suffix(".logits")?, t))) {
        let cfg = config(name, dim, reduction)?;
        let weights = Weights::new(file, "w.", dtype)?;
        // The visual adapter alone has the names of the released code, without a prefix.
        let alone = cfg.text_ratio.is_none();
        let vb = if alone { weights.vb(dtype).pp("visual_adapter") } else { weights.vb(dtype) };
        let logits = ClipAdapter::new(&cfg, vb)?.logits(images, texts, &scale)?;
        compare(&format!("{name}.logits"), &logits, reference, OUTPUT)?;
        let loss = cross_entropy(&logits, &labels, 0.0)?;
        compare(&format!("{name}.loss"), &loss, file.get(&format!("{name}.loss"))?, OUTPUT)?;
        let grads = loss.backward()?;
        let adapted = [("visual", cfg.visual_ratio), ("text", cfg.text_ratio)];
        for (tower, _) in adapted.into_iter().filter(|(_, ratio)| ratio.is_some()) {
            for layer in ["fc.0.weight", "fc.2.weight"] {
                let var =
                    weights.get(&format!("{tower}_adapter.{layer}")).ok_or_else(|| format!("no {tower} {layer}"))?;
                let found = grads.get(var.as_tensor()).ok_or_else(|| format!("{tower} {layer} has no gradient"))?;
                let key = format!("{name}.grad.{tower}.{layer}");
                compare(&key, found, file.get(&key)?, GRADIENT)?;
                compared += 1;
            }
        }
    }
    let stored = file.iter().filter(|(name, _)| name.contains(".grad.")).count();
    if compared == 0 || compared != stored {
        return Err(format!("{compared} gradients were compared, the file has {stored}").into());
    }
    Ok(())
}

/// `visual_a0.2`, `text_b0.2`, `both_a0.6_b0.8`.
fn config(name: &str, dim: usize, reduction: usize) -> Result<ClipAdapterConfig> {
    let mut cfg = ClipAdapterConfig { dim, reduction, visual_ratio: None, text_ratio: None };
    let (kind, ratios) = name.split_once('_').ok_or_else(|| format!("{name} names no ratio"))?;
    for ratio in ratios.split('_') {
        match ratio.split_at_checked(1) {
            Some(("a", number)) => cfg.visual_ratio = Some(number.parse()?),
            Some(("b", number)) => cfg.text_ratio = Some(number.parse()?),
            _ => return Err(format!("{name}: no ratio is named {ratio}").into()),
        }
    }
    match (kind, cfg.visual_ratio, cfg.text_ratio) {
        ("visual", Some(_), None) | ("text", None, Some(_)) | ("both", Some(_), Some(_)) => Ok(cfg),
        _ => Err(format!("{name} does not say what is adapted").into()),
    }
}

/// The numbers of a note that come after some words in it.
fn numbers_after(note: &str, words: &str) -> Result<Vec<f64>> {
    let (_, rest) = note.split_once(words).ok_or_else(|| format!("no `{words}` in `{note}`"))?;
    Ok(rest.split(|c: char| !c.is_ascii_digit() && c != '.').filter_map(|word| word.parse().ok()).collect())
}

fn tip(file: &Tensors, values: &Tensor) -> Result<()> {
    let number = |key: &str| -> Result<f64> { Ok(file.metadata(key).ok_or_else(|| format!("no {key}"))?.parse()?) };
    let (features, classifier) = (file.get("features")?, file.get("clip_weights_CxK")?);
    let keys = file.get("cache_keys_CxN")?.t()?.contiguous()?;
    let labels = file.get("labels")?.to_dtype(DType::U32)?;
    let tip = TipAdapter { keys: keys.clone(), values: values.clone() };
    let (alpha, beta) = (number("alpha")?, number("beta")?);
    let cosines = matmul(features, classifier)?;
    compare("out.affinity", &tip.affinity(features)?, file.get("out.affinity")?, OUTPUT)?;
    compare("out.cache_logits", &tip.cache_logits(features, beta)?, file.get("out.cache_logits")?, OUTPUT)?;
    let logits = tip.logits(&(&cosines * 100.0)?, features, alpha, beta)?;
    compare("out.tip_logits", &logits, file.get("out.tip_logits")?, OUTPUT)?;
    let classes: Vec<u32> = values.argmax(1)?.to_vec1()?;
    equal("values", &TipAdapter::new(&keys, &classes, values.dim(1)?)?.values, values)?;

    let note = file.metadata("search").ok_or("no search")?;
    let pair = |words: &str| -> Result<[f64; 2]> {
        let numbers = numbers_after(note, words)?;
        Ok([*numbers.first().ok_or("no number")?, *numbers.get(1).ok_or("one number")?])
    };
    let (scale, steps) = (pair("scale")?, pair("step")?.map(|steps| steps as usize));
    let factor = *numbers_after(note, "clip logits =")?.first().ok_or("no factor of the texts")?;
    let searched = tip.search(&(&cosines * factor)?, features, &labels.to_vec1::<u32>()?, &Grid { scale, steps })?;
    for (name, found) in [("search.best_alpha", searched.alpha), ("search.best_beta", searched.beta)] {
        let reference = file.get(name)?.to_dtype(DType::F64)?.to_scalar::<f64>()?;
        if (found - reference).abs() > 1e-6 {
            return Err(format!("{name}: {found} instead of {reference}").into());
        }
    }

    // CE(text * q@cw + alpha * exp(-beta + beta * q@keys) @ values)
    let [text, alpha, beta, again] = numbers_after(file.metadata("tipF").ok_or("no tipF")?, "CE(")?[..] else {
        return Err("the note of the trained cache has other numbers than four".into());
    };
    if beta != again {
        return Err("the note of the trained cache names two betas".into());
    }
    let store = ParamStore::new(1, keys.dtype(), keys.device());
    let trained = tip.trainable(store.vb())?;
    equal("keys to train", &trained.keys, &keys)?;
    let loss = cross_entropy(&trained.logits(&(&cosines * text)?, features, alpha, beta)?, &labels, 0.0)?;
    compare("tipF.loss", &loss, file.get("tipF.loss")?, OUTPUT)?;
    let grads = loss.backward()?;
    let weight = store.get("weight").ok_or("no parameter")?;
    let found = grads.get(weight.as_tensor()).ok_or("the keys have no gradient")?.t()?;
    compare("tipF.grad_cache_keys_CxN", &found, file.get("tipF.grad_cache_keys_CxN")?, GRADIENT)
}
