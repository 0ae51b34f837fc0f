//! One block of a CSWin transformer.

use std::sync::Arc;

use candle_core::{Result, Tensor};
use sconce_attention::{TokenLayout, TokenMixer};
use sconce_nn::{DropPath, LayerNorm, Mlp, MlpOptions, Module, ModuleT, VarBuilder, layer_norm};

use super::Config;

/// A block of a CSWin transformer, Dong et al. 2022 (`arXiv:2107.00652`), equation 8: `x += mixer(norm1(x))`, then
/// `x += mlp(norm2(x))`. A second mixer may stand between the two.
///
/// # Shapes
/// - input and output `(B, H W, C)`
#[derive(Debug, Clone)]
pub struct Block {
    /// Before the mixer.
    pub norm1: LayerNorm,
    /// Lets tokens see each other: cross-shaped attention, or what the model was given instead.
    pub attn: Arc<dyn TokenMixer>,
    /// A second mixer, absent in CSWin.
    pub content: Option<Content>,
    /// Before the MLP.
    pub norm2: LayerNorm,
    /// Mixes the channels of each token.
    pub mlp: Mlp,
    /// Drop path of all branches; each draws for itself.
    pub drop_path: DropPath,
}

/// A second mixer with a norm of its own: `x += mixer(norm3(x))`. BOAT (Yu et al. 2022, `arXiv:2201.13027`) puts its attention
/// among similar tokens here.
#[derive(Debug, Clone)]
pub struct Content {
    /// Before the mixer.
    pub norm3: LayerNorm,
    /// The mixer.
    pub content_attn: Arc<dyn TokenMixer>,
}

impl Block {
    /// A block of `dim` channels under the official names, around the given mixer and without a second one. `drop_path` is
    /// this block's own rate.
    ///
    /// # Errors
    /// When `vb` lacks a tensor.
    pub fn new(cfg: &Config, dim: usize, attn: Arc<dyn TokenMixer>, drop_path: f64, vb: VarBuilder) -> Result<Self> {
        let mlp = MlpOptions { dropout: cfg.drop_rate, ..MlpOptions::new(cfg.mlp_dim(dim)) };
        Ok(Self {
            norm1: layer_norm(dim, cfg.norm_eps, vb.pp("norm1"))?,
            attn,
            content: None,
            norm2: layer_norm(dim, cfg.norm_eps, vb.pp("norm2"))?,
            mlp: Mlp::new(dim, &mlp, vb.pp("mlp"))?,
            drop_path: DropPath::new(drop_path),
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
        let mut xs = (xs + self.drop_path.forward_t(&ys, train)?)?;
        if let Some(Content { norm3, content_attn }) = &self.content {
            let ys = content_attn.forward_layout(&norm3.forward(&xs)?, layout, train)?;
            xs = (xs + self.drop_path.forward_t(&ys, train)?)?;
        }
        let ys = self.mlp.forward_t(&self.norm2.forward(&xs)?, train)?;
        xs + self.drop_path.forward_t(&ys, train)?
    }
}
