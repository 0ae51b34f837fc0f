//! RandAugment and TrivialAugment as torchvision has them.

use super::affine::Warp;
use super::operation::Operation;
use crate::{Error, Generator, Result, Transform};
use image::RgbImage;

/// The fourteen kinds that both draw from.
const KINDS: usize = 14;

/// How strong the strongest of each kind is.
#[derive(Debug, Clone, Copy)]
struct Space {
    shear: f64,
    /// In pixels, across and down.
    translate: [f64; 2],
    degrees: f64,
    enhance: f64,
    /// Bits that posterise drops.
    bits_taken: f64,
}

impl Space {
    /// Kind number `kind` at `level` from 0 to 1; `sign` is 1 or -1.
    fn operation(&self, kind: usize, level: f64, sign: f64) -> Operation {
        let enhance = 1.0 + sign * self.enhance * level;
        match kind {
            0 => Operation::Identity,
            1 => Operation::ShearX(sign * self.shear * level),
            2 => Operation::ShearY(sign * self.shear * level),
            // To the right and down, by whole pixels.
            3 => Operation::TranslateX(-(sign * self.translate[0] * level).trunc()),
            4 => Operation::TranslateY(-(sign * self.translate[1] * level).trunc()),
            5 => Operation::Rotate(sign * self.degrees * level),
            6 => Operation::Brightness(enhance),
            7 => Operation::Color(enhance),
            8 => Operation::Contrast(enhance),
            9 => Operation::Sharpness(enhance),
            10 => Operation::Posterize(8 - (self.bits_taken * level).round_ties_even() as u8),
            11 => Operation::Solarize((255.0 * (1.0 - level)).ceil() as u16),
            12 => Operation::AutoContrast,
            _ => Operation::Equalize,
        }
    }
}

/// One of the kinds with a sign.
fn draw(space: &Space, level: impl FnOnce() -> f64, generator: &Generator) -> Operation {
    let kind = generator.index(KINDS);
    let level = level();
    let sign = if generator.f64() < 0.5 { 1.0 } else { -1.0 };
    space.operation(kind, level, sign)
}

/// A share of the highest strength, by the number of its bin.
fn level(bin: usize, bins: usize) -> f64 {
    bin as f64 / (bins.max(2) - 1) as f64
}

/// RandAugment (Cubuk et al. 2019, `arXiv:1909.13719`) with torchvision's fourteen operations: `num_ops` of them are drawn
/// with replacement and carried out at one strength, in a random direction.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RandAugmentBins {
    /// Operations for a picture.
    pub num_ops: usize,
    /// Number of the strength, below `num_magnitude_bins`.
    pub magnitude: usize,
    /// Strengths that there are.
    pub num_magnitude_bins: usize,
    /// How warps look between pixels and beyond the edges.
    pub warp: Warp,
}

impl Default for RandAugmentBins {
    /// torchvision's: two operations at strength 9 of 31.
    fn default() -> Self {
        Self { num_ops: 2, magnitude: 9, num_magnitude_bins: 31, warp: Warp::default() }
    }
}

impl Transform for RandAugmentBins {
    fn apply(&self, mut image: RgbImage, generator: &Generator) -> Result<RgbImage> {
        if self.magnitude >= self.num_magnitude_bins {
            let reason = format!("{} of {} strengths", self.magnitude, self.num_magnitude_bins);
            return Err(Error::invalid("magnitude", reason));
        }
        let side = |pixels: u32| 150.0 / 331.0 * f64::from(pixels);
        let space = Space {
            shear: 0.3,
            translate: [side(image.width()), side(image.height())],
            degrees: 30.0,
            enhance: 0.9,
            bits_taken: 4.0,
        };
        for _ in 0..self.num_ops {
            let level = || level(self.magnitude, self.num_magnitude_bins);
            image = draw(&space, level, generator).apply(image, self.warp)?;
        }
        Ok(image)
    }
}

/// TrivialAugment (Müller and Hutter 2021, `arXiv:2103.10158`) with torchvision's wide space: one operation, at a strength
/// drawn uniformly.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TrivialAugmentWide {
    /// Strengths that there are.
    pub num_magnitude_bins: usize,
    /// How warps look between pixels and beyond the edges.
    pub warp: Warp,
}

