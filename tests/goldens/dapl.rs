//! DAPL on a small CLIP: prompts, logits, pseudo labels, losses, gradients; both denominators; the released schedule.

use candle_core::{DType, Tensor};
use sconce::adapt::{Dapl, DaplConfig, Denominator, load_options};
use sconce::clip::model::TextTransformer;
use sconce::clip::{Clip, ClipTokenizer, Tokenize};
use sconce::nn::{Checkpoint, ParamStore};
use sconce::train::schedule::{Dassl, Schedule};
use sconce_tests::golden::{Case, GRADIENT, OUTPUT, Result, Tensors, compare, equal};
use serde_json::Value;

use super::clip::OpenAi;

/// What the metadata may say. `weights` names the case that holds the model, where a file has none.
const OPTIONS: &[&str] = &[
    "config",
    "classnames",
    "n_ctx",
    "n_dmx",
    "csc",
    "source",
    "target",
    "T",
    "U",
    "logit_layout",
    "state_dict_keys",
    "weights",
];

pub(crate) fn run(case: &Case) -> Result<()> {
    if let Ok(file) = case.tensors() {
        return prompts(case, &file);
    }
    let json = case.json()?;
    match (json.get("lr"), json.get("values")) {
        (Some(rates), None) => schedule(rates),
        (None, Some(values)) => denominators(case, values),
        _ => Err("neither rates nor values of losses".into()),
    }
}

/// A case: the head with the file's parameters, and the features of its pictures.
struct Loaded {
    dapl: Dapl,
    store: ParamStore,
    tokenizer: ClipTokenizer,
    source: Tensor,
    target: Tensor,
}

fn load(case: &Case, file: &Tensors, denominator: Denominator) -> Result<Loaded> {
    if let Some(name) = file.metadata_keys().find(|name| !OPTIONS.contains(name)) {
        return Err(format!("nothing looks at the option {name}").into());
    }
    if file.metadata("logit_layout").is_some_and(|layout| layout != "[source K | target K | naive K]") {
        return Err("another layout of the logits".into());
    }
    let (model, tokenizer) = clip(case, file)?;
    let classes: Vec<String> = file.metadata_json("classnames")?;
    let mut domains: Vec<String> = file.metadata_json("source")?;
    domains.extend(file.metadata_json::<Vec<String>>("target")?);
    let cfg = DaplConfig {
        n_ctx: file.metadata_json("n_ctx")?,
        n_dmx: file.metadata_json("n_dmx")?,
        class_specific: file.metadata_json("csc")?,
        temperature: file.metadata_json("T")?,
        threshold: file.get("tau")?.to_dtype(DType::F64)?.to_scalar()?,
        unlabelled_weight: file.metadata_json("U")?,
        denominator,
        ..DaplConfig::default()
    };
    let parameters = file.get("prompt_learner.ctx")?;
    let store = ParamStore::new(1, DType::F32, parameters.device());
    let dapl = Dapl::new(&cfg, &model, &tokenizer, &classes, &domains, store.vb())?;
    // An official checkpoint: the parameters beside embeddings of class names, which are not to be loaded.
    let parameters = file.with_prefix("prompt_learner.").map(|(name, tensor)| (name.to_owned(), tensor.clone()));
    let passed_over = ["token_prefix", "token_suffix"].map(|name| (name.to_owned(), dapl.naive.weights.clone()));
    let report = store.load(&Checkpoint::from_tensors(parameters.chain(passed_over)), &load_options())?;
    if report.loaded.len() != 2 {
        return Err(format!("loaded {:?}", report.loaded).into());
    }
    // Kept smaller, a file has the features in place of the pictures and the image tower.
    let features = |part: &str| match file.find(&format!("image_features_{part}")) {
        Some(features) => Ok(features.clone()),
        None => Ok::<_, sconce_tests::golden::Error>(model.encode_image(file.get(&format!("image_{part}"))?)?.detach()),
    };
    let (source, target) = (features("source")?, features("target")?);
    Ok(Loaded { dapl, store, tokenizer, source, target })
}

