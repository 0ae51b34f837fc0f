//! UniFormer on pictures, on clips, for dense prediction, and filters for clips made from those for pictures.

use std::path::Path;

use candle_core::{DType, Device, Module, ModuleT, Tensor, Var};
use candle_nn::VarBuilder;
use sconce::attention::{TokenLayout, TokenMixer};
use sconce::backbones::uniformer::{
    Block, CBlock, Config, PatchEmbed, SaBlock, SplitSaBlock, Windows, from_image, inflate, partition,
};
use sconce::backbones::{Backbone, UniFormer};
use sconce::nn::{Checkpoint, LayerNorm, Mlp, SaveOptions, save_tensors};
use sconce::ops::{attention, gelu, linear};
use sconce_tests::golden::{Case, OUTPUT, Result, Tensors, Weights, compare, discover};
use serde::Deserialize;
use serde_json::Value;

use crate::model::{ModelCase, Taps, train_mode};
use crate::vit::Side;

pub(crate) fn run(case: &Case) -> Result<()> {
    let json = case.json()?;
    if json.get("rule").is_some() {
        return inflated(case, serde_json::from_value(json)?);
    }
    let config = case.config::<Arguments>()?.build(case, train_mode(&json)?)?;
    match model(case, &config) {
        Err(error) if config.frames.is_some() => match contradicts_itself(case, &config) {
            Ok(true) => {
                let folder = tempfile::tempdir()?;
                model(&without_gradients(case, folder.path())?, &config)
            }
            _ => Err(error),
        },
        outcome => outcome,
    }
}

fn model(case: &Case, config: &Config) -> Result<()> {
    ModelCase {
        build: &|vb: VarBuilder| UniFormer::new(config, vb),
        forward: &forward,
        trace: &trace,
        // Running statistics are not trained.
        idle: &|name| name.contains("running_"),
    }
    .run(case, None)
}

/// Whether the file's gradient of the input is refuted by difference quotients that confirm ours.
///
/// PyTorch 2.15 errs in the backward pass of batch norm in evaluation on clips whose last map is one place in a channels-last
/// layout: the official class then contradicts its own difference quotients, by 1.196 to 0.161 along one random direction of
/// `video_split`, and PyTorch 1.13.1 gives other gradients, those of this library.
fn contradicts_itself(case: &Case, config: &Config) -> Result<bool> {
    let io = case.tensors()?;
    let model = UniFormer::new(config, Weights::new(&case.weights()?, "", DType::F64)?.vb(DType::F64))?;
    let (input, cotangent) = (Var::from_tensor(&io.get("input")?.to_dtype(DType::F64)?)?, io.get("cotangent")?);
    let loss = |xs: &Tensor| -> Result<Tensor> {
        Ok((model.forward_t(xs, false)? * cotangent.to_dtype(DType::F64)?)?.sum_all()?)
    };
    let ours = loss(&input)?.backward()?.remove(&input).ok_or("the input has no gradient")?;
    let theirs = io.get("grad.input_f64")?;
    // Along the file's gradient, in steps that cost neither rounding nor curvature.
    let step = (theirs * 1e-5)?;
    let at = |xs: Tensor| -> Result<f64> { Ok(loss(&xs)?.to_scalar::<f64>()?) };
    let quotient = (at((input.as_tensor() + &step)?)? - at((input.as_tensor() - &step)?)?) / 2e-5;
    let along = |gradient: &Tensor| -> Result<f64> { Ok((gradient * theirs)?.sum_all()?.to_scalar::<f64>()?) };
    let (ours, theirs) = (along(&ours)?, along(theirs)?);
    if (ours - quotient).abs() > 1e-6 * quotient.abs() {
        return Err(format!("the derivative is {ours}, and by difference quotients {quotient}").into());
    }
    Ok((theirs - quotient).abs() > 1e-3 * quotient.abs())
}

/// The case with everything but its gradients.
fn without_gradients(case: &Case, root: &Path) -> Result<Case> {
    let folder = root.join(&case.system).join(&case.name);
    std::fs::create_dir_all(&folder)?;
    for file in ["config.json", "weights.safetensors"] {
        std::fs::copy(case.path(file), folder.join(file))?;
    }
    let io = case.tensors()?;
    let kept = io.iter().filter(|(name, _)| !name.starts_with("grad."));
    let kept = kept.map(|(name, tensor)| (name.to_owned(), tensor.clone()));
    save_tensors(folder.join("io.safetensors"), kept, &SaveOptions::default())?;
    discover(root)?.pop().ok_or_else(|| "the copy of the case is not found".into())
}

