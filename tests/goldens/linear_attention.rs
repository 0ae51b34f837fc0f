//! Linear attentions by themselves: kernels on stacked queries, keys and values, and the modules around them.

use candle_core::{DType, Tensor};
use candle_nn::VarBuilder;
use sconce::attention::TokenMixer;
use sconce::attention::linear::{
    ImageLinearAttention, ImageLinearConfig, LinearAttentionConfig, NystromAttention, NystromConfig, NystromOptions,
    OrthogonalScaling, PerformerAttention, PerformerConfig, PerformerKernel, PerformerOptions, RandomProjection,
    Stabilizer, default_features, efficient_attention, elu_attention, performer_attention,
};
use sconce::nn::Module;
use sconce::ops::{Activation, pinv, pinv_each};
use sconce_tests::golden::{Case, OUTPUT, Result, Tensors, compare};
use serde::Deserialize;

use super::model::{ModelCase, Taps, train_mode};

pub(crate) fn run(case: &Case) -> Result<()> {
    if !case.path("config.json").is_file() {
        return inverse(&case.tensors()?);
    }
    let json = case.json()?;
    if train_mode(&json)? {
        return Err("no case of training mode is known".into());
    }
    let has = |key: &str| json["config"].get(key).is_some();
    if has("num_landmarks") {
        nystrom(case, case.config()?)
    } else if has("chan") {
        image(case, case.config()?)
    } else if has("dim") {
        performer(case, case.config()?)
    } else {
        kernel(case, case.config()?)
    }
}

/// `pinv<n>` after `n` iterations with the maxima of the whole batch, `pinv_each<n>` with those of each matrix; both are on
/// their way to `pinv_true`.
fn inverse(io: &Tensors) -> Result<()> {
    let x = io.get("x")?;
    for (name, reference) in io.iter().filter(|(name, _)| *name != "x") {
        let number = |text: &str| text.parse::<usize>().map_err(|_| format!("nothing is known about {name}"));
        match name.strip_prefix("pinv") {
            Some("_true") => {
                for f in [pinv, pinv_each] {
                    compare(name, &f(&x.to_dtype(DType::F64)?, 40)?, reference, OUTPUT)?;
                }
            }
            Some(rest) => match rest.strip_prefix("_each") {
                Some(n) => compare(name, &pinv_each(x, number(n)?)?, reference, OUTPUT)?,
                None => compare(name, &pinv(x, number(rest)?)?, reference, OUTPUT)?,
            },
            None => return Err(format!("nothing is known about {name}").into()),
        }
    }
    Ok(())
}

fn no_taps<M>(_: &M, _: &Tensor, _: bool) -> Result<Taps> {
    Ok(Taps::new())
}

/// Input and output of modules by name.
fn taps<const N: usize>(seen: [(&str, &Tensor, &Tensor); N]) -> Taps {
    let both = |(module, xs, ys): (&str, &Tensor, &Tensor)| {
        [(format!("{module}.in"), xs.clone()), (format!("{module}.out"), ys.clone())]
    };
    seen.into_iter().flat_map(both).collect()
}

/// What a random projection and what its trainer keeps are called in any file.
fn untrained(name: &str) -> bool {
    name.ends_with("projection_matrix") || name.ends_with("calls_since_last_redraw")
}

/// Options of the kernels on stacked `(3, B, heads, N, D)`; the name of the case says which kernel it is.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Kernel {
    #[serde(rename = "B", alias = "b")]
    _batch: usize,
    #[serde(rename = "H", alias = "h", alias = "heads")]
    _heads: usize,
    #[serde(rename = "N", alias = "n")]
    _tokens: usize,
    #[serde(alias = "dim_heads", alias = "dim_head")]
    d: usize,
    nb_features: Option<usize>,
    #[serde(rename = "ortho_scaling")]
    _ortho_scaling: Option<usize>,
    causal: Option<bool>,
    generalized_attention: Option<bool>,
    no_projection: Option<bool>,
    norm_queries: Option<bool>,
}

