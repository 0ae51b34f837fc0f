//! CoOp in its layouts and CoCoOp on a small CLIP: prompts, features, logits, gradients, steps; the schedule of their training.

use candle_core::{DType, Tensor};
use sconce::adapt::{ClassPosition, CoCoOp, CoOp, PromptConfig, Prompts, load_options};
use sconce::clip::{Clip, ClipTokenizer};
use sconce::nn::{Checkpoint, ParamStore};
use sconce::ops::cross_entropy;
use sconce::train::schedule::{Dassl, DasslWarmup, Schedule};
use sconce::train::{Optimizer, ParamGroups, Sgd, SgdConfig};
use sconce_tests::golden::{Case, GRADIENT, OUTPUT, Result, Tensors, compare, equal};
use serde::Deserialize;

use super::clip::OpenAi;

/// The official trainers' options and their defaults.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, default, rename_all = "UPPERCASE")]
struct Arguments {
    n_ctx: usize,
    csc: bool,
    ctx_init: String,
    class_token_position: ClassPosition,
    prec: Precision,
}

impl Default for Arguments {
    fn default() -> Self {
        let class_token_position = ClassPosition::End;
        Self { n_ctx: 16, csc: false, ctx_init: String::new(), class_token_position, prec: Precision::Fp32 }
    }
}

/// The type of the file's tensors decides what is computed in; the option must only be one that exists.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Precision {
    Fp16,
    Fp32,
    Amp,
}

impl Arguments {
    fn config(self) -> PromptConfig {
        let words = (!self.ctx_init.is_empty()).then_some(self.ctx_init);
        PromptConfig {
            n_ctx: self.n_ctx,
            // The official code has one context for all classes where it begins as words.
            class_specific: self.csc && words.is_none(),
            ctx_init: words,
            position: self.class_token_position,
        }
    }
}

/// What the metadata may say.
const KEYS: &[&str] = &[
    "classnames",
    "config",
    "note",
    "prompt_learner_state_dict_keys",
    "sgd",
    "trainer_cocoop",
    "trainer_coop",
    "weights",
];

pub(crate) fn run(case: &Case) -> Result<()> {
    let Ok(file) = case.tensors() else { return schedules(case) };
    if let Some(key) = file.metadata_keys().find(|key| !KEYS.contains(key)) {
        return Err(format!("nothing looks at the metadata {key}").into());
    }
    match ["trainer_coop", "trainer_cocoop"].map(|key| file.metadata(key).is_some()) {
        [true, false] => coop(&Setting::new(case, &file)?),
        [false, true] => cocoop(&Setting::new(case, &file)?),
        [false, false] => {
            let model = clip(&file, &[&file], DType::F32)?;
            check(&file, &[("image_features", model.encode_image(file.get("image")?)?)])
        }
        _ => Err("two trainers".into()),
    }
}

/// The small CLIP; of the token embeddings the files hold only the rows in use.
fn clip(base: &Tensors, rows: &[&Tensors], dtype: DType) -> Result<Clip> {
    let config = base.metadata_json::<OpenAi>("config")?.config()?;
    let (vocab, width) = (config.text.vocab_size, config.text.transformer.width);
    let mut table = vec![0f64; vocab * width];
    for rows in rows {
        let Some(ids) = rows.find("token_embedding_row_ids") else { continue };
        let values = rows.get("token_embedding_rows")?.to_dtype(DType::F64)?.to_vec2::<f64>()?;
        for (id, row) in ids.to_dtype(DType::U32)?.to_vec1::<u32>()?.into_iter().zip(values) {
            let start = id as usize * width;
            table.get_mut(start..start + width).ok_or("a row beyond the vocabulary")?.copy_from_slice(&row);
        }
    }
    let device = base.get("image")?.device().clone();
    let table = Tensor::from_vec(table, (vocab, width), &device)?;
    let named = base.with_prefix("w.").map(|(name, tensor)| (name.to_owned(), tensor.clone()));
    let weights = Checkpoint::from_tensors(named.chain([("token_embedding.weight".to_owned(), table)]));
    Ok(Clip::new(&config, weights.vb(dtype, &device))?)
}

