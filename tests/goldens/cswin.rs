//! CSWin under the official names, and what BOAT's blocks share with it.

use std::cell::RefCell;
use std::sync::Arc;

use candle_core::{ModuleT, Tensor};
use candle_nn::VarBuilder;
use sconce::attention::{BilateralAttention, CrossShapedAttention, LepeAttention, TokenLayout};
use sconce::backbones::cswin::{Block, Config, MergeBlock};
use sconce::backbones::{Backbone, CSWinTransformer};
use sconce::nn::{Linear, Mlp, Module};
use sconce::ops::{AttentionOptions, attention_weights};
use sconce_tests::golden::{Case, Result, Tensors};
use serde::Deserialize;

use super::model::{ModelCase, Taps};
use super::vit::Side;

pub(crate) fn run(case: &Case) -> Result<()> {
    let config = case.config::<Arguments>()?.build()?;
    ModelCase {
        build: &|vb| Traced::new(&config, vb),
        forward: &|traced, io, xs, train| forward(&traced.model, io, xs, train),
        trace: &Traced::trace,
        idle: &|_| false,
    }
    .run(case, None)
}

/// The arguments of the official constructor; any other fails the case with its name.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Arguments {
    img_size: Option<Side>,
    /// Not read by the official code either.
    #[serde(rename = "patch_size")]
    _patch_size: Option<usize>,
    in_chans: Option<usize>,
    num_classes: Option<usize>,
    embed_dim: Option<usize>,
    depth: [usize; 4],
    split_size: Vec<usize>,
    num_heads: [usize; 4],
    mlp_ratio: Option<f64>,
    pub(crate) qkv_bias: Option<bool>,
    qk_scale: Option<f64>,
    drop_rate: Option<f64>,
    attn_drop_rate: Option<f64>,
    drop_path_rate: Option<f64>,
    #[serde(rename = "use_chk")]
    _use_chk: Option<bool>,
}

impl Arguments {
    pub(crate) fn build(self) -> Result<Config> {
        let default = Config::cswin_64_12211_tiny_224();
        // The last stage looks at the last entry, whatever its number.
        let split_size = match self.split_size[..] {
            [a, b, c] => [a, b, c, c],
            [a, b, c, d] => [a, b, c, d],
            _ => return Err(format!("config: split_size {:?}", self.split_size).into()),
        };
        Ok(Config {
            img_size: self.img_size.unwrap_or(Side::One(224)).try_into()?,
            in_chans: self.in_chans.unwrap_or(3),
            num_classes: self.num_classes.unwrap_or(1000),
            embed_dim: self.embed_dim.unwrap_or(96),
            depth: self.depth,
            split_size,
            num_heads: self.num_heads,
            mlp_ratio: self.mlp_ratio.unwrap_or(4.0),
            qkv_bias: self.qkv_bias.unwrap_or(true),
            qk_scale: self.qk_scale,
            drop_rate: self.drop_rate.unwrap_or(0.0),
            attn_drop_rate: self.attn_drop_rate.unwrap_or(0.0),
            drop_path_rate: self.drop_path_rate.unwrap_or(0.0),
            ..default
        })
    }
}

/// One of rank 3 is all tokens, everything else the usual output.
pub(crate) fn forward(model: &dyn Backbone, io: &Tensors, xs: &Tensor, train: bool) -> Result<Vec<Tensor>> {
    match io.get("output")?.rank() {
        3 => Ok(vec![model.forward_features(xs, train)?]),
        _ => Ok(vec![model.forward_t(xs, train)?]),
    }
}

/// A model whose mixers can be looked into.
#[derive(Debug)]
pub(crate) struct Traced {
    pub(crate) model: CSWinTransformer,
    /// Of all blocks in order.
    pub(crate) mixers: Vec<CrossShapedAttention>,
    /// Of all blocks in order, where they have one.
    pub(crate) contents: Vec<Option<BilateralAttention>>,
}

impl Traced {
    pub(crate) fn new(config: &Config, vb: VarBuilder) -> candle_core::Result<Self> {
        let mixers = RefCell::new(vec![]);
        let model = CSWinTransformer::with_mixer(config, vb, |spec, vb| {
            let mixer = CrossShapedAttention::new(&config.cross_shaped_attention(spec), vb)?;
            mixers.borrow_mut().push(mixer.clone());
            Ok(Arc::new(mixer))
        })?;
        let mixers = mixers.into_inner();
        let contents = vec![None; mixers.len()];
        Ok(Self { model, mixers, contents })
    }

