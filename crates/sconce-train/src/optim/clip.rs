//! Gradient norms: clipping and the search for values that are not finite.

use candle_core::{DType, Device, Tensor};
use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use super::kernel;
use crate::Result;

/// Clipping of gradients by their Euclidean norm.
///
/// The factor is `min(1, max / (norm + 1e-6))`, as in PyTorch.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Clip {
    /// Gradients are used as they are.
    #[default]
    None,
    /// One factor for all gradients, from the norm of them all.
    GlobalNorm(f64),
    /// A factor for each parameter tensor, from its own norm (DINO, Caron et al. 2021).
    PerTensor(f64),
}

impl Clip {
    /// Factor of each gradient, given the sum of squares of each.
    pub fn factors(&self, squares: &[f64]) -> Vec<f64> {
        let factor = |max: f64, square: f64| (max / (square.sqrt() + 1e-6)).min(1.);
        match *self {
            Self::None => vec![1.; squares.len()],
            Self::GlobalNorm(max) => vec![factor(max, squares.iter().sum()); squares.len()],
            Self::PerTensor(max) => squares.iter().map(|&s| factor(max, s)).collect(),
        }
    }
}

/// What an optimiser does when a gradient holds an infinity or a NaN.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum NonFinite {
    /// [`crate::Error::NonFiniteGradient`], with every parameter as it was before.
    #[default]
    Fail,
    /// Leaves all parameters as they are and says so in the report.
    Skip,
    /// Does not look.
    Ignore,
}

/// Sum of squares of each tensor, in `f64`; not finite where and only where an element is not.
///
/// Gradients are contiguous. Those of another device are fetched together, to wait for it once.
pub(crate) fn sums_of_squares(tensors: &[&Tensor]) -> Result<Vec<f64>> {
    let mut sums: Vec<f64> = if tensors.iter().all(|tensor| tensor.device().is_cpu()) {
        tensors.par_iter().map(|tensor| on_cpu(tensor)).collect::<candle_core::Result<_>>()?
    } else {
        let sums = tensors
            .iter()
            .map(|tensor| tensor.to_dtype(DType::F32)?.sqr()?.sum_all())
            .collect::<candle_core::Result<Vec<_>>>()?;
        Tensor::stack(&sums, 0)?.to_dtype(DType::F64)?.to_vec1()?
    };
    for (sum, tensor) in sums.iter_mut().zip(tensors).filter(|(sum, _)| !sum.is_finite()) {
        // The squares of large finite values overflow before the values do.
        *sum = if is_finite(tensor)? { f64::MAX } else { f64::NAN };
    }
    Ok(sums)
}

fn on_cpu(tensor: &Tensor) -> candle_core::Result<f64> {
    match tensor.dtype() {
        DType::F64 => kernel::read::<f64, _>(tensor, |xs| kernel::sum_of_squares(xs, None)),
        DType::F32 => kernel::read::<f32, _>(tensor, |xs| kernel::sum_of_squares(xs, None)),
        _ => kernel::read::<f32, _>(&tensor.to_dtype(DType::F32)?, |xs| kernel::sum_of_squares(xs, None)),
    }
}

fn is_finite(tensor: &Tensor) -> candle_core::Result<bool> {
    let wide = tensor.flatten_all()?.to_dtype(DType::F64)?.to_device(&Device::Cpu)?;
    kernel::read::<f64, _>(&wide, |xs| xs.iter().all(|x| x.is_finite()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn factors_follow_the_norm() {
        let squares = [9., 16.];
        assert_eq!(Clip::None.factors(&squares), [1., 1.]);
        assert_eq!(Clip::GlobalNorm(10.).factors(&squares), [1., 1.]);
        assert_eq!(Clip::GlobalNorm(2.5).factors(&squares), [2.5 / (5. + 1e-6); 2]);
        assert_eq!(Clip::PerTensor(3.5).factors(&squares), [1., 3.5 / (4. + 1e-6)]);
    }

    #[test]
    fn only_values_that_are_not_finite_give_sums_that_are_not() -> Result<()> {
        let cpu = Device::Cpu;
        let large = Tensor::new(&[1e200f64, -3e300], &cpu)?;
        let nan = Tensor::new(&[1f32, f32::NAN], &cpu)?;
        let infinite = Tensor::new(&[f32::NEG_INFINITY, 0.], &cpu)?;
        let half = Tensor::new(&[3f32, 4.], &cpu)?.to_dtype(DType::F16)?;
        let empty = Tensor::zeros((0, 3), DType::F32, &cpu)?;
        let sums = sums_of_squares(&[&large, &nan, &infinite, &half, &empty])?;
        assert!(sums[0].is_finite() && sums[1].is_nan() && sums[2].is_nan());
        assert_eq!(sums[3..], [25., 0.]);
        Ok(())
    }
}
