//! Batch normalisation.

use candle_core::{DType, Result, Tensor};

use crate::{Error, check, group_norm::channel_affine, with_float};

mod kernel;
use kernel::{BatchNorm, statistics};

/// Batch normalisation with given statistics, Ioffe and Szegedy 2015, as in evaluation:
/// `(x - running_mean) / sqrt(running_var + eps) * weight + bias` for each channel. Differentiable in all tensors.
///
/// # Shapes
/// - `xs`: `(B, C, *)`; all others `(C)`
/// - output: as `xs`
///
/// # Errors
/// When shapes or types do not fit.
pub fn batch_norm(
    xs: &Tensor,
    weight: Option<&Tensor>,
    bias: Option<&Tensor>,
    running_mean: &Tensor,
    running_var: &Tensor,
    eps: f64,
) -> Result<Tensor> {
    let op = "batch_norm";
    let c = check_arguments(op, xs, weight, bias, eps)?;
    check::parameter(op, "running_mean", Some(running_mean), c, xs)?;
    check::parameter(op, "running_var", Some(running_var), c, xs)?;
    // The kernel takes the statistics for constants.
    if !xs.device().is_cpu() || running_mean.track_op() || running_var.track_op() {
        return reference(xs, weight, bias, running_mean, running_var, eps);
    }
    let double = |t: &Tensor| t.to_dtype(DType::F64)?.to_vec1::<f64>();
    let kernel = BatchNorm::new(double(running_mean)?, &double(running_var)?, eps, false);
    let (weight, bias) = check::affine(xs, c, weight, bias)?;
    with_positions(xs, |xs| xs.apply_op3(&weight, &bias, kernel))
}

/// What [`batch_norm_train`] gives.
#[derive(Debug, Clone)]
pub struct BatchNormOutput {
    /// The normalised input.
    pub output: Tensor,
    /// Mean of each channel `(C)`, detached.
    pub mean: Tensor,
    /// Unbiased variance of each channel `(C)`, to be tracked, detached. With one value in a channel it is 0.
    pub var_unbiased: Tensor,
}

/// Batch normalisation with the statistics of the batch, as in training: normalises by the biased variance, through which
/// gradients flow, and reports the statistics to track.
///
/// # Shapes
/// - `xs`: `(B, C, *)`; `weight`, `bias`: `(C)`
///
/// # Errors
/// When shapes or types do not fit, or there is nothing to take statistics of.
pub fn batch_norm_train(
    xs: &Tensor,
    weight: Option<&Tensor>,
    bias: Option<&Tensor>,
    eps: f64,
) -> Result<BatchNormOutput> {
    let op = "batch_norm_train";
    let c = check_arguments(op, xs, weight, bias, eps)?;
    if xs.elem_count() == 0 {
        return Err(Error::shape(op, "xs", "at least one value in each channel", xs.shape()).into());
    }
    if !xs.device().is_cpu() {
        return reference_train(xs, weight, bias, eps);
    }
    let count = xs.elem_count() as f64 / c as f64;
    let positions = if xs.rank() == 2 { xs.t()?.unsqueeze(0)? } else { xs.clone() };
    let (mean, var) = with_float!(xs.dtype(), op, T => statistics::<T>(&positions))?;
    let tracked = |values: Vec<f64>| Tensor::new(values, xs.device())?.to_dtype(xs.dtype());
    let var_unbiased = tracked(var.iter().map(|var| var * count / (count - 1.).max(1.)).collect())?;
    let mean_tensor = tracked(mean.clone())?;
    let (weight, bias) = check::affine(xs, c, weight, bias)?;
    let kernel = BatchNorm::new(mean, &var, eps, true);
    let output = with_positions(xs, |xs| xs.apply_op3(&weight, &bias, kernel))?;
    Ok(BatchNormOutput { output, mean: mean_tensor, var_unbiased })
}

/// Gives `f` the input as `(B, C, *)` with at least one dimension after the channels: of `(B, C)` the batch becomes the positions,
/// so that a channel lies in a row.
fn with_positions(xs: &Tensor, f: impl FnOnce(&Tensor) -> Result<Tensor>) -> Result<Tensor> {
    match xs.rank() {
        2 => f(&xs.t()?.unsqueeze(0)?)?.squeeze(0)?.t(),
        _ => f(xs),
    }
}

