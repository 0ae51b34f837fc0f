//! ViT of timm and Hugging Face, distilled DeiT, resampled position embeddings.

use candle_core::{Module, ModuleT, Tensor};
use sconce::backbones::vit::{Block, Config, HuggingFaceConfig, HuggingFaceKeys, Pool, PosResample};
use sconce::backbones::{Backbone, VisionTransformer};
use sconce_tests::golden::{Case, OUTPUT, Result, Tensors, compare};
use serde::Deserialize;
use serde_json::Value;

use super::model::{Keys, ModelCase, Taps, train_mode};

pub(crate) fn run(case: &Case) -> Result<()> {
    let json = case.json()?;
    if json.get("old_grid").is_some() {
        return positions(case, serde_json::from_value(json)?);
    }
    let hugging_face = json["config"].get("hidden_size").is_some();
    let (names, train) = (case.weights()?, train_mode(&json)?);
    if hugging_face {
        let config = hugging_face_config(&json["config"])?;
        let keys = HuggingFaceKeys::detect(names.iter().map(|(name, _)| name))?;
        return model_case(case, &config, Some(Keys::new(keys)));
    }
    let mut config: Config = case.config::<TimmArguments>()?.build(train)?;
    config.distilled = names.find("dist_token").is_some();
    model_case(case, &config, None)
}

/// A side of a picture as the configurations write it: `32`, `[32]` or `[48, 32]`.
#[derive(Debug, Clone, Deserialize)]
#[serde(untagged)]
pub(crate) enum Side {
    One(usize),
    Many(Vec<usize>),
}

impl TryFrom<Side> for [usize; 2] {
    type Error = String;

    fn try_from(side: Side) -> Result<Self, String> {
        match side {
            Side::One(side) => Ok([side; 2]),
            Side::Many(sides) => match sides[..] {
                [side] => Ok([side; 2]),
                [height, width] => Ok([height, width]),
                _ => Err(format!("{sides:?} is not the size of a picture")),
            },
        }
    }
}

/// The part of timm's arguments that the library has; any other fails the case with its name.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct TimmArguments {
    #[serde(deserialize_with = "side")]
    img_size: [usize; 2],
    patch_size: usize,
    embed_dim: usize,
    depth: usize,
    num_heads: usize,
    #[serde(default = "three")]
    in_chans: usize,
    num_classes: Option<usize>,
    mlp_ratio: Option<f64>,
    qkv_bias: Option<bool>,
    init_values: Option<f64>,
    global_pool: Option<Pool>,
    drop_rate: Option<f64>,
    pos_drop_rate: Option<f64>,
    proj_drop_rate: Option<f64>,
    attn_drop_rate: Option<f64>,
    drop_path_rate: Option<f64>,
    /// Size of the input where it is not the configured one.
    #[serde(rename = "input")]
    _input: Option<Vec<usize>>,
}

fn side<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<[usize; 2], D::Error> {
    Side::deserialize(deserializer)?.try_into().map_err(serde::de::Error::custom)
}

fn three() -> usize {
    3
}

impl TimmArguments {
    /// The library's options. Dropout changes nothing outside of training, and in training no two programs agree on it.
    pub(crate) fn build(self, train: bool) -> Result<Config> {
        let arguments = self;
        let drops = [
            arguments.drop_rate,
            arguments.pos_drop_rate,
            arguments.proj_drop_rate,
            arguments.attn_drop_rate,
            arguments.drop_path_rate,
        ];
        if train && drops.iter().any(|rate| rate.is_some_and(|rate| rate != 0.0)) {
            return Err("config: dropout in training mode cannot be compared".into());
        }
        let default = Config::vit_base_patch16_224();
        Ok(Config {
            img_size: arguments.img_size,
            patch_size: arguments.patch_size,
            embed_dim: arguments.embed_dim,
            depth: arguments.depth,
            num_heads: arguments.num_heads,
            in_chans: arguments.in_chans,
            num_classes: arguments.num_classes.unwrap_or(default.num_classes),
            mlp_ratio: arguments.mlp_ratio.unwrap_or(default.mlp_ratio),
            qkv_bias: arguments.qkv_bias.unwrap_or(default.qkv_bias),
            init_values: arguments.init_values,
            global_pool: arguments.global_pool.unwrap_or_default(),
            ..default
        })
    }
}

/// Options of Hugging Face's configuration that do not change the numbers of a forward pass.
const BOOKKEEPING: &[&str] = &[
    "_name_or_path",
    "attn_implementation",
    "_attn_implementation",
    "chunk_size_feed_forward",
    "dtype",
    "encoder_stride",
    "initializer_range",
    "is_encoder_decoder",
    "label2id",
    "output_attentions",
    "output_hidden_states",
    "pooler_act",
    "pooler_output_size",
    "problem_type",
    "return_dict",
    "torch_dtype",
    "transformers_version",
    "use_cache",
];

