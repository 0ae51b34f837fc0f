//! RandAugment as timm has it.

use std::str::FromStr;

use super::affine::Warp;
use super::operation::Operation;
use crate::{Error, Filter, Generator, Result, Transform};
use image::RgbImage;
use serde::{Deserialize, Serialize};

/// Strengths go from 0 to this.
const LEVELS: f64 = 10.0;

/// RandAugment (Cubuk et al. 2019, `arXiv:1909.13719`) with timm's fifteen operations and laws.
///
/// `num_layers` operations are drawn, each with replacement, and each is carried out with a probability, at a strength that
/// varies around `magnitude`. Parsed from timm's words:
///
/// ```
/// use sconce_data::augment::RandAugment;
///
/// let policy: RandAugment = "rand-m9-mstd0.5-inc1".parse()?;
/// assert_eq!((policy.magnitude, policy.magnitude_std, policy.increasing), (9.0, 0.5, true));
/// # Ok::<(), sconce_data::Error>(())
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct RandAugment {
    /// Operations drawn for a picture (`n`).
    pub num_layers: usize,
    /// Strength, from 0 to 10 (`m`).
    pub magnitude: f64,
    /// Standard deviation of the strength (`mstd`); infinite for a uniform strength from 0 to `magnitude`, which timm writes
    /// as more than 100.
    pub magnitude_std: f64,
    /// Most strength (`mmax`).
    pub magnitude_max: f64,
    /// Probability of each operation that was drawn (`p`).
    pub probability: f64,
    /// Whether all operations are stronger the higher the strength (`inc1`); in the original, posterise and solarise go the
    /// other way, and the enhancements have no neutral value.
    pub increasing: bool,
    /// Largest shift, as a share of the picture's side.
    pub translate: f64,
    /// Colour of what comes from outside the picture: the mean of the data in timm.
    pub fill: [u8; 3],
    /// Filter of the warps; without one, bilinear or bicubic, drawn each time.
    pub filter: Option<Filter>,
}

impl Default for RandAugment {
    /// Two operations at strength 10, each with probability one half, on grey.
    fn default() -> Self {
        Self {
            num_layers: 2,
            magnitude: LEVELS,
            magnitude_std: 0.0,
            magnitude_max: LEVELS,
            probability: 0.5,
            increasing: false,
            translate: 0.45,
            fill: [128; 3],
            filter: None,
        }
    }
}

impl FromStr for RandAugment {
    type Err = Error;

    /// `rand` and sections after dashes: `m9`, `n2`, `p0.5`, `mstd0.5`, `mmax10`, `inc1`.
    fn from_str(text: &str) -> Result<Self> {
        let fail = |why: String| Error::invalid("policy", format!("{text:?}: {why}"));
        let mut sections = text.split('-');
        if sections.next() != Some("rand") {
            return Err(fail("RandAugment begins with `rand`, as rand-m9-mstd0.5-inc1".into()));
        }
        let mut policy = Self::default();
        for section in sections {
            let (key, number) =
                section.split_at(section.find(|c: char| !c.is_ascii_alphabetic()).unwrap_or(section.len()));
            let value: f64 = number
                .parse()
                .ok()
                .filter(|value: &f64| value.is_finite() && *value >= 0.0)
                .ok_or_else(|| fail(format!("{section:?} is no name with a number")))?;
            match key {
                "m" => policy.magnitude = value,
                "n" => policy.num_layers = value as usize,
                "p" => policy.probability = value,
                "mstd" => policy.magnitude_std = if value > 100.0 { f64::INFINITY } else { value },
                "mmax" => policy.magnitude_max = value,
                "inc" => policy.increasing = value != 0.0,
                _ => return Err(fail(format!("unknown section {section:?}"))),
            }
        }
        Ok(policy)
    }
}

