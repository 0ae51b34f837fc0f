//! The exponential function.

use candle_core::{CpuStorage, CustomOp1, Layout, Result, Shape, Tensor, WithDType, backend::BackendStorage};

use crate::{
    check,
    kernel::{
        Math, Real,
        elementwise::{self, Map, Zip},
    },
    with_float,
};

/// `e^x` for every element; overflows to infinity. Candle's own runs on one thread and element by element.
///
/// # Shapes
/// - output: as `xs`
///
/// # Errors
/// When the type is not floating-point.
pub fn exp(xs: &Tensor) -> Result<Tensor> {
    check::float("exp", xs)?;
    match xs.device().is_cpu() {
        true => xs.apply_op1(Exp),
        false => reference(xs),
    }
}

/// The same by candle's own operations; differentiable.
pub(crate) fn reference(xs: &Tensor) -> Result<Tensor> {
    xs.to_dtype(check::wide(xs.dtype()))?.exp()?.to_dtype(xs.dtype())
}

#[derive(Clone, Copy)]
struct Exp;

impl Map for Exp {
    #[inline(always)]
    fn apply<A: Real>(self, m: Math, x: A) -> A {
        m.exp(x)
    }
}

#[derive(Clone, Copy)]
struct Product;

impl Zip for Product {
    #[inline(always)]
    fn apply<A: Real>(self, _: Math, x: A, y: A) -> A {
        x * y
    }
}

impl CustomOp1 for Exp {
    fn name(&self) -> &'static str {
        "exp"
    }

    fn cpu_fwd(&self, storage: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let storage = with_float!(storage.dtype(), self.name(), T => {
            let out = elementwise::map(T::cpu_storage_as_slice(storage)?, layout, *self);
            Ok(T::to_cpu_storage_owned(out))
        })?;
        Ok((storage, layout.shape().clone()))
    }

    fn bwd(&self, xs: &Tensor, ys: &Tensor, grad: &Tensor) -> Result<Option<Tensor>> {
        if !xs.track_op() {
            return Ok(None);
        }
        with_float!(xs.dtype(), self.name(), T => elementwise::zip::<T>(self.name(), ys, grad, Product)).map(Some)
    }
}

#[cfg(test)]
mod tests {
    use candle_core::{DType, Device};
    use proptest::prelude::*;

    use super::*;
    use crate::testing::{Draw, assert_close, check_gradients, gradients, strided, tolerance};

    #[test]
    fn special_values() -> Result<()> {
        let xs = Tensor::new(&[f32::NEG_INFINITY, -200., 0., 1., 200., f32::INFINITY, f32::NAN], &Device::Cpu)?;
        let ys = exp(&xs)?.to_vec1::<f32>()?;
        assert_eq!((ys[0], ys[1], ys[2], ys[4], ys[5]), (0., 0., 1., f32::INFINITY, f32::INFINITY));
        assert!((ys[3] - std::f32::consts::E).abs() < 1e-6 && ys[6].is_nan());
        assert!(exp(&Tensor::new(&[1u32], &Device::Cpu)?).is_err());
        assert_eq!(exp(&Tensor::zeros((0, 3), DType::F32, &Device::Cpu)?)?.dims(), [0, 3]);
        Ok(())
    }

    #[test]
    fn gradients_are_exact() {
        check_gradients(&[Tensor::new(&[-2f64, -0.1, 0., 0.4, 1.2], &Device::Cpu).unwrap()], |t| exp(&t[0]));
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(32))]

        #[test]
        fn agrees_with_the_reference(seed: u64) {
            let mut draw = Draw::new(seed);
            let shape = draw.shape(0..=4, 0..=6);
            let dtype = draw.pick(&[DType::F32, DType::F64, DType::F16, DType::BF16]);
            let xs = strided(&mut draw, &shape, dtype).unwrap();
            assert_close(&exp(&xs).unwrap(), &reference(&xs).unwrap(), tolerance(dtype));
            let dy = strided(&mut draw, &shape, dtype).unwrap();
            let ours = gradients(std::slice::from_ref(&xs), &dy, |t| exp(&t[0])).unwrap();
            let theirs = gradients(&[xs], &dy, |t| reference(&t[0])).unwrap();
            assert_close(&ours[0], &theirs[0], tolerance(dtype));
        }
    }
}
