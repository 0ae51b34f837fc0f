//! Position embeddings for another grid of patches: the three rules that official code follows, which differ.
//!
//! All of them take the rows of the prefix (class token, distillation token) as they are, see the rest as a square grid in
//! row-major order, and resize it by bicubic interpolation. A grid that already has the wanted size is returned unchanged.
//! Gradients flow back to the embedding.
//!
//! # Shapes
//! - `pos_embed` `(1, prefix + S * S, C)`
//! - output `(1, prefix + H * W, C)` for `to = (H, W)`

use candle_core::{Result, Tensor};
use sconce_ops::{ResizeMode, ResizeOptions, resize};

/// timm's `resample_abs_pos_embed`: with antialiasing.
///
/// # Errors
/// When the shape is not as above or a size is zero.
pub fn resample_timm(pos_embed: &Tensor, prefix: usize, to: (usize, usize)) -> Result<Tensor> {
    resample(pos_embed, prefix, to, |_| ResizeOptions::size(to.0, to.1).mode(ResizeMode::Bicubic).antialias(true))
}

/// The fine-tuning code of DeiT (also UniFormer): without antialiasing.
///
/// # Errors
/// As [`resample_timm`].
pub fn resample_deit(pos_embed: &Tensor, prefix: usize, to: (usize, usize)) -> Result<Tensor> {
    resample(pos_embed, prefix, to, |_| ResizeOptions::size(to.0, to.1).mode(ResizeMode::Bicubic))
}

/// DINO at run time: without antialiasing, and sampled as if the grid were 0.1 longer on each side.
///
/// The sampling step is `S / (H + 0.1)`, not `S / H`, because the official code works around rounding that way.
///
/// # Errors
/// As [`resample_timm`].
pub fn resample_dino(pos_embed: &Tensor, prefix: usize, to: (usize, usize)) -> Result<Tensor> {
    resample(pos_embed, prefix, to, |side| {
        let factor = |n: usize| (n as f64 + 0.1) / side as f64;
        ResizeOptions::size(to.0, to.1).mode(ResizeMode::Bicubic).scale(factor(to.0), factor(to.1))
    })
}

fn resample(
    pos_embed: &Tensor,
    prefix: usize,
    (h, w): (usize, usize),
    options: impl Fn(usize) -> ResizeOptions,
) -> Result<Tensor> {
    let (one, rows, channels) = pos_embed.dims3()?;
    let grid = rows.saturating_sub(prefix);
    let side = grid.isqrt();
    if one != 1 || grid == 0 || side * side != grid {
        candle_core::bail!("position embedding {:?} is no (1, {prefix} + S * S, C)", pos_embed.dims())
    }
    if (side, side) == (h, w) {
        return Ok(pos_embed.clone());
    }
    let patches = pos_embed.narrow(1, prefix, grid)?.reshape((1, side, side, channels))?.permute((0, 3, 1, 2))?; // (1, C, S, S)
    let patches = resize(&patches, &options(side))?; // (1, C, H, W)
    let patches = patches.flatten_from(2)?.transpose(1, 2)?; // (1, H W, C)
    match prefix {
        0 => patches.contiguous(),
        _ => Tensor::cat(&[&pos_embed.narrow(1, 0, prefix)?, &patches], 1),
    }
}
