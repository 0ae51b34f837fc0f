//! Random erasing on normalised planes.

use super::geometry::between;
use crate::{Generator, Size};
use serde::{Deserialize, Serialize};

/// What is put in place of what is erased.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ErasingMode {
    /// Zero: the mean colour after normalisation (timm's `const`).
    #[default]
    Zero,
    /// A normal number for each channel of a rectangle (timm's `rand`).
    Channel,
    /// A normal number for each value (timm's `pixel`).
    Pixel,
}

/// Replaces random rectangles (Zhong et al. 2017, `arXiv:1708.04896`) with timm's laws.
///
/// For each rectangle, ten times an area is drawn uniformly and an aspect ratio log-uniformly; the first one smaller than the
/// image in both directions is erased.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct RandomErasing {
    /// Probability of erasing anything.
    pub probability: f64,
    /// Bounds of the area of all rectangles together, as fractions of the image's.
    pub area: [f64; 2],
    /// Bounds of the aspect ratio, height over width.
    pub ratio: [f64; 2],
    /// What is put there.
    pub mode: ErasingMode,
    /// Fewest and most rectangles.
    pub count: [usize; 2],
}

impl Default for RandomErasing {
    /// timm's recipes: probability 0.25, one rectangle, area in `[0.02, 1/3]`, aspect ratio in `[0.3, 1/0.3]`, zeros.
    fn default() -> Self {
        Self {
            probability: 0.25,
            area: [0.02, 1.0 / 3.0],
            ratio: [0.3, 1.0 / 0.3],
            mode: ErasingMode::Zero,
            count: [1, 1],
        }
    }
}

impl RandomErasing {
    /// Erases in planes of `C * H * W` values.
    pub fn apply(&self, planes: &mut [f32], size: Size, generator: &Generator) {
        if generator.f64() >= self.probability {
            return;
        }
        let [least, most] = self.count;
        let count = if most > least { least + generator.index(most - least + 1) } else { least };
        (0..count).for_each(|_| self.erase(planes, size, count, generator));
    }

    /// Erases one of `count` rectangles.
    fn erase(&self, planes: &mut [f32], size: Size, count: usize, generator: &Generator) {
        let (width, height) = (size.width as usize, size.height as usize);
        for _ in 0..10 {
            let area = (width * height) as f64 * between(generator, self.area) / count as f64;
            let ratio = between(generator, self.ratio.map(f64::ln)).exp();
            let high = (area * ratio).sqrt().round_ties_even() as usize;
            let wide = (area / ratio).sqrt().round_ties_even() as usize;
            if wide < width && high < height {
                let top = generator.index(height - high + 1);
                let left = generator.index(width - wide + 1);
                for plane in planes.chunks_exact_mut(width * height) {
                    let colour = if self.mode == ErasingMode::Channel { generator.gaussian() as f32 } else { 0.0 };
                    for row in plane.chunks_exact_mut(width).skip(top).take(high) {
                        match self.mode {
                            ErasingMode::Zero | ErasingMode::Channel => row[left..left + wide].fill(colour),
                            ErasingMode::Pixel => {
                                row[left..left + wide].fill_with(|| generator.gaussian() as f32);
                            }
                        }
                    }
                }
                return;
            }
        }
    }
}
