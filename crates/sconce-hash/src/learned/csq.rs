//! Central similarity quantisation.

use candle_core::{Device, Tensor};
use sconce_nn::{Linear, VarBuilder, linear};
use sconce_ops::Generator;
use serde::{Deserialize, Serialize};

use super::{Batch, EncoderConfig, LearnedHasher, Network, Objective, TrainConfig};
use crate::losses::{central_quantisation, central_similarity};
use crate::{Error, Labels, Result};

/// CSQ (Yuan et al. 2020, `arXiv:1908.00347`), supervised: each class has a centre far from all others, and the codes of its pictures
/// are drawn to it.
///
/// Tensors: `backbone.*`, `hash.weight` `(K, d)`, `hash.bias`.
pub type Csq = LearnedHasher<CsqConfig>;

/// Options of [`Csq`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct CsqConfig {
    /// Bits of a code.
    pub bits: usize,
    /// Number of classes.
    pub classes: usize,
    /// What is hashed.
    pub encoder: EncoderConfig,
    /// Weight of the quantisation loss.
    pub lambda: f64,
    /// How it is trained; the seed also decides what is random in the centres.
    pub train: TrainConfig,
}

impl Default for CsqConfig {
    /// 64 bits and 10 classes on ViT-B/16 at 224 pixels. The rates are ours.
    fn default() -> Self {
        Self {
            bits: 64,
            classes: 10,
            encoder: super::ViT2HashConfig::default().encoder,
            lambda: 1e-4,
            train: TrainConfig::default(),
        }
    }
}

impl CsqConfig {
    /// For features of width `dim` instead of pictures.
    #[must_use]
    pub fn features(dim: usize, bits: usize, classes: usize) -> Self {
        Self {
            bits,
            classes,
            encoder: EncoderConfig::Features { dim, hidden: 0 },
            train: TrainConfig { encoder_lr: 0.0, ..TrainConfig::default() },
            ..Self::default()
        }
    }
}

/// Sylvester's Hadamard matrix: rows of +1 and -1 that differ from each other at half of the places.
///
/// # Errors
/// When `n` is no power of two.
pub fn hadamard(n: usize) -> Result<Vec<Vec<i8>>> {
    if !n.is_power_of_two() {
        return Err(Error::Config(format!("no Hadamard matrix of {n} rows: not a power of two")));
    }
    // The entry is the parity of the bits that row and column share.
    let entry = |i: usize, j: usize| if (i & j).count_ones().is_multiple_of(2) { 1 } else { -1 };
    Ok((0..n).map(|i| (0..n).map(|j| entry(i, j)).collect()).collect())
}

/// The centres of all classes, rows of K times +1 or -1: the first of `[H; -H]` for a K that is a power of two and at most 2K classes.
/// Otherwise half of each centre's bits are +1 at random places, and of 32 such draws the one farthest from the centres before it is
/// taken (the paper draws single bits).
///
/// # Errors
/// No class or bit; more classes than such centres were found for.
pub fn hash_centers(classes: usize, bits: usize, seed: u64) -> Result<Vec<Vec<i8>>> {
    const DRAWS: usize = 32;
    if classes == 0 || bits == 0 {
        return Err(Error::Config(format!("centres of {bits} bits for {classes} classes")));
    }
    if bits.is_power_of_two() && classes <= 2 * bits {
        let rows = hadamard(bits)?;
        let negated = rows.iter().map(|row| row.iter().map(|x| -x).collect());
        return Ok(rows.iter().cloned().chain(negated).take(classes).collect());
    }
    let generator = Generator::new(seed).fork("centres");
    let mut centers: Vec<Vec<i8>> = Vec::with_capacity(classes);
    for class in 0..classes {
        let mut best: (usize, Vec<i8>) = (0, vec![]);
        for _ in 0..DRAWS {
            let mut draw: Vec<i8> = (0..bits).map(|i| if i < bits / 2 { 1 } else { -1 }).collect();
            generator.shuffle(&mut draw);
            let distance = |other: &Vec<i8>| draw.iter().zip(other).filter(|(a, b)| a != b).count();
            let nearest = centers.iter().map(distance).min().unwrap_or(bits);
            if nearest > best.0 {
                best = (nearest, draw);
            }
        }
        if best.0 == 0 {
            return Err(Error::Config(format!("{bits} bits have no room for a centre of class {class} of {classes}")));
        }
        centers.push(best.1);
    }
    Ok(centers)
}

