//! ConvMixer under the authors' numbers and timm's names, and the running statistics after a step.

use candle_core::{Module, ModuleT, Tensor};
use sconce::backbones::convmixer::{Block, Config, ConvActNorm, LocuslabKeys};
use sconce::backbones::{Backbone, ConvMixer};
use sconce::ops::{Activation, global_avg_pool};
use sconce_tests::golden::{Case, Result, Tensors};
use serde::Deserialize;

use super::model::{Keys, ModelCase, Taps, train_mode};
use super::running::after;
use super::vit::Side;

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Arguments {
    dim: usize,
    depth: usize,
    kernel_size: Option<usize>,
    patch_size: Option<usize>,
    #[serde(alias = "num_classes")]
    n_classes: Option<usize>,
    #[serde(alias = "img_size")]
    img: Side,
    in_chans: Option<usize>,
    #[serde(alias = "activation", alias = "act_layer")]
    act: Option<Activation>,
    /// timm's dropout before the classifier, which the authors' net does not have.
    drop_rate: Option<f64>,
    /// timm's choice of pooling, of which the library has the authors'.
    global_pool: Option<String>,
}

impl Arguments {
    fn build(self, train: bool) -> Result<Config> {
        if train && self.drop_rate.is_some_and(|rate| rate != 0.0) {
            return Err("config: dropout in training mode cannot be compared".into());
        }
        if let Some(pool) = self.global_pool.filter(|pool| pool != "avg") {
            return Err(format!("config: no pooling `{pool}`").into());
        }
        // The defaults of the authors' function.
        Ok(Config {
            img_size: self.img.try_into()?,
            in_chans: self.in_chans.unwrap_or(3),
            num_classes: self.n_classes.unwrap_or(1000),
            dim: self.dim,
            depth: self.depth,
            kernel_size: self.kernel_size.unwrap_or(9),
            patch_size: self.patch_size.unwrap_or(7),
            act: self.act.unwrap_or_default(),
        })
    }
}

pub(crate) fn run(case: &Case) -> Result<()> {
    let config = case.config::<Arguments>()?.build(train_mode(&case.json()?)?)?;
    let numbered = LocuslabKeys::detect(case.weights()?.iter().map(|(name, _)| name));
    let keys = numbered.then(|| Keys::new(LocuslabKeys { depth: config.depth }));
    let build = |vb: candle_nn::VarBuilder| ConvMixer::new(&config, vb);
    ModelCase {
        build: &build,
        forward: &forward,
        trace: &trace,
        // Nothing trains running statistics.
        idle: &|name| name.contains(".running_"),
    }
    .run(case, keys.clone())?;
    after(case, &build, keys)
}

fn forward(model: &ConvMixer, io: &Tensors, input: &Tensor, train: bool) -> Result<Vec<Tensor>> {
    match io.get("output")?.rank() {
        4 => Ok(vec![model.forward_features(input, train)?]),
        _ => Ok(vec![model.forward_t(input, train)?]),
    }
}

/// Every module under its number and under timm's name.
fn trace(model: &ConvMixer, input: &Tensor, train: bool) -> Result<Taps> {
    let mut taps = Taps::new();
    let mut tap = |numbered: &str, named: &str, xs: &Tensor, ys: &Tensor| {
        for module in [numbered, named] {
            taps.insert(format!("{module}.in"), xs.clone());
            taps.insert(format!("{module}.out"), ys.clone());
        }
    };
    let depth = model.blocks.len();
    let steps = unit(&model.stem, input, train)?;
    for (i, (xs, ys)) in steps.iter().enumerate() {
        tap(&i.to_string(), &format!("stem.{i}"), xs, ys);
    }
    let stem = &steps[2].1;
    tap("stem", "stem", input, stem);
    let mut xs = stem.clone();
    for (i, Block { depthwise, pointwise }) in model.blocks.iter().enumerate() {
        let mut tap = |module: &str, xs: &Tensor, ys: &Tensor| {
            tap(&format!("{}{module}", 3 + i), &format!("blocks.{i}{module}"), xs, ys);
        };
        let steps = unit(depthwise, &xs, train)?;
        for (j, (xs, ys)) in steps.iter().enumerate() {
            tap(&format!(".0.fn.{j}"), xs, ys);
        }
        tap(".0.fn", &xs, &steps[2].1);
        let residual = (&xs + &steps[2].1)?;
        tap(".0", &xs, &residual);
        let steps = unit(pointwise, &residual, train)?;
        for (j, (xs, ys)) in steps.iter().enumerate() {
            tap(&format!(".{}", j + 1), xs, ys);
        }
        tap("", &xs, &steps[2].1);
        xs = steps[2].1.clone();
    }
    tap("blocks", "blocks", stem, &xs);
    let pooled = global_avg_pool(&xs)?; // (B, dim)
    let map = pooled.unsqueeze(2)?.unsqueeze(3)?; // (B, dim, 1, 1)
    tap(&(depth + 3).to_string(), "pooling.pool", &xs, &map);
    tap(&(depth + 4).to_string(), "pooling.flatten", &map, &pooled);
    tap("pooling", "pooling", &xs, &pooled);
    if let Some(head) = &model.head {
        tap(&(depth + 5).to_string(), "head", &pooled, &head.forward(&pooled)?);
    }
    Ok(taps)
}

/// Inputs and outputs of convolution, activation and norm.
fn unit(unit: &ConvActNorm, xs: &Tensor, train: bool) -> Result<[(Tensor, Tensor); 3]> {
    let conv = unit.convolve(xs)?;
    let act = unit.act.forward(&conv)?;
    let norm = unit.norm.forward_t(&act, train)?;
    Ok([(xs.clone(), conv.clone()), (conv, act.clone()), (act, norm)])
}