/// The constructors' arguments, of pictures, clips and dense prediction; any other fails the case with its name.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Arguments {
    #[serde(alias = "layers")]
    depth: [usize; 4],
    embed_dim: [usize; 4],
    head_dim: Option<usize>,
    img_size: Option<Side>,
    in_chans: Option<usize>,
    num_classes: Option<usize>,
    mlp_ratio: Option<f64>,
    qkv_bias: Option<bool>,
    #[serde(default)]
    conv_stem: bool,
    /// A switch of the official module, whose first value does not matter here.
    #[serde(default)]
    layer_scale: bool,
    /// Frames of the input; makes it a model for clips.
    frames: Option<usize>,
    #[serde(default)]
    split: bool,
    #[serde(default)]
    std: bool,
    #[serde(default)]
    windows: bool,
    #[serde(default)]
    hybrid: bool,
    window_size: Option<usize>,
    drop_rate: Option<f64>,
    attn_drop_rate: Option<f64>,
    drop_path_rate: Option<f64>,
    /// Side of the input where it is not the configured one.
    #[serde(rename = "input")]
    _input: Option<Side>,
}

impl Arguments {
    fn build(self, case: &Case, train: bool) -> Result<Config> {
        let drops = [self.drop_rate, self.attn_drop_rate, self.drop_path_rate];
        if train && drops.iter().any(|rate| rate.is_some_and(|rate| rate != 0.0)) {
            return Err("config: dropout in training mode cannot be compared".into());
        }
        let weights = case.weights()?;
        let dense = weights.find("norm1.weight").is_some();
        let clip = weights.iter().any(|(name, tensor)| name == "patch_embed1.proj.weight" && tensor.rank() == 5);
        let default = Config::uniformer_small();
        let windows = match (self.windows, self.hybrid) {
            (false, false) => Windows::None,
            (true, false) => Windows::All,
            (false, true) => Windows::Hybrid,
            (true, true) => return Err("config: windows and hybrid exclude each other".into()),
        };
        Ok(Config {
            depth: self.depth,
            embed_dim: self.embed_dim,
            head_dim: self.head_dim.unwrap_or(default.head_dim),
            img_size: self.img_size.map_or(Ok(default.img_size), TryInto::try_into)?,
            in_chans: self.in_chans.unwrap_or(default.in_chans),
            num_classes: if dense { 0 } else { self.num_classes.unwrap_or(if clip { 400 } else { 1000 }) },
            mlp_ratio: self.mlp_ratio.unwrap_or(default.mlp_ratio),
            qkv_bias: self.qkv_bias.unwrap_or(default.qkv_bias),
            conv_stem: self.conv_stem,
            init_values: self.layer_scale.then_some(1e-6),
            frames: clip.then_some(self.frames.unwrap_or(16)),
            split: self.split,
            std: self.std,
            dense,
            windows,
            window_size: self.window_size.unwrap_or(default.window_size),
            ..default
        })
    }
}

/// The maps of dense prediction, or the usual output.
fn forward(model: &UniFormer, _: &Tensors, input: &Tensor, train: bool) -> Result<Vec<Tensor>> {
    match model.config.dense {
        true => Ok(model.forward_intermediates(input, &[0, 1, 2, 3], train)?.features),
        false => Ok(vec![model.forward_t(input, train)?]),
    }
}

struct Tracer {
    taps: Taps,
    train: bool,
}

/// Everything that a forward hook could see, under the names of the modules.
fn trace(model: &UniFormer, input: &Tensor, train: bool) -> Result<Taps> {
    let mut tracer = Tracer { taps: Taps::new(), train };
    let mut xs = input.clone();
    for (stage, (embed, blocks)) in (1..).zip(model.patch_embeds.iter().zip(&model.stages)) {
        xs = tracer.embed(&format!("patch_embed{stage}"), embed, &xs)?;
        if stage == 1 {
            tracer.tap("pos_drop", &xs, &xs);
        }
        for (i, block) in blocks.iter().enumerate() {
            let name = format!("blocks{stage}.{i}");
            match block {
                Block::Conv(block) => tracer.conv(&name, block, &xs)?,
                Block::Attention(block) => tracer.attention(&name, block, &xs)?,
                Block::Split(block) => tracer.split(&name, block, &xs)?,
            }
            let ys = block.forward_t(&xs, train)?;
            tracer.tap(&name, &xs, &ys);
            xs = ys;
        }
        if let Some(norm) = model.norms.get(stage - 1) {
            // The official pyramid brings the channels to the end for its norm.
            let last = channels_last(&xs)?;
            tracer.tap(&format!("norm{stage}"), &last, &norm.forward(&last)?);
        }
    }
    if let Some(norm) = &model.norm {
        let ys = norm.forward_t(&xs, train)?;
        tracer.tap("norm", &xs, &ys);
        let pooled = model.forward_head(&ys, true, train)?;
        // Without classes the official head is the identity.
        let out = model.head.as_ref().map_or(Ok(pooled.clone()), |head| head.forward(&pooled))?;
        tracer.tap("head", &pooled, &out);
    }
    Ok(tracer.taps)
}

