//! Residual blocks.

use candle_core::{Result, Tensor, bail};
use sconce_nn::{BatchNorm, Conv2d, DropPath, Fan, Init, Module, ModuleT, VarBuilder, init};
use sconce_ops::{ConvOptions, relu};

use super::{BlockKind, Config, StrideIn};

/// Where a block stands in its net.
#[derive(Debug, Clone, Copy)]
pub(super) struct Place {
    /// Channels that come in.
    pub(super) input: usize,
    /// Width of the stage.
    pub(super) width: usize,
    pub(super) stride: usize,
    /// Dilation of the stage before, which the first 3x3 convolution of a stage still has.
    pub(super) first_dilation: usize,
    pub(super) dilation: usize,
    pub(super) drop_path: f64,
}

/// A convolution without bias followed by batch norm.
#[derive(Debug, Clone)]
pub struct ConvBn {
    /// The convolution.
    pub conv: Conv2d,
    /// Its norm.
    pub bn: BatchNorm,
}

impl ModuleT for ConvBn {
    fn forward_t(&self, xs: &Tensor, train: bool) -> Result<Tensor> {
        self.bn.forward_t(&self.conv.forward(xs)?, train)
    }
}

/// A residual block, He et al. 2016: a chain of convolutions added to the input or its projection, then ReLU.
///
/// # Shapes
/// - input `(B, C, H, W)`, output `(B, C', H / stride, W / stride)`
#[derive(Debug, Clone)]
pub struct Block {
    /// `conv1` with `bn1`, and so on: two in a basic block, three in a bottleneck. ReLU between them.
    pub convs: Vec<ConvBn>,
    /// Projection of the input where its shape changes.
    pub downsample: Option<ConvBn>,
    /// Drop path of the chain.
    pub drop_path: DropPath,
}

/// The weights of convolutions start as in He et al. 2015, counted by outputs, for ReLU.
pub(super) fn conv(
    input: usize,
    output: usize,
    kernel: usize,
    options: ConvOptions<2>,
    vb: VarBuilder,
) -> Result<Conv2d> {
    let init = Init::KaimingNormal { fan: Fan::Out, gain: std::f64::consts::SQRT_2 };
    Conv2d::with_init(input, output, kernel, options, false, init, vb)
}

pub(super) fn batch_norm(cfg: &Config, channels: usize, vb: VarBuilder) -> Result<BatchNorm> {
    let mut bn = sconce_nn::batch_norm(channels, vb)?;
    (bn.eps, bn.frozen) = (cfg.bn_eps, cfg.frozen_bn);
    Ok(bn)
}

impl Block {
    pub(super) fn new(cfg: &Config, place: &Place, vb: VarBuilder) -> Result<Self> {
        let &Place { input, width, stride, first_dilation, dilation, drop_path } = place;
        let output = width * cfg.block.expansion();
        let conv3x3 = |stride, dilation, groups| {
            ConvOptions::default().stride(stride).padding(dilation).dilation(dilation).groups(groups)
        };
        let conv1x1 = |stride| ConvOptions::default().stride(stride);
        // (input, output, kernel, options) of each convolution.
        let chain = match cfg.block {
            BlockKind::Basic => {
                if cfg.groups != 1 || cfg.width_per_group != 64 {
                    bail!("resnet: basic blocks have neither groups nor another width")
                }
                vec![(input, width, 3, conv3x3(stride, first_dilation, 1)), (width, width, 3, conv3x3(1, dilation, 1))]
            }
            BlockKind::Bottleneck => {
                let inner = width * cfg.width_per_group / 64 * cfg.groups;
                let (s1, s2) = match cfg.stride_in {
                    StrideIn::Conv1 => (stride, 1),
                    StrideIn::Conv2 => (1, stride),
                };
                vec![
                    (input, inner, 1, conv1x1(s1)),
                    (inner, inner, 3, conv3x3(s2, first_dilation, cfg.groups)),
                    (inner, output, 1, conv1x1(1)),
                ]
            }
        };
        let mut convs = vec![];
        let last = chain.len();
        for (i, (from, to, kernel, options)) in (1..).zip(chain) {
            let conv = conv(from, to, kernel, options, vb.pp(format!("conv{i}")))?;
            let vb = vb.pp(format!("bn{i}"));
            if i == last && cfg.zero_init_last {
                // Whoever asks first decides how a parameter starts.
                init::param(&vb, to, "weight", Init::Zeros)?;
            }
            convs.push(ConvBn { conv, bn: batch_norm(cfg, to, vb)? });
        }
        let downsample = if stride != 1 || input != output {
            let vb = vb.pp("downsample");
            let bn = batch_norm(cfg, output, vb.pp("1"))?;
            Some(ConvBn { conv: conv(input, output, 1, conv1x1(stride), vb.pp("0"))?, bn })
        } else {
            None
        };
        Ok(Self { convs, downsample, drop_path: DropPath::new(drop_path) })
    }
}

impl ModuleT for Block {
    fn forward_t(&self, xs: &Tensor, train: bool) -> Result<Tensor> {
        let mut ys = xs.clone();
        for (i, conv) in self.convs.iter().enumerate() {
            if i > 0 {
                ys = relu(&ys)?;
            }
            ys = conv.forward_t(&ys, train)?;
        }
        let ys = self.drop_path.forward_t(&ys, train)?;
        let shortcut = match &self.downsample {
            Some(projection) => projection.forward_t(xs, train)?,
            None => xs.clone(),
        };
        relu(&(ys + shortcut)?)
    }
}
