//! Average pooling: by windows, into a given number of bins, and over everything.

use candle_core::{D, Result, Tensor};

use super::PoolOptions;
use crate::banded::{self, Band};
use crate::window::{Window, element_count};
use crate::{Error, check};

/// Average over each window.
///
/// # Shapes
/// - `xs` `(B, C, H, W)`
/// - output `(B, C, oH, oW)`, extents as in [`max_pool2d`](crate::max_pool2d)
///
/// # Errors
/// As [`max_pool2d`](crate::max_pool2d).
pub fn avg_pool2d(xs: &Tensor, options: &PoolOptions) -> Result<Tensor> {
    let window = options.window("avg_pool2d", xs)?;
    let include = options.count_include_pad;
    banded::apply(xs, window_band(&window, 1, include), window_band(&window, 2, include))
}

/// Average into `size` bins along each of the last two axes: bin `i` of `o` covers `floor(i n / o)..ceil((i + 1) n / o)`.
///
/// # Shapes
/// - `xs` `(B, C, H, W)`, `size` `(oH, oW)`
/// - output `(B, C, oH, oW)`
///
/// # Errors
/// When `xs` is not a float tensor of four axes, or a size is zero.
pub fn adaptive_avg_pool2d(xs: &Tensor, size: (usize, usize)) -> Result<Tensor> {
    let op = "adaptive_avg_pool2d";
    let (b, c, h, w) = xs.dims4()?;
    check::float(op, xs)?;
    element_count(op, &[b.max(1), c.max(1), size.0, size.1])?;
    banded::apply(xs, adaptive_band(op, h, size.0)?, adaptive_band(op, w, size.1)?)
}

/// Average into `size` bins along the last axis, bins as in [`adaptive_avg_pool2d`].
///
/// # Shapes
/// - `xs` `(B, C, L)`
/// - output `(B, C, size)`
///
/// # Errors
/// When `xs` is not a float tensor of three axes, or a size is zero.
pub fn adaptive_avg_pool1d(xs: &Tensor, size: usize) -> Result<Tensor> {
    let (_, _, _) = xs.dims3()?;
    adaptive_avg_pool2d(&xs.unsqueeze(2)?, (1, size))?.squeeze(2)
}

/// Average over all axes after the second.
///
/// # Shapes
/// - `xs` `(B, C, ..)`, at least one axis after `C`
/// - output `(B, C)`
///
/// # Errors
/// When `xs` is not a float tensor of at least three axes, or there is nothing to average.
pub fn global_avg_pool(xs: &Tensor) -> Result<Tensor> {
    let op = "global_avg_pool";
    check::float(op, xs)?;
    if xs.rank() < 3 || xs.dims()[2..].contains(&0) {
        return Err(Error::shape(op, "xs", "(B, C, ..), not empty after C", xs.shape()).into());
    }
    xs.flatten_from(2)?.mean(D::Minus1) // (B, C, *) -> (B, C)
}

/// The averages of the windows along one axis.
pub(super) fn window_band(window: &Window, axis: usize, include_padding: bool) -> Band {
    let (input, padding) = (window.input[axis], window.padding[axis]);
    let mut band = Band::new(input);
    for at in 0..window.output[axis] {
        // In padded coordinates; a window that hangs over is cut at the end of the padding.
        let start = at * window.stride[axis];
        let end = (start + window.kernel[axis]).min(input + 2 * padding);
        let (first, last) = (start.max(padding), end.min(input + padding));
        let count = if include_padding { end - start } else { last - first };
        band.push(first - padding, (first..last).map(|_| 1.0 / count as f64));
    }
    band
}

fn adaptive_band(op: &'static str, input: usize, output: usize) -> Result<Band> {
    if input == 0 || output == 0 {
        return Err(
            Error::value(op, "size", "elements and bins along each axis", format!("{input} to {output}")).into()
        );
    }
    element_count(op, &[input, output])?;
    let mut band = Band::new(input);
    for at in 0..output {
        let (start, end) = (at * input / output, ((at + 1) * input).div_ceil(output));
        band.push(start, (start..end).map(|_| 1.0 / (end - start) as f64));
    }
    Ok(band)
}
