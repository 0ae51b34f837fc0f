//! T2T-ViT with both kinds of soft splits.

use std::cell::RefCell;
use std::sync::Arc;

use candle_core::{IndexOp, Module, ModuleT, Tensor};
use sconce::attention::{GlobalAttention, GlobalAttentionConfig, Qkv, QkvProjection};
use sconce::backbones::t2t::{Config, QkScale, TokenModule, TokensToToken, TokensType};
use sconce::backbones::vit::Block;
use sconce::backbones::{Backbone, T2tVit};
use sconce::nn::{Linear, Mlp, VarBuilder};
use sconce::ops::{AttentionOptions, attention, gelu};
use sconce_tests::golden::{Case, Result, Tensors};
use serde::Deserialize;

use super::model::{ModelCase, Taps, train_mode};
use super::vit::Side;

/// The official class's arguments, under its own names; any other fails the case with its name.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Arguments {
    img_size: Option<Side>,
    tokens_type: Option<TokensType>,
    in_chans: Option<usize>,
    num_classes: Option<usize>,
    embed_dim: Option<usize>,
    depth: Option<usize>,
    num_heads: Option<usize>,
    mlp_ratio: Option<f64>,
    qkv_bias: Option<bool>,
    qk_scale: Option<f64>,
    token_dim: Option<usize>,
    /// Dropout changes nothing outside of training.
    #[serde(rename = "drop_rate")]
    _drop_rate: Option<f64>,
    #[serde(rename = "attn_drop_rate")]
    _attn_drop_rate: Option<f64>,
    #[serde(rename = "drop_path_rate")]
    _drop_path_rate: Option<f64>,
}

impl Arguments {
    fn build(self) -> Result<Config> {
        let default = Config::t2t_vit_14();
        Ok(Config {
            img_size: self.img_size.map(TryInto::try_into).transpose()?.unwrap_or(default.img_size),
            tokens_type: self.tokens_type.unwrap_or_default(),
            in_chans: self.in_chans.unwrap_or(3),
            num_classes: self.num_classes.unwrap_or(1000),
            embed_dim: self.embed_dim.unwrap_or(768),
            depth: self.depth.unwrap_or(12),
            num_heads: self.num_heads.unwrap_or(12),
            mlp_ratio: self.mlp_ratio.unwrap_or(4.0),
            qkv_bias: self.qkv_bias.unwrap_or(false),
            // Python's `qk_scale or ...`: zero is no factor either.
            qk_scale: self.qk_scale.filter(|scale| *scale != 0.0).map_or(QkScale::Head, QkScale::Factor),
            token_dim: self.token_dim.unwrap_or(64),
            ..default
        })
    }
}

pub(crate) fn run(case: &Case) -> Result<()> {
    if train_mode(&case.json()?)? {
        return Err("config: the soft splits have dropout in training, which cannot be compared".into());
    }
    let config = case.config::<Arguments>()?.build()?;
    let model = ModelCase {
        build: &|vb| Traced::new(&config, vb),
        forward: &|traced, io, input, train| forward(&traced.model, io, input, train),
        trace: &|traced, input, train| traced.trace(input, train),
        // The official code trains neither.
        idle: &|name| name == "pos_embed" || (name.starts_with("tokens_to_token.") && name.ends_with(".w")),
    };
    model.run(case, None)
}

fn forward(model: &T2tVit, io: &Tensors, input: &Tensor, train: bool) -> Result<Vec<Tensor>> {
    match io.get("output")?.rank() {
        3 => Ok(vec![model.forward_features(input, train)?]),
        _ => Ok(vec![model.forward_t(input, train)?]),
    }
}

/// The model with its mixers in sight.
struct Traced {
    model: T2tVit,
    mixers: Vec<GlobalAttention>,
}

impl Traced {
    fn new(config: &Config, vb: VarBuilder) -> candle_core::Result<Self> {
        let mixers = RefCell::new(vec![]);
        let model = T2tVit::with_mixer(config, vb, |spec, vb| {
            let options = GlobalAttentionConfig { scale: Some(config.scale()), ..spec.into() };
            let mixer = GlobalAttention::new(&options, vb)?;
            mixers.borrow_mut().push(mixer.clone());
            Ok(Arc::new(mixer))
        })?;
        Ok(Self { model, mixers: mixers.into_inner() })
    }

