//! Wukong: tokens, late interaction, token reduction, losses, gradients; its tokenizer; retrieval figures.

use candle_core::{D, DType, Device, Tensor};
use sconce::clip::tokenizer::Vocabulary;
use sconce::clip::wukong::{
    Config, LateInteraction, Padding, Recalls, ReductionConfig, Similarity, TemplateClassifier, TextTokens,
    TokenReduction, Variant, VisionConfig, Wukong, late_interaction, official_names, to_official_name,
};
use sconce::clip::{Pairing, TextConfig, Tokenize, TransformerConfig, VitConfig, WordPiece, normalize};
use sconce::metrics::{CrossRetrieval, Ties};
use sconce::nn::{Checkpoint, ModuleT, Source};
use sconce_tests::golden::{Case, GRADIENT, OUTPUT, Result, Tensors, Weights, compare};
use serde::Deserialize;

pub(crate) fn run(case: &Case) -> Result<()> {
    if !case.file("json").is_file() {
        return model(&case.tensors()?);
    }
    let json = case.json()?;
    match json.get("similarity_image_by_text") {
        Some(_) => retrieval(&serde_json::from_value(json)?),
        None => tokenizer(&serde_json::from_value(json)?),
    }
}

/// Sizes of a golden model: image, towers, shared space, reduction.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Params {
    res: usize,
    patch: usize,
    vw: usize,
    vh: usize,
    vl: usize,
    tw: usize,
    th: usize,
    tl: usize,
    ctx: usize,
    vocab: usize,
    dim: usize,
    ntok: usize,
    groups: usize,
}

impl Params {
    fn config(&self, eps: f64, variant: Variant) -> Config {
        let blocks =
            |width, depth, heads| TransformerConfig { heads: Some(heads), eps, ..TransformerConfig::new(width, depth) };
        let transformer = blocks(self.vw, self.vl, self.vh);
        let vit = VitConfig { image_size: self.res, patch_size: self.patch, transformer };
        let text = TextConfig {
            context_length: self.ctx,
            vocab_size: self.vocab,
            end_token: None,
            transformer: blocks(self.tw, self.tl, self.th),
        };
        Config { embed_dim: self.dim, vision: VisionConfig::Vit(vit), text, variant, ..Config::default() }
    }
}

fn model(file: &Tensors) -> Result<()> {
    let params: Params = file.metadata_json("params")?;
    let eps: f64 = file.metadata_json("ln_eps")?;
    let reduction = ReductionConfig { tokens: params.ntok, groups: params.groups, eps, ..ReductionConfig::default() };
    let (images, ids) = (file.get("image")?, file.get("text")?);
    let official = |name: &str| Source::Tensor(to_official_name(name));
    let build = |variant: Variant| -> Result<(Weights, Wukong)> {
        let weights = Weights::new(file, "w.", DType::F32)?;
        let model = Wukong::new(&params.config(eps, variant), weights.vb_with(DType::F32, official))?;
        Ok((weights, model))
    };

    // Every tensor of the file is part of the model with reduced tokens; the others leave its layer aside.
    let (weights, reduced) = build(Variant::Reduced(reduction.clone()))?;
    if !weights.untouched().is_empty() {
        return Err(format!("not part of the model: {:?}", weights.untouched()).into());
    }
    reduced_tokens(file, &reduced, images)?;
    let layer = TokenReduction::new(&reduction, params.vw, weights.vb(DType::F32).pp("token_learner"))?;
    let grid = file.get("token_learner_input_BHWC")?.flatten(1, 2)?; // (B, H W, C)
    compare("attention", &layer.attention(&grid)?, file.get("out.token_learner_attention")?, OUTPUT)?;
    compare("reduced tokens", &layer.forward_t(&grid, false)?, file.get("out.token_learner_tokens")?, OUTPUT)?;

    let (weights, filip) = build(Variant::Filip)?;
    if weights.untouched().iter().any(|name| !name.starts_with("token_learner.")) {
        return Err(format!("not part of the model: {:?}", weights.untouched()).into());
    }
    let patches = filip.encode_image(images, false)?;
    let tokens = file.get("out.visual_tokens_all")?;
    compare("patches", &patches, &normalize(&tokens.narrow(1, 1, tokens.dim(1)? - 1)?)?, OUTPUT)?;
    compare("text tokens", &filip.text_tokens(ids, false)?, file.get("out.text_tokens_all")?, OUTPUT)?;
    let texts = filip.encode_text(ids, false)?;
    let similarity = filip.similarity(&patches, &texts)?;
    compare("i2t", &similarity.image_to_text, file.get("out.filip_i2t_masked")?, OUTPUT)?;
    compare("t2i", &similarity.text_to_image.t()?, file.get("out.filip_t2i_masked")?, OUTPUT)?;
    let zeroed = LateInteraction { padding: Padding::Zeroed, block: 1 };
    // The golden pads to the whole context.
    let all = pad(&texts, params.ctx)?;
    let found = late_interaction(&patches, &all, &zeroed)?.image_to_text;
    compare("zero padded", &found, file.get("out.eval_late_similarity_i2t_zero_padded")?, OUTPUT)?;
    let loss = similarity.loss(&filip.scale()?, &Pairing::Diagonal)?;
    compare("filip_loss", &loss, file.get("out.filip_loss")?, OUTPUT)?;
    gradients(file, &weights, &loss)?;
    ensemble(file, &patches, &all)?;

    let (_, global) = build(Variant::Global)?;
    let (images, texts) = (global.encode_image(images, false)?, global.encode_text(ids, false)?);
    compare("class token", &images.squeeze(1)?, &normalize(&tokens.narrow(1, 0, 1)?.squeeze(1)?)?, OUTPUT)?;
    compare("text", &texts.features.squeeze(1)?, &normalize(file.get("out.text_global")?)?, OUTPUT)?;
    let similarity = global.similarity(&images, &texts)?;
    compare("global", &similarity.image_to_text, file.get("out.global_similarity")?, OUTPUT)?;
    let loss = similarity.loss(&global.scale()?, &Pairing::Diagonal)?;
    compare("global_loss", &loss, file.get("out.global_loss")?, OUTPUT)
}