fn channels_last(xs: &Tensor) -> Result<Tensor> {
    let mut order: Vec<usize> = (0..xs.rank()).filter(|axis| *axis != 1).collect();
    order.push(1);
    Ok(xs.permute(order)?)
}

fn tokens(xs: &Tensor) -> Result<Tensor> {
    Ok(xs.flatten_from(2)?.transpose(1, 2)?)
}

impl Tracer {
    fn tap(&mut self, name: &str, input: &Tensor, output: &Tensor) {
        self.taps.insert(format!("{name}.in"), input.clone());
        self.taps.insert(format!("{name}.out"), output.clone());
    }

    fn module(&mut self, name: &str, module: &impl Module, xs: &Tensor) -> Result<Tensor> {
        let ys = module.forward(xs)?;
        self.tap(name, xs, &ys);
        Ok(ys)
    }

    fn module_t(&mut self, name: &str, module: &impl ModuleT, xs: &Tensor) -> Result<Tensor> {
        let ys = module.forward_t(xs, self.train)?;
        self.tap(name, xs, &ys);
        Ok(ys)
    }

    fn embed(&mut self, name: &str, embed: &PatchEmbed, input: &Tensor) -> Result<Tensor> {
        let mut xs = input.clone();
        let stem = embed.norm.is_none();
        for (i, step) in embed.proj.iter().enumerate() {
            // Of a stem: convolution, norm and GELU are numbered through.
            let numbered =
                |at: usize| if stem { format!("{name}.proj.{}", 3 * i + at) } else { format!("{name}.proj") };
            xs = self.module(&numbered(0), &step.conv, &xs)?;
            if let Some(norm) = &step.norm {
                xs = self.module_t(&numbered(1), norm, &xs)?;
            }
            if i + 1 < embed.proj.len() {
                let ys = gelu(&xs)?;
                self.tap(&numbered(2), &xs, &ys);
                xs = ys;
            }
        }
        if stem {
            self.tap(&format!("{name}.proj"), input, &xs);
        }
        if let Some(norm) = &embed.norm {
            self.module(&format!("{name}.norm"), norm, &tokens(&xs)?)?;
        }
        self.module_t(name, embed, input)
    }

    fn conv(&mut self, name: &str, block: &CBlock, xs: &Tensor) -> Result<()> {
        let xs = (xs + self.module(&format!("{name}.pos_embed"), &block.pos_embed, xs)?)?;
        let mut ys = self.module_t(&format!("{name}.norm1"), &block.norm1, &xs)?;
        for (part, conv) in [("conv1", &block.conv1), ("attn", &block.attn), ("conv2", &block.conv2)] {
            ys = self.module(&format!("{name}.{part}"), conv, &ys)?;
        }
        let xs = (xs + ys)?;
        let ys = self.module_t(&format!("{name}.norm2"), &block.norm2, &xs)?;
        let hidden = self.module(&format!("{name}.mlp.fc1"), &block.mlp.fc1, &ys)?;
        let active = gelu(&hidden)?;
        self.tap(&format!("{name}.mlp.act"), &hidden, &active);
        let out = self.module(&format!("{name}.mlp.fc2"), &block.mlp.fc2, &active)?;
        self.tap(&format!("{name}.mlp"), &ys, &out);
        Ok(())
    }

    fn attention(&mut self, name: &str, block: &SaBlock, xs: &Tensor) -> Result<()> {
        let xs = (xs + self.module(&format!("{name}.pos_embed"), &block.pos_embed, xs)?)?;
        let dims = xs.dims().to_vec();
        let flat = tokens(&xs)?;
        let (height, width) = (dims[2..dims.len() - 1].iter().product(), dims[dims.len() - 1]);
        // Blocks with windows norm a map of two axes, and their attention sees the windows.
        let normed = match block.window {
            Some(window) => {
                let normed = self.module(&format!("{name}.norm1"), &block.norm1, &channels_last(&xs)?)?;
                let windows = partition(&normed.flatten(1, 2)?, (height, width), window)?;
                let layout = TokenLayout { prefix: 0, height: window, width: window };
                self.mixer(&format!("{name}.attn"), &*block.attn, &windows, layout)?;
                normed.flatten(1, 2)?
            }
            None => {
                let normed = self.module(&format!("{name}.norm1"), &block.norm1, &flat)?;
                let layout = TokenLayout { prefix: 0, height, width };
                self.mixer(&format!("{name}.attn"), &*block.attn, &normed, layout)?;
                normed
            }
        };
        let scale = |ys: Tensor, gamma: &Option<Tensor>| match gamma {
            Some(gamma) => ys.broadcast_mul(gamma),
            None => Ok(ys),
        };
        let mut xs = (flat + scale(block.mix(&normed, &dims, self.train)?, &block.gamma_1)?)?;
        if let (Some(_), &[b, c, h, w]) = (block.window, &dims[..]) {
            xs = xs.reshape((b, h, w, c))?;
        }
        self.mlp(name, &block.norm2, &block.mlp, &xs)
    }