/// What both methods are given.
struct Setting {
    file: Tensors,
    model: Clip,
    tokenizer: ClipTokenizer,
    classes: Vec<String>,
    /// Features of the pictures, `(B, E)`.
    images: Tensor,
    labels: Tensor,
    store: ParamStore,
}

impl Setting {
    fn new(case: &Case, file: &Tensors) -> Result<Self> {
        let weights = file.metadata("weights").unwrap_or("clip_tiny");
        let base = case.sibling(weights.trim_end_matches(".safetensors")).tensors()?;
        let either = |name: &str| file.find(name).map_or_else(|| base.get(name), Ok);
        let dtype = file.find("ctx").map_or_else(|| file.get("w.ctx"), Ok)?.dtype();
        let model = clip(&base, &[&base, file], dtype)?;
        let classes = file.metadata_json("classnames").or_else(|_| base.metadata_json("classnames"))?;
        let images = model.encode_image(&either("image")?.to_dtype(dtype)?)?.detach();
        let labels = either("label")?.to_dtype(DType::U32)?;
        let store = ParamStore::new(1, dtype, images.device());
        Ok(Self { file: file.clone(), model, tokenizer: ClipTokenizer::openai()?, classes, images, labels, store })
    }

    /// Loads what an official checkpoint has: the parameters beside embeddings of class names, which are not to be loaded.
    fn load(&self, parameters: Vec<(String, Tensor)>) -> Result<()> {
        let passed_over = ["token_prefix", "token_suffix"].map(|name| (name.to_owned(), self.images.clone()));
        let file = Checkpoint::from_tensors(parameters.into_iter().chain(passed_over));
        self.store.load(&file, &load_options())?;
        Ok(())
    }

    /// Loss and gradients of every parameter, and nothing beside them; then the file's steps.
    fn learn(&self, logits: impl Fn() -> candle_core::Result<Tensor>) -> Result<Tensor> {
        let loss = || cross_entropy(&logits()?, &self.labels, 0.0);
        let first = loss()?;
        let grads = first.backward()?;
        for param in self.store.parameters() {
            let name = format!("grad.{}", param.name);
            let found = grads.get(param.var.as_tensor()).ok_or_else(|| format!("{name} is missing"))?;
            compare(&name, found, self.file.get(&name)?, GRADIENT)?;
        }
        if let Some((name, _)) = self.file.with_prefix("grad.").find(|(name, _)| self.store.get(name).is_none()) {
            return Err(format!("no parameter {name}").into());
        }
        let Some((stem, losses)) =
            self.file.with_prefix("train").find_map(|(name, t)| Some((name.strip_suffix(".losses")?.to_owned(), t)))
        else {
            return Ok(first);
        };
        let mut optimizer = Sgd::new(ParamGroups::new(self.store.parameters())?, sgd(self.file.metadata("sgd"))?)?;
        let mut found = vec![];
        for _ in 0..losses.dim(0)? {
            let loss = loss()?;
            optimizer.backward_step(&loss)?;
            found.push(loss.detach());
        }
        compare("losses of the steps", &Tensor::stack(&found, 0)?, losses, OUTPUT)?;
        for param in self.store.parameters() {
            let name = format!("train{stem}.{}", param.name);
            compare(&name, param.var.as_tensor(), self.file.get(&name)?, OUTPUT)?;
        }
        Ok(first)
    }

    fn prompts(&self, prompts: &Prompts) -> Result<()> {
        let ids = self.file.get("tokenized_prompts")?.to_dtype(DType::U32)?;
        equal("tokenized_prompts", &prompts.ids.to_dtype(DType::U32)?, &ids)?;
        if let Some(wanted) = self.file.find("name_lens") {
            let found: Vec<u32> = prompts.name_lens.iter().map(|len| *len as u32).collect();
            equal("name_lens", &Tensor::new(found, ids.device())?, &wanted.to_dtype(DType::U32)?)?;
        }
        Ok(())
    }
}

