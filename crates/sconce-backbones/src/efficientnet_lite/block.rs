//! Inverted residuals.

use candle_core::{Result, Tensor};
use sconce_nn::{BatchNorm, Conv2d, DropPath, Init, Module, ModuleT, VarBuilder};
use sconce_ops::{Activation, ConvOptions};

use super::{Config, Padding};

/// A convolution without bias followed by batch norm.
#[derive(Debug, Clone)]
pub struct ConvBn {
    /// The convolution.
    pub conv: Conv2d,
    /// Where its padding stands.
    pub padding: Padding,
    /// The norm.
    pub bn: BatchNorm,
}

/// Sizes of a [`ConvBn`].
#[derive(Debug, Clone, Copy)]
pub(super) struct Sizes {
    pub(super) input: usize,
    pub(super) output: usize,
    pub(super) kernel: usize,
    pub(super) stride: usize,
    pub(super) depthwise: bool,
}

impl ConvBn {
    pub(super) fn new(cfg: &Config, sizes: Sizes, vb: &VarBuilder, (conv, bn): (&str, &str)) -> Result<Self> {
        let Sizes { input, output, kernel, stride, depthwise } = sizes;
        let groups = if depthwise { input } else { 1 };
        let options = ConvOptions::default().stride(stride).padding(kernel / 2).groups(groups);
        // He et al. 2015 by the outputs of a group, as in the official code.
        let fan_out = (kernel * kernel * output / groups.max(1)).max(1) as f64;
        let init = Init::Normal { mean: 0.0, std: (2.0 / fan_out).sqrt() };
        let conv = Conv2d::with_init(input, output, kernel, options, false, init, vb.pp(conv))?;
        let mut bn = sconce_nn::batch_norm(output, vb.pp(bn))?;
        (bn.eps, bn.momentum) = (cfg.bn_eps, cfg.bn_momentum);
        Ok(Self { conv, padding: cfg.padding, bn })
    }
}

impl ModuleT for ConvBn {
    fn forward_t(&self, xs: &Tensor, train: bool) -> Result<Tensor> {
        let ys = match self.padding {
            Padding::Same => self.conv.forward_same(xs)?,
            Padding::Symmetric => self.conv.forward(xs)?,
        };
        self.bn.forward_t(&ys, train)
    }
}

/// An inverted residual, Sandler et al. 2018 (`arXiv:1801.04381`): widen, convolve each channel by itself, narrow without
/// an activation; added to its input where that has the same shape.
///
/// # Shapes
/// - input `(B, C, H, W)`, output `(B, C', ceil(H / stride), ceil(W / stride))`
#[derive(Debug, Clone)]
pub struct InvertedResidual {
    /// 1x1 convolution that widens; none where the depthwise convolution has the input's width.
    pub expand: Option<ConvBn>,
    /// Depthwise convolution.
    pub depthwise: ConvBn,
    /// 1x1 convolution that narrows.
    pub project: ConvBn,
    /// After the first two.
    pub act: Activation,
    /// Whether the input is added.
    pub residual: bool,
    /// Drop path before that.
    pub drop_path: DropPath,
}

impl InvertedResidual {
    pub(super) fn new(
        cfg: &Config,
        input: usize,
        (stage, index): (usize, usize),
        drop_path: f64,
        vb: &VarBuilder,
    ) -> Result<Self> {
        let stage = cfg.stages[stage];
        let (width, output) = (input * stage.expand_ratio, stage.channels);
        let stride = if index == 0 { stage.stride } else { 1 };
        let point = |input, output| Sizes { input, output, kernel: 1, stride: 1, depthwise: false };
        let expand = match stage.expand_ratio {
            1 => None,
            _ => Some(ConvBn::new(cfg, point(input, width), vb, ("_expand_conv", "_bn0"))?),
        };
        let depthwise = Sizes { input: width, output: width, kernel: stage.kernel_size, stride, depthwise: true };
        Ok(Self {
            expand,
            depthwise: ConvBn::new(cfg, depthwise, vb, ("_depthwise_conv", "_bn1"))?,
            project: ConvBn::new(cfg, point(width, output), vb, ("_project_conv", "_bn2"))?,
            act: cfg.act,
            residual: stride == 1 && input == output,
            drop_path: DropPath::new(drop_path),
        })
    }
}

impl ModuleT for InvertedResidual {
    fn forward_t(&self, xs: &Tensor, train: bool) -> Result<Tensor> {
        let wide = match &self.expand {
            Some(expand) => self.act.forward(&expand.forward_t(xs, train)?)?,
            None => xs.clone(),
        };
        let mixed = self.act.forward(&self.depthwise.forward_t(&wide, train)?)?;
        let ys = self.project.forward_t(&mixed, train)?;
        if self.residual { self.drop_path.forward_t(&ys, train)? + xs } else { Ok(ys) }
    }
}
