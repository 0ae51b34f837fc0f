//! Locality-sensitive hashing by random hyperplanes.

use std::path::Path;

use candle_core::{DType, Device, Tensor};
use sconce_ops::Generator;
use serde::{Deserialize, Serialize};

use super::{Samples, affine, fitted};
use crate::hasher::check_bits;
use crate::{FitOptions, FitReport, Hasher, Result, TrainSet, file};

/// Options of [`Lsh`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct LshConfig {
    /// Bits of a code, any number that codes can have.
    pub bits: usize,
    /// Seed of the hyperplanes.
    pub seed: u64,
}

impl Default for LshConfig {
    fn default() -> Self {
        Self { bits: 64, seed: 1 }
    }
}

/// Signs of random projections (Charikar 2002, STOC): two codes differ at a bit with the probability angle / pi. The mean of the
/// training set is taken off first; nothing else is learned from it.
#[derive(Debug, Clone)]
pub struct Lsh {
    /// Its options.
    pub config: LshConfig,
    /// What a fit leaves.
    pub model: Option<LshModel>,
}

/// What [`Lsh`] keeps, in double precision.
#[derive(Debug, Clone)]
pub struct LshModel {
    /// `(d)`.
    pub mean: Tensor,
    /// `(d, K)`, one hyperplane's normal a column.
    pub projection: Tensor,
}

impl Lsh {
    /// Its name in files.
    pub const METHOD: &'static str = "lsh";

    /// Not yet fitted.
    ///
    /// # Errors
    /// A number of bits that no code has.
    pub fn new(config: &LshConfig) -> Result<Self> {
        check_bits(config.bits)?;
        Ok(Self { config: config.clone(), model: None })
    }
}

impl Hasher for Lsh {
    fn method(&self) -> &'static str {
        Self::METHOD
    }

    fn bits(&self) -> usize {
        self.config.bits
    }

    fn fit(&mut self, data: &TrainSet<'_>, _: &FitOptions) -> Result<FitReport> {
        let Samples { mean, .. } = Samples::read(data.inputs)?;
        let shape = (mean.dim(0)?, self.config.bits);
        let projection =
            Generator::new(self.config.seed).fork("lsh").normal(0.0, 1.0, shape, DType::F64, &Device::Cpu)?;
        self.model = Some(LshModel { mean, projection });
        Ok(FitReport::completed(vec![]))
    }

    fn project(&self, xs: &Tensor) -> Result<Tensor> {
        let model = fitted(&self.model, Self::METHOD)?;
        affine(xs, &model.mean, &model.projection)
    }

    fn save(&self, path: &Path) -> Result<()> {
        let LshModel { mean, projection } = fitted(&self.model, Self::METHOD)?.clone();
        file::write(path, Self::METHOD, &self.config, vec![("mean".into(), mean), ("projection".into(), projection)])
    }

    fn load(path: &Path, _: &Device) -> Result<Self> {
        let (config, mut tensors) = file::read::<LshConfig>(path, Self::METHOD, &Device::Cpu)?;
        let mean = file::take(path, &mut tensors, "mean", &[None])?;
        let shape = [Some(mean.dim(0)?), Some(config.bits)];
        let projection = file::take(path, &mut tensors, "projection", &shape)?;
        Ok(Self { model: Some(LshModel { mean, projection }), ..Self::new(&config)? })
    }
}
