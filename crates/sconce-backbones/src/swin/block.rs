//! One block of a Swin transformer.

use std::sync::Arc;

use candle_core::{Result, Tensor};
use sconce_attention::{Qkv, TokenLayout, TokenMixer};
use sconce_nn::{DropPath, LayerNorm, Mlp, MlpOptions, Module, ModuleT, VarBuilder, layer_norm};

use super::Config;

/// A block of a Swin transformer, Liu et al. 2021 (`arXiv:2103.14030`), equation 3: `x += mixer(norm1(x))`, then
/// `x += mlp(norm2(x))`. A second mixer may stand between the two.
///
/// # Shapes
/// - input and output `(B, H W, C)`
#[derive(Debug, Clone)]
pub struct Block {
    /// Before the mixer.
    pub norm1: LayerNorm,
    /// Lets tokens see each other: attention within windows, or what the model was given instead.
    pub attn: Arc<dyn TokenMixer>,
    /// Drop path of the mixer's branch.
    pub drop_path1: DropPath,
    /// A second mixer, absent in Swin.
    pub content: Option<Content>,
    /// Before the MLP.
    pub norm2: LayerNorm,
    /// Mixes the channels of each token.
    pub mlp: Mlp,
    /// Drop path of the MLP's branch.
    pub drop_path2: DropPath,
}

/// A second mixer with a norm of its own: `x += mixer(norm4(x))`, never dropped. BOAT (Yu et al. 2022,
/// `arXiv:2201.13027`) puts its attention among similar tokens here.
#[derive(Debug, Clone)]
pub struct Content {
    /// Before the mixer.
    pub norm4: LayerNorm,
    /// The mixer.
    pub attn_c: Arc<dyn TokenMixer>,
}

impl Block {
    /// A block of `dim` channels under the official names, around the given mixer and without a second one. `drop_path` is
    /// this block's own rate.
    ///
    /// # Errors
    /// When `vb` lacks a tensor.
    pub fn new(cfg: &Config, dim: usize, attn: Arc<dyn TokenMixer>, drop_path: f64, vb: VarBuilder) -> Result<Self> {
        let mlp = MlpOptions { activation: cfg.act, dropout: cfg.proj_drop_rate, ..MlpOptions::new(cfg.mlp_dim(dim)) };
        Ok(Self {
            norm1: layer_norm(dim, cfg.norm_eps, vb.pp("norm1"))?,
            attn,
            drop_path1: DropPath::new(drop_path),
            content: None,
            norm2: layer_norm(dim, cfg.norm_eps, vb.pp("norm2"))?,
            mlp: Mlp::new(dim, &mlp, vb.pp("mlp"))?,
            drop_path2: DropPath::new(drop_path),
        })
    }

    /// Maps tokens of a known layout.
    ///
    /// # Shapes
    /// - `xs` and output `(B, H W, C)`
    ///
    /// # Errors
    /// When the tokens do not fit.
    pub fn forward_layout(&self, xs: &Tensor, layout: TokenLayout, train: bool) -> Result<Tensor> {
        let ys = self.attn.forward_layout(&self.norm1.forward(xs)?, layout, train)?;
        self.after_attn(xs, &ys, layout, train)
    }

    /// As [`forward_layout`](Self::forward_layout), together with the first mixer's queries, keys and values.
    ///
    /// # Errors
    /// When the tokens do not fit.
    pub fn forward_qkv(&self, xs: &Tensor, layout: TokenLayout, train: bool) -> Result<(Tensor, Option<Qkv>)> {
        let (ys, qkv) = self.attn.forward_qkv(&self.norm1.forward(xs)?, layout, train)?;
        Ok((self.after_attn(xs, &ys, layout, train)?, qkv))
    }

    /// The rest of the block, from what the mixer made of `xs` on.
    fn after_attn(&self, xs: &Tensor, ys: &Tensor, layout: TokenLayout, train: bool) -> Result<Tensor> {
        let mut xs = (xs + self.drop_path1.forward_t(ys, train)?)?;
        if let Some(Content { norm4, attn_c }) = &self.content {
            xs = (&xs + attn_c.forward_layout(&norm4.forward(&xs)?, layout, train)?)?;
        }
        let ys = self.mlp.forward_t(&self.norm2.forward(&xs)?, train)?;
        xs + self.drop_path2.forward_t(&ys, train)?
    }
}
