//! Random crops and flips.

use crate::crop::crop;
use crate::resize::{ResizeOptions, Size, resize};
use crate::{Error, Filter, Generator, Result, Transform};
use image::{Rgb, RgbImage};

/// A uniform integer in `0..=last`.
fn upto(generator: &Generator, last: u32) -> i64 {
    generator.index(last as usize + 1) as i64
}

/// A uniform number in `[lo, hi)`.
pub(super) fn between(generator: &Generator, [lo, hi]: [f64; 2]) -> f64 {
    lo + (hi - lo) * generator.f64()
}

/// The image mirrored left to right.
pub fn hflip(image: &RgbImage) -> RgbImage {
    image::imageops::flip_horizontal(image)
}

/// Mirrors left to right with a probability.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct HorizontalFlip {
    /// Probability, usually 0.5.
    pub probability: f64,
}

impl Default for HorizontalFlip {
    fn default() -> Self {
        Self { probability: 0.5 }
    }
}

impl Transform for HorizontalFlip {
    fn apply(&self, mut image: RgbImage, generator: &Generator) -> Result<RgbImage> {
        if generator.f64() < self.probability {
            image::imageops::flip_horizontal_in_place(&mut image);
        }
        Ok(image)
    }
}

/// A crop of random area and aspect ratio, resized (Szegedy et al. 2015; torchvision's `RandomResizedCrop`).
///
/// Ten times an area is drawn uniformly and an aspect ratio log-uniformly; the first rectangle that fits is
/// placed uniformly. If none fits, the largest central crop of an allowed aspect ratio is taken.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct RandomResizedCrop {
    /// Size of the result.
    pub size: Size,
    /// Bounds of the area, as fractions of the image's.
    pub scale: [f64; 2],
    /// Bounds of the aspect ratio, width over height.
    pub ratio: [f64; 2],
    /// How the crop is resized.
    pub options: ResizeOptions,
}

impl RandomResizedCrop {
    /// torchvision's defaults: area in `[0.08, 1]`, aspect ratio in `[3/4, 4/3]`; the filter is given.
    pub fn new(side: u32, filter: Filter) -> Self {
        Self { size: Size::square(side), scale: [0.08, 1.0], ratio: [3.0 / 4.0, 4.0 / 3.0], options: filter.into() }
    }

    /// The same with other bounds of the area.
    pub fn with_scale(self, lo: f64, hi: f64) -> Self {
        Self { scale: [lo, hi], ..self }
    }

    /// Draws a rectangle: left, top and size, inside an image of the given size.
    pub fn sample(&self, image: Size, generator: &Generator) -> (i64, i64, Size) {
        let (width, height) = (f64::from(image.width), f64::from(image.height));
        let log_ratio = self.ratio.map(f64::ln);
        for _ in 0..10 {
            let area = width * height * between(generator, self.scale);
            let ratio = between(generator, log_ratio).exp();
            let size = Size::new(rounded((area * ratio).sqrt()), rounded((area / ratio).sqrt()));
            if (1..=image.width).contains(&size.width) && (1..=image.height).contains(&size.height) {
                let top = upto(generator, image.height - size.height);
                let left = upto(generator, image.width - size.width);
                return (left, top, size);
            }
        }
        let ratio = width / height;
        let size = if ratio < self.ratio[0] {
            Size::new(image.width, rounded(width / self.ratio[0]))
        } else if ratio > self.ratio[1] {
            Size::new(rounded(height * self.ratio[1]), image.height)
        } else {
            image
        };
        // At least one pixel, also of an image one pixel high.
        let size = Size::new(size.width.clamp(1, image.width), size.height.clamp(1, image.height));
        (i64::from((image.width - size.width) / 2), i64::from((image.height - size.height) / 2), size)
    }
}

fn rounded(x: f64) -> u32 {
    x.round_ties_even() as u32
}

impl Transform for RandomResizedCrop {
    fn apply(&self, image: RgbImage, generator: &Generator) -> Result<RgbImage> {
        if image.width() == 0 || image.height() == 0 {
            return Err(Error::invalid("image", "without pixels"));
        }
        let (left, top, size) = self.sample(Size::of(&image), generator);
        resize(&crop(&image, left, top, size, Rgb([0; 3]))?, self.size, self.options)
    }
}

/// A crop of fixed size at a uniform place, after padding with a colour (torchvision's `RandomCrop`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RandomCrop {
    /// Size of the crop.
    pub size: Size,
    /// Pixels added on every side first.
    pub padding: u32,
    /// Colour of the padding.
    pub fill: [u8; 3],
}

impl Transform for RandomCrop {
    fn apply(&self, image: RgbImage, generator: &Generator) -> Result<RgbImage> {
        let surplus = |len: u32, crop: u32| (u64::from(len) + 2 * u64::from(self.padding)).checked_sub(crop.into());
        let (Some(x), Some(y)) = (surplus(image.width(), self.size.width), surplus(image.height(), self.size.height))
        else {
            let reason =
                format!("{:?} from an image of {:?} with {} of padding", self.size, Size::of(&image), self.padding);
            return Err(Error::invalid("crop", reason));
        };
        let top = generator.index(y as usize + 1) as i64 - i64::from(self.padding);
        let left = generator.index(x as usize + 1) as i64 - i64::from(self.padding);
        crop(&image, left, top, self.size, Rgb(self.fill))
    }
}
