//! Resizing 8-bit images exactly as Pillow does.
//!
//! Pillow's filters are antialiased: when shrinking, the filter is stretched by the scale, so every source pixel
//! counts. On 8-bit images the weights are rounded to 22-bit fixed point and the picture is rounded to 8 bits
//! between the two passes, so the result is defined to the last bit; this module reproduces it. It is neither
//! what OpenCV does (no antialiasing) nor what `torch.nn.functional.interpolate` does (`a = -0.75` bicubic).

mod filter;
mod passes;

use crate::{Error, Result};
use image::{ImageBuffer, Pixel};
use serde::{Deserialize, Serialize};
use std::ops::Range;

/// Width and height of an image in pixels.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Size {
    /// Columns.
    pub width: u32,
    /// Rows.
    pub height: u32,
}

impl Size {
    /// A size from its width and height, in this order.
    pub fn new(width: u32, height: u32) -> Self {
        Self { width, height }
    }

    /// A square.
    pub fn square(side: u32) -> Self {
        Self::new(side, side)
    }

    /// The size of an image.
    pub fn of<P: Pixel<Subpixel = u8>>(image: &ImageBuffer<P, Vec<u8>>) -> Self {
        Self::new(image.width(), image.height())
    }

    /// The size whose shorter side is `side` and whose longer side keeps the aspect ratio, cut to an integer
    /// (not rounded), as in torchvision's `Resize(int)`.
    pub fn with_shorter_side(self, side: u32) -> Self {
        let long = |long: u32, short: u32| {
            let exact = u64::from(side) * u64::from(long) / u64::from(short.max(1));
            u32::try_from(exact).unwrap_or(u32::MAX)
        };
        if self.width <= self.height {
            Self::new(side, long(self.height, self.width))
        } else {
            Self::new(long(self.width, self.height), side)
        }
    }

    /// The size whose longer side is `side`; the shorter one keeps the aspect ratio, rounded half to even, and
    /// is at least 1.
    pub fn with_longer_side(self, side: u32) -> Self {
        let short = |short: u32, long: u32| {
            let exact = f64::from(side) * f64::from(short) / f64::from(long.max(1));
            (exact.round_ties_even() as u32).max(1)
        };
        if self.width >= self.height {
            Self::new(side, short(self.height, self.width))
        } else {
            Self::new(short(self.width, self.height), side)
        }
    }
}

/// Pillow's resampling filters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Filter {
    /// The nearest source pixel; no antialiasing.
    Nearest,
    /// Mean over the covered source pixels.
    Box,
    /// Triangle of support 1.
    Bilinear,
    /// Hamming-windowed sinc of support 1.
    Hamming,
    /// Cubic convolution with `a = -0.5`, support 2.
    #[default]
    Bicubic,
    /// Lanczos-windowed sinc of support 3.
    Lanczos,
}

/// Which of the two passes comes first. It decides the last bit, since the picture is rounded in between.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PassOrder {
    /// Rows first: every release of Pillow before 13, hence what published checkpoints were evaluated with.
    #[default]
    HorizontalFirst,
    /// As Pillow 13: columns first where the height loses more than twice as many pixels as the width.
    Pillow13,
}

impl PassOrder {
    fn vertical_first(self, from: Size, to: Size) -> bool {
        let lost = |from: u32, to: u32| i64::from(from) - i64::from(to);
        let height = lost(from.height, to.height);
        self == Self::Pillow13 && height > 0 && height > 2 * lost(from.width, to.width)
    }
}

/// How to resize; [`From<Filter>`] gives the usual choice.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
pub struct ResizeOptions {
    /// The filter.
    pub filter: Filter,
    /// The order of the passes.
    pub order: PassOrder,
    /// The part of the source to read as `[left, top, right, bottom]`, in pixels and fractions of them;
    /// the whole image when absent.
    pub region: Option<[f32; 4]>,
}

impl From<Filter> for ResizeOptions {
    fn from(filter: Filter) -> Self {
        Self { filter, ..Self::default() }
    }
}

/// The part of the output that is computed.
#[derive(Debug, Clone)]
pub(crate) struct Window {
    pub(crate) columns: Range<u32>,
    pub(crate) rows: Range<u32>,
}

impl Window {
    /// All of an output.
    pub(crate) fn all(size: Size) -> Self {
        Self { columns: 0..size.width, rows: 0..size.height }
    }
}

