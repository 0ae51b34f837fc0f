//! Convolution in one, two and three dimensions: dense, grouped, depthwise, strided, dilated.

mod dense;
mod dense_grad;
mod depthwise;
mod op;
mod panel;
mod reference;

use candle_core::{DType, Result, Tensor};

use crate::window::{Window, WindowSpec, element_count, from_5d, to_5d};
use crate::{Error, check, macs};

/// Options of a convolution over `R` spatial axes.
///
/// The fields hold one number per axis in the order of the axes (`[T, H, W]`, `[H, W]`, `[L]`); the
/// builder methods set all axes at once.
///
/// ```
/// use sconce_ops::ConvOptions;
/// let stem = ConvOptions::<2>::default().stride(2).padding(3);
/// let temporal = ConvOptions::<3> { stride: [2, 1, 1], ..Default::default() };
/// assert_eq!((stem.stride, temporal.groups), ([2, 2], 1));
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct ConvOptions<const R: usize> {
    /// Step between neighbouring windows, at least 1.
    pub stride: [usize; R],
    /// Zeros added on both sides of each axis.
    pub padding: [usize; R],
    /// Distance between neighbouring elements of a window, at least 1.
    pub dilation: [usize; R],
    /// Number of independent groups of channels; `groups == C` is a depthwise convolution.
    pub groups: usize,
}

impl<const R: usize> Default for ConvOptions<R> {
    /// Stride 1, no padding, no dilation, one group.
    fn default() -> Self {
        Self { stride: [1; R], padding: [0; R], dilation: [1; R], groups: 1 }
    }
}

impl<const R: usize> ConvOptions<R> {
    /// The same stride on every axis.
    #[must_use]
    pub fn stride(mut self, stride: usize) -> Self {
        self.stride = [stride; R];
        self
    }

    /// The same padding on every axis.
    #[must_use]
    pub fn padding(mut self, padding: usize) -> Self {
        self.padding = [padding; R];
        self
    }

    /// The same dilation on every axis.
    #[must_use]
    pub fn dilation(mut self, dilation: usize) -> Self {
        self.dilation = [dilation; R];
        self
    }

    /// The number of groups of channels.
    #[must_use]
    pub fn groups(mut self, groups: usize) -> Self {
        self.groups = groups;
        self
    }
}

/// Convolution over one axis (a cross-correlation, as everywhere in deep learning).
///
/// # Shapes
/// - `xs` `(B, C, L)`, `weight` `(O, C / groups, k)`, `bias` `(O)`
/// - output `(B, O, (L + 2 padding - dilation (k - 1) - 1) / stride + 1)`
///
/// # Errors
/// When shapes, dtypes or devices disagree, a stride, dilation or kernel is zero, the window is larger
/// than the padded input, or the result would not fit the address space.
pub fn conv1d(xs: &Tensor, weight: &Tensor, bias: Option<&Tensor>, options: &ConvOptions<1>) -> Result<Tensor> {
    conv("conv1d", xs, weight, bias, options)
}

/// Convolution over two axes.
///
/// # Shapes
/// - `xs` `(B, C, H, W)`, `weight` `(O, C / groups, kH, kW)`, `bias` `(O)`
/// - output `(B, O, oH, oW)`, each axis as in [`conv1d`]
///
/// # Errors
/// As [`conv1d`].
pub fn conv2d(xs: &Tensor, weight: &Tensor, bias: Option<&Tensor>, options: &ConvOptions<2>) -> Result<Tensor> {
    conv("conv2d", xs, weight, bias, options)
}

/// Convolution over three axes, for video `T` is the first.
///
/// # Shapes
/// - `xs` `(B, C, T, H, W)`, `weight` `(O, C / groups, kT, kH, kW)`, `bias` `(O)`
/// - output `(B, O, oT, oH, oW)`, each axis as in [`conv1d`]
///
/// # Errors
/// As [`conv1d`].
pub fn conv3d(xs: &Tensor, weight: &Tensor, bias: Option<&Tensor>, options: &ConvOptions<3>) -> Result<Tensor> {
    conv("conv3d", xs, weight, bias, options)
}

