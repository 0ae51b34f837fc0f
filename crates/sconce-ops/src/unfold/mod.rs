//! Windows as columns (`unfold`, also called im2col) and back (`fold`).

mod kernel;

use candle_core::{Result, Tensor};

use crate::window::{Window, WindowSpec, element_count, to_5d};
use crate::{Error, check};

/// Copies every window of an image into a column, as `torch.nn.functional.unfold`.
///
/// Numbers are `[height, width]`.
///
/// # Shapes
/// - `xs` `(B, C, H, W)`
/// - output `(B, C * kH * kW, L)`, `L = oH * oW` windows in row-major order; rows run over channel, then kernel row, then kernel column
///
/// # Errors
/// When `xs` is not a float tensor of four axes, a kernel, stride or dilation is zero, the window is larger than the
/// padded input, or the result would not fit the address space.
pub fn unfold(
    xs: &Tensor,
    kernel: [usize; 2],
    stride: [usize; 2],
    padding: [usize; 2],
    dilation: [usize; 2],
) -> Result<Tensor> {
    let op = "unfold";
    let (b, c, h, w) = xs.dims4()?;
    check::float(op, xs)?;
    let window = Window::new(op, &WindowSpec { input: [h, w], kernel, stride, padding, dilation, ceil: false })?;
    element_count(op, &[b.max(1), c.max(1), kernel[0], kernel[1], window.output[1], window.output[2]])?;
    if !xs.device().is_cpu() {
        return unfold_reference(&window, xs);
    }
    let wide = xs.to_dtype(check::wide(xs.dtype()))?.contiguous()?;
    wide.apply_op1(kernel::Unfold(window))?.to_dtype(xs.dtype())
}

/// Adds columns back into an image: the transpose of [`unfold`], as `torch.nn.functional.fold`.
///
/// Where windows overlap their values add up, so `fold(unfold(x))` is `x` times the number of windows over each pixel.
///
/// # Shapes
/// - `xs` `(B, C * kH * kW, L)` with `L` the number of windows that [`unfold`] takes from an image of `size`
/// - output `(B, C, size[0], size[1])`
///
/// # Errors
/// When the shape of `xs` does not match `size` and the window, or as [`unfold`].
pub fn fold(
    xs: &Tensor,
    size: [usize; 2],
    kernel: [usize; 2],
    stride: [usize; 2],
    padding: [usize; 2],
    dilation: [usize; 2],
) -> Result<Tensor> {
    let op = "fold";
    let (b, rows, positions) = xs.dims3()?;
    check::float(op, xs)?;
    let window = Window::new(op, &WindowSpec { input: size, kernel, stride, padding, dilation, ceil: false })?;
    let taps = element_count(op, &kernel)?;
    if rows % taps != 0 || element_count(op, &window.output)? != positions {
        let [_, oh, ow] = window.output;
        let expected = format!("(B, C * {taps}, {oh} * {ow})");
        return Err(Error::shape(op, "xs", expected, xs.shape()).into());
    }
    element_count(op, &[b.max(1), (rows / taps).max(1), size[0], size[1]])?;
    if !xs.device().is_cpu() {
        return fold_reference(&window, xs, rows / taps);
    }
    let wide = xs.to_dtype(check::wide(xs.dtype()))?.contiguous()?;
    wide.apply_op1(kernel::Fold(window))?.to_dtype(xs.dtype())
}

/// [`unfold`] from plain candle operations.
fn unfold_reference(window: &Window, xs: &Tensor) -> Result<Tensor> {
    let (b, c, _, _) = xs.dims4()?;
    let views = window.tap_views(&to_5d(xs)?, 0.0)?;
    Tensor::stack(&views, 2)?.reshape((b, c * window.taps(), window.positions())) // (B, C, taps, 1, oH, oW) -> (B, C taps, L)
}

/// [`fold`] from plain candle operations.
fn fold_reference(window: &Window, xs: &Tensor, channels: usize) -> Result<Tensor> {
    let b = xs.dim(0)?;
    let [_, oh, ow] = window.output;
    let xs = xs.reshape(vec![b, channels, window.taps(), 1, oh, ow])?; // (B, C, taps, 1, oH, oW)
    let views = (0..window.taps()).map(|at| xs.narrow(2, at, 1)?.squeeze(2)).collect::<Result<Vec<_>>>()?;
    window.place_views(&views)?.squeeze(2) // (B, C, 1, H, W) -> (B, C, H, W)
}

#[cfg(test)]
mod tests;
