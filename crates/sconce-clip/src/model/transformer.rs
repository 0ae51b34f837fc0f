//! The pre-norm transformer that both towers are made of (Radford et al. 2021, section 2.4).

use crate::config::TransformerConfig;
use candle_core::{Result, Tensor};
use sconce_nn::{Init, LayerNorm, Module, VarBuilder, drop_path_rates, init::param, layer_norm};
use sconce_ops::{Activation, AttentionOptions, Generator, Mask, attention_packed, drop_path, dropout, linear};

/// How the weights of a block start.
#[derive(Clone, Copy, Debug)]
pub(super) enum BlockInit {
    /// As PyTorch's modules start, which is what OpenAI's vision towers are left at.
    Torch,
    /// Scaled by width and depth, as OpenAI's text towers start.
    Scaled,
}

/// A weight with its bias: what the checkpoint calls `<name>.weight` and `<name>.bias`, or `<name>_weight` and `<name>_bias`.
#[derive(Clone, Debug)]
pub struct Dense {
    /// `(out, in)`.
    pub weight: Tensor,
    /// `(out)`.
    pub bias: Tensor,
}

impl Dense {
    pub(super) fn new(
        inputs: usize,
        outputs: usize,
        names: [&str; 2],
        weight: Init,
        bias: Init,
        vb: &VarBuilder,
    ) -> Result<Self> {
        let weight = param(vb, (outputs, inputs), names[0], weight)?;
        Ok(Self { weight, bias: param(vb, outputs, names[1], bias)? })
    }

    /// `(*, in)` to `(*, out)`, with the activation in the same pass.
    ///
    /// # Errors
    /// When the last dimension is not `in`.
    pub fn forward(&self, xs: &Tensor, activation: Option<Activation>) -> Result<Tensor> {
        linear(xs, &self.weight, Some(&self.bias), activation)
    }
}

/// Multi-head self-attention with one packed input projection (`torch.nn.MultiheadAttention`).
#[derive(Clone, Debug)]
pub struct Attention {
    /// Queries, keys and values in this order: `(3 C, C)`.
    pub in_proj: Dense,
    /// `(C, C)`.
    pub out_proj: Dense,
    /// Heads.
    pub heads: usize,
}

/// One block: `x + Attn(LN(x))`, then `x + MLP(LN(x))`.
#[derive(Clone, Debug)]
pub struct Block {
    /// Before the attention.
    pub ln_1: LayerNorm,
    /// The token mixer.
    pub attn: Attention,
    /// Before the MLP.
    pub ln_2: LayerNorm,
    /// First layer of the MLP.
    pub c_fc: Dense,
    /// Second layer of the MLP.
    pub c_proj: Dense,
    /// Between the layers of the MLP.
    pub activation: Activation,
    /// Probability of dropping a number at the end of a branch in training.
    pub dropout: f64,
    /// Probability of dropping a branch in training.
    pub drop_path: f64,
}

impl Block {
    fn new(config: &TransformerConfig, init: BlockInit, drop_path: f64, vb: VarBuilder) -> Result<Self> {
        let (width, hidden) = (config.width, config.mlp_width());
        let normal = |std: f64| Init::Normal { mean: 0.0, std };
        let width_std = (width as f64).powf(-0.5);
        // Each of the 2 L branches adds to the stream, so their variances are divided by 2 L.
        let end_std = width_std * (2.0 * config.depth as f64).powf(-0.5);
        let [in_proj, out_proj, c_fc, c_proj] = match init {
            BlockInit::Torch => [Init::XavierUniform, Init::TorchLinear, Init::TorchLinear, Init::TorchLinear],
            BlockInit::Scaled => [width_std, end_std, (2.0 * width as f64).powf(-0.5), end_std].map(normal),
        };
        let attn = vb.pp("attn");
        let names = ["weight", "bias"];
        let torch_bias = |inputs: usize, outputs: usize| Init::torch_bias(&(outputs, inputs).into());
        Ok(Self {
            ln_1: layer_norm(width, config.eps, vb.pp("ln_1"))?,
            attn: Attention {
                in_proj: Dense::new(width, 3 * width, ["in_proj_weight", "in_proj_bias"], in_proj, Init::Zeros, &attn)?,
                out_proj: Dense::new(width, width, names, out_proj, Init::Zeros, &attn.pp("out_proj"))?,
                heads: config.heads(),
            },
            ln_2: layer_norm(width, config.eps, vb.pp("ln_2"))?,
            c_fc: Dense::new(width, hidden, names, c_fc, torch_bias(width, hidden), &vb.pp("mlp.c_fc"))?,
            c_proj: Dense::new(hidden, width, names, c_proj, torch_bias(hidden, width), &vb.pp("mlp.c_proj"))?,
            activation: config.activation,
            dropout: config.dropout,
            drop_path,
        })
    }