/// What each sample is drawn to: the centre of its class. Of several classes, the sign of the sum of their centres; where that is 0,
/// a random bit, the same for all samples.
///
/// # Shapes
/// - output `(N, K)`, f32, of +1 and -1
///
/// # Errors
/// A label that is no class, a sample without any, flags of another number than there are centres.
pub fn hash_targets(labels: &Labels, centers: &[Vec<i8>], seed: u64, device: &Device) -> Result<Tensor> {
    let (classes, bits) = (centers.len(), centers.first().map_or(0, Vec::len));
    let generator = Generator::new(seed).fork("ties");
    let ties: Vec<i32> = (0..bits).map(|_| if generator.f64() < 0.5 { 1 } else { -1 }).collect();
    let mut signs = Vec::with_capacity(labels.len() * bits);
    match labels {
        Labels::Single(labels) => {
            for (i, &label) in labels.iter().enumerate() {
                let center = centers.get(label as usize);
                let center =
                    center.ok_or_else(|| Error::Input(format!("sample {i} is of class {label} of {classes}")))?;
                signs.extend(center.iter().map(|x| f32::from(*x)));
            }
        }
        Labels::Multi(rows) => {
            for (i, row) in rows.iter().enumerate() {
                if row.len() != classes || !row.contains(&true) {
                    let count = row.iter().filter(|flag| **flag).count();
                    let what =
                        format!("sample {i} has {count} of {} classes, expected one or more of {classes}", row.len());
                    return Err(Error::Input(what));
                }
                signs.extend((0..bits).map(|k| {
                    let sum: i32 =
                        row.iter().zip(centers).filter(|(flag, _)| **flag).map(|(_, c)| i32::from(c[k])).sum();
                    let sign = if sum == 0 { ties[k] } else { sum.signum() };
                    sign as f32
                }));
            }
        }
    }
    Ok(Tensor::from_vec(signs, (labels.len(), bits), device)?)
}

impl Objective for CsqConfig {
    const METHOD: &'static str = "csq";

    fn bits(&self) -> usize {
        self.bits
    }

    fn encoder(&self) -> &EncoderConfig {
        &self.encoder
    }

    fn train(&self) -> &TrainConfig {
        &self.train
    }

    fn validate(&self) -> Result<()> {
        if !(self.lambda.is_finite() && self.lambda >= 0.0) {
            return Err(Error::Config(format!("lambda is {}, not a number from 0", self.lambda)));
        }
        hash_centers(self.classes, self.bits, self.train.seed).map(|_| ())
    }

    fn head(&self, dim: usize, vb: VarBuilder) -> candle_core::Result<Vec<Linear>> {
        Ok(vec![linear(dim, self.bits, vb.pp("hash"))?])
    }

    fn needs_teacher(&self, frozen: bool) -> bool {
        frozen
    }

    fn targets(&self, labels: Option<&Labels>, n: usize, device: &Device) -> Result<Option<Tensor>> {
        let labels = labels.ok_or_else(|| Error::Config("CSQ learns from labels: give some".into()))?;
        if labels.len() != n {
            return Err(Error::Input(format!("{} labels for {n} samples", labels.len())));
        }
        let centers = hash_centers(self.classes, self.bits, self.train.seed)?;
        Ok(Some(hash_targets(labels, &centers, self.train.seed, device)?))
    }

    fn loss(&self, network: &Network, batch: &Batch<'_>) -> Result<Tensor> {
        let u = network.hash(&batch.features(network)?)?;
        let centers = batch.targets.as_ref().ok_or_else(|| Error::Config("no labels".into()))?.to_dtype(u.dtype())?;
        Ok((central_similarity(&u, &centers)? + (central_quantisation(&u)? * self.lambda)?)?)
    }
}