/// The same tower in parts: patches, reduction, final norm and projection; and from a checkpoint with published names.
fn reduced_tokens(file: &Tensors, model: &Wukong, images: &Tensor) -> Result<()> {
    let variant = &model.config.variant;
    let tokens = model.visual.tokens(images, variant, false)?;
    let layer = model.token_learner.as_ref().ok_or("no reduction")?;
    let expected = normalize(&model.visual.project(&layer.forward_t(&tokens, false)?)?)?;
    let named = file.with_prefix("w.").map(|(name, tensor)| (name.to_owned(), tensor.clone()));
    let checkpoint = official_names(&Checkpoint::from_tensors(named))?;
    let loaded = Wukong::new(&model.config, checkpoint.vb(DType::F32, &Device::Cpu))?;
    compare("reduced", &loaded.encode_image(images, false)?, &expected, OUTPUT)
}

/// Rows of `length` tokens, the further ones padding.
fn pad(texts: &TextTokens, length: usize) -> Result<TextTokens> {
    let pad = |xs: &Tensor| xs.pad_with_zeros(1, 0, length - xs.dim(1)?);
    Ok(TextTokens { features: pad(&texts.features)?, valid: pad(&texts.valid)? })
}

fn gradients(file: &Tensors, weights: &Weights, loss: &Tensor) -> Result<()> {
    let grads = loss.backward()?;
    let mut compared = 0;
    for (name, reference) in file.with_prefix("grad_filip.") {
        let var = weights.get(name).ok_or_else(|| format!("{name}: no such weight"))?;
        let found = grads.get(var.as_tensor()).ok_or_else(|| format!("{name} has no gradient"))?;
        compare(&format!("gradient of {name}"), found, reference, GRADIENT)?;
        compared += 1;
    }
    if compared == 0 { Err("no gradient to compare".into()) } else { Ok(()) }
}

/// The texts of the file are two classes, each in two templates. The released evaluation zeroes padding and does not scale.
fn ensemble(file: &Tensors, images: &Tensor, texts: &TextTokens) -> Result<()> {
    let reference = file.get("out.template_ensemble_prob")?;
    let classes = reference.dim(D::Minus1)?;
    let templates = texts.features.dim(0)? / classes;
    let part = |template: usize| -> Result<TextTokens> {
        let rows: Vec<u32> = (0..classes).map(|class| (class * templates + template) as u32).collect();
        let rows = Tensor::new(rows, images.device())?;
        let pick = |xs: &Tensor| xs.index_select(&rows, 0);
        Ok(TextTokens { features: pick(&texts.features)?, valid: pick(&texts.valid)? })
    };
    let parts = (0..templates).map(part).collect::<Result<Vec<_>>>()?;
    let names = (0..classes).map(|class| class.to_string()).collect();
    let scale = Tensor::new(1f32, images.device())?;
    let mut classifier = TemplateClassifier::of_texts(&Variant::Filip, parts, names, scale)?;
    classifier.options.padding = Padding::Zeroed;
    compare("template_ensemble_prob", &classifier.probabilities(images)?, reference, OUTPUT)
}

