//! Cross entropy of logits against class numbers.

use candle_core::{CpuStorage, CustomOp1, D, DType, Layout, Result, Shape, Tensor, WithDType, backend::BackendStorage};

use crate::{
    Error, check,
    kernel::{Element, Real, Rows, Scratch, Uninit, cpu_slice, fill, parallel::rows_per_block, simd},
    softmax::{self, exp_sum},
    with_float,
};

/// Mean cross entropy of `softmax(logits)` against classes, with label smoothing (Szegedy et al. 2016): the target is
/// `1 - smoothing` on the class plus `smoothing / K` on every class.
///
/// # Shapes
/// - `logits`: `(B, K)`; `targets`: `(B)` u32, below `K`
/// - output: `()`
///
/// # Errors
/// When shapes or types do not fit, the batch is empty, a target is not a class, or the smoothing is outside `[0, 1]`.
pub fn cross_entropy(logits: &Tensor, targets: &Tensor, label_smoothing: f64) -> Result<Tensor> {
    let op = "cross_entropy";
    check::float(op, logits)?;
    let &[b, k] = logits.dims() else {
        return Err(Error::shape(op, "logits", "(B, K)", logits.shape()).into());
    };
    if b == 0 || k == 0 {
        return Err(Error::shape(op, "logits", "(B, K), not empty", logits.shape()).into());
    }
    if targets.dims() != [b] {
        return Err(Error::shape(op, "targets", format!("({b})"), targets.shape()).into());
    }
    if targets.dtype() != DType::U32 {
        return Err(Error::dtype(op, "targets", "u32", targets.dtype()).into());
    }
    if !(0. ..=1.).contains(&label_smoothing) {
        let expected = "a number from 0 to 1";
        return Err(Error::value(op, "label_smoothing", expected, label_smoothing).into());
    }
    let classes = targets.to_vec1::<u32>()?;
    if let Some(class) = classes.iter().find(|&&class| class as usize >= k) {
        return Err(Error::value(op, "targets", format!("classes below {k}"), class).into());
    }
    match logits.device().is_cpu() {
        true => logits.apply_op1(CrossEntropy { classes, smoothing: label_smoothing }),
        false => reference(logits, targets, label_smoothing),
    }
}

/// Mean cross entropy of `softmax(logits)` against weights of the classes, as mixup and distillation have them:
/// `-mean_b sum_k targets log softmax(logits)`. Classes of weight 0 cost nothing, whatever their logits. Computed in f32 for
/// f16 and bf16; gradients go to logits and targets.
///
/// # Shapes
/// - `logits`: `(B, K)`; `targets`: `(B, K)`, of the same type
/// - output: `()`
///
/// # Errors
/// When shapes or types do not fit or the batch is empty.
pub fn cross_entropy_soft(logits: &Tensor, targets: &Tensor) -> Result<Tensor> {
    let op = "cross_entropy_soft";
    check::float(op, logits)?;
    let &[b, k] = logits.dims() else {
        return Err(Error::shape(op, "logits", "(B, K)", logits.shape()).into());
    };
    if b == 0 || k == 0 {
        return Err(Error::shape(op, "logits", "(B, K), not empty", logits.shape()).into());
    }
    if targets.dims() != [b, k] {
        return Err(Error::shape(op, "targets", format!("({b}, {k})"), targets.shape()).into());
    }
    if targets.dtype() != logits.dtype() {
        return Err(Error::dtype(op, "targets", "that of the logits", targets.dtype()).into());
    }
    let wide = check::wide(logits.dtype());
    let (scores, weights) = (logits.to_dtype(wide)?, targets.to_dtype(wide)?);
    let log_p = softmax::log_softmax(&scores, 1)?; // (B, K)
    // Infinity times zero would be NaN.
    let log_p = weights.ne(0.)?.where_cond(&log_p, &log_p.zeros_like()?)?;
    ((log_p * weights)?.sum_all()? * (-1. / b as f64))?.to_dtype(logits.dtype())
}