    pub(crate) fn trace(&self, input: &Tensor, train: bool) -> Result<Taps> {
        let mut hooks = Hooks::default();
        let model = &self.model;
        let stem = &model.stem;
        let map = hooks.call("stage1_conv_embed.0", input, |xs| stem.conv.forward(xs))?;
        let (_, _, height, width) = map.dims4()?;
        let mut layout = TokenLayout { prefix: 0, height, width };
        let tokens = hooks.call("stage1_conv_embed.1", &map, |xs| xs.flatten_from(2)?.transpose(1, 2))?;
        let mut xs = hooks.call("stage1_conv_embed.2", &tokens, |xs| stem.norm.forward(xs))?;
        hooks.tap("stage1_conv_embed", input, &xs);
        let mut parts = self.mixers.iter().zip(&self.contents);
        for (i, stage) in model.stages.iter().enumerate() {
            if let Some(merge) = &stage.merge {
                (xs, layout) = hooks.merge(&format!("merge{i}"), merge, &xs, layout)?;
            }
            for (j, block) in stage.blocks.iter().enumerate() {
                let (mixer, content) = parts.next().ok_or("a block without mixer")?;
                let block = TracedBlock { block, mixer, content: content.as_ref() };
                xs = block.trace(&mut hooks, &format!("stage{}.{j}", i + 1), &xs, layout, train)?;
            }
        }
        let xs = hooks.call("norm", &xs, |xs| model.norm.forward(xs))?;
        if let Some(head) = &model.head {
            hooks.call("head", &xs.mean(1)?, |xs| head.forward(xs))?;
        }
        Ok(hooks.taps)
    }
}

/// Collects what forward hooks would see.
#[derive(Debug, Default)]
pub(crate) struct Hooks {
    pub(crate) taps: Taps,
}

impl Hooks {
    pub(crate) fn tap(&mut self, module: &str, xs: &Tensor, ys: &Tensor) {
        self.taps.insert(format!("{module}.in"), xs.clone());
        self.taps.insert(format!("{module}.out"), ys.clone());
    }

    pub(crate) fn call(
        &mut self,
        module: &str,
        xs: &Tensor,
        f: impl FnOnce(&Tensor) -> candle_core::Result<Tensor>,
    ) -> Result<Tensor> {
        let ys = f(xs)?;
        self.tap(module, xs, &ys);
        Ok(ys)
    }

    fn merge(
        &mut self,
        module: &str,
        merge: &MergeBlock,
        xs: &Tensor,
        l: TokenLayout,
    ) -> Result<(Tensor, TokenLayout)> {
        let (b, _, c) = xs.dims3()?;
        let map = xs.transpose(1, 2)?.reshape((b, c, l.height, l.width))?;
        let map = self.call(&format!("{module}.conv"), &map, |xs| merge.conv.forward(xs))?;
        let tokens = map.flatten_from(2)?.transpose(1, 2)?;
        self.call(&format!("{module}.norm"), &tokens, |xs| merge.norm.forward(xs))?;
        let (ys, layout) = merge.forward(xs, l)?;
        self.tap(module, xs, &ys);
        Ok((ys, layout))
    }

    pub(crate) fn mlp(&mut self, module: &str, mlp: &Mlp, xs: &Tensor) -> Result<Tensor> {
        let fc1 = Linear { activation: None, ..mlp.fc1.clone() };
        let hidden = self.call(&format!("{module}.fc1"), xs, |xs| fc1.forward(xs))?;
        self.tap(&format!("{module}.act"), &hidden, &mlp.fc1.forward(xs)?);
        self.call(&format!("{module}.fc2"), &mlp.fc1.forward(xs)?, |xs| mlp.fc2.forward(xs))?;
        self.call(module, xs, |xs| mlp.forward_t(xs, false))
    }

