//! Convolution composed from plain candle operations: runs on every device, and the kernels are tested against it.

use candle_core::{Result, Tensor};

use super::ConvShape;

/// `xs` `(B, C, D, H, W)`, `weight` `(O, C / g, kD, kH, kW)`, `bias` `(O)`; returns `(B, O, oD, oH, oW)`.
pub(crate) fn conv(shape: &ConvShape, xs: &Tensor, weight: &Tensor, bias: Option<&Tensor>) -> Result<Tensor> {
    let ConvShape { batch, channels, filters, groups, window } = *shape;
    let (taps, positions) = (window.taps(), window.positions());
    let [d, h, w] = window.output;
    let rows = channels / groups * taps;
    let views = window.tap_views(xs, 0.0)?;
    let cols = Tensor::stack(&views, 2)?.reshape((batch, groups, rows, positions))?; // (B, C, taps, ..) -> (B, g, rows, P)
    let weight = weight.reshape((1, groups, filters / groups, rows))?; // (1, g, O / g, rows)
    let ys = weight.broadcast_matmul(&cols)?.reshape((batch, filters, d, h, w))?; // (B, O, oD, oH, oW)
    match bias {
        Some(bias) => ys.broadcast_add(&bias.reshape((1, filters, 1, 1, 1))?),
        None => Ok(ys),
    }
}
