//! CoOp in its layouts and CoCoOp on a small CLIP; the schedule of their training.

use candle_core::{DType, Tensor};
use sconce::adapt::{ClassPosition, CoCoOp, CoOp, PromptConfig, load_options};
use sconce::clip::{Clip, ClipTokenizer, Tokenize};
use sconce::nn::{Checkpoint, ParamStore};
use sconce::ops::cross_entropy;
use sconce::train::schedule::{Dassl, DasslWarmup, Schedule};
use sconce::train::{Optimizer, ParamGroups, Sgd, SgdConfig};
use sconce_tests::golden::{Case, GRADIENT, OUTPUT, Result, Tensors, compare, equal};
use serde::Deserialize;

use super::clip::OpenAi;

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "UPPERCASE")]
struct Arguments {
    n_ctx: usize,
    #[serde(default)]
    csc: bool,
    #[serde(default)]
    ctx_init: String,
    #[serde(default)]
    class_token_position: ClassPosition,
    #[serde(rename = "PREC", default)]
    _precision: Option<String>,
}

impl Arguments {
    fn config(self) -> PromptConfig {
        PromptConfig {
            n_ctx: self.n_ctx,
            class_specific: self.csc,
            ctx_init: (!self.ctx_init.is_empty()).then_some(self.ctx_init),
            position: self.class_token_position,
        }
    }
}

pub(crate) fn run(case: &Case) -> Result<()> {
    let Ok(file) = case.tensors() else { return schedules(case) };
    if file.metadata("trainer_coop").is_some() {
        coop(case, &file)
    } else if file.metadata("trainer_cocoop").is_some() {
        cocoop(case, &file)
    } else {
        let (model, _) = clip(&file, &[&file])?;
        let features = model.encode_image(file.get("image")?)?;
        compare("out.image_features", &features, file.get("out.image_features")?, OUTPUT)
    }
}

/// The small CLIP; of the token embeddings the files hold only the rows in use.
fn clip(file: &Tensors, rows: &[&Tensors]) -> Result<(Clip, ClipTokenizer)> {
    let config = file.metadata_json::<OpenAi>("config")?.config()?;
    let (vocab, width) = (config.text.vocab_size, config.text.transformer.width);
    let mut table = vec![0f32; vocab * width];
    for rows in rows {
        let ids = rows.get("token_embedding_row_ids")?.to_dtype(DType::U32)?.to_vec1::<u32>()?;
        for (id, row) in ids.into_iter().zip(rows.get("token_embedding_rows")?.to_vec2::<f32>()?) {
            let start = id as usize * width;
            table.get_mut(start..start + width).ok_or("a row beyond the vocabulary")?.copy_from_slice(&row);
        }
    }
    let device = file.get("image")?.device().clone();
    let table = Tensor::from_vec(table, (vocab, width), &device)?;
    let named = file.with_prefix("w.").map(|(name, tensor)| (name.to_owned(), tensor.clone()));
    let weights = Checkpoint::from_tensors(named.chain([("token_embedding.weight".to_owned(), table)]));
    Ok((Clip::new(&config, weights.vb(DType::F32, &device))?, ClipTokenizer::openai()?))
}

fn coop(case: &Case, file: &Tensors) -> Result<()> {
    let base = case.sibling("clip_tiny").tensors()?;
    let (model, tokenizer) = clip(&base, &[&base])?;
    let classes: Vec<String> = file.metadata_json("classnames")?;
    let cfg = file.metadata_json::<Arguments>("trainer_coop")?.config();
    let ctx = file.get("ctx")?;
    let store = ParamStore::new(1, DType::F32, ctx.device());
    let coop = CoOp::new(&cfg, &model, &tokenizer, &classes, store.vb())?;
    if cfg.ctx_init.is_some() {
        compare("context from words", &coop.ctx, ctx, OUTPUT)?;
    }
    // An official checkpoint: the context beside embeddings of class names, which are not to be loaded.
    let file_of = [
        ("ctx".to_owned(), ctx.clone()),
        ("token_prefix".to_owned(), coop.prompts.prefix.clone()),
        ("token_suffix".to_owned(), coop.prompts.suffix.narrow(1, 1, 2)?),
    ];
    store.load(&Checkpoint::from_tensors(file_of), &load_options())?;

    let ids = file.get("tokenized_prompts")?.to_dtype(DType::U32)?;
    equal("tokenized_prompts", &coop.prompts.ids.to_dtype(DType::U32)?, &ids)?;
    let lens = coop.prompts.name_lens.iter().map(|len| *len as u32).collect::<Vec<_>>();
    equal("name_lens", &Tensor::new(lens, ctx.device())?, &file.get("name_lens")?.to_dtype(DType::U32)?)?;
    let prompts = coop.prompts.assemble(&coop.ctx)?;
    compare("out.prompts_sum_tokens", &prompts.sum(2)?, file.get("out.prompts_sum_tokens")?, OUTPUT)?;
    compare("out.text_features", &coop.text_features()?, file.get("out.text_features")?, OUTPUT)?;
    let images = model.encode_image(base.get("image")?)?.detach();
    let labels = base.get("label")?.to_dtype(DType::U32)?;
    let logits = coop.logits(&images)?;
    compare("out.logits", &logits, file.get("out.logits")?, OUTPUT)?;
    let loss = cross_entropy(&logits, &labels, 0.0)?;
    compare("out.loss", &loss, file.get("out.loss")?, OUTPUT)?;
    let grads = loss.backward()?;
    let var = store.get("ctx").ok_or("no context")?;
    compare("grad.ctx", grads.get(var.as_tensor()).ok_or("no gradient")?, file.get("grad.ctx")?, GRADIENT)?;
    if store.parameters().len() != 1 {
        return Err("something beside the context is trained".into());
    }

    // Three steps of SGD with the official momentum and weight decay.
    let groups = ParamGroups::new(store.parameters().into_iter().map(|p| (p.name.to_string(), p.var)))?;
    let sgd = SgdConfig { lr: 0.002, momentum: 0.9, weight_decay: 5e-4, ..SgdConfig::default() };
    let mut optimizer = Sgd::new(groups, sgd)?;
    let mut losses = vec![];
    for _ in 0..file.get("train3.losses")?.dim(0)? {
        let loss = cross_entropy(&coop.logits(&images)?, &labels, 0.0)?;
        optimizer.backward_step(&loss)?;
        losses.push(loss);
    }
    compare("train3.losses", &Tensor::stack(&losses, 0)?, file.get("train3.losses")?, OUTPUT)?;
    compare("train3.ctx", var.as_tensor(), file.get("train3.ctx")?, OUTPUT)
}