    /// Every module of the official class.
    fn trace(&self, input: &Tensor, train: bool) -> Result<Taps> {
        let model = &self.model;
        let mut taps = Taps::new();
        let mut tap = |module: &str, xs: &Tensor, ys: &Tensor| {
            taps.insert(format!("{module}.in"), xs.clone());
            taps.insert(format!("{module}.out"), ys.clone());
        };
        let splits = &model.tokens_to_token;
        let mut map = input.clone();
        for (i, attention) in [&splits.attention1, &splits.attention2].into_iter().enumerate() {
            let (tokens, (h, w)) = TokensToToken::split(i, &map)?;
            tap(&format!("tokens_to_token.soft_split{i}"), &map, &tokens.transpose(1, 2)?);
            let ys = attention.forward_t(&tokens, train)?;
            let name = format!("tokens_to_token.attention{}", i + 1);
            tap(&name, &tokens, &ys);
            let mut tap = |module: &str, xs: &Tensor, ys: &Tensor| tap(&format!("{name}.{module}"), xs, ys);
            let normed;
            match attention {
                TokenModule::Performer(module) => {
                    normed = module.norm1.forward(&tokens)?;
                    tap("norm1", &tokens, &normed);
                    let kqv = module.kqv.forward(&normed)?;
                    tap("kqv", &normed, &kqv);
                    let mixed = module.mix(&kqv)?;
                    tap("proj", &mixed, &module.proj.forward(&mixed)?);
                    let mixed = module.attend(&tokens, train)?;
                    let normed = module.norm2.forward(&mixed)?;
                    tap("norm2", &mixed, &normed);
                    let hidden = module.fc1.forward(&normed)?;
                    tap("mlp.0", &normed, &hidden);
                    let active = gelu(&hidden)?;
                    tap("mlp.1", &hidden, &active);
                    let narrow = module.fc2.forward(&active)?;
                    tap("mlp.2", &active, &narrow);
                    tap("mlp.3", &narrow, &narrow);
                    tap("mlp", &normed, &narrow);
                }
                TokenModule::Transformer(module) => {
                    normed = module.norm1.forward(&tokens)?;
                    tap("norm1", &tokens, &normed);
                    let mixed = module.attn.forward_t(&normed, train)?;
                    tap("attn", &normed, &mixed);
                    let qkv = module.attn.qkv.forward(&normed)?;
                    tap("attn.qkv", &normed, &qkv);
                    let heads = module.attn.mix(&qkv, train)?;
                    tap("attn.proj", &heads, &module.attn.proj.forward(&heads)?);
                    let normed = module.norm2.forward(&mixed)?;
                    tap("norm2", &mixed, &normed);
                    for (name, xs, ys) in inside(&module.mlp, &normed)? {
                        tap(&format!("mlp{name}"), &xs, &ys);
                    }
                }
            }
            let (b, _, emb) = ys.dims3()?;
            map = ys.transpose(1, 2)?.reshape((b, emb, h, w))?;
        }
        let (tokens, _) = TokensToToken::split(2, &map)?;
        tap("tokens_to_token.soft_split2", &map, &tokens.transpose(1, 2)?);
        let projected = splits.project.forward(&tokens)?;
        tap("tokens_to_token.project", &tokens, &projected);
        tap("tokens_to_token", input, &projected);

        let (mut xs, layout) = model.embed(input, train)?;
        tap("pos_drop", &xs, &xs);
        for (i, (block, mixer)) in model.blocks.iter().zip(&self.mixers).enumerate() {
            let Block { norm1, attn, norm2, mlp, .. } = block;
            let mut tap = |module: &str, xs: &Tensor, ys: &Tensor| tap(&format!("blocks.{i}{module}"), xs, ys);
            let normed = norm1.forward(&xs)?;
            tap(".norm1", &xs, &normed);
            if let QkvProjection::Packed(qkv) = &mixer.qkv {
                tap(".attn.qkv", &normed, &qkv.forward(&normed)?);
            }
            let Qkv { q, k, v } = mixer.project(&normed)?;
            let options = AttentionOptions { scale: mixer.scale, ..Default::default() };
            let heads = attention(&q, &k, &v, &options)?.transpose(1, 2)?.flatten_from(2)?; // (B, N, C)
            tap(".attn.proj", &heads, &mixer.proj.forward(&heads)?);
            let mixed = attn.forward_layout(&normed, layout, train)?;
            tap(".attn", &normed, &mixed);
            let residual = (&xs + mixed)?;
            let normed = norm2.forward(&residual)?;
            tap(".norm2", &residual, &normed);
            for (name, xs, ys) in inside(mlp, &normed)? {
                tap(&format!(".mlp{name}"), &xs, &ys);
            }
            let ys = block.forward_layout(&xs, layout, train)?;
            tap("", &xs, &ys);
            xs = ys;
        }
        let normed = model.norm.forward(&xs)?;
        tap("norm", &xs, &normed);
        if let Some(head) = &model.head {
            let cls = normed.i((.., 0))?; // (B, C)
            tap("head", &cls, &head.forward(&cls)?);
        }
        Ok(taps)
    }
}

/// The modules of an MLP, which fuses its activation into the first layer.
fn inside(mlp: &Mlp, xs: &Tensor) -> Result<[(&'static str, Tensor, Tensor); 4]> {
    let hidden = Linear { activation: None, ..mlp.fc1.clone() }.forward(xs)?;
    let active = gelu(&hidden)?;
    let narrow = mlp.fc2.forward(&active)?;
    Ok([
        (".fc1", xs.clone(), hidden.clone()),
        (".act", hidden, active.clone()),
        (".fc2", active, narrow.clone()),
        ("", xs.clone(), narrow),
    ])
}