/// The note of the optimiser, `lr .002 momentum .9 wd 5e-4, 3 full-batch steps`; the official settings where there is none.
fn sgd(note: Option<&str>) -> Result<SgdConfig> {
    let mut cfg = SgdConfig { lr: 0.002, momentum: 0.9, weight_decay: 5e-4, ..SgdConfig::default() };
    let Some(note) = note else { return Ok(cfg) };
    let mut words = note.split([' ', ',']).filter(|word| !word.is_empty());
    while let Some(word) = words.next() {
        let mut number =
            || -> Result<f64> { Ok(words.next().ok_or_else(|| format!("no number after {word}"))?.parse()?) };
        match word {
            "lr" => cfg.lr = number()?,
            "momentum" => cfg.momentum = number()?,
            "wd" | "weight_decay" => cfg.weight_decay = number()?,
            "dampening" => cfg.dampening = number()?,
            "nesterov" => cfg.nesterov = true,
            "full-batch" | "step" | "steps" => {}
            // The number of steps, which the losses tell too.
            other if other.parse::<usize>().is_ok() => {}
            other => return Err(format!("the optimiser's note says `{other}`").into()),
        }
    }
    Ok(cfg)
}

/// Holds everything that the file has under `out.`.
fn check(file: &Tensors, found: &[(&str, Tensor)]) -> Result<()> {
    for (name, reference) in file.with_prefix("out.") {
        let (_, found) =
            found.iter().find(|(known, _)| *known == name).ok_or_else(|| format!("nothing looks at out.{name}"))?;
        compare(&format!("out.{name}"), found, reference, OUTPUT)?;
    }
    Ok(())
}

fn coop(setting: &Setting) -> Result<()> {
    let Setting { file, model, tokenizer, classes, images, store, .. } = setting;
    let cfg = file.metadata_json::<Arguments>("trainer_coop")?.config();
    let ctx = file.get("ctx")?;
    let coop = CoOp::new(&cfg, model, tokenizer, classes, store.vb())?;
    if cfg.ctx_init.is_some() {
        compare("context from words", &coop.ctx, ctx, OUTPUT)?;
    }
    setting.load(vec![("ctx".to_owned(), ctx.clone())])?;
    setting.prompts(&coop.prompts)?;
    let prompts = coop.prompts.assemble(&coop.ctx)?;
    let (features, logits) = (coop.text_features()?.detach(), coop.logits(images)?.detach());
    let loss = setting.learn(|| coop.logits(images))?;
    check(
        file,
        &[
            ("image_features", images.clone()),
            ("prompts_sum_tokens", prompts.sum(2)?),
            ("prompts", prompts),
            ("text_features", features),
            ("logits", logits),
            ("loss", loss),
        ],
    )
}

fn cocoop(setting: &Setting) -> Result<()> {
    let Setting { file, model, tokenizer, classes, images, store, .. } = setting;
    let cfg = file.metadata_json::<Arguments>("trainer_cocoop")?.config();
    let head = CoCoOp::new(&cfg, model, tokenizer, classes, store.vb())?;
    if cfg.ctx_init.is_some() {
        compare("context from words", &head.ctx, file.get("w.ctx")?, OUTPUT)?;
    }
    setting.load(file.with_prefix("w.").map(|(name, tensor)| (name.to_owned(), tensor.clone())).collect())?;
    setting.prompts(&head.prompts)?;
    let logits = head.logits(images)?.detach();
    compare("scores of few pictures at a time", &head.predict(images)?, &logits, OUTPUT)?;
    let loss = setting.learn(|| head.logits(images))?;
    check(file, &[("image_features", images.clone()), ("logits", logits), ("loss", loss)])
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
