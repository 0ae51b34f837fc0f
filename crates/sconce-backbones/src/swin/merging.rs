//! Four tokens to one, between stages.

use candle_core::{Result, Tensor, bail};
use sconce_attention::TokenLayout;
use sconce_nn::{Init, LayerNorm, Linear, Module, VarBuilder, layer_norm};

/// Halves a map and doubles its channels: each 2 x 2 tokens are put side by side, normalised and projected, Liu et al. 2021
/// (`arXiv:2103.14030`), section 3.1. Maps of odd sides get a row or column of zeros, as in timm.
///
/// # Shapes
/// - input `(B, H W, C)`, output `(B, ceil(H / 2) ceil(W / 2), 2 C)`
#[derive(Debug, Clone)]
pub struct PatchMerging {
    /// Norm of the `4 C` channels.
    pub norm: LayerNorm,
    /// `4 C` to `2 C`, without bias.
    pub reduction: Linear,
}

impl PatchMerging {
    /// From `dim` channels to twice as many, under the official names.
    ///
    /// # Errors
    /// When `vb` lacks a tensor.
    pub fn new(dim: usize, norm_eps: f64, vb: VarBuilder) -> Result<Self> {
        let init = Init::TruncNormal { std: 0.02 };
        Ok(Self {
            norm: layer_norm(4 * dim, norm_eps, vb.pp("norm"))?,
            reduction: Linear::with_init(4 * dim, 2 * dim, false, init, vb.pp("reduction"))?,
        })
    }

    /// The smaller map with its layout.
    ///
    /// # Errors
    /// When the tokens are not those of the layout.
    pub fn forward_layout(&self, xs: &Tensor, layout: TokenLayout) -> Result<(Tensor, TokenLayout)> {
        let (b, n, c) = xs.dims3()?;
        let TokenLayout { prefix, height, width } = layout;
        if prefix != 0 || n != layout.len() {
            bail!("patch merging: {n} tokens, {prefix} of them without a place, on a map of {height} x {width}")
        }
        let half = TokenLayout { prefix, height: height.div_ceil(2), width: width.div_ceil(2) };
        let mut xs = xs.reshape((b, height, width, c))?;
        if height % 2 == 1 {
            xs = xs.pad_with_zeros(1, 0, 1)?;
        }
        if width % 2 == 1 {
            xs = xs.pad_with_zeros(2, 0, 1)?;
        }
        let xs = xs.reshape((b, half.height, 2, half.width, 2, c))?; // (B, H/2, row, W/2, column, C)
        // The official order: down the first column, then down the second.
        let xs = xs.permute((0, 1, 3, 4, 2, 5))?.reshape((b, half.len(), 4 * c))?; // (B, N/4, 4 C)
        Ok((self.reduction.forward(&self.norm.forward(&xs)?)?, half))
    }
}
