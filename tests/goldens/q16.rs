//! Q16's prompt-tuned classifier with its training, and the statistics behind its word clouds.

use candle_core::{DType, Tensor};
use sconce::adapt::q16::words::{Unseen, Weighted, WordOptions, chi_square, count_words};
use sconce::adapt::q16::{Q16, Q16Config, Scoring, class_weights};
use sconce::nn::ParamStore;
use sconce::ops::{cross_entropy_soft, softmax};
use sconce::train::{Optimizer, ParamGroups, Sgd, SgdConfig};
use sconce_tests::golden::{Case, GRADIENT, OUTPUT, Result, Tensors, compare, equal};
use serde_json::Value;

pub(crate) fn run(case: &Case) -> Result<()> {
    match case.tensors() {
        Ok(file) => soft_prompt(&file),
        Err(_) => words(&case.json()?),
    }
}

/// The numbers of a note after a word: `SGD lr .01 momentum .9`.
fn setting(note: &str, word: &str) -> Result<Option<f64>> {
    let mut words = note.split([' ', ';', ',']);
    let found = words.by_ref().find(|w| *w == word).and_then(|_| words.next());
    Ok(found.map(str::parse).transpose()?)
}

/// Cross entropy weighted by class, as the mean over the weights: what the official loss is.
fn weighted(logits: &Tensor, labels: &[u32], weights: &[f32]) -> Result<Tensor> {
    let total: f32 = labels.iter().map(|label| weights[*label as usize]).sum();
    let (rows, classes) = logits.dims2()?;
    let mut targets = vec![0f32; rows * classes];
    for (row, label) in labels.iter().enumerate() {
        targets[row * classes + *label as usize] = weights[*label as usize] * rows as f32 / total;
    }
    Ok(cross_entropy_soft(logits, &Tensor::from_vec(targets, (rows, classes), logits.device())?)?)
}

fn soft_prompt(file: &Tensors) -> Result<()> {
    let known = |name: &str| {
        ["class_weights", "features", "labels", "prompts_init", "grad.prompts_init"].contains(&name)
            || ["out.logits_init", "out.probs_init", "out.loss_init", "out.argmax_raw_dot_product"].contains(&name)
            || name.starts_with("out.flagged_p_ge_")
            || name.strip_prefix("train").is_some_and(|rest| rest.ends_with(".losses") || rest.ends_with(".prompts"))
    };
    if let Some((name, _)) = file.iter().find(|(name, _)| !known(name)) {
        return Err(format!("nothing looks at {name}").into());
    }
    let (features, start) = (file.get("features")?, file.get("prompts_init")?);
    let labels: Vec<u32> = file.get("labels")?.to_dtype(DType::U32)?.to_vec1()?;
    let store = ParamStore::new(1, DType::F32, features.device());
    let head = Q16::new(&Q16Config::default(), start, store.vb())?;
    equal("prompts to begin with", &head.prompts, start)?;
    let weights = class_weights(&labels, head.classes());
    compare("class_weights", &Tensor::new(weights.as_slice(), features.device())?, file.get("class_weights")?, OUTPUT)?;

    let logits = head.logits(features)?;
    compare("out.logits_init", &logits, file.get("out.logits_init")?, OUTPUT)?;
    compare("out.probs_init", &softmax(&logits, 1)?, file.get("out.probs_init")?, OUTPUT)?;
    let loss = weighted(&logits, &labels, &weights)?;
    compare("out.loss_init", &loss, file.get("out.loss_init")?, OUTPUT)?;
    let grads = loss.backward()?;
    let var = store.get("prompts").ok_or("no prompts")?;
    let found = grads.get(var.as_tensor()).ok_or("the prompts have no gradient")?;
    compare("grad.prompts_init", found, file.get("grad.prompts_init")?, GRADIENT)?;

    let mut flags = 0;
    for (threshold, reference) in file.with_prefix("out.flagged_p_ge_") {
        let found = head.flags(features, 1, threshold.parse()?)?;
        let found: Vec<u8> = found.flagged.into_iter().map(u8::from).collect();
        equal("out.flagged", &Tensor::new(found, features.device())?, &reference.to_dtype(DType::U8)?)?;
        flags += 1;
    }
    let raw =
        Q16 { config: Q16Config { scoring: Scoring::RawProduct, ..Q16Config::default() }, prompts: start.clone() };
    let labels_raw = raw.flags(features, 0, 0.0)?.labels;
    let reference = file.get("out.argmax_raw_dot_product")?.to_dtype(DType::U32)?;
    equal("out.argmax_raw_dot_product", &Tensor::new(labels_raw, features.device())?, &reference)?;

    // Full-batch steps, as many as there are losses.
    let note = file.metadata("note").ok_or("no note")?;
    let lr = setting(note, "lr")?.ok_or("the note has no learning rate")?;
    let momentum = setting(note, "momentum")?.unwrap_or(0.0);
    let mut trainings = 0;
    for (name, reference) in file.iter().filter(|(name, _)| name.ends_with(".losses")) {
        var.set(start)?;
        let groups = ParamGroups::new(store.parameters())?;
        let mut optimizer = Sgd::new(groups, SgdConfig { lr, momentum, ..SgdConfig::default() })?;
        let mut losses = vec![];
        for _ in 0..reference.dim(0)? {
            let loss = weighted(&head.logits(features)?, &labels, &weights)?;
            optimizer.backward_step(&loss)?;
            losses.push(loss);
        }
        compare(name, &Tensor::stack(&losses, 0)?, reference, OUTPUT)?;
        let name = name.replace(".losses", ".prompts");
        compare(&name, var.as_tensor(), file.get(&name)?, OUTPUT)?;
        trainings += 1;
    }
    if flags == 0 || trainings == 0 { Err("neither flags nor training to compare".into()) } else { Ok(()) }
}