/// The fifteen kinds.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Kind {
    AutoContrast,
    Equalize,
    Invert,
    Rotate,
    Posterize,
    Solarize,
    SolarizeAdd,
    Color,
    Contrast,
    Brightness,
    Sharpness,
    ShearX,
    ShearY,
    TranslateX,
    TranslateY,
}

const KINDS: [Kind; 15] = [
    Kind::AutoContrast,
    Kind::Equalize,
    Kind::Invert,
    Kind::Rotate,
    Kind::Posterize,
    Kind::Solarize,
    Kind::SolarizeAdd,
    Kind::Color,
    Kind::Contrast,
    Kind::Brightness,
    Kind::Sharpness,
    Kind::ShearX,
    Kind::ShearY,
    Kind::TranslateX,
    Kind::TranslateY,
];

impl RandAugment {
    /// The strength of an operation, from 0 to [`magnitude_max`](Self::magnitude_max).
    fn strength(&self, generator: &Generator) -> f64 {
        let strength = if self.magnitude_std == f64::INFINITY {
            self.magnitude * generator.f64()
        } else if self.magnitude_std > 0.0 {
            self.magnitude + self.magnitude_std * generator.gaussian()
        } else {
            self.magnitude
        };
        strength.min(self.magnitude_max).max(0.0)
    }

    /// A kind at a strength on a picture of this size; `sign` is 1 or -1.
    fn operation(&self, kind: Kind, strength: f64, sign: f64, [width, height]: [u32; 2]) -> Operation {
        let level = strength / LEVELS;
        let enhance = match self.increasing {
            true => (1.0 + sign * 0.9 * level).max(0.1),
            false => 1.8 * level + 0.1,
        };
        let bits = (level * 4.0) as u8;
        let threshold = ((level * 256.0) as u16).min(256);
        match kind {
            Kind::AutoContrast => Operation::AutoContrast,
            Kind::Equalize => Operation::Equalize,
            Kind::Invert => Operation::Invert,
            Kind::Rotate => Operation::Rotate(sign * 30.0 * level),
            Kind::Posterize => Operation::Posterize(if self.increasing { 4u8.saturating_sub(bits) } else { bits }),
            Kind::Solarize => Operation::Solarize(if self.increasing { 256 - threshold } else { threshold }),
            Kind::SolarizeAdd => Operation::SolarizeAdd(((level * 110.0) as u8).min(128)),
            Kind::Color => Operation::Color(enhance),
            Kind::Contrast => Operation::Contrast(enhance),
            Kind::Brightness => Operation::Brightness(enhance),
            Kind::Sharpness => Operation::Sharpness(enhance),
            Kind::ShearX => Operation::ShearX(sign * 0.3 * level),
            Kind::ShearY => Operation::ShearY(sign * 0.3 * level),
            Kind::TranslateX => Operation::TranslateX(sign * self.translate * level * f64::from(width)),
            Kind::TranslateY => Operation::TranslateY(sign * self.translate * level * f64::from(height)),
        }
    }
}

