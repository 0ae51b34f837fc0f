//! Colour changes, in Pillow's arithmetic.

use super::geometry::between;
use crate::{Generator, Result, Transform};
use image::{Rgb, RgbImage};

/// Luma of a pixel: ITU-R 601 weights in 16-bit fixed point, rounded.
fn luma([r, g, b]: [u8; 3]) -> u8 {
    ((u32::from(r) * 19595 + u32::from(g) * 38470 + u32::from(b) * 7471 + 0x8000) >> 16) as u8
}

/// Pillow's `blend`: `from + factor * (to - from)` in `f32`, clamped and cut to an integer.
pub(super) fn blend(from: u8, to: u8, factor: f32) -> u8 {
    // A cast from float clamps and cuts.
    (f32::from(from) + factor * f32::from(i16::from(to) - i16::from(from))) as u8
}

/// Scales brightness: a blend with black; factor 1 changes nothing.
pub fn adjust_brightness(image: &mut RgbImage, factor: f64) {
    image.iter_mut().for_each(|value| *value = blend(0, *value, factor as f32));
}

/// Scales contrast: a blend with the image's mean grey; factor 1 changes nothing.
pub fn adjust_contrast(image: &mut RgbImage, factor: f64) {
    let count = f64::from(image.width()) * f64::from(image.height());
    let sum: u64 = image.pixels().map(|pixel| u64::from(luma(pixel.0))).sum();
    let mean = (sum as f64 / count + 0.5) as u8;
    image.iter_mut().for_each(|value| *value = blend(mean, *value, factor as f32));
}

/// Scales saturation: a blend with the grey image; factor 1 changes nothing.
pub fn adjust_saturation(image: &mut RgbImage, factor: f64) {
    for pixel in image.pixels_mut() {
        let grey = luma(pixel.0);
        pixel.0 = pixel.0.map(|value| blend(grey, value, factor as f32));
    }
}

/// Turns the hue by `shift` of the circle, in `[-0.5, 0.5]`, on Pillow's 8-bit HSV.
pub fn adjust_hue(image: &mut RgbImage, shift: f64) {
    let shift = (shift * 255.0) as i32 as u8; // modulo 256
    for pixel in image.pixels_mut() {
        let [hue, saturation, value] = hsv_from_rgb(pixel.0);
        pixel.0 = rgb_from_hsv([hue.wrapping_add(shift), saturation, value]);
    }
}

// Single and double precision alternate in the two conversions as they do in Pillow: it decides the last bit.
fn hsv_from_rgb([r, g, b]: [u8; 3]) -> [u8; 3] {
    let (max, min) = (r.max(g).max(b), r.min(g).min(b));
    if max == min {
        return [0, 0, max];
    }
    let range = f32::from(max - min);
    let saturation = range / f32::from(max);
    let [rc, gc, bc] = [r, g, b].map(|c| f32::from(max - c) / range);
    let hue = if r == max {
        bc - gc
    } else if g == max {
        (2.0 + f64::from(rc) - f64::from(bc)) as f32
    } else {
        (4.0 + f64::from(gc) - f64::from(rc)) as f32
    };
    let hue = ((f64::from(hue) / 6.0 + 1.0) % 1.0) as f32;
    [(f64::from(hue) * 255.0) as u8, (f64::from(saturation) * 255.0) as u8, max]
}

fn rgb_from_hsv([hue, saturation, value]: [u8; 3]) -> [u8; 3] {
    if saturation == 0 {
        return [value; 3];
    }
    let sector = (f64::from(hue) * 6.0 / 255.0).floor();
    let within = f64::from((f64::from(hue) * 6.0 / 255.0 - sector) as f32);
    let fraction = f64::from((f64::from(saturation) / 255.0) as f32);
    let level = |part: f64| (f64::from(value) * part).round() as u8;
    let p = level(1.0 - fraction);
    // `f32 * f32` in C.
    let q = level(1.0 - f64::from(fraction as f32 * within as f32));
    let t = level(1.0 - fraction * (1.0 - within));
    match sector as u8 % 6 {
        0 => [value, t, p],
        1 => [q, value, p],
        2 => [p, value, t],
        3 => [p, q, value],
        4 => [t, p, value],
        _ => [value, p, q],
    }
}

/// Replaces the colours by their luma.
pub fn grayscale(image: &mut RgbImage) {
    image.pixels_mut().for_each(|pixel| *pixel = Rgb([luma(pixel.0); 3]));
}

/// Inverts the values of at least `threshold`.
pub fn solarize(image: &mut RgbImage, threshold: u8) {
    image.iter_mut().filter(|value| **value >= threshold).for_each(|value| *value = 255 - *value);
}

/// Random brightness, contrast, saturation and hue, in random order (torchvision's `ColorJitter`).
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct ColorJitter {
    /// The factor is uniform in `[max(0, 1 - brightness), 1 + brightness]`; zero leaves brightness alone.
    pub brightness: f64,
    /// As `brightness`.
    pub contrast: f64,
    /// As `brightness`.
    pub saturation: f64,
    /// The shift is uniform in `[-hue, hue]`, at most 0.5; zero leaves hue alone.
    pub hue: f64,
}

impl ColorJitter {
    /// Jitter of the given strengths.
    pub fn new(brightness: f64, contrast: f64, saturation: f64, hue: f64) -> Self {
        Self { brightness, contrast, saturation, hue }
    }
}

impl Transform for ColorJitter {
    fn apply(&self, mut image: RgbImage, generator: &Generator) -> Result<RgbImage> {
        let mut order = [0, 1, 2, 3];
        generator.shuffle(&mut order);
        let factor = |strength: f64| between(generator, [(1.0 - strength).max(0.0), 1.0 + strength]);
        let [brightness, contrast, saturation] = [self.brightness, self.contrast, self.saturation].map(factor);
        let hue = between(generator, [-self.hue, self.hue]);
        for step in order {
            match step {
                0 if self.brightness > 0.0 => adjust_brightness(&mut image, brightness),
                1 if self.contrast > 0.0 => adjust_contrast(&mut image, contrast),
                2 if self.saturation > 0.0 => adjust_saturation(&mut image, saturation),
                3 if self.hue > 0.0 => adjust_hue(&mut image, hue),
                _ => {}
            }
        }
        Ok(image)
    }
}

/// Makes the image grey; see [`RandomApply`](crate::RandomApply) for a probability.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Grayscale;

impl Transform for Grayscale {
    fn apply(&self, mut image: RgbImage, _generator: &Generator) -> Result<RgbImage> {
        grayscale(&mut image);
        Ok(image)
    }
}

/// Inverts bright values; see [`RandomApply`](crate::RandomApply) for a probability.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Solarize {
    /// Values of at least this are inverted.
    pub threshold: u8,
}

impl Default for Solarize {
    fn default() -> Self {
        Self { threshold: 128 }
    }
}

impl Transform for Solarize {
    fn apply(&self, mut image: RgbImage, _generator: &Generator) -> Result<RgbImage> {
        solarize(&mut image, self.threshold);
        Ok(image)
    }
}