    /// `(B, N, C)` to `(B, N, C)`.
    ///
    /// # Errors
    /// When the width is another.
    pub fn forward_t(&self, xs: &Tensor, mask: &Mask, train: bool) -> Result<Tensor> {
        let qkv = self.attn.in_proj.forward(&self.ln_1.forward(xs)?, None)?; // (B, N, 3C)
        let mixed = attention_packed(&qkv, self.attn.heads, &AttentionOptions::default().with_mask(mask.clone()))?;
        let xs = (xs + self.branch(self.attn.out_proj.forward(&mixed, None)?, train)?)?; // (B, N, C)
        let hidden = self.c_fc.forward(&self.ln_2.forward(&xs)?, Some(self.activation))?; // (B, N, hidden)
        &xs + self.branch(self.c_proj.forward(&hidden, None)?, train)?
    }

    /// What training does to the end of a branch.
    fn branch(&self, ys: Tensor, train: bool) -> Result<Tensor> {
        let ys = match train && self.dropout > 0.0 {
            true => dropout(&ys, self.dropout, &Generator::current())?,
            false => ys,
        };
        match train && self.drop_path > 0.0 {
            true => drop_path(&ys, self.drop_path, &Generator::current()),
            false => Ok(ys),
        }
    }
}

/// A stack of blocks.
#[derive(Clone, Debug)]
pub struct Transformer {
    /// From the input upwards; named `resblocks.0`, `resblocks.1`, ... in checkpoints.
    pub blocks: Vec<Block>,
}

impl Transformer {
    pub(super) fn new(config: &TransformerConfig, init: BlockInit, vb: VarBuilder) -> Result<Self> {
        let vb = vb.pp("resblocks");
        let rates = drop_path_rates(config.drop_path, config.depth);
        let block = |(i, rate)| Block::new(config, init, rate, vb.pp(i));
        Ok(Self { blocks: rates.into_iter().enumerate().map(block).collect::<Result<_>>()? })
    }

    /// `(B, N, C)` to `(B, N, C)`.
    ///
    /// # Errors
    /// When the width is another.
    pub fn forward_t(&self, xs: &Tensor, mask: &Mask, train: bool) -> Result<Tensor> {
        self.forward_each(xs, mask, train, |_, xs| Ok(xs))
    }

    /// As [`Self::forward_t`]; `each` is given the number and the output of every block and returns what goes into the next:
    /// the place to read intermediate features or to put an adapter.
    ///
    /// # Errors
    /// As [`Self::forward_t`], and those of `each`.
    pub fn forward_each(
        &self,
        xs: &Tensor,
        mask: &Mask,
        train: bool,
        mut each: impl FnMut(usize, Tensor) -> Result<Tensor>,
    ) -> Result<Tensor> {
        let mut xs = xs.clone();
        for (i, block) in self.blocks.iter().enumerate() {
            xs = each(i, block.forward_t(&xs, mask, train)?)?;
        }
        Ok(xs)
    }
}
