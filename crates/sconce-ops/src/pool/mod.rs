//! Pooling over windows: maximum, average, adaptive average and global average.

mod average;
mod max;
mod max_kernel;

use candle_core::{Result, Tensor};

pub use average::{adaptive_avg_pool1d, adaptive_avg_pool2d, avg_pool2d, global_avg_pool};
pub use max::max_pool2d;

use crate::window::{Window, WindowSpec, element_count};
use crate::{Error, check};

/// Options of [`max_pool2d`] and [`avg_pool2d`]; numbers are `[height, width]`.
///
/// ```
/// use sconce_ops::PoolOptions;
/// let stem = PoolOptions::new(3).stride(2).padding(1);
/// assert_eq!(stem.kernel, [3, 3]);
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct PoolOptions {
    /// Extent of a window, at least 1.
    pub kernel: [usize; 2],
    /// Step between windows, at least 1.
    pub stride: [usize; 2],
    /// Padding on both sides, at most half of the kernel.
    pub padding: [usize; 2],
    /// Count a last window that reaches beyond the padded input.
    pub ceil_mode: bool,
    /// Whether an average divides by the padding it covers too; a maximum takes no notice.
    pub count_include_pad: bool,
}

impl PoolOptions {
    /// Square windows that touch each other: the stride is the kernel; no padding.
    #[must_use]
    pub fn new(kernel: usize) -> Self {
        Self { kernel: [kernel; 2], stride: [kernel; 2], padding: [0; 2], ceil_mode: false, count_include_pad: true }
    }

    /// The same stride on both axes.
    #[must_use]
    pub fn stride(mut self, stride: usize) -> Self {
        self.stride = [stride; 2];
        self
    }

    /// The same padding on both axes.
    #[must_use]
    pub fn padding(mut self, padding: usize) -> Self {
        self.padding = [padding; 2];
        self
    }

    /// Whether to count a last window that reaches beyond the padded input.
    #[must_use]
    pub fn ceil_mode(mut self, ceil_mode: bool) -> Self {
        self.ceil_mode = ceil_mode;
        self
    }

    /// Whether an average divides by the padding it covers too.
    #[must_use]
    pub fn count_include_pad(mut self, count_include_pad: bool) -> Self {
        self.count_include_pad = count_include_pad;
        self
    }

    /// Checks the options against an input `(B, C, H, W)`.
    fn window(&self, op: &'static str, xs: &Tensor) -> Result<Window> {
        let (b, c, h, w) = xs.dims4()?;
        check::float(op, xs)?;
        for axis in 0..2 {
            if self.padding[axis] > self.kernel[axis] / 2 {
                let expected = format!("at most half of the kernel {}", self.kernel[axis]);
                return Err(Error::value(op, "padding", expected, self.padding[axis]).into());
            }
        }
        let window = Window::new(
            op,
            &WindowSpec {
                input: [h, w],
                kernel: self.kernel,
                stride: self.stride,
                padding: self.padding,
                dilation: [1; 2],
                ceil: self.ceil_mode,
            },
        )?;
        element_count(op, &[b.max(1), c.max(1), window.output[1], window.output[2]])?;
        Ok(window)
    }
}

#[cfg(test)]
mod tests;
