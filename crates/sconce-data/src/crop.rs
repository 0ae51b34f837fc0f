//! Cropping and padding of 8-bit images.

use crate::{Error, Result, Size};
use image::{ImageBuffer, Pixel, RgbImage};
use serde::{Deserialize, Serialize};

/// How a centre crop places a crop of odd surplus. The two conventions differ by one pixel on many images, which
/// moves every patch of a vision transformer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum CropOffset {
    /// torchvision, OpenAI's CLIP, timm: the offset is half the surplus rounded half to even; an image smaller
    /// than the crop has the smaller half of the padding before it.
    #[default]
    RoundHalfEven,
    /// Hugging Face's image processors: the offset is rounded down; an image smaller than the crop has the
    /// larger half of the padding before it.
    Floor,
}

impl CropOffset {
    /// Offset of a crop of `crop` pixels in `len` pixels; negative when the image is smaller than the crop.
    pub fn offset(self, len: u32, crop: u32) -> i64 {
        let surplus = i64::from(len) - i64::from(crop);
        match self {
            Self::RoundHalfEven if surplus >= 0 => (surplus as f64 / 2.0).round_ties_even() as i64,
            Self::RoundHalfEven => surplus / 2, // towards zero: the smaller half
            Self::Floor => surplus.div_euclid(2),
        }
    }
}

/// Cuts the rectangle at `(left, top)` out of an image. What lies outside the image is `fill`.
///
/// # Errors
/// [`Error::Invalid`] for an empty rectangle or one of more bytes than a `u32` counts.
pub fn crop<P: Pixel<Subpixel = u8>>(
    image: &ImageBuffer<P, Vec<u8>>,
    left: i64,
    top: i64,
    size: Size,
    fill: P,
) -> Result<ImageBuffer<P, Vec<u8>>> {
    let bytes = u64::from(size.width) * u64::from(size.height) * u64::from(P::CHANNEL_COUNT);
    if bytes == 0 || bytes > u64::from(u32::MAX) {
        return Err(Error::invalid("size", format!("cannot crop to {size:?}")));
    }
    let mut output = ImageBuffer::from_pixel(size.width, size.height, fill);
    let channels = usize::from(P::CHANNEL_COUNT);
    // The part of the rectangle that the image covers, in coordinates of the image.
    let covered = |start: i64, crop: u32, len: u32| {
        let end = start.saturating_add(i64::from(crop)).clamp(0, i64::from(len));
        (start.clamp(0, i64::from(len)), end)
    };
    let (x0, x1) = covered(left, size.width, image.width());
    let (y0, y1) = covered(top, size.height, image.height());
    if x0 >= x1 {
        return Ok(output);
    }
    let row_in = image.width() as usize * channels;
    let row_out = size.width as usize * channels;
    let run = (x1 - x0) as usize * channels;
    let target: &mut [u8] = &mut output;
    for y in y0..y1 {
        let from = y as usize * row_in + x0 as usize * channels;
        let to = (y - top) as usize * row_out + (x0 - left) as usize * channels;
        target[to..to + run].copy_from_slice(&image.as_raw()[from..from + run]);
    }
    Ok(output)
}

/// The central rectangle of an image; a smaller image is padded with zeros.
///
/// # Errors
/// As [`crop`].
pub fn center_crop<P: Pixel<Subpixel = u8>>(
    image: &ImageBuffer<P, Vec<u8>>,
    size: Size,
    offset: CropOffset,
) -> Result<ImageBuffer<P, Vec<u8>>> {
    let left = offset.offset(image.width(), size.width);
    let top = offset.offset(image.height(), size.height);
    let zeros = [0u8; 4];
    crop(image, left, top, size, *P::from_slice(&zeros[..usize::from(P::CHANNEL_COUNT)]))
}

/// Pads the shorter side with `fill` so that the image becomes a square with the picture in its centre.
///
/// # Errors
/// As [`crop`].
pub fn pad_to_square(image: &RgbImage, fill: [u8; 3]) -> Result<RgbImage> {
    let side = image.width().max(image.height());
    let left = CropOffset::RoundHalfEven.offset(image.width(), side);
    let top = CropOffset::RoundHalfEven.offset(image.height(), side);
    crop(image, left, top, Size::square(side), image::Rgb(fill))
}