/// The small CLIP; of the token embeddings the files hold only the rows in use, of the image tower maybe nothing.
fn clip(case: &Case, file: &Tensors) -> Result<(Clip, ClipTokenizer)> {
    let base = match file.metadata("weights") {
        Some(name) => case.sibling(name).tensors()?,
        None => file.clone(),
    };
    let config = base.metadata_json::<OpenAi>("config")?.config()?;
    let (vocab, width) = (config.text.vocab_size, config.text.transformer.width);
    let mut table = vec![0f32; vocab * width];
    for rows in [&base, file] {
        let (Some(ids), Some(rows)) = (rows.find("token_embedding_row_ids"), rows.find("token_embedding_rows")) else {
            continue;
        };
        for (id, row) in ids.to_dtype(DType::U32)?.to_vec1::<u32>()?.into_iter().zip(rows.to_vec2::<f32>()?) {
            let start = id as usize * width;
            table.get_mut(start..start + width).ok_or("a row beyond the vocabulary")?.copy_from_slice(&row);
        }
    }
    let device = base.get("token_embedding_rows")?.device().clone();
    let table = Tensor::from_vec(table, (vocab, width), &device)?;
    let named = base.with_prefix("w.").map(|(name, tensor)| (name.to_owned(), tensor.clone()));
    let weights = Checkpoint::from_tensors(named.chain([("token_embedding.weight".to_owned(), table)]));
    let vb = weights.vb(DType::F32, &device);
    let model = match base.with_prefix("w.visual.").next() {
        Some(_) => Clip::new(&config, vb)?,
        None => {
            let text = TextTransformer::new(&config.text, config.embed_dim, vb.clone())?;
            let any = Clip::new(&config, ParamStore::new(0, DType::F32, &device).vb_fixed())?;
            Clip { text, logit_scale: vb.get((), "logit_scale")?, ..any }
        }
    };
    Ok((model, ClipTokenizer::openai()?))
}

fn prompts(case: &Case, file: &Tensors) -> Result<()> {
    known(file)?;
    let Loaded { dapl, store, tokenizer, source, target } = load(case, file, Denominator::OwnDomain)?;
    let device = source.device();

    let mut ids = dapl.prompts.iter().map(|prompts| prompts.ids.clone()).collect::<Vec<_>>();
    let naive: Vec<String> = dapl.naive.classes.iter().map(|class| format!("a photo of a {class}.")).collect();
    ids.push(tokenizer.tokenize(&naive.iter().map(String::as_str).collect::<Vec<_>>(), device)?);
    equal("tokenized_prompts", &Tensor::cat(&ids, 0)?, &file.get("tokenized_prompts")?.to_dtype(DType::U32)?)?;

    let (logits_source, logits_target) = (dapl.logits(&source)?, dapl.logits(&target)?);
    compare("out.logits_source_all", &logits_source.flatten_from(1)?, file.get("out.logits_source_all")?, OUTPUT)?;
    compare("out.logits_target_all", &logits_target.flatten_from(1)?, file.get("out.logits_target_all")?, OUTPUT)?;
    let test = dapl.predict(&target, dapl.domains() - 1)?;
    compare("out.test_logits_target", &test, file.get("out.test_logits_target")?, OUTPUT)?;

    let pseudo = dapl.pseudo_labels(&logits_target)?;
    equal("out.pseudo_label", &pseudo.labels, &file.get("out.pseudo_label")?.to_dtype(DType::U32)?)?;
    compare("out.pseudo_prob_max", &pseudo.confidence, file.get("out.pseudo_prob_max")?, OUTPUT)?;
    let mut mask = vec![0f32; target.dim(0)?];
    pseudo.confident.iter().for_each(|&place| mask[place as usize] = 1.0);
    equal("out.mask", &Tensor::new(mask, device)?, file.get("out.mask")?)?;

    let labels = file.get("label_source")?.to_dtype(DType::U32)?;
    let [own, other] = domains(file, &source, &target)?;
    let loss = dapl.loss((&source, &labels, &own), (&target, &other))?;
    compare("out.loss_x", &loss.labelled, file.get("out.loss_x")?, OUTPUT)?;
    compare("out.loss_u", &loss.unlabelled, file.get("out.loss_u")?, OUTPUT)?;
    compare("out.loss", &loss.total, file.get("out.loss")?, OUTPUT)?;
    let grads = loss.total.backward()?;
    for (name, reference) in file.with_prefix("grad.") {
        let var = store.get(name).ok_or_else(|| format!("no parameter {name}"))?;
        let found = grads.get(var.as_tensor()).ok_or_else(|| format!("{name} has no gradient"))?;
        compare(&format!("grad.{name}"), found, reference, GRADIENT)?;
    }
    match store.parameters().len() {
        2 => Ok(()),
        n => Err(format!("{n} parameters are trained").into()),
    }
}