/// Resizes an 8-bit image, bit for bit as `PIL.Image.resize`.
///
/// Channels are independent of each other. For images with alpha Pillow multiplies the colours by alpha first:
/// [`Picture::resize`](crate::Picture::resize) does that.
///
/// # Errors
/// [`Error::Invalid`] for an empty source or target, or a region that is empty or outside the source;
/// [`Error::TooLarge`] for a target of more than 2^28 pixels.
pub fn resize<P: Pixel<Subpixel = u8>>(
    image: &ImageBuffer<P, Vec<u8>>,
    size: Size,
    options: impl Into<ResizeOptions>,
) -> Result<ImageBuffer<P, Vec<u8>>> {
    resize_window(image, size, &options.into(), &Window::all(size))
}

/// A window of what [`resize`] would give, computed alone. The window must lie within `size`.
pub(crate) fn resize_window<P: Pixel<Subpixel = u8>>(
    image: &ImageBuffer<P, Vec<u8>>,
    size: Size,
    options: &ResizeOptions,
    window: &Window,
) -> Result<ImageBuffer<P, Vec<u8>>> {
    let bytes = compute(image.as_raw(), usize::from(P::CHANNEL_COUNT), Size::of(image), size, options, window)?;
    let (width, height) = (window.columns.len() as u32, window.rows.len() as u32);
    ImageBuffer::from_raw(width, height, bytes)
        .ok_or_else(|| Error::invalid("size", "the image is too large for memory"))
}

/// [`resize`] on interleaved rows of 1 to 4 channels.
///
/// # Errors
/// As [`resize`], and [`Error::Invalid`] when `pixels` does not hold `from` rows and columns.
pub fn resize_bytes(pixels: &[u8], channels: usize, from: Size, to: Size, options: &ResizeOptions) -> Result<Vec<u8>> {
    compute(pixels, channels, from, to, options, &Window::all(to))
}

fn compute(
    pixels: &[u8],
    channels: usize,
    from: Size,
    to: Size,
    options: &ResizeOptions,
    window: &Window,
) -> Result<Vec<u8>> {
    let wanted = from.width as usize * from.height as usize * channels;
    if pixels.len() != wanted || !(1..=4).contains(&channels) {
        let reason = format!("{} bytes for {from:?} of {channels} channels", pixels.len());
        return Err(Error::invalid("pixels", reason));
    }
    if wanted == 0 || window.columns.is_empty() || window.rows.is_empty() {
        return Err(Error::invalid("size", format!("cannot resize {from:?} to {to:?}")));
    }
    let (size, limit) = (window.columns.len() as u64 * window.rows.len() as u64, 1 << 28);
    if size > limit {
        return Err(Error::TooLarge { what: "the resized image (pixels)", size, limit });
    }
    let whole = [0.0, 0.0, from.width as f32, from.height as f32];
    let region = options.region.unwrap_or(whole);
    let [left, top, right, bottom] = region;
    // Negated so that NaN is refused as well.
    if !(left >= 0.0 && top >= 0.0 && right <= whole[2] && bottom <= whole[3] && left < right && top < bottom) {
        return Err(Error::invalid("region", format!("{region:?} in an image of {from:?}")));
    }
    let Some(kernel) = options.filter.kernel() else {
        return Ok(passes::nearest(pixels, channels, from, to, region, window));
    };
    let columns = (to.width != from.width
        || left != 0.0
        || right != to.width as f32
        || window.columns.len() != to.width as usize)
        .then(|| filter::Weights::new(&kernel, from.width, [left, right], to.width, window.columns.clone()));
    let rows = (to.height != from.height
        || top != 0.0
        || bottom != to.height as f32
        || window.rows.len() != to.height as usize)
        .then(|| filter::Weights::new(&kernel, from.height, [top, bottom], to.height, window.rows.clone()));
    let vertical_first = options.order.vertical_first(from, to);
    Ok(match (columns, rows) {
        (Some(columns), Some(rows)) if vertical_first => {
            let middle = passes::vertical(pixels, channels, from.width, &rows);
            passes::horizontal(&middle, channels, from.width, 0..window.rows.len(), &columns)
        }
        (Some(columns), Some(mut rows)) => {
            // The second pass never reads the other rows.
            let used = rows.used();
            let middle = passes::horizontal(pixels, channels, from.width, used.clone(), &columns);
            rows.shift(used.start);
            passes::vertical(&middle, channels, window.columns.len() as u32, &rows)
        }
        (Some(columns), None) => passes::horizontal(pixels, channels, from.width, 0..from.height as usize, &columns),
        (None, Some(rows)) => passes::vertical(pixels, channels, from.width, &rows),
        (None, None) => pixels.to_vec(),
    })
}
