use candle_core::{Module, Result, Shape, Tensor};
use candle_nn::VarBuilder;
use sconce_ops::ConvOptions;

use crate::init::{Init, param};

/// The size of a convolution's window: one number for all axes, or one per axis.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Kernel<const R: usize>(pub [usize; R]);

impl<const R: usize> From<usize> for Kernel<R> {
    fn from(size: usize) -> Self {
        Self([size; R])
    }
}

impl<const R: usize> From<[usize; R]> for Kernel<R> {
    fn from(sizes: [usize; R]) -> Self {
        Self(sizes)
    }
}

impl From<(usize, usize)> for Kernel<2> {
    fn from((h, w): (usize, usize)) -> Self {
        Self([h, w])
    }
}

impl From<(usize, usize, usize)> for Kernel<3> {
    fn from((t, h, w): (usize, usize, usize)) -> Self {
        Self([t, h, w])
    }
}

/// Convolution over `R` axes: dense, grouped or depthwise by [`ConvOptions`].
///
/// # Shapes
/// - input `(B, in, *)` with `R` further axes
/// - output `(B, out, *)`, each axis `(n + 2 padding - dilation (k - 1) - 1) / stride + 1` long
#[derive(Debug, Clone)]
pub struct Conv<const R: usize> {
    /// `(out, in / groups, *kernel)`.
    pub weight: Tensor,
    /// `(out)`.
    pub bias: Option<Tensor>,
    /// Stride, padding, dilation, groups.
    pub options: ConvOptions<R>,
}

/// Convolution over one axis.
pub type Conv1d = Conv<1>;
/// Convolution over two axes.
pub type Conv2d = Conv<2>;
/// Convolution over three axes; time first for video.
pub type Conv3d = Conv<3>;

impl<const R: usize> Conv<R> {
    /// A layer of existing tensors.
    pub fn new(weight: Tensor, bias: Option<Tensor>, options: ConvOptions<R>) -> Self {
        Self { weight, bias, options }
    }

    /// `weight` starts as `init` says, the bias at 0.
    ///
    /// # Errors
    /// The builder's; channels that do not divide into the groups.
    pub fn with_init(
        in_channels: usize,
        out_channels: usize,
        kernel: impl Into<Kernel<R>>,
        options: ConvOptions<R>,
        bias: bool,
        init: Init,
        vb: VarBuilder,
    ) -> Result<Self> {
        let shape = weight_shape(in_channels, out_channels, kernel.into(), &options)?;
        let weight = param(&vb, shape, "weight", init)?;
        let bias = bias.then(|| param(&vb, out_channels, "bias", Init::Zeros)).transpose()?;
        Ok(Self::new(weight, bias, options))
    }

    fn torch(
        in_channels: usize,
        out_channels: usize,
        kernel: Kernel<R>,
        options: ConvOptions<R>,
        bias: bool,
        vb: &VarBuilder,
    ) -> Result<Self> {
        let shape = weight_shape(in_channels, out_channels, kernel, &options)?;
        let bias_init = Init::torch_bias(&shape);
        let weight = param(vb, shape, "weight", Init::TorchLinear)?;
        let bias = bias.then(|| param(vb, out_channels, "bias", bias_init)).transpose()?;
        Ok(Self::new(weight, bias, options))
    }
}

fn weight_shape<const R: usize>(
    in_channels: usize,
    out_channels: usize,
    kernel: Kernel<R>,
    options: &ConvOptions<R>,
) -> Result<Shape> {
    let groups = options.groups;
    if groups == 0 || !in_channels.is_multiple_of(groups) || !out_channels.is_multiple_of(groups) {
        candle_core::bail!("convolution: {in_channels} and {out_channels} channels do not divide into {groups} groups")
    }
    let mut dims = vec![out_channels, in_channels / groups];
    dims.extend(kernel.0);
    Ok(dims.into())
}

impl Conv<2> {
    /// Pads by itself so that each axis gets `ceil(n / stride)` long: "same" as in TensorFlow, and in PyTorch where the
    /// stride is 1. Where the zeros cannot be shared out equally, the odd one stands at the right and bottom. The padding
    /// of `options` does not count.
    ///
    /// # Shapes
    /// - `xs` `(B, in, H, W)`, output `(B, out, ceil(H / stride), ceil(W / stride))`
    ///
    /// # Errors
    /// When the input does not fit.
    pub fn forward_same(&self, xs: &Tensor) -> Result<Tensor> {
        let (dims, kernel) = (xs.dims4()?, self.weight.dims4()?);
        let (sizes, kernel) = ([dims.2, dims.3], [kernel.2, kernel.3]);
        let mut options = self.options;
        let mut xs = xs.clone();
        for axis in 0..2 {
            let (n, stride) = (sizes[axis], options.stride[axis]);
            let reach = options.dilation[axis] * kernel[axis].saturating_sub(1);
            // The convolution itself refuses a stride or an axis of 0.
            let steps = n.div_ceil(stride.max(1)).saturating_sub(1);
            let total = (steps * stride + reach + 1).saturating_sub(n);
            options.padding[axis] = total / 2;
            if total % 2 == 1 {
                xs = xs.pad_with_zeros(axis + 2, 0, 1)?;
            }
        }
        sconce_ops::conv2d(&xs, &self.weight, self.bias.as_ref(), &options)
    }
}

macro_rules! convolutions {
    ($rank:literal, $op:ident, $op_no_bias:ident, $axes:literal) => {
        impl Module for Conv<$rank> {
            fn forward(&self, xs: &Tensor) -> Result<Tensor> {
                sconce_ops::$op(xs, &self.weight, self.bias.as_ref(), &self.options)
            }
        }

        #[doc = concat!("A convolution over ", $axes, " called `weight` and `bias`, started as in PyTorch.")]
        ///
        /// # Errors
        /// The builder's; channels that do not divide into the groups.
        pub fn $op(
            in_channels: usize,
            out_channels: usize,
            kernel: impl Into<Kernel<$rank>>,
            options: ConvOptions<$rank>,
            vb: VarBuilder,
        ) -> Result<Conv<$rank>> {
            Conv::torch(in_channels, out_channels, kernel.into(), options, true, &vb)
        }

        #[doc = concat!("A convolution over ", $axes, " without bias, started as in PyTorch.")]
        ///
        /// # Errors
        /// The builder's; channels that do not divide into the groups.
        pub fn $op_no_bias(
            in_channels: usize,
            out_channels: usize,
            kernel: impl Into<Kernel<$rank>>,
            options: ConvOptions<$rank>,
            vb: VarBuilder,
        ) -> Result<Conv<$rank>> {
            Conv::torch(in_channels, out_channels, kernel.into(), options, false, &vb)
        }
    };
}

convolutions!(1, conv1d, conv1d_no_bias, "one axis");
convolutions!(2, conv2d, conv2d_no_bias, "two axes");
convolutions!(3, conv3d, conv3d_no_bias, "three axes");
