//! Convolutions on pictures or clips, and what stands between the stages.

use candle_core::{Result, Tensor};
use sconce_nn::{
    BatchNorm, Conv2d, Conv3d, LayerNorm, Module, ModuleT, VarBuilder, batch_norm, conv2d, conv3d, layer_norm,
};
use sconce_ops::{ConvOptions, gelu};

use super::Config;

/// A convolution over the grid of a picture or a clip.
///
/// # Shapes
/// - pictures `(B, C, H, W)`, clips `(B, C, T, H, W)`
#[derive(Debug, Clone)]
pub enum GridConv {
    /// Over rows and columns.
    Picture(Conv2d),
    /// Over frames, rows and columns.
    Clip(Conv3d),
}

impl GridConv {
    /// Started as in PyTorch. `kernel` and `options` are those of a clip; a picture has no first axis.
    pub(super) fn new(
        clip: bool,
        channels: [usize; 2],
        kernel: [usize; 3],
        options: ConvOptions<3>,
        vb: VarBuilder,
    ) -> Result<Self> {
        let [input, output] = channels;
        if clip {
            return Ok(Self::Clip(conv3d(input, output, kernel, options, vb)?));
        }
        let ConvOptions { stride: [_, sh, sw], padding: [_, ph, pw], dilation: [_, dh, dw], groups } = options;
        let options = ConvOptions { stride: [sh, sw], padding: [ph, pw], dilation: [dh, dw], groups };
        Ok(Self::Picture(conv2d(input, output, [kernel[1], kernel[2]], options, vb)?))
    }

    /// One filter a channel, of side `kernel` in each direction.
    pub(super) fn depthwise(clip: bool, dim: usize, kernel: usize, vb: VarBuilder) -> Result<Self> {
        let options = ConvOptions::default().padding(kernel / 2).groups(dim);
        Self::new(clip, [dim, dim], [kernel; 3], options, vb)
    }

    /// Of each element for itself.
    pub(super) fn pointwise(clip: bool, input: usize, output: usize, vb: VarBuilder) -> Result<Self> {
        Self::new(clip, [input, output], [1; 3], ConvOptions::default(), vb)
    }
}

impl Module for GridConv {
    fn forward(&self, xs: &Tensor) -> Result<Tensor> {
        match self {
            Self::Picture(conv) => conv.forward(xs),
            Self::Clip(conv) => conv.forward(xs),
        }
    }
}

/// The elements of a map as tokens, in the order of its axes.
///
/// # Shapes
/// - `xs` `(B, C, *)`, output `(B, N, C)`
pub(super) fn to_tokens(xs: &Tensor) -> Result<Tensor> {
    xs.flatten_from(2)?.transpose(1, 2) // (B, N, C)
}

/// The reverse of [`to_tokens`] for a map of dimensions `dims`, whose channels may differ.
pub(super) fn to_grid(tokens: &Tensor, dims: &[usize]) -> Result<Tensor> {
    let mut dims = dims.to_vec();
    dims[1] = tokens.dim(2)?;
    tokens.transpose(1, 2)?.reshape(dims) // (B, C, *)
}

/// A convolution and what follows it.
#[derive(Debug, Clone)]
pub struct ConvNorm {
    /// The convolution.
    pub conv: GridConv,
    /// In convolutional stems.
    pub norm: Option<BatchNorm>,
}

impl ModuleT for ConvNorm {
    fn forward_t(&self, xs: &Tensor, train: bool) -> Result<Tensor> {
        let xs = self.conv.forward(xs)?;
        self.norm.as_ref().map_or(Ok(xs.clone()), |norm| norm.forward_t(&xs, train))
    }
}

/// Makes the map of a stage from the one before: patches with a layer norm, or the convolutions of S+.
///
/// # Shapes
/// - input `(B, C, H, W)`, output `(B, C', H / p, W / p)`; the first of a clip also halves the frames
#[derive(Debug, Clone)]
pub struct PatchEmbed {
    /// One convolution, or the two of a stem's first step, with GELU between them.
    pub proj: Vec<ConvNorm>,
    /// Over the channels of patches; epsilon 1e-5, unlike that of the blocks.
    pub norm: Option<LayerNorm>,
}

impl PatchEmbed {
    /// The embedding before stage `stage`, from 0.
    pub(super) fn new(cfg: &Config, stage: usize, vb: VarBuilder) -> Result<Self> {
        let output = cfg.embed_dim[stage];
        let input = if stage == 0 { cfg.in_chans } else { cfg.embed_dim[stage - 1] };
        let vb_proj = vb.pp("proj");
        if cfg.conv_stem {
            let options = ConvOptions::default().stride(2).padding(1);
            let step = |at: usize, channels| -> Result<ConvNorm> {
                let conv = GridConv::new(false, channels, [3; 3], options, vb_proj.pp(at))?;
                Ok(ConvNorm { conv, norm: Some(batch_norm(channels[1], vb_proj.pp(at + 1))?) })
            };
            let proj = match stage {
                0 => vec![step(0, [input, output / 2])?, step(3, [output / 2, output])?],
                _ => vec![step(0, [input, output])?],
            };
            return Ok(Self { proj, norm: None });
        }
        let patch = cfg.patch_sizes[stage];
        let time = match (stage, cfg.std) {
            (0, _) => [3, 2, 1],
            (_, true) => [3, 1, 1],
            (_, false) => [1, 1, 0],
        };
        let options =
            ConvOptions { stride: [time[1], patch, patch], padding: [time[2], 0, 0], ..ConvOptions::default() };
        let conv = GridConv::new(cfg.frames.is_some(), [input, output], [time[0], patch, patch], options, vb_proj)?;
        let norm = Some(layer_norm(output, 1e-5, vb.pp("norm"))?);
        Ok(Self { proj: vec![ConvNorm { conv, norm: None }], norm })
    }
}

impl ModuleT for PatchEmbed {
    fn forward_t(&self, xs: &Tensor, train: bool) -> Result<Tensor> {
        let mut xs = xs.clone();
        for (i, step) in self.proj.iter().enumerate() {
            if i > 0 {
                xs = gelu(&xs)?;
            }
            xs = step.forward_t(&xs, train)?;
        }
        match &self.norm {
            Some(norm) => to_grid(&norm.forward(&to_tokens(&xs)?)?, xs.dims()),
            None => Ok(xs),
        }
    }
}
