//! What is done to pictures and features so that a method has something to learn from.

use candle_core::{DType, Result, Tensor, bail};
use sconce_ops::{Generator, dropout};
use serde::{Deserialize, Serialize};

/// A random change of a batch, drawn from a seeded generator. Several are applied in their order.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Corruption {
    /// Pictures: sets this share of the square patches of each to 0, rounded to whole patches. After normalisation 0 is the mean.
    PatchMask {
        /// Pixels on a side; the last row and column of patches may be cut off by the picture's edge.
        patch: usize,
        /// Share of the patches, in `[0, 1]`.
        ratio: f64,
    },
    /// Pictures: sets a square of each to 0, its centre anywhere in the picture, as cutout does (DeVries and Taylor 2017,
    /// `arXiv:1708.04552`).
    Cutout {
        /// Pixels on a side.
        size: usize,
    },
    /// Pictures: moves each by up to so many pixels, with 0 where nothing was, and mirrors half of them.
    Shift {
        /// Most pixels, in each direction.
        pixels: usize,
        /// Whether to mirror.
        mirror: bool,
    },
    /// Features: adds normal noise whose standard deviation is this share of each row's root mean square.
    Noise {
        /// The share, at least 0.
        std: f64,
    },
    /// Features: dropout; survivors are divided by `1 - p`.
    Dropout {
        /// Probability of dropping, in `[0, 1)`.
        p: f64,
    },
    /// Features: sets this share of the values of each row to 0, rounded to whole values.
    Mask {
        /// The share, in `[0, 1]`.
        ratio: f64,
    },
}

impl Corruption {
    /// The batch after the change.
    ///
    /// # Shapes
    /// - `xs` `(B, C, H, W)` for pictures, `(B, *)` for features
    /// - output: as `xs`
    ///
    /// # Errors
    /// Another shape, options out of range.
    pub fn apply(&self, xs: &Tensor, generator: &Generator) -> Result<Tensor> {
        let share = |name: &str, value: f64| match (0.0..=1.0).contains(&value) {
            true => Ok(value),
            false => bail!("{name} is {value}, not in [0, 1]"),
        };
        match *self {
            Self::PatchMask { patch, ratio } => patch_mask(xs, patch, share("ratio", ratio)?, generator),
            Self::Cutout { size } => cutout(xs, size, generator),
            Self::Shift { pixels, mirror } => shift(xs, pixels, mirror, generator),
            Self::Noise { std } => noise(xs, std, generator),
            Self::Dropout { p } => dropout(xs, p, generator),
            Self::Mask { ratio } => mask(xs, share("ratio", ratio)?, generator),
        }
    }
}

/// Applies all of them.
pub(super) fn corrupt(xs: &Tensor, corruptions: &[Corruption], generator: &Generator) -> Result<Tensor> {
    corruptions.iter().try_fold(xs.clone(), |xs, corruption| corruption.apply(&xs, generator))
}

/// `keep` of 1 and 0, of a shape that broadcasts to that of `xs`.
fn times(xs: &Tensor, keep: Vec<u8>, shape: &[usize]) -> Result<Tensor> {
    let keep = Tensor::from_vec(keep, shape, xs.device())?.broadcast_as(xs.shape())?;
    // Not a product: 0 times what is not finite is not 0.
    keep.where_cond(xs, &xs.zeros_like()?)
}

/// Which of `n` are chosen, exactly `share` of them.
fn choose(n: usize, share: f64, generator: &Generator) -> Vec<usize> {
    let mut order: Vec<usize> = (0..n).collect();
    generator.shuffle(&mut order);
    order.truncate((share * n as f64).round() as usize);
    order
}

fn patch_mask(xs: &Tensor, patch: usize, ratio: f64, generator: &Generator) -> Result<Tensor> {
    let (b, _, h, w) = xs.dims4()?;
    if patch == 0 {
        bail!("patches of no pixels");
    }
    let (rows, columns) = (h.div_ceil(patch), w.div_ceil(patch));
    let mut keep = vec![1u8; b * h * w];
    for picture in keep.chunks_mut((h * w).max(1)) {
        for at in choose(rows * columns, ratio, generator) {
            let (top, left) = (at / columns * patch, at % columns * patch);
            for row in top..(top + patch).min(h) {
                picture[row * w + left..row * w + (left + patch).min(w)].fill(0);
            }
        }
    }
    times(xs, keep, &[b, 1, h, w])
}