fn cocoop(case: &Case, file: &Tensors) -> Result<()> {
    let base = case.sibling("clip_tiny").tensors()?;
    let (model, tokenizer) = clip(&base, &[&base, file])?;
    let classes: Vec<String> = base.metadata_json("classnames")?;
    let cfg = file.metadata_json::<Arguments>("trainer_cocoop")?.config();
    let ctx = file.get("w.ctx")?;
    let store = ParamStore::new(1, DType::F32, ctx.device());
    let head = CoCoOp::new(&cfg, &model, &tokenizer, &classes, store.vb())?;
    compare("context from words", &head.ctx, ctx, OUTPUT)?;
    let weights = file.with_prefix("w.").map(|(name, tensor)| (name.to_owned(), tensor.clone()));
    store.load(&Checkpoint::from_tensors(weights), &load_options())?;
    equal(
        "tokenized_prompts",
        &head.prompts.ids.to_dtype(DType::U32)?,
        &file.get("tokenized_prompts")?.to_dtype(DType::U32)?,
    )?;
    let images = model.encode_image(base.get("image")?)?.detach();
    let logits = head.logits(&images)?;
    compare("out.logits", &logits, file.get("out.logits")?, OUTPUT)?;
    let loss = cross_entropy(&logits, &base.get("label")?.to_dtype(DType::U32)?, 0.0)?;
    compare("out.loss", &loss, file.get("out.loss")?, OUTPUT)?;
    let grads = loss.backward()?;
    for (name, reference) in file.with_prefix("grad.") {
        let var = store.get(name).ok_or_else(|| format!("no parameter {name}"))?;
        let found = grads.get(var.as_tensor()).ok_or_else(|| format!("{name} has no gradient"))?;
        compare(&format!("grad.{name}"), found, reference, GRADIENT)?;
    }
    let decoded = tokenizer.decode(&[tokenizer.encode("cat")?[0]])?;
    if decoded.trim() != "cat" { Err(format!("the tokenizer reads {decoded:?}").into()) } else { Ok(()) }
}

/// `<kind>_warm<epochs>_max<epochs>_lr<rate>`: the rate of each epoch.
fn schedules(case: &Case) -> Result<()> {
    let json = case.json()?;
    for (name, rates) in json.as_object().ok_or("no object of schedules")? {
        let mut parts = name.split('_');
        let kind = parts.next().unwrap_or_default();
        let mut number = |prefix: &str| -> Result<f64> {
            let part = parts.next().and_then(|part| part.strip_prefix(prefix));
            Ok(part.ok_or_else(|| format!("{name}: no {prefix}"))?.parse()?)
        };
        let (warm, max, lr) = (number("warm")? as u64, number("max")? as u64, number("lr")?);
        let warmup = match kind {
            "constant" => DasslWarmup::Constant { lr: 1e-5 },
            "linear" => DasslWarmup::Linear { min_lr: 1e-5 },
            other => return Err(format!("{name}: no warm-up named {other}").into()),
        };
        let schedule = Dassl { warmup, warmup_length: warm, ..Dassl::coop(lr, max) };
        let rates: Vec<f64> = serde_json::from_value(rates.clone())?;
        for (epoch, rate) in rates.iter().enumerate() {
            let found = schedule.at(epoch as u64);
            if (found - rate).abs() > 1e-12 + 1e-9 * rate {
                return Err(format!("{name}, epoch {epoch}: {found} instead of {rate}").into());
            }
        }
    }
    Ok(())
}
