use candle_core::{Module, Result, Tensor};
use candle_nn::VarBuilder;
use sconce_ops::ConvOptions;

use super::{Conv2d, LayerNorm, conv2d};

/// Cuts an image into patches and maps each to a token, Dosovitskiy et al. 2021, eq. 1.
///
/// # Shapes
/// - input `(B, in, H, W)`, `H` and `W` multiples of the patch
/// - output `(B, H / p * W / p, C)`, patches in row-major order
#[derive(Debug, Clone)]
pub struct PatchEmbed {
    /// Convolution with kernel and stride of one patch.
    pub proj: Conv2d,
    /// Applied to the tokens.
    pub norm: Option<LayerNorm>,
}

/// A patch embedding whose convolution is called `proj`, started as in PyTorch.
///
/// # Errors
/// The builder's.
pub fn patch_embed(in_channels: usize, dim: usize, patch: usize, vb: VarBuilder) -> Result<PatchEmbed> {
    let proj = conv2d(in_channels, dim, patch, ConvOptions::default().stride(patch), vb.pp("proj"))?;
    Ok(PatchEmbed { proj, norm: None })
}

impl PatchEmbed {
    /// Normalises the tokens.
    pub fn with_norm(mut self, norm: LayerNorm) -> Self {
        self.norm = Some(norm);
        self
    }

    /// Number of patches `(rows, columns)` of an image of `(height, width)`.
    pub fn grid(&self, (height, width): (usize, usize)) -> (usize, usize) {
        let [ph, pw] = self.proj.options.stride;
        (height / ph.max(1), width / pw.max(1))
    }

    /// The tokens on their grid, `(B, C, H / p, W / p)`, before the norm.
    ///
    /// # Errors
    /// When the image is not a whole number of patches.
    pub fn forward_grid(&self, xs: &Tensor) -> Result<Tensor> {
        let (_, _, h, w) = xs.dims4()?;
        let [ph, pw] = self.proj.options.stride;
        if ph == 0 || pw == 0 || !h.is_multiple_of(ph) || !w.is_multiple_of(pw) {
            candle_core::bail!("patch_embed: an image of {h} x {w} is not a whole number of {ph} x {pw} patches")
        }
        self.proj.forward(xs)
    }
}

impl Module for PatchEmbed {
    fn forward(&self, xs: &Tensor) -> Result<Tensor> {
        let tokens = self.forward_grid(xs)?.flatten_from(2)?.transpose(1, 2)?; // (B, N, C)
        match &self.norm {
            Some(norm) => norm.forward(&tokens),
            None => Ok(tokens),
        }
    }
}