    /// The modules of BOAT's attention among similar tokens.
    pub(crate) fn content(
        &mut self,
        module: &str,
        content: &BilateralAttention,
        xs: &Tensor,
        layout: TokenLayout,
    ) -> Result<Tensor> {
        let map = (layout.height, layout.width);
        let qkv = self.call(&format!("{module}qkv"), xs, |xs| content.qkv.forward(xs))?;
        self.call(&format!("{module}get_v"), &content.values(&qkv, map)?, |xs| content.get_v.forward(xs))?;
        let mixed = content.mix(&qkv, map, false)?;
        let ys = self.call(&format!("{module}proj"), &mixed, |xs| content.proj.forward(xs))?;
        self.tap(&format!("{module}proj_drop"), &ys, &ys);
        Ok(ys)
    }
}

/// A block whose mixers can be looked into.
pub(crate) struct TracedBlock<'a> {
    pub(crate) block: &'a Block,
    pub(crate) mixer: &'a CrossShapedAttention,
    pub(crate) content: Option<&'a BilateralAttention>,
}

impl TracedBlock<'_> {
    /// Taps of the block, whose name is empty where it stands alone, and its output.
    pub(crate) fn trace(
        &self,
        hooks: &mut Hooks,
        name: &str,
        xs: &Tensor,
        layout: TokenLayout,
        train: bool,
    ) -> Result<Tensor> {
        let prefix = if name.is_empty() { String::new() } else { format!("{name}.") };
        let module = |module: &str| format!("{prefix}{module}");
        let Self { block, mixer, content } = self;
        let normed = hooks.call(&module("norm1"), xs, |xs| block.norm1.forward(xs))?;
        let qkv = hooks.call(&module("qkv"), &normed, |xs| mixer.qkv.forward(xs))?;
        let (b, n, c3) = qkv.dims3()?;
        let (branches, map) = (mixer.attns.len(), (layout.height, layout.width));
        let qkv = qkv.reshape((b, n, 3, branches, c3 / 3 / branches))?;
        let mut mixed = vec![];
        for (i, attn) in mixer.attns.iter().enumerate() {
            let name = module(&format!("attns.{i}"));
            let windows = attn.windows(&qkv, i, map)?;
            let weights = windowed_weights(attn, &windows)?;
            hooks.tap(&format!("{name}.attn_drop"), &weights, &weights);
            let values = attn.values(&windows, map)?;
            hooks.call(&format!("{name}.get_v"), &values, |xs| attn.get_v.forward(xs))?;
            let ys = attn.forward(&qkv, i, map, train)?;
            // The official module takes queries, keys and values in front.
            let part = qkv.narrow(3, i, 1)?.squeeze(3)?.permute((2, 0, 1, 3))?; // (3, B, N, C / branches)
            hooks.tap(&name, &part, &ys);
            mixed.push(ys);
        }
        let ys = hooks.call(&module("proj"), &Tensor::cat(&mixed, 2)?, |xs| mixer.proj.forward(xs))?;
        let mut after = (xs + ys)?;
        if let (Some(content), Some(attn)) = (&block.content, content) {
            let normed = hooks.call(&module("norm3"), &after, |xs| content.norm3.forward(xs))?;
            hooks.content(&module("content_attn."), attn, &normed, layout)?;
            let ys = content.content_attn.forward_layout(&normed, layout, train)?;
            hooks.tap(&module("content_attn"), &normed, &ys);
            after = (after + ys)?;
        }
        let normed = hooks.call(&module("norm2"), &after, |xs| block.norm2.forward(xs))?;
        hooks.mlp(&module("mlp"), &block.mlp, &normed)?;
        let ys = block.forward_layout(xs, layout, train)?;
        if !name.is_empty() {
            hooks.tap(name, xs, &ys);
        }
        Ok(ys)
    }
}

/// The attention weights in every window, `(B * windows, heads, window, window)`.
fn windowed_weights(attn: &LepeAttention, windows: &Tensor) -> Result<Tensor> {
    let (count, len, c3) = windows.dims3()?;
    let split = windows.reshape((count, len, 3, attn.heads, c3 / 3 / attn.heads))?.permute((2, 0, 3, 1, 4))?;
    let options = AttentionOptions { scale: attn.scale, ..Default::default() };
    Ok(attention_weights(&split.get(0)?, &split.get(1)?, &options)?)
}