fn cutout(xs: &Tensor, size: usize, generator: &Generator) -> Result<Tensor> {
    let (b, _, h, w) = xs.dims4()?;
    let mut keep = vec![1u8; b * h * w];
    for picture in keep.chunks_mut((h * w).max(1)) {
        let (y, x) = (generator.index(h), generator.index(w));
        let (top, left) = (y.saturating_sub(size / 2), x.saturating_sub(size / 2));
        let end = |centre: usize, side: usize| centre.saturating_add(size - size / 2).min(side);
        for row in top..end(y, h) {
            picture[row * w + left..row * w + end(x, w)].fill(0);
        }
    }
    times(xs, keep, &[b, 1, h, w])
}

fn shift(xs: &Tensor, pixels: usize, mirror: bool, generator: &Generator) -> Result<Tensor> {
    let (b, _, h, w) = xs.dims4()?;
    let padded = xs.pad_with_zeros(2, pixels, pixels)?.pad_with_zeros(3, pixels, pixels)?;
    let backwards = Tensor::from_iter((0..w as u32).rev(), xs.device())?;
    let one = |i: usize| -> Result<Tensor> {
        let (y, x) = (generator.index(2 * pixels + 1), generator.index(2 * pixels + 1));
        let part = padded.narrow(0, i, 1)?.narrow(2, y, h)?.narrow(3, x, w)?.contiguous()?;
        if mirror && generator.f64() < 0.5 { part.index_select(&backwards, 3) } else { Ok(part) }
    };
    if b == 0 {
        return Ok(xs.clone());
    }
    Tensor::cat(&(0..b).map(one).collect::<Result<Vec<_>>>()?, 0)
}

fn noise(xs: &Tensor, std: f64, generator: &Generator) -> Result<Tensor> {
    if !(std.is_finite() && std >= 0.0) {
        bail!("std is {std}, not a number from 0");
    }
    let flat = xs.flatten_from(1)?;
    let size = (flat.to_dtype(DType::F32)?.sqr()?.mean_keepdim(1)?.sqrt()? * std)?; // (B, 1)
    let draw = generator.normal(0.0, 1.0, flat.shape(), DType::F32, xs.device())?;
    (flat + draw.broadcast_mul(&size)?.to_dtype(xs.dtype())?)?.reshape(xs.shape())
}

fn mask(xs: &Tensor, ratio: f64, generator: &Generator) -> Result<Tensor> {
    let (b, d) = xs.flatten_from(1)?.dims2()?;
    let mut keep = vec![1u8; b * d];
    for row in keep.chunks_mut(d.max(1)) {
        choose(d, ratio, generator).into_iter().for_each(|at| row[at] = 0);
    }
    times(xs, keep, xs.dims())
}

#[cfg(test)]
mod tests {
    use candle_core::Device;

    use super::*;

    fn ones(shape: &[usize]) -> Tensor {
        Tensor::ones(shape, DType::F32, &Device::Cpu).unwrap()
    }

    /// Ones of each sample that are left.
    fn left(xs: &Tensor) -> Vec<f32> {
        xs.flatten_from(1).unwrap().sum(1).unwrap().to_vec1().unwrap()
    }

    fn apply(corruption: Corruption, xs: &Tensor, seed: u64) -> Tensor {
        corruption.apply(xs, &Generator::new(seed)).unwrap()
    }

    #[test]
    fn the_stated_share_is_masked() {
        let patches = Corruption::PatchMask { patch: 4, ratio: 0.25 };
        // 16 patches, 4 of them masked, in all channels.
        assert_eq!(left(&apply(patches, &ones(&[3, 2, 16, 16]), 1)), [2.0 * 192.0; 3]);
        assert_eq!(left(&apply(Corruption::Mask { ratio: 0.3 }, &ones(&[2, 10]), 1)), [7.0; 2]);
        assert_eq!(left(&apply(Corruption::Mask { ratio: 1.0 }, &ones(&[2, 10]), 1)), [0.0; 2]);
        // Patches at the edge are cut off: the sides do not divide.
        assert_eq!(left(&apply(Corruption::PatchMask { patch: 4, ratio: 1.0 }, &ones(&[2, 1, 7, 9]), 1)), [0.0; 2]);
    }

