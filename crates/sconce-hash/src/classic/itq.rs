//! Iterative quantisation.

use std::path::Path;

use candle_core::{DType, Device, Tensor};
use sconce_ops::{Generator, matmul};
use serde::{Deserialize, Serialize};

use super::{Pca, Samples, affine, fitted};
use crate::hasher::check_bits;
use crate::linalg::{Square, svd};
use crate::losses::sign;
use crate::{Error, FitOptions, FitReport, Hasher, Result, TrainSet, file};

/// Options of [`Itq`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ItqConfig {
    /// Bits of a code: at most the number of directions that the training set has.
    pub bits: usize,
    /// Updates of the rotation, the paper's 50.
    pub iterations: usize,
    /// Seed of the first rotation.
    pub seed: u64,
}

impl Default for ItqConfig {
    fn default() -> Self {
        Self { bits: 64, iterations: 50, seed: 1 }
    }
}

/// PCA-ITQ (Gong and Lazebnik 2011, CVPR): the first K principal components, rotated so that their signs are near them. The
/// covariance costs `N d^2`, its components `d^3`, each update of the rotation `N K^2 + K^3`.
#[derive(Debug, Clone)]
pub struct Itq {
    /// Its options.
    pub config: ItqConfig,
    /// What a fit leaves.
    pub model: Option<ItqModel>,
}

/// What [`Itq`] keeps, in double precision.
#[derive(Debug, Clone)]
pub struct ItqModel {
    /// `(d)`.
    pub mean: Tensor,
    /// `(d, K)`, a principal component a column, the entry of largest magnitude positive.
    pub pca: Tensor,
    /// `(K, K)`, orthogonal.
    pub rotation: Tensor,
}

/// A rotation that [`itq_rotation`] found.
#[derive(Debug, Clone)]
pub struct ItqRotation {
    /// `(K, K)`.
    pub rotation: Tensor,
    /// `|sign(P R) - P R|^2` before each update and after the last: it never rises.
    pub losses: Vec<f64>,
}

/// Rotates projections towards their signs: `B = sign(P R)`, then the orthogonal R nearest to mapping P to B (Procrustes), in turn.
///
/// # Shapes
/// - `projected` `(N, K)` and `start` `(K, K)`, orthogonal, in double precision on the CPU
///
/// # Errors
/// Other shapes or types, values that are not finite.
pub fn itq_rotation(projected: &Tensor, start: &Tensor, iterations: usize) -> Result<ItqRotation> {
    let (_, k) = projected.dims2()?;
    if start.dims() != [k, k] || start.dtype() != DType::F64 || projected.dtype() != DType::F64 {
        let (found, dtype) = (start.dims(), start.dtype());
        return Err(Error::Input(format!(
            "a rotation {found:?} {dtype:?} for {k} projections in {:?}",
            projected.dtype()
        )));
    }
    let mut rotation = start.clone();
    let mut losses = Vec::with_capacity(iterations + 1);
    let mut guess = None;
    for iteration in 0..=iterations {
        let rotated = matmul(projected, &rotation)?; // (N, K)
        let codes = sign(&rotated)?;
        losses.push((&codes - rotated)?.sqr()?.sum_all()?.to_scalar::<f64>()?);
        if iteration == iterations {
            break;
        }
        let products = matmul(&codes.t()?, projected)?; // (K, K)
        let found = svd(&Square::new(k, products.flatten_all()?.to_vec1()?)?, guess.as_ref())?;
        // B^T P = U S V^T; R = V U^T.
        let (ut, vt) = (tensor(&found.ut)?, tensor(&found.vt)?);
        rotation = matmul(&vt.t()?, &ut)?;
        guess = Some(found.vt);
    }
    Ok(ItqRotation { rotation, losses })
}

fn tensor(square: &Square) -> Result<Tensor> {
    Ok(Tensor::from_slice(&square.values, (square.n, square.n), &Device::Cpu)?)
}

impl Itq {
    /// Its name in files.
    pub const METHOD: &'static str = "itq";

    /// Not yet fitted.
    ///
    /// # Errors
    /// A number of bits that no code has.
    pub fn new(config: &ItqConfig) -> Result<Self> {
        check_bits(config.bits)?;
        Ok(Self { config: config.clone(), model: None })
    }

    /// The orthogonal factor of a matrix of normal numbers.
    fn start(&self) -> Result<Tensor> {
        let (generator, k) = (Generator::new(self.config.seed).fork("itq"), self.config.bits);
        let normal = Square::new(k, (0..k * k).map(|_| generator.gaussian()).collect())?;
        tensor(&svd(&normal, None)?.ut.transposed())
    }
}

impl Hasher for Itq {
    fn method(&self) -> &'static str {
        Self::METHOD
    }

    fn bits(&self) -> usize {
        self.config.bits
    }

    fn fit(&mut self, data: &TrainSet<'_>, _: &FitOptions) -> Result<FitReport> {
        let Samples { centred, mean } = Samples::read(data.inputs)?;
        let bits = self.config.bits;
        let Pca { components: pca, rank } = Pca::new(&centred, bits)?;
        if bits > rank {
            return Err(Error::Input(format!("{bits} bits need {bits} directions, the samples have {rank}")));
        }
        let found = itq_rotation(&matmul(&centred, &pca)?, &self.start()?, self.config.iterations)?;
        self.model = Some(ItqModel { mean, pca, rotation: found.rotation });
        Ok(FitReport::completed(found.losses))
    }

    fn project(&self, xs: &Tensor) -> Result<Tensor> {
        let model = fitted(&self.model, Self::METHOD)?;
        Ok(matmul(&affine(xs, &model.mean, &model.pca)?, &model.rotation)?)
    }

    fn save(&self, path: &Path) -> Result<()> {
        let ItqModel { mean, pca, rotation } = fitted(&self.model, Self::METHOD)?.clone();
        let tensors = vec![("mean".into(), mean), ("pca".into(), pca), ("rotation".into(), rotation)];
        file::write(path, Self::METHOD, &self.config, tensors)
    }

    fn load(path: &Path, _: &Device) -> Result<Self> {
        let (config, mut tensors) = file::read::<ItqConfig>(path, Self::METHOD, &Device::Cpu)?;
        let k = Some(config.bits);
        let mean = file::take(path, &mut tensors, "mean", &[None])?;
        let pca = file::take(path, &mut tensors, "pca", &[Some(mean.dim(0)?), k])?;
        let rotation = file::take(path, &mut tensors, "rotation", &[k, k])?;
        Ok(Self { model: Some(ItqModel { mean, pca, rotation }), ..Self::new(&config)? })
    }
}
