//! Random erasing on normalised planes.

use super::geometry::between;
use crate::{Generator, Size};

/// Sets a random rectangle to zero, which is the mean colour after normalisation (Zhong et al. 2020).
///
/// Ten times an area is drawn uniformly and an aspect ratio log-uniformly; the first rectangle smaller than the
/// image in both directions is erased.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct RandomErasing {
    /// Probability of erasing anything.
    pub probability: f64,
    /// Bounds of the area, as fractions of the image's.
    pub area: [f64; 2],
    /// Bounds of the aspect ratio, height over width.
    pub ratio: [f64; 2],
}

impl Default for RandomErasing {
    /// timm's constant mode: probability 0.25, area in `[0.02, 1/3]`, aspect ratio in `[0.3, 1/0.3]`.
    fn default() -> Self {
        Self { probability: 0.25, area: [0.02, 1.0 / 3.0], ratio: [0.3, 1.0 / 0.3] }
    }
}

impl RandomErasing {
    /// Erases in planes of `C * H * W` values.
    pub fn apply(&self, planes: &mut [f32], size: Size, generator: &Generator) {
        if generator.f64() >= self.probability {
            return;
        }
        let (width, height) = (size.width as usize, size.height as usize);
        for _ in 0..10 {
            let area = (width * height) as f64 * between(generator, self.area);
            let ratio = between(generator, self.ratio.map(f64::ln)).exp();
            let high = (area * ratio).sqrt().round_ties_even() as usize;
            let wide = (area / ratio).sqrt().round_ties_even() as usize;
            if wide < width && high < height {
                let top = generator.index(height - high + 1);
                let left = generator.index(width - wide + 1);
                for plane in planes.chunks_exact_mut(width * height) {
                    for row in plane.chunks_exact_mut(width).skip(top).take(high) {
                        row[left..left + wide].fill(0.0);
                    }
                }
                return;
            }
        }
    }
}
