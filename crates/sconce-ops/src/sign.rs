//! The sign, with a gradient that passes straight through.

use candle_core::{CpuStorage, CustomOp1, Layout, Result, Shape, Tensor, WithDType, backend::BackendStorage};

use crate::{
    check,
    kernel::{
        Math, Real,
        elementwise::{self, Map},
    },
    with_float,
};

/// The sign of each element, +1 also for both zeros, with the straight-through estimator (Bengio et al. 2013) for a
/// gradient: that of the identity. NaN gives -1.
///
/// # Shapes
/// - output: as `xs`
///
/// # Errors
/// When the type is not floating-point.
pub fn sign_ste(xs: &Tensor) -> Result<Tensor> {
    check::float("sign_ste", xs)?;
    match xs.device().is_cpu() {
        true => xs.apply_op1(Sign),
        false => reference(xs),
    }
}

/// The same by candle's own operations; differentiable.
pub(crate) fn reference(xs: &Tensor) -> Result<Tensor> {
    let x = xs.detach();
    let sign = ((x.ge(0.)?.to_dtype(xs.dtype())? * 2.)? - 1.)?;
    // x - x has the value 0 and the gradient of x; where x is infinite it would be NaN, so x is emptied there first.
    let finite = x.abs()?.lt(f64::INFINITY)?;
    let zero = x.zeros_like()?;
    let difference = (xs - finite.where_cond(&x, &zero)?)?;
    sign + difference
}

#[derive(Clone, Copy)]
struct Sign;

impl Map for Sign {
    #[inline(always)]
    fn apply<A: Real>(self, _: Math, x: A) -> A {
        if x >= A::zero() { A::one() } else { -A::one() }
    }
}

impl CustomOp1 for Sign {
    fn name(&self) -> &'static str {
        "sign_ste"
    }

    fn cpu_fwd(&self, storage: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let storage = with_float!(storage.dtype(), self.name(), T => {
            let out = elementwise::map(T::cpu_storage_as_slice(storage)?, layout, *self);
            Ok(T::to_cpu_storage_owned(out))
        })?;
        Ok((storage, layout.shape().clone()))
    }

    fn bwd(&self, xs: &Tensor, _: &Tensor, grad: &Tensor) -> Result<Option<Tensor>> {
        Ok(xs.track_op().then(|| grad.clone()))
    }
}

#[cfg(test)]
mod tests {
    use candle_core::{DType, Device};

    use super::*;
    use crate::testing::{Draw, assert_close, gradients, strided};

    #[test]
    fn signs_of_special_values() -> Result<()> {
        let values = [f32::NEG_INFINITY, -1e-30, -0., 0., 1e-30, f32::INFINITY, f32::NAN];
        let xs = Tensor::new(&values, &Device::Cpu)?;
        let want = [-1., -1., 1., 1., 1., 1., -1.];
        assert_eq!(sign_ste(&xs)?.to_vec1::<f32>()?, want);
        // The composition computes x - x, which NaN does not survive.
        assert_eq!(reference(&xs.narrow(0, 1, 4)?)?.to_vec1::<f32>()?, want[1..5]);
        Ok(())
    }

    #[test]
    fn the_gradient_passes_straight_through() -> Result<()> {
        let mut draw = Draw::new(1);
        for dtype in [DType::F32, DType::F64, DType::F16, DType::BF16] {
            let xs = strided(&mut draw, &[3, 4, 5], dtype)?;
            let dy = strided(&mut draw, &[3, 4, 5], dtype)?;
            assert_close(&sign_ste(&xs)?, &reference(&xs)?, 0.);
            assert_close(&gradients(std::slice::from_ref(&xs), &dy, |t| sign_ste(&t[0]))?[0], &dy, 0.);
            assert_close(&gradients(&[xs], &dy, |t| reference(&t[0]))?[0], &dy, 0.);
        }
        Ok(())
    }

    #[test]
    fn wrong_input_is_refused_and_empty_input_is_not() -> Result<()> {
        assert!(sign_ste(&Tensor::new(&[1u8], &Device::Cpu)?).is_err());
        assert_eq!(sign_ste(&Tensor::zeros((0, 2), DType::F32, &Device::Cpu)?)?.dims(), [0, 2]);
        Ok(())
    }
}