    fn split(&mut self, name: &str, block: &SplitSaBlock, xs: &Tensor) -> Result<()> {
        let xs = (xs + self.module(&format!("{name}.pos_embed"), &block.pos_embed, xs)?)?;
        let (b, c, t, h, w) = xs.dims5()?;
        let places = xs.permute((0, 3, 4, 2, 1))?.reshape((b * h * w, t, c))?;
        let normed = self.module(&format!("{name}.t_norm"), &block.t_norm, &places)?;
        let layout = TokenLayout { prefix: 0, height: t, width: 1 };
        let places = (places + self.mixer(&format!("{name}.t_attn"), &*block.t_attn, &normed, layout)?)?;
        let moved = places.reshape((b, h * w, t, c))?.transpose(1, 2)?.reshape((b * t, h * w, c))?;
        let normed = self.module(&format!("{name}.norm1"), &block.norm1, &moved)?;
        let layout = TokenLayout { prefix: 0, height: h, width: w };
        let ys = self.mixer(&format!("{name}.attn"), &*block.attn, &normed, layout)?;
        let xs = (tokens(&xs)? + ys.reshape((b, t * h * w, c))?)?;
        self.mlp(name, &block.norm2, &block.mlp, &xs)
    }

    fn mixer(&mut self, name: &str, mixer: &dyn TokenMixer, xs: &Tensor, layout: TokenLayout) -> Result<Tensor> {
        let (ys, qkv) = mixer.forward_qkv(xs, layout, self.train)?;
        self.tap(name, xs, &ys);
        if let Some(qkv) = qkv {
            let merged = |t: &Tensor| t.transpose(1, 2)?.flatten_from(2);
            let parts = [merged(&qkv.q)?, merged(&qkv.k)?, merged(&qkv.v)?];
            self.tap(&format!("{name}.qkv"), xs, &Tensor::cat(&parts, 2)?);
            let mixed = merged(&attention(&qkv.q, &qkv.k, &qkv.v, &Default::default())?)?;
            self.tap(&format!("{name}.proj"), &mixed, &ys);
        }
        Ok(ys)
    }

    fn mlp(&mut self, name: &str, norm: &LayerNorm, mlp: &Mlp, xs: &Tensor) -> Result<()> {
        let normed = self.module(&format!("{name}.norm2"), norm, xs)?;
        let hidden = linear(&normed, &mlp.fc1.weight, mlp.fc1.bias.as_ref(), None)?;
        self.tap(&format!("{name}.mlp.fc1"), &normed, &hidden);
        let active = gelu(&hidden)?;
        self.tap(&format!("{name}.mlp.act"), &hidden, &active);
        let out = self.module(&format!("{name}.mlp.fc2"), &mlp.fc2, &active)?;
        self.tap(&format!("{name}.mlp"), &normed, &out);
        Ok(())
    }
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Inflation {
    rule: String,
    keys: Vec<String>,
    #[serde(rename = "system")]
    _system: Option<Value>,
    #[serde(rename = "seed")]
    _seed: Option<Value>,
    #[serde(rename = "notes")]
    _notes: Option<Value>,
}

/// By the function itself, and by a builder on a file of filters for pictures.
fn inflated(case: &Case, options: Inflation) -> Result<()> {
    if !options.rule.contains("center=False") {
        return Err(format!("no inflation by `{}`", options.rule).into());
    }
    let io = case.tensors()?;
    let known = |name: &str| {
        let key = name.strip_prefix("in2d.").or_else(|| name.strip_prefix("out3d."));
        key.is_some_and(|key| options.keys.iter().any(|known| known == key))
    };
    if let Some((name, _)) = io.iter().find(|(name, _)| !known(name)) {
        return Err(format!("nothing looks at the tensor {name}").into());
    }
    let pictures = io.with_prefix("in2d.").map(|(name, tensor)| (name.to_owned(), tensor.clone()));
    let vb = Checkpoint::from_tensors(pictures).vb_with(DType::F32, &Device::Cpu, &from_image());
    for key in &options.keys {
        let (found, wanted) = (io.get(&format!("in2d.{key}"))?, io.get(&format!("out3d.{key}"))?);
        let made = inflate(key, found, wanted.dims())?.ok_or_else(|| format!("{key} cannot be inflated"))?;
        compare(key, &made, wanted, OUTPUT)?;
        compare(key, &vb.get(wanted.dims(), key)?, wanted, OUTPUT)?;
    }
    Ok(())
}