    #[test]
    fn a_square_is_cut_out() {
        for seed in 0..20 {
            let hole = 64.0 - left(&apply(Corruption::Cutout { size: 3 }, &ones(&[1, 1, 8, 8]), seed))[0];
            assert!((4.0..=9.0).contains(&hole), "{hole}");
        }
        assert_eq!(left(&apply(Corruption::Cutout { size: 99 }, &ones(&[1, 1, 8, 8]), 1)), [0.0]);
    }

    #[test]
    fn a_shift_moves_and_mirrors_what_is_there() {
        let xs = Tensor::arange(1f32, 17.0, &Device::Cpu).unwrap().reshape((1, 1, 4, 4)).unwrap();
        let still = Corruption::Shift { pixels: 0, mirror: true };
        let firsts: Vec<f32> =
            (0..20).map(|seed| apply(still, &xs, seed).flatten_all().unwrap().to_vec1::<f32>().unwrap()[0]).collect();
        assert!(firsts.contains(&1.0) && firsts.contains(&4.0) && firsts.iter().all(|x| [1.0, 4.0].contains(x)));
        let moved = apply(Corruption::Shift { pixels: 2, mirror: false }, &xs, 3);
        let values = moved.flatten_all().unwrap().to_vec1::<f32>().unwrap();
        let kept: Vec<f32> = values.into_iter().filter(|x| *x != 0.0).collect();
        assert!(kept.is_sorted() && kept.len() >= 4);
    }

    #[test]
    fn noise_has_the_stated_size() {
        let xs = (ones(&[4, 4000]) * 3.0).unwrap();
        let noise = (apply(Corruption::Noise { std: 0.5 }, &xs, 1) - &xs).unwrap();
        let std = noise.sqr().unwrap().mean_all().unwrap().sqrt().unwrap().to_scalar::<f32>().unwrap();
        assert!((std - 1.5).abs() < 0.05, "{std}");
    }

    #[test]
    fn the_seed_decides_and_every_type_flows() {
        let all = [
            Corruption::PatchMask { patch: 2, ratio: 0.5 },
            Corruption::Cutout { size: 3 },
            Corruption::Shift { pixels: 1, mirror: true },
            Corruption::Noise { std: 0.1 },
            Corruption::Dropout { p: 0.5 },
            Corruption::Mask { ratio: 0.5 },
        ];
        for dtype in [DType::F32, DType::F64, DType::F16, DType::BF16] {
            let xs = Generator::new(1).normal(0.0, 1.0, (2, 2, 6, 6), dtype, &Device::Cpu).unwrap();
            for corruption in all {
                let values = |seed| {
                    let ys = apply(corruption, &xs, seed);
                    assert_eq!((ys.dims(), ys.dtype()), (xs.dims(), dtype));
                    ys.to_dtype(DType::F64).unwrap().flatten_all().unwrap().to_vec1::<f64>().unwrap()
                };
                assert_eq!(values(1), values(1));
                assert_ne!(values(1), values(2), "{corruption:?}");
            }
        }
    }

    #[test]
    fn options_out_of_range_are_refused() {
        let bad = [
            Corruption::PatchMask { patch: 0, ratio: 0.5 },
            Corruption::PatchMask { patch: 2, ratio: 1.5 },
            Corruption::Noise { std: -1.0 },
            Corruption::Dropout { p: 2.0 },
            Corruption::Mask { ratio: f64::NAN },
        ];
        for corruption in bad {
            assert!(corruption.apply(&ones(&[1, 1, 4, 4]), &Generator::new(1)).is_err(), "{corruption:?}");
        }
        assert!(Corruption::Cutout { size: 2 }.apply(&ones(&[2, 4]), &Generator::new(1)).is_err());
    }
}
