//! BOAT: the attention among similar tokens, and what is built with it. The official code pairs single leaves across images,
//! and so do all models here.

use std::cell::RefCell;
use std::sync::Arc;

use candle_core::{DType, Tensor};
use candle_nn::VarBuilder;
use sconce::attention::{
    BilateralAttention, BilateralConfig, CrossShapedAttention, MixerSpec, TokenLayout, TokenMixer, WindowAttention,
};
use sconce::backbones::boat::{Config, Host, HostConfig};
use sconce::backbones::{BoatTransformer, cswin as cswin_model};
use sconce::nn::layer_norm;
use sconce_tests::golden::{Case, Result, Tensors, Weights, equal};
use serde::Deserialize;
use serde_json::Value;

use super::cswin::{self, Hooks, TracedBlock};
use super::model::{ModelCase, Taps, train_mode};
use super::swin;

pub(crate) fn run(case: &Case) -> Result<()> {
    let json = case.json()?;
    let has = |key: &str| json["config"].get(key).is_some();
    if has("depth") {
        let host = case.config::<cswin::Arguments>()?.build()?;
        return model(case, Config { compat: true, ..Config::cswin(host) });
    }
    if has("depths") {
        let host = case.config::<swin::Arguments>()?.build(false, train_mode(&json)?)?;
        return model(case, Config { compat: true, ..Config::swin(host) });
    }
    if has("reso") { block(case) } else { attention(case) }
}

/// A number, or what the official code makes of a truth value in its place.
fn scale(value: &Value) -> Result<Option<f64>> {
    match value {
        Value::Null | Value::Bool(false) => Ok(None),
        Value::Bool(true) => Ok(Some(1.0)),
        Value::Number(number) => Ok(number.as_f64()),
        other => Err(format!("config: qk_scale {other}").into()),
    }
}