fn check_arguments(
    op: &'static str,
    xs: &Tensor,
    weight: Option<&Tensor>,
    bias: Option<&Tensor>,
    eps: f64,
) -> Result<usize> {
    check::float(op, xs)?;
    check::epsilon(op, eps)?;
    let c = check::channels(op, xs)?;
    check::parameter(op, "weight", weight, c, xs)?;
    check::parameter(op, "bias", bias, c, xs)?;
    Ok(c)
}

/// [`batch_norm`] by candle's own operations; differentiable.
pub(crate) fn reference(
    xs: &Tensor,
    weight: Option<&Tensor>,
    bias: Option<&Tensor>,
    mean: &Tensor,
    var: &Tensor,
    eps: f64,
) -> Result<Tensor> {
    if xs.elem_count() == 0 {
        return Ok(xs.clone());
    }
    let (b, c) = (xs.dim(0)?, xs.dim(1)?);
    let dtype = check::wide(xs.dtype());
    let wide = xs.to_dtype(dtype)?.reshape((b, c, ()))?; // (B, C, N)
    let mean = mean.to_dtype(dtype)?.reshape((1, c, 1))?;
    let std = (var.to_dtype(dtype)?.reshape((1, c, 1))? + eps)?.sqrt()?;
    let normal = wide.broadcast_sub(&mean)?.broadcast_div(&std)?;
    channel_affine(&normal, weight, bias)?.reshape(xs.shape())?.to_dtype(xs.dtype())
}

/// [`batch_norm_train`] by candle's own operations; differentiable.
pub(crate) fn reference_train(
    xs: &Tensor,
    weight: Option<&Tensor>,
    bias: Option<&Tensor>,
    eps: f64,
) -> Result<BatchNormOutput> {
    let (b, c) = (xs.dim(0)?, xs.dim(1)?);
    let wide = xs.to_dtype(check::wide(xs.dtype()))?.reshape((b, c, ()))?; // (B, C, N)
    let count = (b * wide.dim(2)?) as f64;
    let mean = (wide.sum_keepdim((0, 2))? / count)?; // (1, C, 1)
    let centred = wide.broadcast_sub(&mean)?;
    let var = (centred.sqr()?.sum_keepdim((0, 2))? / count)?;
    let normal = centred.broadcast_div(&(&var + eps)?.sqrt()?)?;
    let output = channel_affine(&normal, weight, bias)?.reshape(xs.shape())?.to_dtype(xs.dtype())?;
    let tracked = |t: &Tensor| t.detach().flatten_all()?.to_dtype(xs.dtype());
    let var_unbiased = tracked(&(var * (count / (count - 1.).max(1.)))?)?;
    Ok(BatchNormOutput { output, mean: tracked(&mean)?, var_unbiased })
}

#[cfg(test)]
mod tests {
    use candle_core::Device;
    use proptest::prelude::*;

    use super::*;
    use crate::testing::{Draw, assert_close, check_gradients, gradients, strided, tolerance};

    #[test]
    fn gradients_are_exact() -> Result<()> {
        let mut draw = Draw::new(1);
        for shape in [&[3, 2, 2, 2][..], &[4, 3, 5], &[5, 3]] {
            let c = shape[1];
            let xs = draw.normal(shape, DType::F64)?;
            let (w, b, mean) =
                (draw.normal(&[c], DType::F64)?, draw.normal(&[c], DType::F64)?, draw.normal(&[c], DType::F64)?);
            let var = (draw.normal(&[c], DType::F64)?.sqr()? + 0.5)?;
            check_gradients(&[xs.clone(), w.clone(), b.clone()], |t| {
                Ok(batch_norm_train(&t[0], Some(&t[1]), Some(&t[2]), 1e-5)?.output)
            });
            check_gradients(&[xs.clone(), w.clone(), b.clone()], |t| {
                let (mean, var) = (mean.to_dtype(t[0].dtype())?, var.to_dtype(t[0].dtype())?);
                batch_norm(&t[0], Some(&t[1]), Some(&t[2]), &mean, &var, 1e-5)
            });
            check_gradients(&[xs, w, b, mean.clone(), var.clone()], |t| {
                batch_norm(&t[0], Some(&t[1]), Some(&t[2]), &t[3], &t[4], 1e-5)
            });
        }
        Ok(())
    }

