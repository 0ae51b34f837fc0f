//! One block of a vision transformer.

use std::sync::Arc;

use candle_core::{Result, Tensor};
use sconce_attention::{Qkv, TokenLayout, TokenMixer};
use sconce_nn::{
    DropPath, LayerNorm, LayerScale, Mlp, MlpOptions, Module, ModuleT, VarBuilder, layer_norm, layer_scale,
};

use super::Config;

/// A pre-norm transformer block, Dosovitskiy et al. 2021 (`arXiv:2010.11929`), equations 2 and 3:
/// `x += mixer(norm1(x))`, then `x += mlp(norm2(x))`.
///
/// Adapters, when set, see the output of a branch before it is scaled, dropped and added.
///
/// # Shapes
/// - input and output `(B, N, C)`
#[derive(Debug, Clone)]
pub struct Block {
    /// Before the mixer.
    pub norm1: LayerNorm,
    /// Lets tokens see each other: global attention, or what the model was given instead.
    pub attn: Arc<dyn TokenMixer>,
    /// Scale of the mixer's branch.
    pub ls1: Option<LayerScale>,
    /// Drop path of the mixer's branch.
    pub drop_path1: DropPath,
    /// Before the MLP.
    pub norm2: LayerNorm,
    /// Mixes the channels of each token.
    pub mlp: Mlp,
    /// Scale of the MLP's branch.
    pub ls2: Option<LayerScale>,
    /// Drop path of the MLP's branch.
    pub drop_path2: DropPath,
    /// Applied to the mixer's output.
    pub attn_adapter: Option<Arc<dyn TokenMixer>>,
    /// Applied to the MLP's output.
    pub mlp_adapter: Option<Arc<dyn TokenMixer>>,
}

impl Block {
    /// A block under timm's names, around the given mixer. `drop_path` is this block's own rate.
    ///
    /// # Errors
    /// When `vb` lacks a tensor.
    pub fn new(cfg: &Config, attn: Arc<dyn TokenMixer>, drop_path: f64, vb: VarBuilder) -> Result<Self> {
        let (dim, eps) = (cfg.embed_dim, cfg.norm_eps);
        let scale = |name: &str| cfg.init_values.map(|v| layer_scale(dim, v, vb.pp(name))).transpose();
        let mlp = MlpOptions { activation: cfg.act, dropout: cfg.proj_drop_rate, ..MlpOptions::new(cfg.mlp_dim()) };
        Ok(Self {
            norm1: layer_norm(dim, eps, vb.pp("norm1"))?,
            attn,
            ls1: scale("ls1")?,
            drop_path1: DropPath::new(drop_path),
            norm2: layer_norm(dim, eps, vb.pp("norm2"))?,
            mlp: Mlp::new(dim, &mlp, vb.pp("mlp"))?,
            ls2: scale("ls2")?,
            drop_path2: DropPath::new(drop_path),
            attn_adapter: None,
            mlp_adapter: None,
        })
    }

    /// Maps tokens of a known layout.
    ///
    /// # Shapes
    /// - `xs` and output `(B, N, C)`
    ///
    /// # Errors
    /// When the tokens do not fit.
    pub fn forward_layout(&self, xs: &Tensor, layout: TokenLayout, train: bool) -> Result<Tensor> {
        let ys = self.attn.forward_layout(&self.norm1.forward(xs)?, layout, train)?;
        self.after_attn(xs, ys, layout, train)
    }

    /// As [`forward_layout`](Self::forward_layout), together with the mixer's queries, keys and values.
    ///
    /// # Errors
    /// When the tokens do not fit.
    pub fn forward_qkv(&self, xs: &Tensor, layout: TokenLayout, train: bool) -> Result<(Tensor, Option<Qkv>)> {
        let (ys, qkv) = self.attn.forward_qkv(&self.norm1.forward(xs)?, layout, train)?;
        Ok((self.after_attn(xs, ys, layout, train)?, qkv))
    }

    /// The rest of the block, from what the mixer made of `xs` on.
    fn after_attn(&self, xs: &Tensor, ys: Tensor, layout: TokenLayout, train: bool) -> Result<Tensor> {
        let adapt = |adapter: &Option<Arc<dyn TokenMixer>>, ys: Tensor| match adapter {
            Some(adapter) => adapter.forward_layout(&ys, layout, train),
            None => Ok(ys),
        };
        let scale = |ls: &Option<LayerScale>, ys: Tensor| ls.as_ref().map_or(Ok(ys.clone()), |ls| ls.forward(&ys));

        let ys = scale(&self.ls1, adapt(&self.attn_adapter, ys)?)?;
        let xs = (xs + self.drop_path1.forward_t(&ys, train)?)?;

        let ys = self.mlp.forward_t(&self.norm2.forward(&xs)?, train)?;
        let ys = scale(&self.ls2, adapt(&self.mlp_adapter, ys)?)?;
        xs + self.drop_path2.forward_t(&ys, train)?
    }
}