/// The same by candle's own operations; differentiable.
pub(crate) fn reference(logits: &Tensor, targets: &Tensor, smoothing: f64) -> Result<Tensor> {
    let wide = logits.to_dtype(check::wide(logits.dtype()))?;
    let log_p = softmax::reference_log(&wide, 1)?;
    let on_target = log_p.gather(&targets.unsqueeze(1)?, D::Minus1)?.mean_all()?;
    let loss = (on_target * (smoothing - 1.))?;
    let loss = match smoothing > 0. {
        true => (loss - (log_p.mean_all()? * smoothing)?)?,
        false => loss,
    };
    loss.to_dtype(logits.dtype())
}

struct CrossEntropy {
    classes: Vec<u32>,
    smoothing: f64,
}

impl CustomOp1 for CrossEntropy {
    fn name(&self) -> &'static str {
        "cross_entropy"
    }

    fn cpu_fwd(&self, storage: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let storage = with_float!(storage.dtype(), self.name(), T => {
            let rows = Rows::<T>::last(T::cpu_storage_as_slice(storage)?, layout);
            let (losses, _) = fill(rows.count(), 1, rows_per_block(rows.len()), |range, out| {
                let mut scratch = Scratch::default();
                let xs = rows.wide(range.clone(), &mut scratch);
                (losses(xs, &self.classes[range], self.smoothing, out), ())
            });
            let mean = simd::sum::<<T as Element>::Acc>(&losses) / <T as Element>::Acc::from_f64(rows.count() as f64);
            Ok::<_, candle_core::Error>(T::to_cpu_storage_owned(vec![T::narrow(mean)]))
        })?;
        Ok((storage, Shape::from(())))
    }

    fn bwd(&self, logits: &Tensor, _: &Tensor, grad: &Tensor) -> Result<Option<Tensor>> {
        if !logits.track_op() {
            return Ok(None);
        }
        let scale = grad.to_dtype(DType::F64)?.to_scalar::<f64>()? / self.classes.len() as f64;
        let (storage, layout) = logits.storage_and_layout();
        let grad = with_float!(logits.dtype(), self.name(), T => {
            let rows = Rows::<T>::last(cpu_slice(&storage)?, layout);
            let (dx, _) = fill(rows.count(), rows.len(), rows_per_block(rows.len()), |range, out| {
                let mut scratch = Scratch::default();
                let xs = rows.wide(range.clone(), &mut scratch);
                (T::produce(out, |out| slopes(xs, &self.classes[range], self.smoothing, scale, out)), ())
            });
            Tensor::from_vec(dx, logits.shape(), logits.device())
        })?;
        Ok(Some(grad))
    }
}

/// The loss of each row.
fn losses<'a, A: Real>(xs: &[A], classes: &[u32], smoothing: f64, out: Uninit<'a, A>) -> &'a mut [A] {
    let k = xs.len() / classes.len();
    A::dispatch(
        #[inline(always)]
        |m| {
            let (on, every) = (A::from_f64(1. - smoothing), A::from_f64(smoothing / k as f64));
            out.rows(
                1,
                #[inline(always)]
                |i, out| {
                    let row = &xs[i * k..(i + 1) * k];
                    let (top, sum) = exp_sum(m, row);
                    let target = (row[classes[i] as usize] - top) * on;
                    // With infinite logits the sum would be NaN even when it does not count.
                    let rest = match smoothing > 0. {
                        true => (simd::sum(row) - top * A::from_f64(k as f64)) * every,
                        false => A::zero(),
                    };
                    out.fill(sum.ln() - target - rest)
                },
            )
        },
    )
}