/// Labelled pictures are of the first source, the others of the first target.
fn domains(file: &Tensors, source: &Tensor, target: &Tensor) -> Result<[Tensor; 2]> {
    let sources = file.metadata_json::<Vec<String>>("source")?.len() as u32;
    let device = source.device();
    Ok([Tensor::full(0u32, source.dim(0)?, device)?, Tensor::full(sources, target.dim(0)?, device)?])
}

/// A tensor that nothing looks at must not pass unseen.
fn known(file: &Tensors) -> Result<()> {
    const INPUTS: &[&str] = &[
        "image_source",
        "image_target",
        "image_features_source",
        "image_features_target",
        "label_source",
        "tau",
        "token_embedding_row_ids",
        "token_embedding_rows",
        "tokenized_prompts",
    ];
    const OUTPUTS: &[&str] = &[
        "logits_source_all",
        "logits_target_all",
        "test_logits_target",
        "pseudo_label",
        "pseudo_prob_max",
        "mask",
        "loss",
        "loss_x",
        "loss_u",
    ];
    let known = |name: &str| match name.split_once('.') {
        Some(("out", rest)) => OUTPUTS.contains(&rest),
        Some(("w" | "grad" | "prompt_learner", _)) => true,
        _ => INPUTS.contains(&name),
    };
    match file.iter().find(|(name, _)| !known(name)) {
        Some((name, _)) => Err(format!("nothing looks at the tensor {name}").into()),
        None => Ok(()),
    }
}

/// Both denominators on the logits of other cases: `dapl_<name>` for each name.
fn denominators(case: &Case, values: &Value) -> Result<()> {
    for (name, values) in values.as_object().ok_or("no object of cases")? {
        let sibling = case.sibling(&format!("dapl_{name}"));
        let file = sibling.tensors()?;
        for (suffix, denominator) in [("own", Denominator::OwnDomain), ("all_domains", Denominator::AllDomains)] {
            let Loaded { dapl, source, target, .. } = load(&sibling, &file, denominator)?;
            let [own, other] = domains(&file, &source, &target)?;
            let labels = file.get("label_source")?.to_dtype(DType::U32)?;
            let loss = dapl.loss((&source, &labels, &own), (&target, &other))?;
            for (part, found) in [("x", &loss.labelled), ("u", &loss.unlabelled)] {
                let key = format!("loss_{part}_{suffix}");
                let value = values.get(&key).and_then(Value::as_f64).ok_or_else(|| format!("{name}: no {key}"))?;
                compare(&format!("{name} {key}"), found, &Tensor::new(value, source.device())?, OUTPUT)?;
            }
            // The loss is finite where no pseudo label counts, and then that of the labels.
            let mut strict = dapl.clone();
            strict.config.threshold = 2.0;
            let loss = strict.loss((&source, &labels, &own), (&target, &other))?;
            equal("loss without pseudo labels", &loss.total, &loss.labelled)?;
            equal("pseudo loss without pseudo labels", &loss.unlabelled, &loss.unlabelled.zeros_like()?)?;
        }
    }
    Ok(())
}

/// The rate of each iteration with the released settings.
fn schedule(rates: &Value) -> Result<()> {
    let rates: Vec<f64> = serde_json::from_value(rates.clone())?;
    let schedule = Dassl::dapl(0.003, 25);
    for (step, rate) in rates.iter().enumerate() {
        let found = schedule.at(step as u64);
        if (found - rate).abs() > 1e-12 + 1e-9 * rate {
            return Err(format!("iteration {step}: {found} instead of {rate}").into());
        }
    }
    Ok(())
}
