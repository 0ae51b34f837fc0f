//! Resizing of feature maps and images, equal to `torch.nn.functional.interpolate` with its gradient.

mod weights;

use candle_core::{DType, Result, Tensor};

use crate::banded;
use crate::window::element_count;
use crate::{Error, check};

/// How new pixels are made from old ones.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum ResizeMode {
    /// The pixel at or before the sampling position (PyTorch's `nearest`, not `nearest-exact`).
    Nearest,
    /// Linear along each axis; with antialias a triangle as wide as the step.
    #[default]
    Bilinear,
    /// Cubic convolution along each axis, Keys 1981, with a = -0.75; with antialias a = -0.5, as in PyTorch.
    Bicubic,
}

/// The size of the result.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum ResizeTo {
    /// `(height, width)` in pixels.
    Size(usize, usize),
    /// Factors of `(height, width)`: the result has `floor(n * factor)` pixels, and the sampling step is `1 / factor`,
    /// which is not `n / floor(n * factor)`.
    Factor(f64, f64),
}

/// Options of [`resize`].
///
/// # Convention
/// Pixels are squares and coordinates lie at their centres: the source of pixel `i` is `(i + 0.5) * step - 0.5`. With
/// `align_corners` the centres of the corner pixels fall together instead: `i * (n - 1) / (o - 1)`. Outside the image the
/// border is repeated.
///
/// ```
/// use sconce_ops::{ResizeMode, ResizeOptions};
/// // DINO's position embedding: 14 patches to 20, sampled as if to 20.1.
/// let (to, factor) = (20, 20.1 / 14.0);
/// let dino = ResizeOptions::size(to, to).mode(ResizeMode::Bicubic).scale(factor, factor);
/// assert_eq!(dino, ResizeOptions::size(20, 20).mode(ResizeMode::Bicubic).scale(factor, factor));
/// ```
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct ResizeOptions {
    /// The size of the result.
    pub to: ResizeTo,
    /// How new pixels are made.
    pub mode: ResizeMode,
    /// Low-pass filter when shrinking; bilinear and bicubic only.
    pub antialias: bool,
    /// Let the centres of the corner pixels fall together; bilinear and bicubic only.
    pub align_corners: bool,
    /// Factors `(height, width)` whose inverse is the sampling step, in place of the one that the sizes give; the
    /// size of the result does not follow it. Of no effect with `align_corners`.
    pub scale: Option<(f64, f64)>,
}

impl ResizeOptions {
    /// Bilinear to `(height, width)` pixels.
    #[must_use]
    pub fn size(height: usize, width: usize) -> Self {
        Self::new(ResizeTo::Size(height, width))
    }

    /// Bilinear by factors of `(height, width)`.
    #[must_use]
    pub fn factor(height: f64, width: f64) -> Self {
        Self::new(ResizeTo::Factor(height, width))
    }

    fn new(to: ResizeTo) -> Self {
        Self { to, mode: ResizeMode::default(), antialias: false, align_corners: false, scale: None }
    }

    /// How new pixels are made.
    #[must_use]
    pub fn mode(mut self, mode: ResizeMode) -> Self {
        self.mode = mode;
        self
    }

    /// Low-pass filter when shrinking.
    #[must_use]
    pub fn antialias(mut self, antialias: bool) -> Self {
        self.antialias = antialias;
        self
    }

    /// Let the centres of the corner pixels fall together.
    #[must_use]
    pub fn align_corners(mut self, align_corners: bool) -> Self {
        self.align_corners = align_corners;
        self
    }

    /// Factors whose inverse is the sampling step.
    #[must_use]
    pub fn scale(mut self, height: f64, width: f64) -> Self {
        self.scale = Some((height, width));
        self
    }

    /// Checks the options against the size of the input; gives that of the result and the sampling scale.
    fn resolve(&self, h: usize, w: usize) -> Result<Resolved> {
        let op = "resize";
        if self.mode == ResizeMode::Nearest && (self.antialias || self.align_corners) {
            let expected = "bilinear or bicubic with antialias or align_corners";
            return Err(Error::value(op, "mode", expected, "nearest").into());
        }
        let (oh, ow, scale) = match self.to {
            ResizeTo::Size(oh, ow) => (oh, ow, self.scale),
            // A float's cast to usize saturates, and the element count refuses what is too large.
            ResizeTo::Factor(fh, fw) => {
                let size = |n: usize, factor: f64| (n as f64 * factor).floor() as usize;
                (size(h, fh), size(w, fw), self.scale.or(Some((fh, fw))))
            }
        };
        for factor in scale.iter().flat_map(|&(sh, sw)| [sh, sw]) {
            let step = (1.0 / factor) as f32;
            if !(factor > 0.0 && step > 0.0 && step.is_finite()) {
                return Err(Error::value(op, "scale", "a positive number, and so its inverse", factor).into());
            }
        }
        if [h, w, oh, ow].contains(&0) {
            let value = format!("{h} x {w} to {oh} x {ow}");
            return Err(Error::value(op, "to", "at least one pixel along each axis", value).into());
        }
        Ok(Resolved { height: oh, width: ow, scale })
    }
}

/// The size of the result, and the factors whose inverse is the sampling step where they are given.
struct Resolved {
    height: usize,
    width: usize,
    scale: Option<(f64, f64)>,
}

/// Resizes the last two axes, equal to `torch.nn.functional.interpolate`; differentiable.
///
/// In `f32`, `f16` and `bf16` positions and weights are computed in `f32`, as PyTorch does. One case differs on purpose: with
/// antialias and a result one pixel wide, PyTorch 2.15 on the CPU repeats the first row down the whole image.
///
/// # Shapes
/// - `xs` `(B, C, H, W)`
/// - output `(B, C, oH, oW)`
///
/// # Errors
/// When `xs` is not a float tensor of four axes, a size is zero, a factor is not a positive number, or `antialias` or
/// `align_corners` is combined with [`ResizeMode::Nearest`].
pub fn resize(xs: &Tensor, options: &ResizeOptions) -> Result<Tensor> {
    let op = "resize";
    let (b, c, h, w) = xs.dims4()?;
    check::float(op, xs)?;
    let Resolved { height: oh, width: ow, scale } = options.resolve(h, w)?;
    element_count(op, &[b.max(1), c.max(1), oh, ow])?;
    let single = xs.dtype() != DType::F64;
    let rows = weights::band(options, h, oh, scale.map(|s| s.0), single);
    let columns = weights::band(options, w, ow, scale.map(|s| s.1), single);
    banded::apply(xs, rows, columns)
}

#[cfg(test)]
mod tests;
