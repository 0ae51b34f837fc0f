//! EfficientNet-Lite with both paddings, under both flavours of names, and the running statistics after a step.

use candle_core::{Module, ModuleT, Tensor};
use sconce::backbones::efficientnet_lite::{Config, ConvBn, Padding, TimmKeys};
use sconce::backbones::{Backbone, EfficientNetLite};
use sconce::ops::global_avg_pool;
use sconce_tests::golden::{Case, Result, Tensors};

use super::model::{Keys, ModelCase, Taps, train_mode};
use super::running::after;

pub(crate) fn run(case: &Case) -> Result<()> {
    // The library's own options: unknown ones fail with their name.
    let config: Config = case.config()?;
    if train_mode(&case.json()?)? && (config.drop_rate, config.drop_path_rate) != (0.0, 0.0) {
        return Err("config: dropout in training mode cannot be compared".into());
    }
    let timm = TimmKeys::detect(case.weights()?.iter().map(|(name, _)| name));
    let keys = timm.then(|| Keys::new(TimmKeys { config: config.clone() }));
    let build = |vb: candle_nn::VarBuilder| EfficientNetLite::new(&config, vb);
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

fn forward(model: &EfficientNetLite, io: &Tensors, input: &Tensor, train: bool) -> Result<Vec<Tensor>> {
    match io.get("output")?.rank() {
        4 => Ok(vec![model.forward_features(input, train)?]),
        _ => Ok(vec![model.forward_t(input, train)?]),
    }
}

/// Every module under the library's names.
fn trace(model: &EfficientNetLite, input: &Tensor, train: bool) -> Result<Taps> {
    let mut taps = Taps::new();
    let act = model.config.act;
    let mut xs = act.forward(&unit(&mut taps, ["_conv_stem", "_bn0"], &model.stem, input, train)?)?;
    for (number, block) in model.blocks.iter().enumerate() {
        let name = |module: &str| format!("_blocks.{number}.{module}");
        let input = xs.clone();
        if let Some(expand) = &block.expand {
            let names = [name("_expand_conv"), name("_bn0")];
            xs = act.forward(&unit(&mut taps, names, expand, &xs, train)?)?;
        }
        let names = [name("_depthwise_conv"), name("_bn1")];
        xs = act.forward(&unit(&mut taps, names, &block.depthwise, &xs, train)?)?;
        xs = unit(&mut taps, [name("_project_conv"), name("_bn2")], &block.project, &xs, train)?;
        if block.residual {
            xs = (xs + &input)?;
        }
        taps.insert(format!("_blocks.{number}.in"), input);
        taps.insert(format!("_blocks.{number}.out"), xs.clone());
    }
    xs = act.forward(&unit(&mut taps, ["_conv_head", "_bn1"], &model.head, &xs, train)?)?;
    if let Some(fc) = &model.fc {
        let pooled = global_avg_pool(&xs)?; // (B, head)
        taps.insert("_fc.out".into(), fc.forward(&pooled)?);
        taps.insert("_fc.in".into(), pooled);
    }
    Ok(taps)
}

/// A convolution and its norm, both tapped.
fn unit(
    taps: &mut Taps,
    [conv, bn]: [impl std::fmt::Display; 2],
    unit: &ConvBn,
    xs: &Tensor,
    train: bool,
) -> Result<Tensor> {
    let ys = match unit.padding {
        Padding::Same => unit.conv.forward_same(xs)?,
        Padding::Symmetric => unit.conv.forward(xs)?,
    };
    let normed = unit.bn.forward_t(&ys, train)?;
    taps.insert(format!("{conv}.in"), xs.clone());
    taps.insert(format!("{conv}.out"), ys.clone());
    taps.insert(format!("{bn}.in"), ys);
    taps.insert(format!("{bn}.out"), normed.clone());
    Ok(normed)
}