/// `scale (softmax(x) - target)`.
fn slopes<'a, A: Real>(xs: &[A], classes: &[u32], smoothing: f64, scale: f64, out: Uninit<'a, A>) -> &'a mut [A] {
    let k = xs.len() / classes.len();
    A::dispatch(
        #[inline(always)]
        |m| {
            let (on, every) = (A::from_f64((1. - smoothing) * scale), A::from_f64(smoothing / k as f64 * scale));
            out.rows(
                k,
                #[inline(always)]
                |i, out| {
                    let row = &xs[i * k..(i + 1) * k];
                    let (top, sum) = exp_sum(m, row);
                    let factor = A::from_f64(scale) / sum;
                    let out = out.map(
                        row,
                        #[inline(always)]
                        |x| m.fma(m.exp(x - top), factor, -every),
                    );
                    let class = &mut out[classes[i] as usize];
                    *class -= on;
                    out
                },
            )
        },
    )
}

#[cfg(test)]
mod tests {
    use candle_core::{Device, Var};
    use proptest::prelude::*;

    use super::*;
    use crate::testing::{Draw, assert_close, check_gradients, gradients, strided, tolerance};

    #[test]
    fn gradients_are_exact() -> Result<()> {
        let xs = Draw::new(1).normal(&[3, 5], DType::F64)?;
        let targets = Tensor::new(&[4u32, 0, 2], &Device::Cpu)?;
        for smoothing in [0., 0.1, 1.] {
            check_gradients(std::slice::from_ref(&xs), |t| cross_entropy(&t[0], &targets, smoothing));
        }
        Ok(())
    }

    #[test]
    fn uniform_logits_cost_the_logarithm_of_the_classes() -> Result<()> {
        let logits = Tensor::zeros((2, 7), DType::F64, &Device::Cpu)?;
        let targets = Tensor::new(&[1u32, 6], &Device::Cpu)?;
        let loss = cross_entropy(&logits, &targets, 0.2)?.to_scalar::<f64>()?;
        assert!((loss - 7f64.ln()).abs() < 1e-15);
        // A masked class that is not the target costs nothing.
        let masked = Tensor::new(&[[f32::NEG_INFINITY, 0.]], &Device::Cpu)?;
        assert_eq!(cross_entropy(&masked, &Tensor::new(&[1u32], &Device::Cpu)?, 0.)?.to_scalar::<f32>()?, 0.);
        Ok(())
    }

    #[test]
    fn wrong_input_is_refused() -> Result<()> {
        let dev = Device::Cpu;
        let (xs, t) = (Tensor::zeros((2, 3), DType::F32, &dev)?, Tensor::new(&[0u32, 2], &dev)?);
        assert!(cross_entropy(&xs, &t, 0.).is_ok());
        assert!(cross_entropy(&xs, &Tensor::new(&[0u32, 3], &dev)?, 0.).is_err());
        assert!(cross_entropy(&xs, &Tensor::new(&[0u32], &dev)?, 0.).is_err());
        assert!(cross_entropy(&xs, &t.to_dtype(DType::I64)?, 0.).is_err());
        assert!(cross_entropy(&xs, &t, 1.5).is_err());
        assert!(cross_entropy(&xs, &t, f64::NAN).is_err());
        assert!(cross_entropy(&xs.flatten_all()?, &t, 0.).is_err());
        let nothing = Tensor::zeros((0, 3), DType::F32, &dev)?;
        assert!(cross_entropy(&nothing, &Tensor::zeros(0, DType::U32, &dev)?, 0.).is_err());
        Ok(())
    }

    #[test]
    fn soft_targets_train_logits_and_weights() -> Result<()> {
        let mut draw = Draw::new(2);
        let xs = draw.normal(&[3, 5], DType::F64)?;
        let weights = softmax::softmax(&draw.normal(&[3, 5], DType::F64)?, 1)?;
        check_gradients(&[xs, weights], |t| cross_entropy_soft(&t[0], &t[1]));
        // A masked class of weight 0 costs nothing and passes no NaN back.
        let masked = Var::new(&[[f32::NEG_INFINITY, 1., 1.]], &Device::Cpu)?;
        let weights = Tensor::new(&[[0f32, 0.5, 0.5]], &Device::Cpu)?;
        let loss = cross_entropy_soft(&masked, &weights)?;
        assert!((loss.to_scalar::<f32>()? - 2f32.ln()).abs() < 1e-6);
        let grad = loss.backward()?.get(&masked).unwrap().to_vec2::<f32>()?;
        assert!(grad[0].iter().all(|g| g.abs() < 1e-6), "{grad:?}");
        Ok(())
    }

