//! Convolutional X-formers with their three mixers, in the authors' own arithmetic.

use candle_core::{ModuleT, Tensor};
use sconce::backbones::cxv::{Config, Layer, Mixer};
use sconce::backbones::{Backbone, Cxv};
use sconce::nn::Module;
use sconce::ops::{gelu, global_avg_pool};
use sconce_tests::golden::{Case, Result, Tensors};
use serde::Deserialize;

use super::model::{ModelCase, Taps, train_mode};

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Arguments {
    num_classes: usize,
    emb_dim: usize,
    emb_kernel: Option<usize>,
    emb_stride: Option<usize>,
    heads: usize,
    depth: usize,
    mlp_mult: usize,
    dropout: Option<f64>,
    in_channels: Option<usize>,
    num_landmarks: Option<usize>,
    /// Size of the input, which the case itself shows.
    #[serde(rename = "img_size", alias = "input")]
    _input: Option<serde_json::Value>,
}

impl Arguments {
    fn build(self, mixer: Mixer, dim_head: usize, train: bool) -> Result<Config> {
        if train && (mixer == Mixer::Performer || self.dropout != Some(0.0)) {
            return Err("config: dropout in training mode cannot be compared".into());
        }
        let default = Config::cltv();
        Ok(Config {
            in_chans: self.in_channels.unwrap_or(3),
            num_classes: self.num_classes,
            mixer,
            emb_dim: self.emb_dim,
            emb_kernel: self.emb_kernel.unwrap_or(default.emb_kernel),
            emb_stride: self.emb_stride.unwrap_or(default.emb_stride),
            heads: self.heads,
            dim_head,
            depth: self.depth,
            mlp_mult: self.mlp_mult,
            dropout: self.dropout.unwrap_or(default.dropout),
            attn_dropout: self.dropout.unwrap_or(default.attn_dropout),
            num_landmarks: self.num_landmarks.unwrap_or(default.num_landmarks),
            ..default
        })
    }
}

/// The names of the first layer's mixer tell which one it is, and its widths how wide a head is.
fn mixer(weights: &Tensors, heads: usize) -> Result<(Mixer, usize)> {
    let find = |name: &str| weights.find(&format!("layers.0.2.layers.0.0.{name}.weight"));
    let heads = heads.max(1);
    match (find("to_qkv"), find("to_q")) {
        (Some(qkv), _) => Ok((Mixer::Nystrom, qkv.dim(0)? / 3 / heads)),
        (None, Some(q)) if q.rank() == 4 => Ok((Mixer::Linear, q.dim(0)? / heads)),
        (None, Some(q)) => Ok((Mixer::Performer, q.dim(0)? / heads)),
        (None, None) => Err("the first layer has no mixer".into()),
    }
}

pub(crate) fn run(case: &Case) -> Result<()> {
    let arguments = case.config::<Arguments>()?;
    let (mixer, dim_head) = mixer(&case.weights()?, arguments.heads)?;
    let config = arguments.build(mixer, dim_head, train_mode(&case.json()?)?)?;
    let io = case.tensors()?;
    let model = ModelCase {
        build: &|vb| Cxv::new(&config, vb),
        forward: &forward,
        trace: &|model, input, train| trace(model, &io, input, train),
        // The random projection is no parameter, and Performer's trainer leaves its count.
        idle: &|name| name.ends_with("projection_matrix") || name.ends_with("calls_since_last_redraw"),
    };
    model.run(case, None)
}

fn forward(model: &Cxv, io: &Tensors, input: &Tensor, train: bool) -> Result<Vec<Tensor>> {
    match io.get("output")?.rank() {
        4 => Ok(vec![model.forward_features(input, train)?]),
        _ => Ok(vec![model.forward_t(input, train)?]),
    }
}

/// Every module of the authors' class. Whether the mixers see maps or tokens is not told by the names: they are shown as the
/// file has them.
fn trace(model: &Cxv, io: &Tensors, input: &Tensor, train: bool) -> Result<Taps> {
    let mut taps = Taps::new();
    let mut tap = |module: &str, xs: &Tensor, ys: &Tensor| -> Result<()> {
        for (side, tensor) in [("in", xs), ("out", ys)] {
            let name = format!("{module}.{side}");
            let tokens = tensor.rank() == 4 && io.find(&format!("mid.{name}")).is_some_and(|t| t.rank() == 3);
            let shown = if tokens { tensor.flatten_from(2)?.transpose(1, 2)? } else { tensor.clone() };
            taps.insert(name, shown);
        }
        Ok(())
    };
    let first = model.conv[0].forward(input)?;
    let mut xs = model.conv[1].forward(&first)?;
    tap("conv.0", input, &first)?;
    tap("conv.1", &first, &xs)?;
    tap("conv", input, &xs)?;
    for (i, layer) in model.layers.iter().enumerate() {
        let Layer { conv, norm, feed_forward, .. } = layer;
        let mut tap = |module: &str, xs: &Tensor, ys: &Tensor| tap(&format!("layers.{i}{module}"), xs, ys);
        let embedded = conv.forward(&xs)?;
        tap(".0", &xs, &embedded)?;
        let normed = norm.forward(&embedded)?;
        tap(".1", &embedded, &normed)?;
        let mixed = layer.mix(&normed, train)?;
        tap(".2.layers.0.0", &normed, &mixed)?;
        let residual = (&normed + mixed)?;
        let hidden = feed_forward.expand.forward(&residual)?;
        tap(".2.layers.0.1.net.0", &residual, &hidden)?;
        let active = gelu(&hidden)?;
        tap(".2.layers.0.1.net.1", &hidden, &active)?;
        let dropped = feed_forward.dropout.forward_t(&active, train)?;
        tap(".2.layers.0.1.net.2", &active, &dropped)?;
        let reduced = feed_forward.reduce.forward(&dropped)?;
        tap(".2.layers.0.1.net.3", &dropped, &reduced)?;
        let fed = feed_forward.dropout.forward_t(&reduced, train)?;
        tap(".2.layers.0.1.net.4", &reduced, &fed)?;
        tap(".2.layers.0.1.net", &residual, &fed)?;
        tap(".2.layers.0.1", &residual, &fed)?;
        let ys = (&residual + fed)?;
        tap(".2", &normed, &ys)?;
        tap("", &xs, &ys)?;
        xs = ys;
    }
    let pooled = global_avg_pool(&xs)?; // (B, C)
    let map = pooled.unsqueeze(2)?.unsqueeze(3)?; // (B, C, 1, 1)
    tap("head.0", &xs, &map)?;
    tap("head.1", &map, &pooled)?;
    if let Some(head) = &model.head {
        let ys = head.forward(&pooled)?;
        tap("head.2", &pooled, &ys)?;
        tap("head", &xs, &ys)?;
    }
    Ok(taps)
}
