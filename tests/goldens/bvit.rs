//! BViT as released and without its stem, and broad attention by itself.

use std::cell::RefCell;
use std::sync::Arc;

use candle_core::{D, Module, ModuleT, Tensor};
use sconce::attention::{Qkv, TokenLayout, TokenMixer, broad_attention, broad_features};
use sconce::backbones::bvit::{Attention, BViT, Config, Pool};
use sconce::backbones::{Backbone, vit};
use sconce::nn::VarBuilder;
use sconce::ops::{matmul, softmax};
use sconce_tests::golden::{Case, Result, Tensors};
use serde::Deserialize;

use super::model::{ModelCase, Taps, train_mode};
use super::swin::mlp_taps;
use super::vit::Side;

pub(crate) fn run(case: &Case) -> Result<()> {
    let json = case.json()?;
    if json["config"].get("out_dim").is_some() {
        return function(case);
    }
    let config = case.config::<Arguments>()?.build(train_mode(&json)?)?;
    ModelCase {
        build: &|vb| Traced::new(&config, vb),
        forward: &|traced, io, input, train| forward(&traced.model, io, input, train),
        trace: &Traced::trace,
        idle: &|_| false,
    }
    .run(case, None)
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Function {
    #[serde(rename = "L")]
    layers: usize,
    #[serde(rename = "B")]
    batch: usize,
    heads: usize,
    n: usize,
    d: usize,
    out_dim: usize,
}

/// Broad attention by itself; the axes of the input are (which, layer, B, heads, N, D).
fn function(case: &Case) -> Result<()> {
    let Function { layers, batch, heads, n, d, out_dim } = case.config()?;
    let forward = move |(): &(), _: &Tensors, input: &Tensor, _: bool| {
        if input.dims() != [3, layers, batch, heads, n, d] {
            return Err(format!("an input of {:?} is not that of the configuration", input.dims()).into());
        }
        let part = |which: usize, layer: usize| input.get(which)?.get(layer);
        let layer = |i: usize| Ok(Qkv { q: part(0, i)?, k: part(1, i)?, v: part(2, i)? });
        let layers = (0..layers).map(layer).collect::<candle_core::Result<Vec<_>>>()?;
        Ok(vec![broad_attention(&layers, out_dim)?])
    };
    ModelCase { build: &|_| Ok(()), forward: &forward, trace: &|(), _, _| Ok(Taps::new()), idle: &|_| false }
        .run(case, None)
}

/// The released class's arguments, and the switch of its stem; any other fails the case with its name.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Arguments {
    image_size: Side,
    patch_size: usize,
    num_classes: usize,
    dim: usize,
    depth: usize,
    heads: usize,
    mlp_dim: usize,
    #[serde(default)]
    pool: Pool,
    channels: Option<usize>,
    dim_head: Option<usize>,
    dropout: Option<f64>,
    emb_dropout: Option<f64>,
    stem: Option<bool>,
}

impl Arguments {
    fn build(self, train: bool) -> Result<Config> {
        if train && [self.dropout, self.emb_dropout].iter().any(|rate| rate.is_some_and(|rate| rate != 0.0)) {
            return Err("config: dropout in training mode cannot be compared".into());
        }
        let default = Config::bvit_5m();
        Ok(Config {
            img_size: self.image_size.try_into()?,
            patch_size: self.patch_size,
            num_classes: self.num_classes,
            embed_dim: self.dim,
            depth: self.depth,
            num_heads: self.heads,
            mlp_dim: self.mlp_dim,
            pool: self.pool,
            in_chans: self.channels.unwrap_or(default.in_chans),
            head_dim: self.dim_head.unwrap_or(default.head_dim),
            // The released class has it always.
            stem: self.stem.unwrap_or(true),
            ..default
        })
    }
}

fn forward(model: &BViT, io: &Tensors, input: &Tensor, train: bool) -> Result<Vec<Tensor>> {
    Ok(vec![match io.get("output")?.rank() {
        3 => model.forward_features(input, train)?,
        _ => model.forward_t(input, train)?,
    }])
}

/// A model with a hold on its mixers, whose projections hooks would see.
struct Traced {
    model: BViT,
    mixers: Vec<Arc<Attention>>,
}

impl Traced {
    fn new(config: &Config, vb: VarBuilder) -> candle_core::Result<Self> {
        let mixers = RefCell::new(vec![]);
        let model = BViT::with_mixer(config, vb, |spec, vb| {
            let mixer = Arc::new(Attention::new(config, spec, vb)?);
            mixers.borrow_mut().push(mixer.clone());
            Ok(mixer)
        })?;
        Ok(Self { model, mixers: mixers.into_inner() })
    }

