//! Root-mean-square normalisation.

use candle_core::{D, Result, Tensor};

use crate::{
    check,
    layer_norm::{RowNorm, affine},
};

/// Root-mean-square normalisation over the last dimension, Zhang and Sennrich 2019: `x / sqrt(mean(x^2) + eps) * weight`.
///
/// # Shapes
/// - `xs`: `(*, C)`; `weight`: `(C)`
/// - output: as `xs`
///
/// # Errors
/// When shapes or types do not fit.
pub fn rms_norm(xs: &Tensor, weight: Option<&Tensor>, eps: f64) -> Result<Tensor> {
    let op = "rms_norm";
    check::float(op, xs)?;
    check::epsilon(op, eps)?;
    let c = check::last_dim(op, xs)?;
    check::parameter(op, "weight", weight, c, xs)?;
    if !xs.device().is_cpu() {
        return reference(xs, weight, eps);
    }
    let (weight, bias) = check::affine(xs, c, weight, None)?;
    xs.apply_op3(&weight, &bias, RowNorm::<false> { eps })
}

/// The same by candle's own operations; differentiable.
pub(crate) fn reference(xs: &Tensor, weight: Option<&Tensor>, eps: f64) -> Result<Tensor> {
    if xs.elem_count() == 0 {
        return Ok(xs.clone());
    }
    let wide = xs.to_dtype(check::wide(xs.dtype()))?;
    let square = wide.sqr()?.mean_keepdim(D::Minus1)?;
    let normal = wide.broadcast_div(&(square + eps)?.sqrt()?)?;
    affine(&normal, weight, None)?.to_dtype(xs.dtype())
}

#[cfg(test)]
mod tests {
    use candle_core::{DType, Device};
    use proptest::prelude::*;

    use super::*;
    use crate::testing::{Draw, assert_close, check_gradients, gradients, strided, tolerance};

    #[test]
    fn gradients_are_exact() -> Result<()> {
        let mut draw = Draw::new(1);
        let (xs, w) = (draw.normal(&[2, 3, 5], DType::F64)?, draw.normal(&[5], DType::F64)?);
        check_gradients(&[xs.clone(), w], |t| rms_norm(&t[0], Some(&t[1]), 1e-5));
        check_gradients(&[xs], |t| rms_norm(&t[0], None, 1e-5));
        Ok(())
    }

    #[test]
    fn wrong_input_is_refused_and_empty_input_is_not() -> Result<()> {
        let dev = Device::Cpu;
        let (xs, w) = (Tensor::zeros((2, 3), DType::F32, &dev)?, Tensor::zeros(4, DType::F32, &dev)?);
        assert!(rms_norm(&xs, Some(&w), 1e-5).is_err());
        assert!(rms_norm(&xs, None, f64::NAN).is_err());
        assert!(rms_norm(&Tensor::new(&[1u8], &dev)?, None, 1e-5).is_err());
        assert_eq!(rms_norm(&Tensor::zeros((0, 3), DType::F32, &dev)?, None, 1e-5)?.dims(), [0, 3]);
        Ok(())
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(16))]

        #[test]
        fn agrees_with_the_reference(seed: u64) {
            let mut draw = Draw::new(seed);
            let mut shape = draw.shape(0..=3, 1..=6);
            shape.push(draw.int(1..=70));
            let dtype = draw.pick(&[DType::F32, DType::F64, DType::F16, DType::BF16]);
            let inputs = [
                strided(&mut draw, &shape, dtype).unwrap(),
                strided(&mut draw, &shape[shape.len() - 1..], dtype).unwrap(),
            ];
            let ours = |t: &[Tensor]| rms_norm(&t[0], Some(&t[1]), 1e-2);
            let theirs = |t: &[Tensor]| reference(&t[0], Some(&t[1]), 1e-2);
            assert_close(&ours(&inputs).unwrap(), &theirs(&inputs).unwrap(), tolerance(dtype));
            let dy = strided(&mut draw, &shape, dtype).unwrap();
            let (a, b) = (gradients(&inputs, &dy, ours).unwrap(), gradients(&inputs, &dy, theirs).unwrap());
            for (a, b) in a.iter().zip(&b) {
                assert_close(a, b, 4. * tolerance(dtype));
            }
        }
    }
}
