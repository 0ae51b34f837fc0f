//! Swin transformers under official and timm's names.

use std::cell::RefCell;
use std::sync::Arc;

use candle_core::{Module, ModuleT, Tensor};
use sconce::attention::{TokenLayout, TokenMixer, WindowAttention, WindowFit};
use sconce::backbones::swin::{Block, Config, Content, TimmKeys};
use sconce::backbones::{Backbone, SwinTransformer};
use sconce::nn::{Linear, Mlp, VarBuilder};
use sconce_tests::golden::{Case, Result, Tensors};
use serde::Deserialize;

use super::model::{Keys, ModelCase, Taps, train_mode};
use super::vit::Side;

pub(crate) fn run(case: &Case) -> Result<()> {
    let train = train_mode(&case.json()?)?;
    let timm = TimmKeys::detect(case.weights()?.iter().map(|(name, _)| name));
    let config = case.config::<Arguments>()?.build(timm.is_some(), train)?;
    ModelCase {
        build: &|vb| Traced::new(&config, vb),
        forward: &|traced, io, input, train| forward(&traced.model, io, input, train),
        trace: &|traced, input, train| traced.trace(input, train, timm.is_some()),
        // Computed by the model for every map.
        idle: &|name| name.ends_with("relative_position_index") || name.ends_with("attn_mask"),
    }
    .run(case, timm.map(Keys::new))
}

/// The part of the official code's and of timm's arguments that the library has; any other fails the case with its name.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Arguments {
    img_size: Option<Side>,
    patch_size: Option<usize>,
    in_chans: Option<usize>,
    num_classes: Option<usize>,
    embed_dim: Option<usize>,
    depths: Option<Vec<usize>>,
    num_heads: Option<Vec<usize>>,
    window_size: Option<usize>,
    mlp_ratio: Option<f64>,
    qkv_bias: Option<bool>,
    qk_scale: Option<f64>,
    ape: Option<bool>,
    patch_norm: Option<bool>,
    drop_rate: Option<f64>,
    proj_drop_rate: Option<f64>,
    attn_drop_rate: Option<f64>,
    drop_path_rate: Option<f64>,
    #[serde(rename = "use_checkpoint")]
    _use_checkpoint: Option<bool>,
    #[serde(rename = "fused_window_process")]
    _fused_window_process: Option<bool>,
    /// timm's switch of the check that pictures have the configured size.
    #[serde(rename = "strict_img_size")]
    _strict_img_size: Option<bool>,
    /// Size of the input where it is not the configured one.
    #[serde(rename = "input")]
    _input: Option<Vec<usize>>,
}

impl Arguments {
    pub(crate) fn build(self, timm: bool, train: bool) -> Result<Config> {
        // Both codes have stochastic depth by default, which nothing can be compared with in training.
        let drops = [self.drop_rate, self.proj_drop_rate, self.attn_drop_rate, self.drop_path_rate.or(Some(0.1))];
        if train && drops.iter().any(|rate| rate.is_some_and(|rate| rate != 0.0)) {
            return Err("config: dropout in training mode cannot be compared".into());
        }
        let default = Config::swin_tiny_patch4_window7_224();
        Ok(Config {
            img_size: self.img_size.map(TryInto::try_into).transpose()?.unwrap_or(default.img_size),
            patch_size: self.patch_size.unwrap_or(default.patch_size),
            in_chans: self.in_chans.unwrap_or(default.in_chans),
            num_classes: self.num_classes.unwrap_or(default.num_classes),
            embed_dim: self.embed_dim.unwrap_or(default.embed_dim),
            depths: self.depths.unwrap_or(default.depths),
            num_heads: self.num_heads.unwrap_or(default.num_heads),
            window_size: self.window_size.unwrap_or(default.window_size),
            window_fit: if timm { WindowFit::PerAxis } else { WindowFit::Square },
            mlp_ratio: self.mlp_ratio.unwrap_or(default.mlp_ratio),
            qkv_bias: self.qkv_bias.unwrap_or(default.qkv_bias),
            qk_scale: self.qk_scale,
            ape: self.ape.unwrap_or(false),
            patch_norm: self.patch_norm.unwrap_or(true),
            drop_path_rate: 0.0,
            ..default
        })
    }
}