    /// Everything that a forward hook could see, under the names of the modules.
    fn trace(&self, input: &Tensor, train: bool) -> Result<Taps> {
        let model = &self.model;
        let mut taps = Taps::new();
        let mut tap = |name: &str, tensor: &Tensor| {
            taps.insert(name.to_owned(), tensor.clone());
        };
        tap("conv.in", input);
        let map = model.conv.as_ref().map_or(Ok(input.clone()), |conv| conv.forward(input))?;
        tap("conv.out", &map);
        let patches = model.patchify(&map)?;
        let embedded = model.patch_embedding.forward(&patches)?;
        for (name, tensor) in [("in", &map), ("0.in", &map), ("0.out", &patches), ("1.in", &patches)] {
            tap(&format!("to_patch_embedding.{name}"), tensor);
        }
        for name in ["1.out", "out"] {
            tap(&format!("to_patch_embedding.{name}"), &embedded);
        }
        let (mut xs, layout) = model.embed(input, train)?;
        for name in ["dropout.in", "dropout.out", "transformer.in"] {
            tap(name, &xs);
        }
        let mut layers = vec![];
        for (i, (block, mixer)) in model.blocks.iter().zip(&self.mixers).enumerate() {
            let (ys, qkv) = block_taps(block, mixer, &xs, layout, train, |name, tensor| {
                tap(&format!("transformer.layers.{i}.{name}"), tensor);
            })?;
            (xs, layers) = (ys, [layers, vec![qkv]].concat());
        }
        tap("transformer.out", &xs);
        // The class returns lists of all queries, all keys, all values.
        let parts = layers.iter().map(|l| &l.q).chain(layers.iter().map(|l| &l.k)).chain(layers.iter().map(|l| &l.v));
        for (i, part) in parts.enumerate() {
            tap(&format!("transformer.out{}", i + 1), part);
        }
        let Qkv { q, k, .. } = Qkv::concat(&layers)?;
        let scores = (matmul(&q, &k.transpose(2, 3)?)? * (model.config.head_dim as f64).powf(-0.5))?;
        tap("attend.in", &scores);
        tap("attend.out", &softmax(&scores, D::Minus1)?);
        tap("avg_pool.in", &broad_features(&layers)?);
        tap("avg_pool.out", &broad_attention(&layers, model.config.embed_dim)?);
        let features = model.config.broad.forward(&xs, &layers)?;
        let pooled = match model.config.pool {
            Pool::Cls => features.get_on_dim(1, 0)?,
            Pool::Mean => features.mean(1)?,
        };
        let (normed, logits) = (model.norm.forward(&pooled)?, model.forward_head(&features, false, train)?);
        for name in ["to_latent.in", "to_latent.out", "mlp_head.in", "mlp_head.0.in"] {
            tap(name, &pooled);
        }
        for (name, tensor) in [("0.out", &normed), ("1.in", &normed), ("1.out", &logits), ("out", &logits)] {
            tap(&format!("mlp_head.{name}"), tensor);
        }
        Ok(taps)
    }
}

fn block_taps(
    block: &vit::Block,
    mixer: &Attention,
    xs: &Tensor,
    layout: TokenLayout,
    train: bool,
    mut tap: impl FnMut(&str, &Tensor),
) -> Result<(Tensor, Qkv)> {
    let normed = block.norm1.forward(xs)?;
    for name in ["0.in", "0.norm.in"] {
        tap(name, xs);
    }
    for name in ["0.norm.out", "0.fn.in", "0.fn.to_qkv.in"] {
        tap(name, &normed);
    }
    tap("0.fn.to_qkv.out", &mixer.to_qkv.forward(&normed)?);
    let (mixed, qkv) = mixer.forward_qkv(&normed, layout, train)?;
    let qkv = qkv.ok_or("a mixer without queries")?;
    let scores = (matmul(&qkv.q, &qkv.k.transpose(2, 3)?)? * (qkv.q.dim(3)? as f64).powf(-0.5))?;
    tap("0.fn.attend.in", &scores);
    tap("0.fn.attend.out", &softmax(&scores, D::Minus1)?);
    for name in ["0.fn.to_out.out", "0.fn.to_out.0.out", "0.fn.out", "0.out"] {
        tap(name, &mixed);
    }
    for (i, part) in [&qkv.q, &qkv.k, &qkv.v].into_iter().enumerate() {
        tap(&format!("0.fn.out{}", i + 1), part);
        tap(&format!("0.out{}", i + 1), part);
    }
    let xs = (xs + mixed)?;
    let normed = block.norm2.forward(&xs)?;
    for name in ["1.in", "1.norm.in"] {
        tap(name, &xs);
    }
    tap("1.norm.out", &normed);
    let mut ys = xs.clone();
    for (name, tensor) in mlp_taps(&block.mlp, &normed, train)? {
        let module = match name.rsplit_once('.').ok_or("a tap without module")? {
            ("mlp", side) => side.to_owned(),
            (module, side) => {
                let number = ["mlp.fc1", "mlp.act", "", "mlp.fc2"].iter().position(|name| *name == module);
                format!("net.{}.{side}", number.ok_or("an MLP has no other modules")?)
            }
        };
        tap(&format!("1.fn.{module}"), &tensor);
        ys = tensor;
    }
    for name in ["1.out", "1.fn.net.out"] {
        tap(name, &ys);
    }
    Ok(((xs + ys)?, qkv))
}