enum Function {
    Elu,
    Efficient { norm_queries: bool },
    Performer(PerformerOptions),
}

/// A function with the projection that it may need.
struct Stacked {
    function: Function,
    projection: Option<RandomProjection>,
    causal: bool,
}

impl Stacked {
    fn forward(&self, input: &Tensor) -> Result<Vec<Tensor>> {
        let part = |i: usize| input.get(i);
        let (q, k, v) = (part(0)?, part(1)?, part(2)?);
        Ok(vec![match (&self.function, &self.projection) {
            (Function::Elu, _) => elu_attention(&q, &k, &v, self.causal)?,
            (Function::Efficient { norm_queries }, _) => efficient_attention(&q, &k, &v, *norm_queries)?,
            (Function::Performer(options), Some(projection)) => {
                performer_attention(&q, &k, &v, &projection.get(), options)?
            }
            (Function::Performer(options), None) => {
                // Without a projection in the file there is none to be used.
                let none = Tensor::zeros((1, q.dim(3)?), q.dtype(), q.device())?;
                performer_attention(&q, &k, &v, &none, options)?
            }
        }])
    }
}

fn kernel(case: &Case, options: Kernel) -> Result<()> {
    let says = |word: &str| case.name.split('_').any(|part| part == word);
    let causal = options.causal.unwrap_or(says("causal"));
    let performer = |kernel, stabilizer| Function::Performer(PerformerOptions { kernel, stabilizer, causal });
    let projection = case.weights()?.iter().find(|(name, _)| name.ends_with("projection_matrix")).map(|(name, t)| {
        let path = name.strip_suffix("projection_matrix").unwrap_or_default().trim_end_matches('.').to_owned();
        (path, t.dims().to_vec())
    });
    let function = || -> Result<Function> {
        let relu = PerformerKernel::Generalized(Activation::Relu);
        Ok(if says("elu") {
            Function::Elu
        } else if says("efficient") {
            Function::Efficient { norm_queries: options.norm_queries.unwrap_or(true) }
        } else if options.no_projection.unwrap_or(says("noproj")) {
            performer(PerformerKernel::NoProjection, Stabilizer::PerHead)
        } else if options.generalized_attention.unwrap_or(says("relu")) {
            performer(relu, Stabilizer::PerHead)
        } else if says("cxv") {
            performer(PerformerKernel::Softmax, Stabilizer::Batch)
        } else if says("softmax") || says("favor") {
            performer(PerformerKernel::Softmax, Stabilizer::PerHead)
        } else {
            return Err(format!("no kernel is called {}", case.name).into());
        })
    };
    function()?;
    if let Some((_, dims)) = &projection
        && dims[..] != [options.nb_features.unwrap_or(default_features(options.d)), options.d]
    {
        return Err(format!("a projection {dims:?} for {options:?}").into());
    }
    let build = |vb: VarBuilder| {
        let projection = match &projection {
            Some((path, dims)) => {
                let vb = if path.is_empty() { vb } else { vb.pp(path) };
                Some(RandomProjection::new(dims[0], dims[1], OrthogonalScaling::Norms, vb)?)
            }
            None => None,
        };
        let function = function().map_err(candle_core::Error::wrap)?;
        Ok(Stacked { function, projection, causal })
    };
    let forward = |model: &Stacked, _: &Tensors, input: &Tensor, _| model.forward(input);
    ModelCase { build: &build, forward: &forward, trace: &no_taps, idle: &untrained }.run(case, None)
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Image {
    chan: usize,
    chan_out: Option<usize>,
    kernel_size: Option<usize>,
    padding: Option<usize>,
    stride: Option<usize>,
    key_dim: Option<usize>,
    value_dim: Option<usize>,
    heads: Option<usize>,
    norm_queries: Option<bool>,
}

fn image(case: &Case, options: Image) -> Result<()> {
    if options.stride.is_some_and(|stride| stride != 1) {
        return Err("the official module has no working stride but 1".into());
    }
    let default = ImageLinearConfig::new(options.chan);
    let config = ImageLinearConfig {
        chan_out: options.chan_out,
        kernel_size: options.kernel_size.unwrap_or(default.kernel_size),
        padding: options.padding.unwrap_or(default.padding),
        key_dim: options.key_dim.unwrap_or(default.key_dim),
        value_dim: options.value_dim.unwrap_or(default.value_dim),
        heads: options.heads.unwrap_or(default.heads),
        norm_queries: options.norm_queries.unwrap_or(true),
        ..default
    };
    let io = case.tensors()?;
    let forward = |model: &ImageLinearAttention, io: &Tensors, input: &Tensor, _| -> Result<Vec<Tensor>> {
        Ok(vec![model.forward_map(input, context(io, input)?.as_ref())?])
    };
    // With a context the convolutions run twice, and a hook sees the last time.
    let trace = |model: &ImageLinearAttention, input: &Tensor, _| -> Result<Taps> {
        let row = context(&io, input)?.map(|context| context.flatten_from(2)?.unsqueeze(2)).transpose()?;
        let seen = row.as_ref().unwrap_or(input);
        let (q, k, v) = (model.to_q.forward(input)?, model.to_k.forward(seen)?, model.to_v.forward(seen)?);
        let mixed = model.mix(input, context(&io, input)?.as_ref())?;
        let out = model.to_out.forward(&mixed)?;
        Ok(taps([("to_q", input, &q), ("to_k", seen, &k), ("to_v", seen, &v), ("to_out", &mixed, &out)]))
    };
    let model = ModelCase {
        build: &|vb| ImageLinearAttention::new(&config, vb),
        forward: &forward,
        trace: &trace,
        idle: &|_| false,
    };
    model.run(case, None)
}

fn context(io: &Tensors, input: &Tensor) -> Result<Option<Tensor>> {
    Ok(io.find("context").map(|context| context.to_dtype(input.dtype())).transpose()?)
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Nystrom {
    dim: usize,
    dim_head: Option<usize>,
    heads: Option<usize>,
    num_landmarks: usize,
    pinv_iterations: Option<usize>,
    residual: Option<bool>,
    residual_conv_kernel: Option<usize>,
    eps: Option<f64>,
    #[serde(rename = "dropout")]
    _dropout: Option<f64>,
    #[serde(rename = "n")]
    _tokens: Option<usize>,
    mask: Option<bool>,
}

fn nystrom(case: &Case, options: Nystrom) -> Result<()> {
    let default = NystromOptions::default();
    let config = NystromConfig {
        dim_head: options.dim_head.unwrap_or(64),
        residual_conv_kernel: options.residual.unwrap_or(true).then_some(options.residual_conv_kernel.unwrap_or(33)),
        options: NystromOptions {
            landmarks: options.num_landmarks,
            iterations: options.pinv_iterations.unwrap_or(default.iterations),
            compat: true,
            eps: options.eps.unwrap_or(default.eps),
        },
        ..NystromConfig::new(options.dim, options.heads.unwrap_or(8))
    };
    let io = case.tensors()?;
    if options.mask.unwrap_or(false) != io.find("mask").is_some() {
        return Err("config and file disagree about the mask".into());
    }
    let build = |vb: VarBuilder| NystromAttention::new(&config, vb);
    let forward = |model: &NystromAttention, io: &Tensors, input: &Tensor, train| -> Result<Vec<Tensor>> {
        Ok(vec![model.forward_masked(input, io.find("mask"), train)?])
    };
    // The official module pads before its first layer and cuts after its last.
    let trace = |model: &NystromAttention, input: &Tensor, _| -> Result<Taps> {
        let n = input.dim(1)?;
        let padding = n.next_multiple_of(options.num_landmarks) - n;
        let xs = input.pad_with_zeros(1, padding, 0)?;
        let mask = io.find("mask").map(|mask| mask.pad_with_zeros(1, padding, 0)).transpose()?;
        let qkv = model.to_qkv.forward(&xs)?;
        let (mixed, v) = model.mix(&xs, mask.as_ref())?;
        let out = model.to_out.forward(&mixed)?;
        let mut seen = taps([("to_qkv", &xs, &qkv), ("to_out.0", &mixed, &out), ("to_out", &mixed, &out)]);
        if let Some(conv) = &model.res_conv {
            seen.extend(taps([("res_conv", &v, &conv.forward(&v)?)]));
        }
        Ok(seen)
    };
    ModelCase { build: &build, forward: &forward, trace: &trace, idle: &|_| false }.run(case, None)?;

    let path = case.path("matrices.safetensors");
    if path.is_file() {
        let (matrices, weights) =
            (Tensors::open(&path)?, sconce::nn::Checkpoint::open(case.path("weights.safetensors"))?);
        let model = build(weights.vb(DType::F32, &candle_core::Device::Cpu))?;
        let found = model.matrices(io.get("input")?, io.find("mask"))?;
        for (name, reference) in matrices.iter() {
            let found = match name {
                "attn1" => &found.attn1,
                "attn2_pinv" => &found.attn2_pinv,
                "attn3" => &found.attn3,
                other => return Err(format!("nothing is known about {other}").into()),
            };
            compare(name, found, reference, OUTPUT)?;
        }
    }
    Ok(())
}

/// lucidrains' `SelfAttention`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct SelfAttention {
    dim: usize,
    heads: Option<usize>,
    dim_head: Option<usize>,
    nb_features: Option<usize>,
    causal: Option<bool>,
    generalized_attention: Option<bool>,
    no_projection: Option<bool>,
    qkv_bias: Option<bool>,
    attn_out_bias: Option<bool>,
    #[serde(rename = "dropout")]
    _dropout: Option<f64>,
    #[serde(rename = "n", alias = "N")]
    _tokens: Option<usize>,
}

fn performer(case: &Case, options: SelfAttention) -> Result<()> {
    let heads = options.heads.unwrap_or(8);
    let kernel = match (options.no_projection, options.generalized_attention) {
        (Some(true), _) => PerformerKernel::NoProjection,
        (_, Some(true)) => PerformerKernel::Generalized(Activation::Relu),
        _ => PerformerKernel::Softmax,
    };
    let layers = LinearAttentionConfig {
        dim_head: options.dim_head.unwrap_or(64),
        qkv_bias: options.qkv_bias.unwrap_or(false),
        out_bias: options.attn_out_bias.unwrap_or(true),
        ..LinearAttentionConfig::new(options.dim, heads)
    };
    let kind = PerformerOptions { kernel, causal: options.causal.unwrap_or(false), ..Default::default() };
    let config = PerformerConfig {
        layers,
        features: options.nb_features,
        options: kind,
        ..PerformerConfig::new(options.dim, heads)
    };
    let forward = |model: &PerformerAttention, _: &Tensors, input: &Tensor, train| -> Result<Vec<Tensor>> {
        Ok(vec![model.forward_t(input, train)?])
    };
    let trace = |model: &PerformerAttention, input: &Tensor, _| -> Result<Taps> {
        let layers = &model.projections;
        let (q, k, v) = (layers.to_q.forward(input)?, layers.to_k.forward(input)?, layers.to_v.forward(input)?);
        let heads = layers.qkv(input, input)?;
        let mixed = performer_attention(&heads.q, &heads.k, &heads.v, &model.fast_attention.get(), &model.options)?;
        let merged = mixed.transpose(1, 2)?.flatten_from(2)?; // (B, N, heads D)
        let out = layers.to_out.forward(&merged)?;
        Ok(taps([
            ("to_q", input, &q),
            ("to_k", input, &k),
            ("to_v", input, &v),
            ("fast_attention", &heads.q, &mixed),
            ("to_out", &merged, &out),
        ]))
    };
    let model = ModelCase {
        build: &|vb| PerformerAttention::new(&config, vb),
        forward: &forward,
        trace: &trace,
        idle: &untrained,
    };
    model.run(case, None)
}