/// Outputs of rank 3 or 4 are the tokens, in timm on their map.
pub(crate) fn forward(model: &SwinTransformer, io: &Tensors, input: &Tensor, train: bool) -> Result<Vec<Tensor>> {
    Ok(vec![match io.get("output")?.dims() {
        [_, _, _] => model.forward_features(input, train)?,
        shape @ [_, _, _, _] => model.forward_features(input, train)?.reshape(shape)?,
        _ => model.forward_t(input, train)?,
    }])
}

/// A model with a hold on its mixers, whose windows hooks would see.
pub(crate) struct Traced {
    pub(crate) model: SwinTransformer,
    pub(crate) mixers: Vec<Arc<WindowAttention>>,
}

impl Traced {
    fn new(config: &Config, vb: VarBuilder) -> candle_core::Result<Self> {
        let mixers = RefCell::new(vec![]);
        let model = SwinTransformer::with_mixer(config, vb, |spec, vb| {
            let mixer = Arc::new(WindowAttention::new(&config.window_attention(spec), vb)?);
            mixers.borrow_mut().push(mixer.clone());
            Ok(mixer)
        })?;
        Ok(Self { model, mixers: mixers.into_inner() })
    }

    /// Everything that a forward hook could see, under the names of the modules. In timm tokens keep the shape of their
    /// map, and a stage starts with the merging that ends the one before it in the official code.
    pub(crate) fn trace(&self, input: &Tensor, train: bool, timm: bool) -> Result<Taps> {
        let model = &self.model;
        let mut taps = Taps::new();
        let shaped = |xs: &Tensor, layout: TokenLayout| match timm {
            true => xs.reshape((xs.dim(0)?, layout.height, layout.width, xs.dim(2)?)),
            false => Ok(xs.clone()),
        };
        taps.insert("patch_embed.in".into(), input.clone());
        taps.insert("patch_embed.proj.in".into(), input.clone());
        taps.insert("patch_embed.proj.out".into(), model.patch_embed.proj.forward(input)?);
        let (mut xs, mut layout) = model.embed(input, train)?;
        let patches = model.patch_embed.proj.forward(input)?.flatten_from(2)?.transpose(1, 2)?;
        taps.insert("patch_embed.norm.in".into(), shaped(&patches, layout)?);
        for name in ["patch_embed.norm.out", "patch_embed.out"] {
            taps.insert(name.into(), shaped(&model.patch_embed.forward(input)?, layout)?);
        }
        taps.insert("pos_drop.out".into(), shaped(&xs, layout)?);
        let mut mixers = self.mixers.iter();
        for (s, stage) in model.layers.iter().enumerate() {
            if !timm || s == 0 {
                taps.insert(format!("layers.{s}.in"), shaped(&xs, layout)?);
            }
            for (i, block) in stage.blocks.iter().enumerate() {
                let name = format!("layers.{s}.blocks.{i}");
                taps.insert(format!("{name}.in"), shaped(&xs, layout)?);
                let mixer = mixers.next().ok_or("a block without mixer")?;
                for (tap, tensor) in block_taps(block, mixer, &xs, layout, train)? {
                    let on_the_map = tensor.rank() == 3 && matches!(&*tap, "norm1.in" | "norm1.out");
                    let tensor = if on_the_map { shaped(&tensor, layout)? } else { tensor };
                    taps.insert(format!("{name}.{tap}"), tensor);
                }
                xs = block.forward_layout(&xs, layout, train)?;
                taps.insert(format!("{name}.out"), shaped(&xs, layout)?);
            }
            let (before, at) = (shaped(&xs, layout)?, if timm { s + 1 } else { s });
            (xs, layout) = stage.forward_downsample(&xs, layout)?;
            let after = shaped(&xs, layout)?;
            if stage.downsample.is_some() {
                taps.insert(format!("layers.{at}.downsample.in"), before.clone());
                taps.insert(format!("layers.{at}.downsample.out"), after.clone());
                taps.insert(format!("layers.{at}.downsample.reduction.out"), after.clone());
            }
            if timm {
                taps.insert(format!("layers.{s}.out"), before.clone());
                taps.insert(format!("layers.{}.in", s + 1), before);
            } else {
                taps.insert(format!("layers.{s}.out"), after);
            }
        }
        taps.insert("norm.in".into(), shaped(&xs, layout)?);
        let features = model.norm.forward(&xs)?;
        taps.insert("norm.out".into(), shaped(&features, layout)?);
        let pooled = model.forward_head(&features, true, train)?;
        taps.insert("avgpool.in".into(), features.transpose(1, 2)?);
        taps.insert("avgpool.out".into(), pooled.unsqueeze(2)?);
        taps.insert("head.global_pool.in".into(), shaped(&features, layout)?);
        taps.insert("head.global_pool.out".into(), pooled.clone());
        taps.insert("head.fc.in".into(), pooled.clone());
        taps.insert("head.in".into(), if timm { shaped(&features, layout)? } else { pooled });
        let logits = model.forward_head(&features, false, train)?;
        taps.insert("head.fc.out".into(), logits.clone());
        taps.insert("head.out".into(), logits);
        Ok(taps)
    }
}