    #[test]
    fn wrong_soft_targets_are_refused() -> Result<()> {
        let xs = Tensor::zeros((2, 3), DType::F32, &Device::Cpu)?;
        assert!(cross_entropy_soft(&xs, &xs).is_ok());
        assert!(cross_entropy_soft(&xs, &xs.narrow(0, 0, 1)?).is_err());
        assert!(cross_entropy_soft(&xs, &xs.narrow(1, 0, 2)?).is_err());
        assert!(cross_entropy_soft(&xs, &xs.to_dtype(DType::F64)?).is_err());
        assert!(cross_entropy_soft(&xs.flatten_all()?, &xs.flatten_all()?).is_err());
        let nothing = Tensor::zeros((0, 3), DType::F32, &Device::Cpu)?;
        assert!(cross_entropy_soft(&nothing, &nothing).is_err());
        Ok(())
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(16))]

        #[test]
        fn soft_targets_that_are_hard_are_the_same(seed: u64) {
            let mut draw = Draw::new(seed);
            let (b, k) = (draw.int(1..=7), draw.int(1..=70));
            let dtype = draw.pick(&[DType::F32, DType::F64, DType::F16, DType::BF16]);
            let inputs = [strided(&mut draw, &[b, k], dtype).unwrap()];
            let classes: Vec<u32> = (0..b).map(|_| draw.int(0..=k - 1) as u32).collect();
            let classes = Tensor::from_vec(classes, b, &Device::Cpu).unwrap();
            let range = Tensor::arange(0, k as u32, &Device::Cpu).unwrap();
            let one_hot = classes.unsqueeze(1).and_then(|c| c.broadcast_eq(&range)).and_then(|t| t.to_dtype(dtype)).unwrap();
            let soft = |t: &[Tensor]| cross_entropy_soft(&t[0], &one_hot);
            let hard = |t: &[Tensor]| cross_entropy(&t[0], &classes, 0.);
            assert_close(&soft(&inputs).unwrap(), &hard(&inputs).unwrap(), tolerance(dtype));
            let dy = Tensor::new(2f32, &Device::Cpu).unwrap();
            let (a, b) = (gradients(&inputs, &dy, soft).unwrap(), gradients(&inputs, &dy, hard).unwrap());
            assert_close(&a[0], &b[0], tolerance(dtype));
        }

        #[test]
        fn agrees_with_the_reference(seed: u64) {
            let mut draw = Draw::new(seed);
            let (b, k) = (draw.int(1..=7), draw.int(1..=70));
            let dtype = draw.pick(&[DType::F32, DType::F64, DType::F16, DType::BF16]);
            let smoothing = draw.pick(&[0., 0.1]);
            let inputs = [strided(&mut draw, &[b, k], dtype).unwrap()];
            let targets: Vec<u32> = (0..b).map(|_| draw.int(0..=k - 1) as u32).collect();
            let targets = Tensor::from_vec(targets, b, &Device::Cpu).unwrap();
            let ours = |t: &[Tensor]| cross_entropy(&t[0], &targets, smoothing);
            let theirs = |t: &[Tensor]| reference(&t[0], &targets, smoothing);
            assert_close(&ours(&inputs).unwrap(), &theirs(&inputs).unwrap(), tolerance(dtype));
            let dy = Tensor::new(2f32, &Device::Cpu).unwrap();
            let (a, b) = (gradients(&inputs, &dy, ours).unwrap(), gradients(&inputs, &dy, theirs).unwrap());
            assert_close(&a[0], &b[0], tolerance(dtype));
        }
    }
}