/// The order of the tokens in each head, where the case has it.
fn check_order(case: &Case, attention: &BilateralAttention, xs: &Tensor) -> Result<()> {
    let path = case.path("perm.safetensors");
    if !path.is_file() {
        return Ok(());
    }
    equal("perm", &attention.order(xs)?, Tensors::open(&path)?.get("perm")?)
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct AttentionArguments {
    dim: usize,
    num_heads: usize,
    qkv_bias: Option<bool>,
    #[serde(default)]
    qk_scale: Value,
    /// Told by the input.
    #[serde(rename = "N")]
    _tokens: Option<usize>,
    #[serde(rename = "B")]
    _batch: Option<usize>,
    /// Not read by the official code.
    #[serde(rename = "window_size")]
    _window_size: Option<Value>,
    #[serde(rename = "kmeans")]
    _kmeans: Option<Value>,
}

fn square(xs: &Tensor) -> Result<TokenLayout> {
    let side = xs.dim(1)?.isqrt();
    Ok(TokenLayout { prefix: 0, height: side, width: side })
}

fn attention(case: &Case) -> Result<()> {
    let arguments = case.config::<AttentionArguments>()?;
    let config = BilateralConfig {
        qkv_bias: arguments.qkv_bias.unwrap_or(true),
        scale: scale(&arguments.qk_scale)?,
        compat: true,
        ..BilateralConfig::new(arguments.dim, arguments.num_heads)
    };
    ModelCase {
        build: &|vb| BilateralAttention::new(&config, vb),
        forward: &|attention, _, xs, train| Ok(vec![attention.forward_layout(xs, square(xs)?, train)?]),
        trace: &|attention, xs, _| {
            let mut hooks = Hooks::default();
            hooks.content("", attention, xs, square(xs)?)?;
            Ok(hooks.taps)
        },
        idle: &|_| false,
    }
    .run(case, None)?;
    for dtype in [DType::F32, DType::F64] {
        let attention = BilateralAttention::new(&config, Weights::new(&case.weights()?, "", dtype)?.vb(dtype))?;
        check_order(case, &attention, &case.tensors()?.get("input")?.to_dtype(dtype)?)?;
    }
    Ok(())
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct BlockArguments {
    dim: usize,
    reso: usize,
    num_heads: usize,
    split_size: Option<usize>,
    mlp_ratio: Option<f64>,
    qkv_bias: Option<bool>,
    qk_scale: Option<f64>,
    last_stage: Option<bool>,
    content: Option<bool>,
    #[serde(rename = "B")]
    _batch: Option<usize>,
}

/// A block of BOAT-CSWin by itself.
struct Block {
    layout: TokenLayout,
    block: cswin_model::Block,
    mixer: CrossShapedAttention,
    content: Option<BilateralAttention>,
}

impl Block {
    fn new(arguments: &BlockArguments, vb: VarBuilder) -> candle_core::Result<Self> {
        let &BlockArguments { dim, reso, num_heads: heads, .. } = arguments;
        // The defaults of the official block; its biases are off by default, those of the whole model are on.
        let host = cswin_model::Config {
            split_size: [arguments.split_size.unwrap_or(7); 4],
            mlp_ratio: arguments.mlp_ratio.unwrap_or(4.0),
            qkv_bias: arguments.qkv_bias.unwrap_or(false),
            qk_scale: arguments.qk_scale,
            ..Default::default()
        };
        let layout = TokenLayout { prefix: 0, height: reso, width: reso };
        let spec = MixerSpec {
            block: 0,
            depth: 1,
            stage: if arguments.last_stage == Some(true) { 3 } else { 0 },
            stage_block: 0,
            dim,
            heads,
            qkv_bias: host.qkv_bias,
            attn_drop: 0.0,
            proj_drop: 0.0,
            layout,
        };
        let mixer = CrossShapedAttention::new(&host.cross_shaped_attention(&spec), vb.clone())?;
        let mut block = cswin_model::Block::new(&host, dim, Arc::new(mixer.clone()), 0.0, vb.clone())?;
        let config = Config { compat: true, ..Config::cswin(host) };
        let content = match arguments.content {
            Some(true) => Some(BilateralAttention::new(&config.content_attention(&spec), vb.pp("content_attn"))?),
            _ => None,
        };
        if let Some(content) = &content {
            let norm3 = layer_norm(dim, 1e-5, vb.pp("norm3"))?;
            block.content = Some(cswin_model::Content { norm3, content_attn: Arc::new(content.clone()) });
        }
        Ok(Self { layout, block, mixer, content })
    }

    fn trace(&self, xs: &Tensor, train: bool) -> Result<Taps> {
        let mut hooks = Hooks::default();
        let block = TracedBlock { block: &self.block, mixer: &self.mixer, content: self.content.as_ref() };
        block.trace(&mut hooks, "", xs, self.layout, train)?;
        Ok(hooks.taps)
    }
}

fn block(case: &Case) -> Result<()> {
    let arguments = case.config::<BlockArguments>()?;
    ModelCase {
        build: &|vb| Block::new(&arguments, vb),
        forward: &|block, _, xs, train| Ok(vec![block.block.forward_layout(xs, block.layout, train)?]),
        trace: &Block::trace,
        idle: &|_| false,
    }
    .run(case, None)?;
    for dtype in [DType::F32, DType::F64] {
        let block = Block::new(&arguments, Weights::new(&case.weights()?, "", dtype)?.vb(dtype))?;
        let taps = block.trace(&case.tensors()?.get("input")?.to_dtype(dtype)?, false)?;
        if let (Some(content), Some(xs)) = (&block.content, taps.get("content_attn.in")) {
            check_order(case, content, xs)?;
        }
    }
    Ok(())
}

/// A whole model whose mixers can be looked into.
struct Traced {
    model: BoatTransformer,
    windows: Vec<Arc<WindowAttention>>,
    crosses: Vec<CrossShapedAttention>,
    contents: Vec<(MixerSpec, BilateralAttention)>,
}

impl Traced {
    fn new(config: &Config, vb: VarBuilder) -> candle_core::Result<Self> {
        let (windows, crosses, contents) = (RefCell::new(vec![]), RefCell::new(vec![]), RefCell::new(vec![]));
        let model = BoatTransformer::with_mixers(
            config,
            vb,
            |spec, vb| match &config.host {
                HostConfig::Swin(host) => {
                    let mixer = Arc::new(WindowAttention::new(&host.window_attention(spec), vb)?);
                    windows.borrow_mut().push(mixer.clone());
                    Ok(mixer)
                }
                HostConfig::Cswin(host) => {
                    let mixer = CrossShapedAttention::new(&host.cross_shaped_attention(spec), vb)?;
                    crosses.borrow_mut().push(mixer.clone());
                    Ok(Arc::new(mixer))
                }
            },
            |spec, vb| {
                let content = BilateralAttention::new(&config.content_attention(spec), vb)?;
                contents.borrow_mut().push((*spec, content.clone()));
                Ok(Arc::new(content))
            },
        )?;
        let (windows, crosses) = (windows.into_inner(), crosses.into_inner());
        Ok(Self { model, windows, crosses, contents: contents.into_inner() })
    }

    fn trace(&self, input: &Tensor, train: bool) -> Result<Taps> {
        match &self.model.host {
            Host::Swin(model) => {
                let host = swin::Traced { model: model.clone(), mixers: self.windows.clone() };
                let taps = host.trace(input, train, false)?;
                let mut hooks = Hooks { taps };
                for (spec, content) in &self.contents {
                    let name = format!("layers.{}.blocks.{}.attnC", spec.stage, spec.stage_block);
                    let xs = hooks.taps.get(&format!("{name}.in")).ok_or("no such tap")?.clone();
                    hooks.content(&format!("{name}."), content, &xs, spec.layout)?;
                }
                Ok(hooks.taps)
            }
            Host::Cswin(model) => {
                let of = |block: usize| self.contents.iter().find(|(spec, _)| spec.block == block);
                let contents = (0..self.crosses.len()).map(|block| of(block).map(|(_, content)| content.clone()));
                let (mixers, contents) = (self.crosses.clone(), contents.collect());
                cswin::Traced { model: model.clone(), mixers, contents }.trace(input, train)
            }
        }
    }
}

fn model(case: &Case, config: Config) -> Result<()> {
    ModelCase {
        build: &|vb| Traced::new(&config, vb),
        forward: &|traced, io, xs, train| cswin::forward(&traced.model, io, xs, train),
        trace: &Traced::trace,
        // Computed by the model for every map.
        idle: &|name| name.ends_with("relative_position_index") || name.ends_with("attn_mask"),
    }
    .run(case, None)
}