fn block_taps(
    block: &Block,
    mixer: &WindowAttention,
    xs: &Tensor,
    layout: TokenLayout,
    train: bool,
) -> Result<Vec<(String, Tensor)>> {
    let mut taps: Vec<(String, Tensor)> = vec![];
    let mut tap = |name: &str, tensor: &Tensor| taps.push((name.into(), tensor.clone()));
    let normed = block.norm1.forward(xs)?;
    tap("norm1.in", xs);
    tap("norm1.out", &normed);
    let windows = mixer.windows(layout, xs.device())?;
    let cut = windows.partition(&normed)?;
    let mixed = mixer.forward_windows(&cut, &windows, train)?;
    for name in ["attn.in", "attn.qkv.in"] {
        tap(name, &cut);
    }
    tap("attn.qkv.out", &mixer.qkv.forward(&cut)?);
    for name in ["attn.out", "attn.proj.out"] {
        tap(name, &mixed);
    }
    let mut xs = (xs + mixer.forward_layout(&normed, layout, train)?)?;
    if let Some(Content { norm4, attn_c }) = &block.content {
        let normed = norm4.forward(&xs)?;
        let mixed = attn_c.forward_layout(&normed, layout, train)?;
        for (name, tensor) in [("norm4.in", &xs), ("norm4.out", &normed), ("attnC.in", &normed), ("attnC.out", &mixed)]
        {
            tap(name, tensor);
        }
        xs = (xs + mixed)?;
    }
    let normed = block.norm2.forward(&xs)?;
    tap("norm2.in", &xs);
    tap("norm2.out", &normed);
    taps.extend(mlp_taps(&block.mlp, &normed, train)?.map(|(name, tensor)| (name.into(), tensor)));
    Ok(taps)
}

/// What hooks see of an MLP, whose first layer and activation are one here; the output comes last.
pub(crate) fn mlp_taps(mlp: &Mlp, xs: &Tensor, train: bool) -> Result<[(&'static str, Tensor); 8]> {
    let before = Linear { activation: None, ..mlp.fc1.clone() }.forward(xs)?;
    let after = mlp.fc1.forward(xs)?;
    let ys = mlp.forward_t(xs, train)?;
    Ok([
        ("mlp.in", xs.clone()),
        ("mlp.fc1.in", xs.clone()),
        ("mlp.fc1.out", before.clone()),
        ("mlp.act.in", before),
        ("mlp.act.out", after.clone()),
        ("mlp.fc2.in", after),
        ("mlp.fc2.out", ys.clone()),
        ("mlp.out", ys),
    ])
}
