//! Convolution, activation, norm: the one motif of the net.

use candle_core::{Result, Tensor};
use sconce_nn::{BatchNorm, Conv2d, Module, ModuleT, VarBuilder};
use sconce_ops::{Activation, ConvOptions};

use super::Config;

/// A convolution, its activation, and batch norm last: not the usual order.
#[derive(Debug, Clone)]
pub struct ConvActNorm {
    /// The convolution.
    pub conv: Conv2d,
    /// Whether it pads so that maps keep their size; the stem does not.
    pub same: bool,
    /// Between the convolution and the norm.
    pub act: Activation,
    /// The norm.
    pub norm: BatchNorm,
}

impl ConvActNorm {
    /// The convolution lies at `first` of a sequence and the norm two places on.
    pub(super) fn new(
        cfg: &Config,
        (input, kernel): (usize, usize),
        options: ConvOptions<2>,
        vb: &VarBuilder,
        first: usize,
    ) -> Result<Self> {
        let conv = sconce_nn::conv2d(input, cfg.dim, kernel, options, vb.pp(first))?;
        let norm = sconce_nn::batch_norm(cfg.dim, vb.pp(first + 2))?;
        Ok(Self { conv, same: options.stride == [1, 1], act: cfg.act, norm })
    }

    /// The convolution alone.
    ///
    /// # Errors
    /// When the input has other channels or is smaller than the window.
    pub fn convolve(&self, xs: &Tensor) -> Result<Tensor> {
        if self.same { self.conv.forward_same(xs) } else { self.conv.forward(xs) }
    }
}

impl ModuleT for ConvActNorm {
    fn forward_t(&self, xs: &Tensor, train: bool) -> Result<Tensor> {
        self.norm.forward_t(&self.act.forward(&self.convolve(xs)?)?, train)
    }
}

/// A depthwise convolution mixes places, and is added to its input; then a 1x1 convolution mixes channels.
///
/// # Shapes
/// - input and output `(B, dim, h, w)`
#[derive(Debug, Clone)]
pub struct Block {
    /// Within the residual.
    pub depthwise: ConvActNorm,
    /// Outside of it.
    pub pointwise: ConvActNorm,
}

impl Block {
    pub(super) fn new(cfg: &Config, vb: VarBuilder) -> Result<Self> {
        let depthwise = ConvOptions::default().groups(cfg.dim);
        Ok(Self {
            depthwise: ConvActNorm::new(cfg, (cfg.dim, cfg.kernel_size), depthwise, &vb.pp("0").pp("fn"), 0)?,
            pointwise: ConvActNorm::new(cfg, (cfg.dim, 1), ConvOptions::default(), &vb, 1)?,
        })
    }
}

impl ModuleT for Block {
    fn forward_t(&self, xs: &Tensor, train: bool) -> Result<Tensor> {
        self.pointwise.forward_t(&(xs + self.depthwise.forward_t(xs, train)?)?, train)
    }
}
