//! CLIP's towers against OpenAI's code, open_clip and Hugging Face: features, logits, loss, stages, gradients.

use sconce::candle::{DType, Device, Tensor};
use sconce::clip::model::ModifiedResNet;
use sconce::clip::{
    Clip, ClipOutput, Config, ImageTower, Pairing, ResNetConfig, TextConfig, TransformerConfig, VisionConfig,
    VitConfig, class_weights, contrastive_loss, normalize, openai_names,
};
use sconce::nn::{Activation, Checkpoint};
use sconce_tests::golden::{Case, GRADIENT, OUTPUT, Result, Tensors, Weights, compare};
use serde::Deserialize;
use serde_json::Value;

/// The arguments of OpenAI's constructor.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct OpenAi {
    embed_dim: usize,
    image_resolution: usize,
    vision_layers: Layers,
    vision_width: usize,
    vision_patch_size: Option<usize>,
    context_length: usize,
    vocab_size: usize,
    transformer_width: usize,
    transformer_heads: usize,
    transformer_layers: usize,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Layers {
    Vit(usize),
    ResNet([usize; 4]),
}

impl OpenAi {
    pub(crate) fn config(&self) -> Result<Config> {
        let image_size = self.image_resolution;
        let transformer = TransformerConfig {
            heads: Some(self.transformer_heads),
            ..TransformerConfig::new(self.transformer_width, self.transformer_layers)
        };
        let text = TextConfig {
            context_length: self.context_length,
            vocab_size: self.vocab_size,
            end_token: None,
            transformer,
        };
        Ok(match (&self.vision_layers, self.vision_patch_size) {
            (Layers::Vit(depth), Some(patch_size)) => {
                let transformer = TransformerConfig::new(self.vision_width, *depth);
                Config::vit(self.embed_dim, VitConfig { image_size, patch_size, transformer }, text)
            }
            (Layers::ResNet(depths), None) => {
                let resnet = ResNetConfig { image_size, depths: *depths, width: self.vision_width, heads: None };
                Config::resnet(self.embed_dim, resnet, text)
            }
            _ => return Err("layers and patch size do not go together".into()),
        })
    }
}

pub(crate) fn run(case: &Case) -> Result<()> {
    let file = case.tensors()?;
    if file.find("pixel_values").is_some() {
        hugging_face(&file)
    } else if file.find("grad_seed_vector").is_some() {
        resnet(&file)
    } else if file.with_prefix("w.").next().is_some() {
        openai(&file)
    } else {
        open_clip(case, &file)
    }
}

/// Only the names that `checks` knows may be among the outputs, and each of them must agree.
fn check(file: &Tensors, checks: &[(&str, &Tensor)]) -> Result<()> {
    for (name, reference) in file.with_prefix("out.") {
        let found = checks.iter().find(|(known, _)| *known == name);
        let (_, found) = found.ok_or_else(|| format!("nothing to hold against out.{name}"))?;
        compare(&format!("out.{name}"), found, reference, OUTPUT)?;
    }
    Ok(())
}

fn gradients(file: &Tensors, weights: &Weights, loss: &Tensor) -> Result<()> {
    let grads = loss.backward()?;
    for (name, reference) in file.with_prefix("grad.") {
        let var = weights.get(name).ok_or_else(|| format!("grad.{name}: no such weight"))?;
        let found = grads.get(var.as_tensor()).ok_or_else(|| format!("{name} has no gradient"))?;
        compare(&format!("grad.{name}"), found, reference, GRADIENT)?;
    }
    for (name, var) in weights.iter().filter(|(name, _)| !name.contains("running_")) {
        let grad = grads.get(var.as_tensor()).ok_or_else(|| format!("{name} has no gradient"))?;
        if !grad.sum_all()?.to_scalar::<f32>()?.is_finite() {
            return Err(format!("the gradient of {name} is not finite").into());
        }
    }
    Ok(())
}

