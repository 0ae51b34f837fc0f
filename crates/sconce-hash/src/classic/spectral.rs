//! Spectral hashing.

use std::f64::consts::PI;
use std::path::Path;

use candle_core::{Device, Tensor};
use sconce_ops::matmul;
use serde::{Deserialize, Serialize};

use super::{Pca, Samples, affine, fitted};
use crate::hasher::check_bits;
use crate::{Error, FitOptions, FitReport, Hasher, Result, TrainSet, file};

/// Options of [`SpectralHashing`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct SpectralHashingConfig {
    /// Bits of a code; more than there are directions are possible, with higher modes.
    pub bits: usize,
}

impl Default for SpectralHashingConfig {
    fn default() -> Self {
        Self { bits: 64 }
    }
}

/// Spectral hashing (Weiss, Torralba and Fergus 2008, NIPS): eigenfunctions of a box around the principal components. Bit = sign of
/// `sin(pi / 2 + (p_d - min_d) m pi / r_d)`, where `r_d` is the range of component d and (d, m) are the K smallest `m pi / r_d`, of
/// equal ones the earlier component's. Components without any range have no mode.
#[derive(Debug, Clone)]
pub struct SpectralHashing {
    /// Its options.
    pub config: SpectralHashingConfig,
    /// What a fit leaves.
    pub model: Option<SpectralHashingModel>,
}

/// What [`SpectralHashing`] keeps, in double precision.
#[derive(Debug, Clone)]
pub struct SpectralHashingModel {
    /// `(d)`.
    pub mean: Tensor,
    /// `(d, K)`: the component of each bit, so that one may occur several times.
    pub components: Tensor,
    /// `(K)`: least projection of the training set on it.
    pub minimum: Tensor,
    /// `(K)`: `m pi / r_d`, in ascending order.
    pub frequency: Tensor,
}

impl SpectralHashing {
    /// Its name in files.
    pub const METHOD: &'static str = "spectral";

    /// Not yet fitted.
    ///
    /// # Errors
    /// A number of bits that no code has.
    pub fn new(config: &SpectralHashingConfig) -> Result<Self> {
        check_bits(config.bits)?;
        Ok(Self { config: config.clone(), model: None })
    }
}

/// The `bits` smallest frequencies with their components.
fn modes(ranges: &[f64], bits: usize) -> Vec<(f64, usize)> {
    let all = ranges.iter().enumerate().filter(|(_, range)| **range > 0.0);
    let mut modes: Vec<(f64, usize)> =
        all.flat_map(|(d, range)| (1..=bits).map(move |m| (m as f64 * PI / range, d))).collect();
    modes.sort_by(|a, b| a.0.total_cmp(&b.0)); // stable
    modes.truncate(bits);
    modes
}

impl Hasher for SpectralHashing {
    fn method(&self) -> &'static str {
        Self::METHOD
    }

    fn bits(&self) -> usize {
        self.config.bits
    }

    fn fit(&mut self, data: &TrainSet<'_>, _: &FitOptions) -> Result<FitReport> {
        let Samples { centred, mean } = Samples::read(data.inputs)?;
        let Pca { components, rank } = Pca::new(&centred, self.config.bits)?;
        // What is left beyond the rank is rounding, whose range means nothing.
        let components = components.narrow(1, 0, rank.min(components.dim(1)?))?;
        if rank == 0 {
            return Err(Error::Input("the samples are all the same".into()));
        }
        let projected = matmul(&centred, &components)?; // (N, rank)
        let (low, high) = (projected.min(0)?.to_vec1::<f64>()?, projected.max(0)?.to_vec1::<f64>()?);
        let ranges: Vec<f64> = low.iter().zip(&high).map(|(low, high)| high - low).collect();
        let modes = modes(&ranges, self.config.bits);
        let columns: Vec<u32> = modes.iter().map(|(_, d)| *d as u32).collect();
        self.model = Some(SpectralHashingModel {
            mean,
            components: components.contiguous()?.index_select(&Tensor::new(columns, &Device::Cpu)?, 1)?,
            minimum: Tensor::from_iter(modes.iter().map(|(_, d)| low[*d]), &Device::Cpu)?,
            frequency: Tensor::from_iter(modes.iter().map(|(frequency, _)| *frequency), &Device::Cpu)?,
        });
        Ok(FitReport::completed(vec![]))
    }

    fn project(&self, xs: &Tensor) -> Result<Tensor> {
        let model = fitted(&self.model, Self::METHOD)?;
        let projected = affine(xs, &model.mean, &model.components)?; // (B, K)
        let phase = projected.broadcast_sub(&model.minimum)?.broadcast_mul(&model.frequency)?;
        Ok((phase + PI / 2.0)?.sin()?)
    }

    fn save(&self, path: &Path) -> Result<()> {
        let model = fitted(&self.model, Self::METHOD)?.clone();
        let tensors = vec![
            ("mean".into(), model.mean),
            ("components".into(), model.components),
            ("minimum".into(), model.minimum),
            ("frequency".into(), model.frequency),
        ];
        file::write(path, Self::METHOD, &self.config, tensors)
    }

    fn load(path: &Path, _: &Device) -> Result<Self> {
        let (config, mut tensors) = file::read::<SpectralHashingConfig>(path, Self::METHOD, &Device::Cpu)?;
        let k = Some(config.bits);
        let mean = file::take(path, &mut tensors, "mean", &[None])?;
        let components = file::take(path, &mut tensors, "components", &[Some(mean.dim(0)?), k])?;
        let minimum = file::take(path, &mut tensors, "minimum", &[k])?;
        let frequency = file::take(path, &mut tensors, "frequency", &[k])?;
        Ok(Self { model: Some(SpectralHashingModel { mean, components, minimum, frequency }), ..Self::new(&config)? })
    }
}