impl Transform for RandAugment {
    fn apply(&self, mut image: RgbImage, generator: &Generator) -> Result<RgbImage> {
        let kinds: Vec<Kind> = (0..self.num_layers).map(|_| KINDS[generator.index(KINDS.len())]).collect();
        for kind in kinds {
            if generator.f64() >= self.probability {
                continue;
            }
            let strength = self.strength(generator);
            let sign = if generator.f64() < 0.5 { 1.0 } else { -1.0 };
            let either = || if generator.f64() < 0.5 { Filter::Bilinear } else { Filter::Bicubic };
            let warp = Warp { filter: self.filter.unwrap_or_else(either), fill: self.fill };
            let size = [image.width(), image.height()];
            image = self.operation(kind, strength, sign, size).apply(image, warp)?;
        }
        Ok(image)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_words_of_timm_are_read() {
        let policy: RandAugment = "rand-m9-mstd0.5-inc1".parse().unwrap();
        let expected = RandAugment { magnitude: 9.0, magnitude_std: 0.5, increasing: true, ..Default::default() };
        assert_eq!(policy, expected);
        let policy: RandAugment = "rand-n3-p0.7-mmax8-mstd101-inc0".parse().unwrap();
        assert_eq!((policy.num_layers, policy.probability, policy.magnitude_max), (3, 0.7, 8.0));
        assert!(policy.magnitude_std.is_infinite() && !policy.increasing && policy.magnitude == 10.0);
        for wrong in ["", "augmix-m3", "rand-m", "rand-9", "rand-q3", "rand-m9-", "rand-m-1", "rand-mNaN", "randm9"] {
            assert!(wrong.parse::<RandAugment>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn strengths_are_those_of_timm() {
        let increasing: RandAugment = "rand-m9-inc1".parse().unwrap();
        let original: RandAugment = "rand-m9".parse().unwrap();
        let of = |policy: &RandAugment, kind, sign| policy.operation(kind, 9.0, sign, [40, 20]);
        let close = |a: Operation, b: Operation| {
            assert_eq!(std::mem::discriminant(&a), std::mem::discriminant(&b));
            let number = |operation| match operation {
                Operation::Rotate(x) | Operation::ShearX(x) | Operation::TranslateX(x) | Operation::Color(x) => x,
                Operation::TranslateY(x) => x,
                other => panic!("{other:?}"),
            };
            assert!((number(a) - number(b)).abs() < 1e-12, "{a:?} {b:?}");
        };
        close(of(&increasing, Kind::Rotate, -1.0), Operation::Rotate(-27.0));
        close(of(&increasing, Kind::ShearX, 1.0), Operation::ShearX(0.27));
        close(of(&increasing, Kind::TranslateX, 1.0), Operation::TranslateX(16.2));
        close(of(&increasing, Kind::TranslateY, -1.0), Operation::TranslateY(-8.1));
        close(of(&increasing, Kind::Color, 1.0), Operation::Color(1.81));
        close(of(&increasing, Kind::Color, -1.0), Operation::Color(0.19));
        close(of(&original, Kind::Color, 1.0), Operation::Color(1.72));
        assert_eq!(of(&increasing, Kind::Posterize, 1.0), Operation::Posterize(1));
        assert_eq!(of(&original, Kind::Posterize, 1.0), Operation::Posterize(3));
        assert_eq!(of(&increasing, Kind::Solarize, 1.0), Operation::Solarize(26));
        assert_eq!(of(&original, Kind::Solarize, 1.0), Operation::Solarize(230));
        assert_eq!(of(&original, Kind::SolarizeAdd, 1.0), Operation::SolarizeAdd(99));
        assert_eq!(increasing.operation(Kind::Posterize, 0.0, 1.0, [8, 8]), Operation::Posterize(4));
        assert_eq!(increasing.operation(Kind::Solarize, 0.0, 1.0, [8, 8]), Operation::Solarize(256));
    }

    #[test]
    fn strengths_vary_as_they_are_told_to() {
        let generator = Generator::new(1);
        let draw = |text: &str| -> Vec<f64> {
            let policy: RandAugment = text.parse().unwrap();
            (0..4000).map(|_| policy.strength(&generator)).collect()
        };
        assert!(draw("rand-m7").iter().all(|x| *x == 7.0));
        let normal = draw("rand-m5-mstd0.5");
        let mean = normal.iter().sum::<f64>() / 4000.0;
        let deviation = (normal.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / 4000.0).sqrt();
        assert!((mean - 5.0).abs() < 0.04 && (deviation - 0.5).abs() < 0.03, "{mean} {deviation}");
        assert!(draw("rand-m9-mstd3").iter().all(|x| (0.0..=10.0).contains(x)));
        let uniform = draw("rand-m6-mstd101");
        assert!(uniform.iter().all(|x| (0.0..6.0).contains(x)));
        assert!((uniform.iter().sum::<f64>() / 4000.0 - 3.0).abs() < 0.15);
    }
}
