//! Residual networks in evaluation and training mode, and the official lists of tensors.

use std::collections::BTreeMap;

use candle_core::{DType, Tensor};
use sconce::backbones::resnet::{BlockKind, Config};
use sconce::backbones::{Backbone, BackboneConfig, ResNet, ShapeRecorder, pretrained};
use sconce::nn::ModuleT;
use sconce::ops::cross_entropy;
use sconce_tests::golden::{Case, GRADIENT, OUTPUT, Result, Tensors, Weights, compare};
use serde::Deserialize;
use serde_json::Value;

pub(crate) fn run(case: &Case) -> Result<()> {
    let json = case.json()?;
    if json.get("block").is_some() {
        return evaluation(case, serde_json::from_value(json)?);
    }
    match case.name.strip_suffix("_train_bn") {
        Some(base) => training(case, &case.sibling(base), serde_json::from_value(json)?),
        None => keys(json),
    }
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Arguments {
    block: BlockKind,
    layers: [usize; 4],
    channels: [usize; 4],
    stem: usize,
    num_classes: usize,
    bn_eps: f64,
    labels: Vec<u32>,
    loss: f64,
    groups: Option<usize>,
    width_per_group: Option<usize>,
    output_stride: Option<usize>,
    #[serde(rename = "seed")]
    _seed: Value,
    #[serde(rename = "note")]
    _note: Option<String>,
    #[serde(rename = "tensors")]
    _tensors: Value,
}

fn model(arguments: &Arguments, tensors: &Tensors) -> Result<(ResNet, Weights)> {
    let weights = Weights::new(tensors, "param.", DType::F32)?;
    let default = Config::resnet50();
    let config = Config {
        block: arguments.block,
        layers: arguments.layers,
        channels: arguments.channels,
        stem: arguments.stem,
        num_classes: arguments.num_classes,
        bn_eps: arguments.bn_eps,
        in_chans: tensors.get("param.conv1.weight")?.dim(1)?,
        groups: arguments.groups.unwrap_or(default.groups),
        width_per_group: arguments.width_per_group.unwrap_or(default.width_per_group),
        output_stride: arguments.output_stride.unwrap_or(default.output_stride),
        ..default
    };
    let model = ResNet::new(&config, weights.vb(DType::F32))?;
    let untouched = weights.untouched();
    if !untouched.is_empty() {
        return Err(format!("the model has no use for {untouched:?}").into());
    }
    Ok((model, weights))
}

fn evaluation(case: &Case, arguments: Arguments) -> Result<()> {
    let io = case.tensors()?;
    let looked_at = |name: &str| ["in.", "param.", "out.", "grad."].iter().any(|prefix| name.starts_with(prefix));
    if let Some((name, _)) = io.iter().find(|(name, _)| !looked_at(name)) {
        return Err(format!("nothing looks at the tensor {name}").into());
    }
    let (model, weights) = model(&arguments, &io)?;
    let xs = io.get("in.x")?;
    let taps = taps(&model, xs)?;
    for (name, reference) in io.with_prefix("out.") {
        let found = taps.get(name).ok_or_else(|| format!("out.{name}: the model has no such output"))?;
        compare(&format!("out.{name}"), found, reference, OUTPUT)?;
    }
    let labels = Tensor::new(arguments.labels.as_slice(), xs.device())?;
    let loss = cross_entropy(&model.forward_t(xs, false)?, &labels, 0.0)?;
    compare("loss", &loss, &Tensor::new(arguments.loss as f32, xs.device())?, OUTPUT)?;
    let grads = loss.backward()?;
    for (name, reference) in io.with_prefix("grad.") {
        let var = weights.get(name).ok_or_else(|| format!("grad.{name}: no such weight"))?;
        let found = grads.get(var.as_tensor()).ok_or_else(|| format!("{name} has no gradient"))?;
        compare(&format!("grad.{name}"), found, reference, GRADIENT)?;
    }
    for (name, var) in weights.iter().filter(|(name, _)| !name.contains("running_")) {
        grads.get(var.as_tensor()).ok_or_else(|| format!("{name} has no gradient"))?;
    }
    Ok(())
}

fn taps(model: &ResNet, xs: &Tensor) -> Result<BTreeMap<&'static str, Tensor>> {
    let maps = model.forward_intermediates(xs, &[1, 2, 3, 4], false)?;
    let mut taps: BTreeMap<_, _> = ["layer1", "layer2", "layer3", "layer4"].into_iter().zip(maps.features).collect();
    taps.insert("stem", model.forward_stem(xs, false)?);
    taps.insert("features", model.forward_features(xs, false)?);
    taps.insert("logits", model.forward_t(xs, false)?);
    Ok(taps)
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Training {
    momentum: f64,
    #[serde(rename = "note")]
    _note: Option<String>,
    #[serde(rename = "tensors")]
    _tensors: Value,
}

fn training(case: &Case, base: &Case, options: Training) -> Result<()> {
    let (io, inputs) = (case.tensors()?, base.tensors()?);
    let (mut model, weights) = model(&serde_json::from_value(base.json()?)?, &inputs)?;
    model.bn1.momentum = options.momentum;
    let logits = model.forward_t(inputs.get("in.x")?, true)?;
    for (name, reference) in io.with_prefix("out.") {
        let found = match name {
            "logits_train" => logits.clone(),
            "bn1_running_mean" => model.bn1.running_mean.as_tensor().clone(),
            "bn1_running_var" => model.bn1.running_var.as_tensor().clone(),
            _ => return Err(format!("out.{name}: not known of a training step").into()),
        };
        compare(name, &found, reference, OUTPUT)?;
    }
    // Gradients flow through the statistics of the batch too.
    let grads = logits.sqr()?.sum_all()?.backward()?;
    for (name, var) in weights.iter().filter(|(name, _)| !name.contains("running_")) {
        grads.get(var.as_tensor()).ok_or_else(|| format!("{name} has no gradient"))?;
    }
    Ok(())
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Official {
    params: usize,
    n_keys: usize,
    #[serde(rename = "timm_equal")]
    _timm_equal: bool,
    keys: Value,
}

/// torchvision's tensors: how many, and for some nets all names and shapes.
fn keys(json: Value) -> Result<()> {
    for (name, official) in json.as_object().ok_or("not an object")?.iter().filter(|(name, _)| *name != "tensors") {
        let official: Official = serde_json::from_value(official.clone())?;
        let BackboneConfig::Resnet(config) = pretrained(name)?.config else {
            return Err(format!("{name} is not a residual network").into());
        };
        let recorder = ShapeRecorder::default();
        ResNet::new(&config, recorder.vb())?;
        let found: BTreeMap<_, _> =
            recorder.shapes().into_iter().map(|(name, shape)| (name, shape.into_dims())).collect();
        // One counter of batches a norm, which nothing reads.
        let counters = found.keys().filter(|name| name.ends_with("running_mean")).count();
        if (recorder.count(), found.len() + counters) != (official.params, official.n_keys) {
            let (params, tensors) = (recorder.count(), found.len() + counters);
            return Err(format!("{name}: {params} parameters in {tensors} tensors instead of {official:?}").into());
        }
        if let Value::Object(shapes) = official.keys {
            for (key, shape) in shapes.iter().filter(|(key, _)| !key.ends_with("num_batches_tracked")) {
                let shape: Vec<usize> = serde_json::from_value(shape.clone())?;
                if found.get(key) != Some(&shape) {
                    return Err(format!("{name}: {key} is {:?} instead of {shape:?}", found.get(key)).into());
                }
            }
        }
    }
    Ok(())
}
