//! Methods without a network, in double precision on the CPU.
//!
//! What they take are features `(N, d)`, or pictures, which are flattened to `d` values each.

mod itq;
mod lsh;
mod spectral;

use candle_core::{DType, Device, Tensor};
use sconce_ops::matmul;

use crate::hasher::all_batches;
use crate::linalg::{Square, symmetric_eigen};
use crate::{Error, Inputs, Result};

pub use itq::{Itq, ItqConfig, ItqModel, ItqRotation, itq_rotation};
pub use lsh::{Lsh, LshConfig, LshModel};
pub use spectral::{SpectralHashing, SpectralHashingConfig, SpectralHashingModel};

/// Rows that are read at once.
const ROWS: usize = 1024;

/// `(B, *)` as `(B, d)` in double precision on the CPU.
fn flat(xs: &Tensor) -> Result<Tensor> {
    if xs.rank() < 2 || !xs.dtype().is_float() {
        return Err(Error::Input(format!("features of shape {:?} and type {:?}", xs.dims(), xs.dtype())));
    }
    Ok(xs.to_device(&Device::Cpu)?.to_dtype(DType::F64)?.flatten_from(1)?)
}

/// All inputs as one matrix, and their mean.
struct Samples {
    /// `(N, d)`, the mean taken off.
    centred: Tensor,
    /// `(d)`.
    mean: Tensor,
}

impl Samples {
    fn read(inputs: &dyn Inputs) -> Result<Self> {
        let n = inputs.len();
        if n < 2 {
            return Err(Error::Input(format!("{n} samples: at least 2 are needed")));
        }
        let mut blocks = vec![];
        for (block, indices) in all_batches(inputs, ROWS)?.iter().enumerate() {
            let xs = flat(&inputs.batch(indices)?)?;
            let (rows, d) = xs.dims2()?;
            let values = xs.flatten_all()?.to_vec1::<f64>()?;
            if let Some(at) = values.iter().position(|v| !v.is_finite()) {
                let row = block * ROWS + at / d;
                return Err(Error::Input(format!("sample {row} is {} at {}", values[at], at % d)));
            }
            if rows != indices.len() || d == 0 {
                return Err(Error::Input(format!("{} samples came as shape ({rows}, {d})", indices.len())));
            }
            blocks.push(xs);
        }
        let all = Tensor::cat(&blocks, 0)?; // (N, d)
        let mean = all.mean(0)?;
        Ok(Self { centred: all.broadcast_sub(&mean)?, mean })
    }
}

/// Principal components of centred samples.
struct Pca {
    /// `(d, k)`: unit columns, of the largest variance first; the entry of largest magnitude is positive, the first of several.
    components: Tensor,
    /// Components whose variance is more than rounding.
    rank: usize,
}

impl Pca {
    /// The first `k` components, or all d where there are fewer.
    fn new(centred: &Tensor, k: usize) -> Result<Self> {
        let (n, d) = centred.dims2()?;
        let covariance = (matmul(&centred.t()?, centred)? / (n - 1) as f64)?; // (d, d)
        let (variances, vectors) = symmetric_eigen(&Square::new(d, covariance.flatten_all()?.to_vec1()?)?)?;
        let least = variances[0] * f64::EPSILON * d.max(n) as f64;
        let rank = variances.iter().take_while(|v| **v > least).count();
        let mut rows = Vec::with_capacity(k.min(d) * d);
        for i in 0..k.min(d) {
            let row = vectors.row(i);
            let largest = row.iter().fold(0f64, |m, v| if v.abs() > m.abs() { *v } else { m });
            rows.extend(row.iter().map(|v| v * 1f64.copysign(largest)));
        }
        let components = Tensor::from_vec(rows, (k.min(d), d), &Device::Cpu)?.t()?.contiguous()?;
        Ok(Self { components, rank })
    }
}

/// `(xs - mean) weight` for inputs as they come.
fn affine(xs: &Tensor, mean: &Tensor, weight: &Tensor) -> Result<Tensor> {
    let xs = flat(xs)?;
    if xs.dim(1)? != mean.dim(0)? {
        return Err(Error::Input(format!("features of width {}, fitted on {}", xs.dim(1)?, mean.dim(0)?)));
    }
    Ok(matmul(&xs.broadcast_sub(mean)?, weight)?)
}

fn fitted<'a, M>(model: &'a Option<M>, method: &str) -> Result<&'a M> {
    model.as_ref().ok_or_else(|| Error::Input(format!("{method} has not been fitted")))
}
