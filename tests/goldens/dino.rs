//! DINO's backbone at its own and at other sizes, its attention and intermediate layers, its head.

use candle_core::{DType, ModuleT, Tensor, Var};
use sconce::backbones::vit::{Config, PosResample};
use sconce::backbones::{DinoHead, DinoHeadConfig, VisionTransformer};
use sconce_tests::golden::{Case, Result, Weights, backward, check_gradients, check_outputs};

use super::vit::{TimmArguments, check_taps, trace, train_mode};

pub(crate) fn run(case: &Case) -> Result<()> {
    let json = case.json()?;
    let weights = Weights::new(&case.weights()?, "", DType::F32)?;
    let io = case.tensors()?;
    let input = Var::from_tensor(io.get("input")?)?;
    let train = train_mode(&json)?;
    if weights.get("last_layer.weight_v").is_some() {
        let head = DinoHead::new(&case.config::<DinoHeadConfig>()?, weights.vb(DType::F32))?;
        let outputs = [head.forward_t(&input, train)?];
        check_outputs(&io, &outputs)?;
        return check_gradients(&io, &backward(&io, &outputs)?, &input, &weights, |name| name.contains("running_"));
    }
    let mut config: Config = case.config::<TimmArguments>()?.into();
    config.pos_resample = PosResample::Dino;
    if json["config"].get("num_classes").is_none() {
        config.num_classes = 0; // the class's own default
    }
    let model = VisionTransformer::new(&config, weights.vb(DType::F32))?;
    let count = (1..).take_while(|i| io.find(&format!("output{i}")).is_some()).count() + 1;
    // The shape of the output tells which of the official methods made it.
    let outputs: Vec<Tensor> = match io.get("output")?.rank() {
        4 => vec![model.get_last_selfattention(&input)?],
        3 => model.get_intermediate_layers(&input, count)?,
        _ => vec![model.forward_t(&input, train)?],
    };
    check_outputs(&io, &outputs)?;
    check_taps(&io, &trace(&model, &input, train)?)?;
    let last = format!("blocks.{}.", config.depth.saturating_sub(1));
    let attention = outputs[0].rank() == 4;
    // Attention weights come before the rest of the last block.
    let idle = |name: &str| match name.strip_prefix(&last) {
        Some(rest) => attention && !rest.starts_with("norm1") && !rest.starts_with("attn.qkv"),
        None => attention && name.starts_with("norm."),
    };
    check_gradients(&io, &backward(&io, &outputs)?, &input, &weights, idle)
}