impl Default for TrivialAugmentWide {
    /// torchvision's: 31 strengths.
    fn default() -> Self {
        Self { num_magnitude_bins: 31, warp: Warp::default() }
    }
}

const WIDE: Space = Space { shear: 0.99, translate: [32.0; 2], degrees: 135.0, enhance: 0.99, bits_taken: 6.0 };

impl Transform for TrivialAugmentWide {
    fn apply(&self, image: RgbImage, generator: &Generator) -> Result<RgbImage> {
        let bins = self.num_magnitude_bins;
        draw(&WIDE, || level(generator.index(bins), bins), generator).apply(image, self.warp)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const RAND: Space = Space { shear: 0.3, translate: [15.0, 14.5], degrees: 30.0, enhance: 0.9, bits_taken: 4.0 };

    #[test]
    fn strengths_are_those_of_torchvision() {
        // Bin 9 of 31: 0.3 of the way.
        let at = |kind| RAND.operation(kind, level(9, 31), -1.0);
        let close = |found: f64, expected: f64| assert!((found - expected).abs() < 1e-12, "{found} {expected}");
        let Operation::ShearX(shear) = at(1) else { panic!() };
        close(shear, -0.09);
        assert_eq!((at(3), at(4)), (Operation::TranslateX(4.0), Operation::TranslateY(4.0)));
        let Operation::Rotate(degrees) = at(5) else { panic!() };
        close(degrees, -9.0);
        let Operation::Brightness(factor) = at(6) else { panic!() };
        close(factor, 1.0 - 0.27);
        // 8 - round(9 / 7.5), and a value of 178 is below 255 - 76.5.
        assert_eq!((at(10), at(11)), (Operation::Posterize(7), Operation::Solarize(179)));
        let bits: Vec<Operation> = [0, 15, 30].map(|bin| WIDE.operation(10, level(bin, 31), 1.0)).to_vec();
        assert_eq!(bits, [Operation::Posterize(8), Operation::Posterize(5), Operation::Posterize(2)]);
        let thresholds = [0, 30].map(|bin| WIDE.operation(11, level(bin, 31), 1.0));
        assert_eq!(thresholds, [Operation::Solarize(255), Operation::Solarize(0)]);
        assert_eq!(WIDE.operation(3, 1.0, 1.0), Operation::TranslateX(-32.0));
    }

    #[test]
    fn every_kind_and_both_directions_are_drawn() {
        let generator = Generator::new(1);
        let mut kinds = std::collections::HashMap::new();
        let mut left = 0;
        for _ in 0..4200 {
            let operation = draw(&WIDE, || 1.0, &generator);
            *kinds.entry(std::mem::discriminant(&operation)).or_insert(0) += 1;
            left += usize::from(operation == Operation::TranslateX(32.0));
        }
        assert_eq!(kinds.len(), KINDS);
        assert!(kinds.values().all(|count| (220..390).contains(count)), "{kinds:?}");
        assert!((90..220).contains(&left), "{left}");
    }

    #[test]
    fn the_same_seed_gives_the_same_picture_and_nonsense_is_refused() {
        let source = RgbImage::from_fn(24, 20, |x, y| image::Rgb([(x * 9) as u8, (y * 11) as u8, (x * y) as u8]));
        let apply = |transform: &dyn Transform, seed| transform.apply(source.clone(), &Generator::new(seed));
        let (trivial, rand) = (TrivialAugmentWide::default(), RandAugmentBins::default());
        for seed in 0..50 {
            for transform in [&trivial as &dyn Transform, &rand] {
                let found = apply(transform, seed).unwrap();
                assert_eq!(found.dimensions(), source.dimensions());
                assert_eq!(found, apply(transform, seed).unwrap());
            }
        }
        assert!((0..50).any(|seed| apply(&rand, seed).unwrap() != apply(&rand, seed + 50).unwrap()));
        assert!(apply(&RandAugmentBins { magnitude: 31, ..rand }, 1).is_err());
        let single = TrivialAugmentWide { num_magnitude_bins: 0, ..trivial };
        assert!(apply(&single, 1).is_ok());
    }
}
