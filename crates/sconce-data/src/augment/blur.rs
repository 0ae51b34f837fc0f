//! Pillow's Gaussian blur: three box blurs of fractional radius (Gwosdek et al. 2011).

use super::geometry::between;
use crate::{Generator, Result, Transform};
use image::RgbImage;

const PASSES: usize = 3;

/// Blurs with a Gaussian of standard deviation `radius` pixels, as `PIL.ImageFilter.GaussianBlur`.
pub fn gaussian_blur(image: &RgbImage, radius: f32) -> RgbImage {
    let radius = box_radius(radius);
    if radius <= 0.0 || image.width() == 0 || image.height() == 0 {
        return image.clone();
    }
    let horizontal = blur_rows(image.as_raw(), image.width() as usize, radius);
    let turned = transpose(&horizontal, image.width() as usize);
    let vertical = blur_rows(&turned, image.height() as usize, radius);
    let bytes = transpose(&vertical, image.height() as usize);
    RgbImage::from_raw(image.width(), image.height(), bytes).unwrap_or_default()
}

/// The radius of the box whose repetition has the wanted deviation, in Pillow's mix of precisions.
fn box_radius(radius: f32) -> f32 {
    let variance = radius * radius / PASSES as f32;
    let length = (12.0 * f64::from(variance) + 1.0).sqrt() as f32;
    let whole = ((f64::from(length) - 1.0) / 2.0).floor() as f32;
    let part = (2.0 * whole + 1.0) * (whole * (whole + 1.0) - 3.0 * variance);
    whole + part / (6.0 * (variance - (whole + 1.0) * (whole + 1.0)))
}

fn transpose(pixels: &[u8], width: usize) -> Vec<u8> {
    let pixels = pixels.as_chunks::<3>().0;
    let height = pixels.len() / width;
    (0..width).flat_map(|x| (0..height).flat_map(move |y| pixels[y * width + x])).collect()
}

/// Box-blurs every row [`PASSES`] times, rounding to 8 bits each time.
fn blur_rows(pixels: &[u8], width: usize, radius: f32) -> Vec<u8> {
    let whole = radius as usize;
    // Weights of a full pixel and of the two pixels at the ends, in 24-bit fixed point.
    let full = ((1u32 << 24) as f32 / (radius * 2.0 + 1.0)) as u32;
    let ends = ((1u32 << 24) - (2 * whole as u32 + 1) * full) / 2;
    let mut output = pixels.to_vec();
    let mut line = vec![[0u8; 3]; width];
    for row in output.chunks_exact_mut(width * 3) {
        let row = row.as_chunks_mut::<3>().0;
        for _ in 0..PASSES {
            line.copy_from_slice(row);
            let at = |x: isize, c: usize| u32::from(line[x.clamp(0, width as isize - 1) as usize][c]);
            let reach = whole as isize;
            for c in 0..3 {
                // The window slides: the sum over whole pixels, edges repeated.
                let mut sum: u32 = (-reach - 1..reach).map(|x| at(x, c)).sum();
                for (x, pixel) in row.iter_mut().enumerate() {
                    let x = x as isize;
                    sum = sum + at(x + reach, c) - at(x - reach - 1, c);
                    let value = sum * full + (at(x - reach - 1, c) + at(x + reach + 1, c)) * ends;
                    pixel[c] = (value.wrapping_add(1 << 23) >> 24) as u8;
                }
            }
        }
    }
    output
}

/// Blurs with a radius drawn uniformly; see [`RandomApply`](crate::RandomApply) for a probability.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct GaussianBlur {
    /// Bounds of the standard deviation in pixels; DINO's are 0.1 and 2.
    pub radius: [f64; 2],
}

impl Default for GaussianBlur {
    fn default() -> Self {
        Self { radius: [0.1, 2.0] }
    }
}

impl Transform for GaussianBlur {
    fn apply(&self, image: RgbImage, generator: &Generator) -> Result<RgbImage> {
        Ok(gaussian_blur(&image, between(generator, self.radius) as f32))
    }
}