#[derive(Deserialize)]
struct Texts {
    meta: Meta,
    cases: Vec<Text>,
}

#[derive(Deserialize)]
struct Meta {
    vocab_size: usize,
}

#[derive(Deserialize)]
struct Text {
    text: String,
    tokens: Vec<String>,
    ids: Vec<u32>,
    context32: Vec<u32>,
    hf_ids: Vec<u32>,
    hf_equal: bool,
}

/// The vocabulary is not ours to keep: the rows that the texts use are in the file, the others get names that no text has.
fn tokenizer(file: &Texts) -> Result<()> {
    let mut tokens: Vec<String> = (0..file.meta.vocab_size).map(|id| format!("[unused line {id}]")).collect();
    let special = [("[PAD]", 0), ("[UNK]", 100), ("[CLS]", 101), ("[SEP]", 102)].map(|(t, id)| (t.to_owned(), id));
    let used = file.cases.iter().flat_map(|c| c.tokens.iter().cloned().zip(c.ids.iter().copied()));
    for (token, id) in special.into_iter().chain(used) {
        *tokens.get_mut(id as usize).ok_or("an id beyond the vocabulary")? = token;
    }
    let length = file.cases.first().ok_or("no text")?.context32.len();
    let tokenizer = WordPiece::new(Vocabulary::new(tokens)?, length)?;
    let mut wrong = vec![];
    for case in &file.cases {
        let mut row = tokenizer.row(&case.text)?;
        row.resize(length, 0);
        let found = (tokenizer.pieces(&case.text), tokenizer.encode(&case.text)?, row);
        if (&found.0, &found.1, &found.2)
            != (&case.tokens.iter().map(String::as_str).collect(), &case.ids, &case.context32)
            || case.hf_equal != (found.1 == case.hf_ids)
        {
            wrong.push(format!("{:?}: {found:?}", case.text));
        }
    }
    if wrong.is_empty() { Ok(()) } else { Err(format!("{} differ: {}", wrong.len(), wrong.join("; ")).into()) }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Retrieval {
    similarity_image_by_text: Vec<Vec<f64>>,
    text_owner_image: Vec<usize>,
    rank_image_best: Vec<usize>,
    rank_text: Vec<usize>,
    i2t_recall: std::collections::BTreeMap<usize, f64>,
    t2i_recall: std::collections::BTreeMap<usize, f64>,
    mean_recall_6: f64,
}

/// Ranks of the file count from 0, recalls are percentages.
fn retrieval(file: &Retrieval) -> Result<()> {
    let (rows, columns) = (file.similarity_image_by_text.len(), file.text_owner_image.len());
    let scores = Tensor::from_vec(file.similarity_image_by_text.concat(), (rows, columns), &Device::Cpu)?;
    let cross = CrossRetrieval::new(&scores, &file.text_owner_image, Ties::Pessimistic)?;
    for (what, ranks, reference) in
        [("images", &cross.image_to_text, &file.rank_image_best), ("texts", &cross.text_to_image, &file.rank_text)]
    {
        let found: Vec<usize> = ranks.ranks().iter().map(|rank| rank - 1).collect();
        if found != *reference {
            return Err(format!("ranks of {what}: {found:?} instead of {reference:?}").into());
        }
    }
    let similarity = Similarity { image_to_text: scores.clone(), text_to_image: scores };
    let found = Recalls::new(&similarity, &file.text_owner_image)?;
    let mut pairs = vec![(found.mean, file.mean_recall_6)];
    for (recalls, reference) in [(found.image_to_text, &file.i2t_recall), (found.text_to_image, &file.t2i_recall)] {
        for (k, wanted) in reference {
            let place = Recalls::AT.iter().position(|at| at == k).ok_or_else(|| format!("no recall at {k}"))?;
            pairs.push((recalls[place], *wanted));
        }
    }
    match pairs.iter().find(|(found, wanted)| (100.0 * found - wanted).abs() > 1e-9) {
        Some((found, wanted)) => Err(format!("recall {found} instead of {wanted} %").into()),
        None => Ok(()),
    }
}