fn openai(file: &Tensors) -> Result<()> {
    let config = file.metadata_json::<OpenAi>("config")?.config()?;
    let inferred = Config::infer(&checkpoint(file))?;
    if (&inferred.vision, inferred.text.vocab_size) != (&config.vision, config.text.vocab_size) {
        return Err(format!("the sizes were inferred as {inferred:?}").into());
    }
    let weights = Weights::new(file, "w.", DType::F32)?;
    let model = Clip::new(&config, weights.vb(DType::F32))?;
    if !weights.untouched().is_empty() {
        return Err(format!("not part of the model: {:?}", weights.untouched()).into());
    }
    let (images, ids) = (file.get("image")?, file.get("text")?);
    let (image_features, text_features) = (model.encode_image(images)?, model.encode_text(ids)?);
    let output = model.forward_t(images, ids, true)?;
    let logits = output.logits_per_image()?;
    let loss = contrastive_loss(&output, &Pairing::Diagonal)?;
    let ensemble = class_weights(&output.text_features.narrow(0, 0, 2)?.unsqueeze(0)?)?.squeeze(0)?;
    check(
        file,
        &[
            ("image_features", &image_features),
            ("text_features", &text_features),
            ("logits_per_image", &logits),
            ("logits_per_text", &logits.t()?),
            ("infonce_loss", &loss),
            ("ensemble_weight_first2_texts", &ensemble),
        ],
    )?;
    gradients(file, &weights, &loss)
}

fn resnet(file: &Tensors) -> Result<()> {
    let config = file.metadata_json::<OpenAi>("config")?.config()?;
    let VisionConfig::ResNet(mut sizes) = config.vision else { return Err("a ResNet is expected".into()) };
    sizes.heads = file.metadata("heads").map(str::parse).transpose()?;
    let weights = Weights::new(file, "w.", DType::F32)?;
    let tower = ModifiedResNet::new(&sizes, config.embed_dim, weights.vb(DType::F32).pp("visual"))?;
    let stages = tower.forward_intermediates(file.get("image")?, false)?;
    let features = tower.forward_head(&stages[4])?;
    let layer1_mean = stages[1].mean((2, 3))?;
    check(
        file,
        &[
            ("stem", &stages[0]),
            ("layer1", &stages[1]),
            ("layer1_mean", &layer1_mean),
            ("layer2", &stages[2]),
            ("layer3", &stages[3]),
            ("layer4", &stages[4]),
            ("image_features", &features),
        ],
    )?;
    gradients(file, &weights, &(features * file.get("grad_seed_vector")?)?.sum_all()?)
}

fn checkpoint(file: &Tensors) -> Checkpoint {
    Checkpoint::from_tensors(file.with_prefix("w.").map(|(name, tensor)| (name.to_owned(), tensor.clone())))
}

fn hugging_face(file: &Tensors) -> Result<()> {
    let config = Config::from_json(&file.metadata_json::<Value>("config")?)?;
    let checkpoint = openai_names(&checkpoint(file))?;
    let model = Clip::new(&config, checkpoint.vb(DType::F32, &Device::Cpu))?;
    let (images, ids) = (file.get("pixel_values")?, file.get("input_ids")?);
    let ImageTower::Vit(vit) = &model.visual else { return Err("a ViT is expected".into()) };
    let tokens = vit.forward_features(images, false)?;
    let (image_features, text_features) = (model.encode_image(images)?, model.encode_text(ids)?);
    let output = model.forward_t(images, ids, false)?;
    check(
        file,
        &[
            ("image_embeds", &output.image_features),
            ("text_embeds", &output.text_features),
            ("logits_per_image", &output.logits_per_image()?),
            ("logits_per_text", &output.logits_per_image()?.t()?),
            ("loss", &contrastive_loss(&output, &Pairing::Diagonal)?),
            ("vision_last_hidden_state", &tokens),
            ("vision_pooler_output", &image_features),
            ("text_last_hidden_state", &model.text.forward_features(&model.text.embed(ids)?, false)?),
            ("text_pooler_output", &text_features),
        ],
    )
}

/// Weights and sizes are those of another case, named in the note; both activations are run.
fn open_clip(case: &Case, file: &Tensors) -> Result<()> {
    let note = file.metadata("note").ok_or("no note")?;
    let named = note.split([' ', ';']).find_map(|word| word.strip_suffix(".safetensors"));
    let weights = case.sibling(named.ok_or("the note names no weights")?).tensors()?;
    let config = weights.metadata_json::<OpenAi>("config")?.config()?;
    let run = |activation: Activation| -> Result<ClipOutput> {
        let weights = openai_names(&checkpoint(&weights))?;
        let model = Clip::new(&config.clone().with_activation(activation), weights.vb(DType::F32, &Device::Cpu))?;
        Ok(model.forward_t(file.get("image")?, file.get("text")?, false)?)
    };
    let (exact, quick) = (run(Activation::Gelu)?, run(Activation::GeluQuick)?);
    check(
        file,
        &[
            ("image_features_normalized_gelu", &exact.image_features),
            ("text_features_normalized_gelu", &normalize(&exact.text_features)?),
            ("image_features_normalized_quickgelu", &quick.image_features),
            ("text_features_normalized_quickgelu", &quick.text_features),
            ("logit_scale_exp", &quick.scale),
        ],
    )
}