/// A checked convolution: what the kernels need to know.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct ConvShape {
    pub(crate) batch: usize,
    pub(crate) channels: usize,
    pub(crate) filters: usize,
    pub(crate) groups: usize,
    pub(crate) window: Window,
}

impl ConvShape {
    fn new<const R: usize>(
        op: &'static str,
        xs: &Tensor,
        weight: &Tensor,
        bias: Option<&Tensor>,
        options: &ConvOptions<R>,
    ) -> Result<Self> {
        let (x, w) = (xs.dims(), weight.dims());
        for (arg, tensor) in [("xs", xs), ("weight", weight)] {
            if tensor.rank() != R + 2 {
                return Err(Error::shape(op, arg, format!("{} dimensions", R + 2), tensor.shape()).into());
            }
        }
        let (batch, channels, filters, groups) = (x[0], x[1], w[0], options.groups);
        if groups == 0 || channels == 0 || filters == 0 || channels % groups != 0 || filters % groups != 0 {
            let expected = format!("a divisor of {channels} input and {filters} output channels");
            return Err(Error::value(op, "groups", expected, groups).into());
        }
        if w[1] != channels / groups {
            let expected = format!("({filters}, {}, ..): {channels} channels in {groups} groups", channels / groups);
            return Err(Error::shape(op, "weight", expected, weight.shape()).into());
        }
        check::float(op, xs)?;
        check::parameter(op, "bias", bias, filters, xs)?;
        if weight.dtype() != xs.dtype() {
            let expected = format!("{:?} like the input", xs.dtype());
            return Err(Error::dtype(op, "weight", expected, weight.dtype()).into());
        }
        if [Some(weight), bias].into_iter().flatten().any(|t| !t.device().same_device(xs.device())) {
            candle_core::bail!("{op}: arguments are on different devices");
        }
        let mut spec = WindowSpec {
            input: [0; R],
            kernel: [0; R],
            stride: options.stride,
            padding: options.padding,
            dilation: options.dilation,
            ceil: false,
        };
        spec.input.copy_from_slice(&x[2..]);
        spec.kernel.copy_from_slice(&w[2..]);
        let window = Window::new(op, &spec)?;
        let [d, h, w] = window.output;
        element_count(op, &[batch.max(1), filters, d, h, w])?;
        // Some kernels and the reference hold padded planes.
        let padded = |axis: usize| window.input[axis] + 2 * window.padding[axis];
        element_count(op, &[padded(0), padded(1), padded(2)])?;
        Ok(Self { batch, channels, filters, groups, window })
    }
}

fn conv<const R: usize>(
    op: &'static str,
    xs: &Tensor,
    weight: &Tensor,
    bias: Option<&Tensor>,
    options: &ConvOptions<R>,
) -> Result<Tensor> {
    let shape = ConvShape::new(op, xs, weight, bias, options)?;
    macs::add(&[
        shape.batch,
        shape.filters,
        shape.window.positions(),
        shape.channels / shape.groups,
        shape.window.taps(),
    ]);
    let (xs, weight) = (to_5d(xs)?, to_5d(weight)?);
    if !xs.device().is_cpu() {
        return from_5d(&reference::conv(&shape, &xs, &weight, bias)?, R + 2);
    }
    let dtype = xs.dtype();
    let native = if dtype == DType::F64 { DType::F64 } else { DType::F32 };
    let bias = bias.map(|bias| bias.to_dtype(native)).transpose()?;
    let ys = op::conv(&shape, &xs.to_dtype(native)?, &weight.to_dtype(native)?, bias.as_ref())?;
    from_5d(&ys.to_dtype(dtype)?, R + 2)
}

#[cfg(test)]
mod tests;