fn pairs(value: &Value) -> Result<Vec<Weighted>> {
    let object = value.as_object().ok_or("no object of words")?;
    let pair = |(word, value): (&String, &Value)| Some((word.clone(), value.as_f64()?));
    Ok(object.iter().map(pair).collect::<Option<_>>().ok_or("a word without a number")?)
}

/// Equal as sets of words with their numbers.
fn same(what: &str, found: &[Weighted], reference: &Value) -> Result<()> {
    let reference = pairs(reference)?;
    for (word, number) in &reference {
        let (_, found) = found.iter().find(|(w, _)| w == word).ok_or_else(|| format!("{what}: no {word:?}"))?;
        if (found - number).abs() > 1e-9 * number.abs() + 1e-12 {
            return Err(format!("{what}: {found} for {word:?} instead of {number}").into());
        }
    }
    match found.len() == reference.len() {
        true => Ok(()),
        false => Err(format!("{what}: {} words instead of {}", found.len(), reference.len()).into()),
    }
}

fn words(json: &Value) -> Result<()> {
    let parts = ["chi2", "lib", "stopwords", "word_counts"];
    if let Some(name) = json.as_object().ok_or("no object")?.keys().find(|name| !parts.contains(&name.as_str())) {
        return Err(format!("nothing looks at {name}").into());
    }
    let chi = &json["chi2"];
    let (observed, expected) = (pairs(&chi["observed"])?, pairs(&chi["expected"])?);
    for (weights, sum, count, unseen) in
        [("weights", "sum", "count", Unseen::RELEASED), ("weights_use_not_expected", "sum2", "count2", Unseen::Rarest)]
    {
        let found = chi_square(&observed, &expected, unseen);
        same(weights, &found, &chi[weights])?;
        let total: f64 = found.iter().map(|(_, weight)| weight).sum();
        let above = found.iter().filter(|(_, weight)| *weight > 0.0).count() as u64;
        let reference = chi[sum].as_f64().ok_or("no sum")?;
        if (total - reference).abs() > 1e-9 * reference || Some(above) != chi[count].as_u64() {
            return Err(format!("{sum}: {total} of {above} words instead of {reference}").into());
        }
    }

    let stop_words: Vec<String> = serde_json::from_value(json["stopwords"].clone())?;
    let default = WordOptions::default();
    if !stop_words.iter().eq(default.stop_words.iter()) {
        return Err(format!("other stop words: {} instead of {}", default.stop_words.len(), stop_words.len()).into());
    }
    let counts = json["word_counts"].as_object().ok_or("no word counts")?;
    let text = counts.get("text").and_then(Value::as_str).ok_or("no text")?;
    for (name, reference) in counts.iter().filter(|(name, _)| *name != "text") {
        let options = match (name.as_str(), name.strip_prefix("with_bigrams_threshold")) {
            ("unigrams", _) => WordOptions { pairs: false, ..WordOptions::default() },
            (_, Some(threshold)) => WordOptions { pair_threshold: threshold.parse()?, ..WordOptions::default() },
            _ => return Err(format!("nothing looks at {name}").into()),
        };
        same(name, &count_words(&[text], &options), reference)?;
    }
    Ok(())
}
