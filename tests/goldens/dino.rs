//! DINO's backbone at its own and at other sizes, its attention and intermediate layers, its head.

use candle_core::{DType, ModuleT, Tensor, Var};
use sconce::backbones::vit::PosResample;
use sconce::backbones::{DinoHead, DinoHeadConfig, VisionTransformer};
use sconce_tests::golden::{Case, Result, Tensors, Weights, backward, check_double, check_gradients, check_outputs};

use super::model::{check_taps, train_mode};
use super::vit::{TimmArguments, trace};

pub(crate) fn run(case: &Case) -> Result<()> {
    let (json, io, tensors) = (case.json()?, case.tensors()?, case.weights()?);
    let train = train_mode(&json)?;
    let weights = Weights::new(&tensors, "", DType::F32)?;
    let double = Weights::new(&tensors, "", DType::F64)?;
    let input = Var::from_tensor(io.get("input")?)?;
    if tensors.find("last_layer.weight_v").is_some() {
        let config: DinoHeadConfig = case.config()?;
        let head = |weights: &Weights, dtype| DinoHead::new(&config, weights.vb(dtype));
        let outputs = [head(&weights, DType::F32)?.forward_t(&input, train)?];
        check_outputs(&io, &outputs)?;
        let statistics = |name: &str| name.contains("running_");
        check_gradients(&io, &backward(&io, &outputs)?, &input, &weights, statistics)?;
        return check_double(&io, |input| Ok(vec![head(&double, DType::F64)?.forward_t(input, train)?]));
    }
    let mut config = case.config::<TimmArguments>()?.build(train)?;
    config.pos_resample = PosResample::Dino;
    if json["config"].get("num_classes").is_none() {
        config.num_classes = 0; // the class's own default
    }
    let model = VisionTransformer::new(&config, weights.vb(DType::F32))?;
    let outputs = forward(&model, &io, &input, train)?;
    check_outputs(&io, &outputs)?;
    check_taps(&io, &trace(&model, &input, train)?)?;
    let last = format!("blocks.{}.", config.depth.saturating_sub(1));
    let attention = outputs[0].rank() == 4;
    // Attention weights come before the rest of the last block.
    let idle = |name: &str| match name.strip_prefix(&last) {
        Some(rest) => attention && !rest.starts_with("norm1") && !rest.starts_with("attn.qkv"),
        None => attention && name.starts_with("norm."),
    };
    check_gradients(&io, &backward(&io, &outputs)?, &input, &weights, idle)?;
    let model = VisionTransformer::new(&config, double.vb(DType::F64))?;
    check_double(&io, |input| forward(&model, &io, input, train))
}

/// The shape and the number of the outputs tell which of the official methods made them.
fn forward(model: &VisionTransformer, io: &Tensors, input: &Tensor, train: bool) -> Result<Vec<Tensor>> {
    let count = (1..).take_while(|i| io.find(&format!("output{i}")).is_some()).count() + 1;
    Ok(match io.get("output")?.rank() {
        4 => vec![model.get_last_selfattention(input)?],
        3 => model.get_intermediate_layers(input, count)?,
        _ => vec![model.forward_t(input, train)?],
    })
}