fn hugging_face_config(json: &Value) -> Result<Config> {
    const KNOWN: &[&str] = &[
        "architectures",
        "attention_probs_dropout_prob",
        "hidden_act",
        "hidden_dropout_prob",
        "hidden_size",
        "id2label",
        "image_size",
        "intermediate_size",
        "layer_norm_eps",
        "model_type",
        "num_attention_heads",
        "num_channels",
        "num_hidden_layers",
        "patch_size",
        "qkv_bias",
    ];
    for key in json.as_object().ok_or("config is not an object")?.keys() {
        if !KNOWN.contains(&key.as_str()) && !BOOKKEEPING.contains(&key.as_str()) {
            return Err(format!("config: unknown field `{key}`").into());
        }
    }
    let hf: HuggingFaceConfig = serde_json::from_value(json.clone())?;
    Ok(Config::try_from(&hf)?)
}

/// Bare models of Hugging Face come with a pooler, which has no place in the architecture.
fn model_case(case: &Case, config: &Config, keys: Option<Keys>) -> Result<()> {
    ModelCase {
        build: &|vb| VisionTransformer::new(config, vb),
        forward: &forward,
        trace: &trace,
        idle: &|name| name.contains("pooler"),
    }
    .run(case, keys)
}

/// Two outputs are those of the two heads, one of rank 3 is all tokens, and everything else the usual output.
fn forward(model: &VisionTransformer, io: &Tensors, input: &Tensor, train: bool) -> Result<Vec<Tensor>> {
    if io.find("output1").is_some() {
        let (cls, dist) = model.forward_distilled(input, train)?;
        return Ok(vec![cls, dist]);
    }
    if io.get("output")?.rank() == 3 {
        return Ok(vec![model.forward_features(input, train)?]);
    }
    Ok(vec![model.forward_t(input, train)?])
}

/// Everything that a forward hook could see, under the names of the modules.
pub(crate) fn trace(model: &VisionTransformer, input: &Tensor, train: bool) -> Result<Taps> {
    let mut taps = Taps::new();
    let mut tap = |name: String, tensor: &Tensor| taps.insert(name, tensor.clone());
    tap("patch_embed.in".into(), input);
    tap("patch_embed.out".into(), &model.patch_embed.forward(input)?);
    let (mut xs, layout) = model.embed(input, train)?;
    for (i, block) in model.blocks.iter().enumerate() {
        let Block { norm1, attn, norm2, mlp, .. } = block;
        let mut tap = |name: &str, tensor: &Tensor| tap(format!("blocks.{i}{name}"), tensor);
        tap(".in", &xs);
        let normed = norm1.forward(&xs)?;
        tap(".attn.in", &normed);
        let mixed = attn.forward_layout(&normed, layout, train)?;
        tap(".attn.out", &mixed);
        if let Some(weights) = attn.attention_weights(&normed)? {
            tap(".attn.out1", &weights);
        }
        let scaled = block.ls1.as_ref().map_or(Ok(mixed.clone()), |ls| ls.forward(&mixed))?;
        let normed = norm2.forward(&(&xs + scaled)?)?;
        tap(".mlp.in", &normed);
        tap(".mlp.out", &mlp.forward_t(&normed, train)?);
        xs = block.forward_layout(&xs, layout, train)?;
        tap(".out", &xs);
    }
    if let Some(norm) = &model.norm {
        tap("norm.in".into(), &xs);
        tap("norm.out".into(), &norm.forward(&xs)?);
    }
    Ok(taps)
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Positions {
    old_grid: (usize, usize),
    new_grid: (usize, usize),
    interp: String,
    prefix: usize,
}

fn positions(case: &Case, options: Positions) -> Result<()> {
    if !options.interp.starts_with("bicubic") || !options.interp.contains("align_corners False") {
        return Err(format!("no resampling `{}`", options.interp).into());
    }
    let Positions { old_grid: (height, width), prefix, .. } = options;
    let io = case.tensors()?;
    if io.get("pos_embed")?.dim(1)? != prefix + height * width || height != width {
        return Err(format!("no embedding of a square grid {height} x {width} and {prefix} more tokens").into());
    }
    for (name, rule) in [("resampled_antialias", PosResample::Timm), ("resampled_noantialias", PosResample::Deit)] {
        let pos = io.get("pos_embed")?;
        let found = rule.apply(pos, prefix, options.new_grid)?;
        compare(name, &found, io.get(name)?, OUTPUT)?;
    }
    Ok(())
}