    #[test]
    fn statistics_are_those_of_the_batch() -> Result<()> {
        let xs = Tensor::new(&[[1f32, 10.], [2., 10.], [6., 10.]], &Device::Cpu)?;
        let out = batch_norm_train(&xs, None, None, 0.)?;
        assert_eq!(out.mean.to_vec1::<f32>()?, [3., 10.]);
        assert_eq!(out.var_unbiased.to_vec1::<f32>()?, [7., 0.]);
        let first = out.output.to_vec2::<f32>()?[0][0];
        assert!((first + 2. / (14f32 / 3.).sqrt()).abs() < 1e-6);
        let single = batch_norm_train(&xs.narrow(0, 0, 1)?, None, None, 1e-5)?;
        assert_eq!(single.var_unbiased.to_vec1::<f32>()?, [0., 0.]);
        Ok(())
    }

    #[test]
    fn a_large_mean_does_not_drown_the_variance() -> Result<()> {
        let xs = (Draw::new(2).normal(&[4, 3, 50], DType::F32)? + 1000.)?;
        let out = batch_norm_train(&xs, None, None, 1e-5)?;
        let want = reference_train(&xs.to_dtype(DType::F64)?, None, None, 1e-5)?;
        assert_close(&out.var_unbiased, &want.var_unbiased, 1e-3);
        assert_close(&out.output, &want.output, 1e-3);
        Ok(())
    }

    #[test]
    fn wrong_input_is_refused_and_empty_input_is_not() -> Result<()> {
        let dev = Device::Cpu;
        let (xs, c) = (Tensor::zeros((2, 3, 4), DType::F32, &dev)?, Tensor::ones(3, DType::F32, &dev)?);
        let wrong = Tensor::ones(4, DType::F32, &dev)?;
        assert!(batch_norm(&xs, None, None, &c, &c, 1e-5).is_ok());
        assert!(batch_norm(&xs, None, None, &wrong, &c, 1e-5).is_err());
        assert!(batch_norm(&xs, None, Some(&wrong), &c, &c, 1e-5).is_err());
        assert!(batch_norm_train(&xs, Some(&wrong), None, 1e-5).is_err());
        assert!(batch_norm_train(&Tensor::zeros(3, DType::F32, &dev)?, None, None, 1e-5).is_err());
        for shape in [(0, 3, 4), (2, 3, 0)] {
            let empty = Tensor::zeros(shape, DType::F32, &dev)?;
            assert!(batch_norm_train(&empty, None, None, 1e-5).is_err());
            assert_eq!(batch_norm(&empty, None, None, &c, &c, 1e-5)?.dims(), empty.dims());
        }
        Ok(())
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(32))]

        #[test]
        fn agrees_with_the_reference(seed: u64, train: bool) {
            let mut draw = Draw::new(seed);
            let mut shape = vec![draw.int(2..=4), draw.int(1..=4)];
            shape.extend(draw.shape(0..=3, 1..=5));
            let c = shape[1];
            let dtype = draw.pick(&[DType::F32, DType::F64, DType::F16, DType::BF16]);
            let inputs = [&shape[..], &[c], &[c]].map(|s| strided(&mut draw, s, dtype).unwrap());
            let mean = strided(&mut draw, &[c], dtype).unwrap();
            let var = (strided(&mut draw, &[c], dtype).unwrap().sqr().unwrap() + 0.5).unwrap();
            let ours = |t: &[Tensor]| match train {
                true => Ok(batch_norm_train(&t[0], Some(&t[1]), Some(&t[2]), 1e-1)?.output),
                false => batch_norm(&t[0], Some(&t[1]), Some(&t[2]), &mean, &var, 1e-1),
            };
            let theirs = |t: &[Tensor]| match train {
                true => Ok(reference_train(&t[0], Some(&t[1]), Some(&t[2]), 1e-1)?.output),
                false => reference(&t[0], Some(&t[1]), Some(&t[2]), &mean, &var, 1e-1),
            };
            assert_close(&ours(&inputs).unwrap(), &theirs(&inputs).unwrap(), tolerance(dtype));
            let dy = strided(&mut draw, &shape, dtype).unwrap();
            let (a, b) = (gradients(&inputs, &dy, ours).unwrap(), gradients(&inputs, &dy, theirs).unwrap());
            for (a, b) in a.iter().zip(&b) {
                assert_close(a, b, 4. * tolerance(dtype));
            }
        }
    }
}
