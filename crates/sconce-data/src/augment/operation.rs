//! The operations that automatic augmentation chooses from.

use super::affine::{self, Warp};
use super::{color, tone};
use crate::Result;
use image::RgbImage;

/// An operation with its strength.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Operation {
    /// Nothing.
    Identity,
    /// Each channel stretched to the full range.
    AutoContrast,
    /// Each channel's values made equally frequent.
    Equalize,
    /// 255 less every value.
    Invert,
    /// The upper bits of every value.
    Posterize(u8),
    /// Values of at least this inverted; 256 inverts none.
    Solarize(u16),
    /// This added to values below 128.
    SolarizeAdd(u8),
    /// Saturation by a factor.
    Color(f64),
    /// Contrast by a factor.
    Contrast(f64),
    /// Brightness by a factor.
    Brightness(f64),
    /// Sharpness by a factor.
    Sharpness(f64),
    /// Turned counter-clockwise, in degrees.
    Rotate(f64),
    /// Rows moved left by this times their height from the top.
    ShearX(f64),
    /// Columns moved up by this times their distance from the left.
    ShearY(f64),
    /// Moved left by pixels.
    TranslateX(f64),
    /// Moved up by pixels.
    TranslateY(f64),
}

impl Operation {
    /// The image after the operation, in Pillow's arithmetic.
    ///
    /// # Errors
    /// As [`affine`](super::affine()).
    pub fn apply(&self, mut image: RgbImage, warp: Warp) -> Result<RgbImage> {
        if image.is_empty() {
            return Ok(image);
        }
        match *self {
            Self::Identity => {}
            Self::AutoContrast => tone::autocontrast(&mut image),
            Self::Equalize => tone::equalize(&mut image),
            Self::Invert => tone::invert(&mut image),
            Self::Posterize(bits) => tone::posterize(&mut image, bits),
            Self::Solarize(threshold) => {
                if let Ok(threshold) = u8::try_from(threshold) {
                    color::solarize(&mut image, threshold);
                }
            }
            Self::SolarizeAdd(add) => tone::solarize_add(&mut image, add, 128),
            Self::Color(factor) => color::adjust_saturation(&mut image, factor),
            Self::Contrast(factor) => color::adjust_contrast(&mut image, factor),
            Self::Brightness(factor) => color::adjust_brightness(&mut image, factor),
            Self::Sharpness(factor) => tone::adjust_sharpness(&mut image, factor),
            Self::Rotate(degrees) => return affine::rotate(&image, degrees, warp),
            Self::ShearX(factor) => return affine::shear_x(&image, factor, warp),
            Self::ShearY(factor) => return affine::shear_y(&image, factor, warp),
            Self::TranslateX(pixels) => return affine::translate(&image, pixels, 0.0, warp),
            Self::TranslateY(pixels) => return affine::translate(&image, 0.0, pixels, warp),
        }
        Ok(image)
    }
}
