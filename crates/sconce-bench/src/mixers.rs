//! Token mixers whose cost is linear in the number of tokens, against global attention.

use std::{fmt, sync::Arc};

use candle_core::{DType, Device, Result, Tensor, Var};
use sconce_attention::linear::{
    EfficientAttention, EluAttention, NystromAttention, NystromConfig, PerformerAttention, PerformerConfig,
    PerformerKernel,
};
use sconce_attention::{GlobalAttention, GlobalAttentionConfig, MixerSpec, TokenLayout, TokenMixer};
use sconce_nn::{ParamStore, VarBuilder};
use sconce_ops::{Activation, Generator};
use serde::Serialize;

use crate::measure::{Contender, Times, by_turns};

/// Tokens of maps of 14, 28, 56 and 128 places a side.
const TOKENS: [usize; 4] = [196, 784, 3136, 16_384];

/// Width and heads of ViT-Tiny.
const DIM: usize = 192;
const HEADS: usize = 3;

/// One mixer at one number of tokens.
#[derive(Serialize)]
pub(crate) struct Row {
    mixer: &'static str,
    tokens: usize,
    pass: &'static str,
    time: Times,
    /// To global attention on the same tokens.
    ratio: f64,
}

pub(crate) const HEADER: &str =
    "| mixer | tokens | pass | median | spread | ratio |\n| --- | ---: | --- | ---: | ---: | ---: |";

impl fmt::Display for Row {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { mixer, tokens, pass, time, ratio } = self;
        write!(f, "| {mixer} | {tokens} | {pass} | {:.3} | {:.0} % | {ratio:.3} |", time.median_ms, time.spread * 100.)
    }
}

type Make = fn(&MixerSpec, VarBuilder) -> Result<Arc<dyn TokenMixer>>;

/// The first is what the others are held against.
const MIXERS: &[(&str, Make)] = &[
    ("global", |spec, vb| Ok(Arc::new(GlobalAttention::new(&GlobalAttentionConfig::from(spec), vb)?))),
    ("elu + 1", |spec, vb| Ok(Arc::new(EluAttention::new(&spec.into(), vb)?))),
    ("elu + 1, causal", |spec, vb| Ok(Arc::new(EluAttention { causal: true, ..EluAttention::new(&spec.into(), vb)? }))),
    ("efficient", |spec, vb| Ok(Arc::new(EfficientAttention::new(&spec.into(), vb)?))),
    ("performer, softmax", |spec, vb| Ok(Arc::new(PerformerAttention::new(&spec.into(), vb)?))),
    ("performer, relu", |spec, vb| {
        let mut cfg = PerformerConfig::from(spec);
        cfg.options.kernel = PerformerKernel::Generalized(Activation::Relu);
        Ok(Arc::new(PerformerAttention::new(&cfg, vb)?))
    }),
    ("nystrom, 64 landmarks", |spec, vb| Ok(Arc::new(NystromAttention::new(&NystromConfig::from(spec), vb)?))),
];

/// Times every mixer whose name contains `filter`, and global attention, on one sequence of each length, and hands each row
/// to `each` as soon as it is there.
pub(crate) fn run(filter: &str, rounds: u32, mut each: impl FnMut(&Row)) -> Result<Vec<Row>> {
    let chosen = |(i, (name, _)): &(usize, &(&str, Make))| *i == 0 || name.contains(filter);
    let chosen: Vec<_> = MIXERS.iter().enumerate().filter(chosen).map(|(_, mixer)| mixer).collect();
    let mut rows = vec![];
    for tokens in TOKENS {
        for (pass, train) in [("forward", false), ("forward + backward", true)] {
            let contenders = chosen.iter().map(|(_, make)| contender(*make, tokens, train));
            let times = by_turns(&contenders.collect::<Result<Vec<_>>>()?, rounds)?;
            let global = times.first().map_or(f64::NAN, |time| time.median_ms);
            for ((mixer, _), time) in chosen.iter().zip(times) {
                let row = Row { mixer, tokens, pass, ratio: time.median_ms / global, time };
                each(&row);
                rows.push(row);
            }
        }
    }
    Ok(rows)
}

/// A mixer with all its layers on a batch of one.
fn contender(make: Make, tokens: usize, backward: bool) -> Result<Contender> {
    let side = tokens.isqrt();
    let layout = TokenLayout { prefix: 0, height: side, width: side };
    let spec = MixerSpec {
        block: 0,
        depth: 1,
        stage: 0,
        stage_block: 0,
        dim: DIM,
        heads: HEADS,
        qkv_bias: true,
        attn_drop: 0.,
        proj_drop: 0.,
        layout,
    };
    let store = ParamStore::new(0, DType::F32, &Device::Cpu);
    // Without a backward pass no graph is recorded either.
    let mixer = make(&spec, if backward { store.vb() } else { store.vb_fixed() })?;
    let xs = Generator::new(1).normal(0., 1., (1, tokens, DIM), DType::F32, &Device::Cpu)?;
    if !backward {
        return Ok(Box::new(move || mixer.forward_layout(&xs, layout, false)));
    }
    let xs = Var::from_tensor(&xs)?;
    Ok(Box::new(move || -> Result<Tensor> {
        let grads = mixer.forward_layout(&xs, layout, true)?.backward()?;
        grads.get(&xs).cloned().ok_or_else(|| candle_core::Error::Msg("no gradient".into()))
    }))
}
