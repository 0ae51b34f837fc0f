//! Optimisers against recurrences written down independently in `f64`, scalar by scalar.

use candle_core::backprop::GradStore;
use candle_core::{DType, Device, Tensor, Var};
use sconce_ops::Generator;
use sconce_train::optim::{Rule, StepScalars};
use sconce_train::*;

/// Larger than a task of the kernels, and not a multiple of anything.
const LARGE: usize = (1 << 15) + 4321;

fn var(name: &str, shape: &[usize], seed: u64, dtype: DType) -> (String, Var) {
    let tensor = Generator::new(seed).normal(0., 1., shape, dtype, &Device::Cpu).unwrap();
    (name.to_owned(), Var::from_tensor(&tensor).unwrap())
}

fn params(dtype: DType) -> Vec<(String, Var)> {
    vec![var("weight", &[3, 5], 1, dtype), var("bias", &[5], 2, dtype), var("large", &[LARGE, 1], 3, dtype)]
}

/// Gradients of a step: some numbers that depend on step and parameter.
fn grads(params: &[(String, Var)], step: u64) -> GradStore {
    let mut grads = GradStore::default();
    for (index, (_, var)) in params.iter().enumerate() {
        let generator = Generator::new(100 + step).fork(&index.to_string());
        let grad = generator.normal(0., 0.7, var.dims(), var.dtype(), &Device::Cpu).unwrap();
        grads.insert(var, grad);
    }
    grads
}

fn values(tensor: &Tensor) -> Vec<f64> {
    tensor.to_dtype(DType::F64).unwrap().flatten_all().unwrap().to_vec1().unwrap()
}

/// A parameter followed by a textbook recurrence.
struct Textbook {
    p: Vec<f64>,
    a: Vec<f64>,
    b: Vec<f64>,
    rank: usize,
}

fn follow(
    dtype: DType,
    tolerance: f64,
    make: impl Fn(ParamGroups) -> Box<dyn Optimizer>,
    recurrence: impl Fn(&mut Textbook, &[f64], i32),
) {
    let params = params(dtype);
    let mut optimizer = make(ParamGroups::new(params.clone()).unwrap());
    let mut textbooks: Vec<Textbook> = params
        .iter()
        .map(|(_, var)| {
            let p = values(var);
            let zeros = vec![0.; p.len()];
            Textbook { p, a: zeros.clone(), b: zeros, rank: var.dims().len() }
        })
        .collect();
    for step in 1..=6 {
        let grads = grads(&params, step);
        optimizer.step(&grads).unwrap();
        for ((name, var), textbook) in params.iter().zip(&mut textbooks) {
            recurrence(textbook, &values(grads.get(var).unwrap()), step as i32);
            for (found, expected) in values(var).iter().zip(&textbook.p) {
                assert!((found - expected).abs() <= tolerance, "{name}, step {step}: {found} instead of {expected}");
            }
        }
    }
}

fn follow_both(make: impl Fn(ParamGroups) -> Box<dyn Optimizer>, recurrence: impl Fn(&mut Textbook, &[f64], i32)) {
    follow(DType::F64, 1e-13, &make, &recurrence);
    follow(DType::F32, 3e-6, &make, &recurrence);
    // Half precision rounds the parameter, not the state: six roundings of values below 8.
    follow(DType::F16, 6. * 4. / 1024., &make, &recurrence);
}

#[test]
fn adamw() {
    let config = AdamWConfig { lr: 0.02, beta1: 0.8, beta2: 0.95, eps: 1e-3, weight_decay: 0.1 };
    follow_both(
        |groups| Box::new(AdamW::new(groups, config)),
        |t, grad, step| {
            for (i, &g) in grad.iter().enumerate() {
                t.p[i] -= 0.02 * 0.1 * t.p[i];
                t.a[i] = 0.8 * t.a[i] + (1. - 0.8) * g;
                t.b[i] = 0.95 * t.b[i] + (1. - 0.95) * g * g;
                let m = t.a[i] / (1. - 0.8f64.powi(step));
                let v = t.b[i] / (1. - 0.95f64.powi(step));
                t.p[i] -= 0.02 * m / (v.sqrt() + 1e-3);
            }
        },
    );
}

#[test]
fn sgd_plain_and_with_weight_decay() {
    let config = SgdConfig { lr: 0.1, weight_decay: 0.05, ..SgdConfig::default() };
    follow_both(
        |groups| Box::new(Sgd::new(groups, config).unwrap()),
        |t, grad, _| {
            for (p, &g) in t.p.iter_mut().zip(grad) {
                *p -= 0.1 * (g + 0.05 * *p);
            }
        },
    );
}

#[test]
fn sgd_with_momentum_and_dampening() {
    let config = SgdConfig { lr: 0.1, momentum: 0.9, dampening: 0.3, nesterov: false, weight_decay: 5e-4 };
    follow_both(
        |groups| Box::new(Sgd::new(groups, config).unwrap()),
        |t, grad, step| {
            for (i, &g) in grad.iter().enumerate() {
                let d = g + 5e-4 * t.p[i];
                // The first gradient enters undamped.
                t.a[i] = if step == 1 { d } else { 0.9 * t.a[i] + 0.7 * d };
                t.p[i] -= 0.1 * t.a[i];
            }
        },
    );
}

#[test]
fn sgd_with_nesterov_momentum() {
    let config = SgdConfig { lr: 0.05, momentum: 0.8, dampening: 0., nesterov: true, weight_decay: 0.01 };
    follow_both(
        |groups| Box::new(Sgd::new(groups, config).unwrap()),
        |t, grad, _| {
            for (i, &g) in grad.iter().enumerate() {
                let d = g + 0.01 * t.p[i];
                t.a[i] = 0.8 * t.a[i] + d;
                t.p[i] -= 0.05 * (d + 0.8 * t.a[i]);
            }
        },
    );
    let alone = SgdConfig { nesterov: true, ..SgdConfig::default() };
    assert!(matches!(Sgd::new(ParamGroups::default(), alone), Err(Error::Config(_))));
}

#[test]
fn lars() {
    let config = LarsConfig { lr: 0.5, momentum: 0.9, weight_decay: 0.02, trust_coefficient: 0.01, exclude_1d: true };
    follow_both(
        |groups| Box::new(Lars::new(groups, config)),
        |t, grad, _| {
            let decay = if t.rank > 1 { 0.02 } else { 0. };
            let d: Vec<f64> = grad.iter().zip(&t.p).map(|(g, p)| g + decay * p).collect();
            let norm = |xs: &[f64]| xs.iter().map(|x| x * x).sum::<f64>().sqrt();
            let ratio = if t.rank > 1 { 0.01 * norm(&t.p) / norm(&d) } else { 1. };
            for (i, d) in d.into_iter().enumerate() {
                t.a[i] = 0.9 * t.a[i] + ratio * d;
                t.p[i] -= 0.5 * t.a[i];
            }
        },
    );
}

#[test]
fn lars_leaves_the_rate_of_zero_norms_alone() -> Result<()> {
    let zero = Var::zeros((2, 2), DType::F32, &Device::Cpu)?;
    let config = LarsConfig { lr: 0.5, ..LarsConfig::default() };
    let mut optimizer = Lars::new(ParamGroups::new([("w".to_owned(), zero.clone())])?, config);
    let mut grads = GradStore::default();
    grads.insert(&zero, zero.ones_like()?);
    optimizer.step(&grads)?;
    assert_eq!(values(&zero), [-0.5; 4]);
    Ok(())
}

/// The passes over buffers and the tensor operations are two forms of one rule.
#[test]
fn loops_and_tensor_operations_agree() -> Result<()> {
    fn compare<R: Rule>(rule: R) -> Result<()> {
        let (_, var) = var("w", &[7, 11], 5, DType::F64);
        let mut scalars = StepScalars { step: 0, lr: 0.1, weight_decay: 0.03, grad_scale: 0.6, rank: 2, ratio: 1. };
        let mut param = values(&var);
        let mut tensor = var.as_detached_tensor().copy()?;
        let count = rule.buffers().len();
        let mut state = vec![vec![0f64; param.len()]; count];
        let mut tensors = vec![tensor.zeros_like()?; count];
        for step in 1..5 {
            let grad = Generator::new(step).normal(0., 1., (7, 11), DType::F64, &Device::Cpu)?;
            scalars.step = step;
            scalars.ratio = rule.ratio(&scalars, &param, &values(&grad));
            let by_tensor = rule.ratio_tensor(&scalars, &tensor, &grad)?;
            assert!((scalars.ratio - by_tensor).abs() < 1e-14, "{}", rule.name());
            let mut parts: Vec<&mut [f64]> = state.iter_mut().map(Vec::as_mut_slice).collect();
            rule.update(&scalars, &mut param, &values(&grad), &mut parts);
            tensor = rule.update_tensor(&scalars, &tensor, &grad, &mut tensors)?;
            for (a, b) in param.iter().zip(values(&tensor)) {
                assert!((a - b).abs() < 1e-13, "{}: {a} and {b}", rule.name());
            }
        }
        Ok(())
    }
    compare(AdamWConfig::default())?;
    compare(SgdConfig::default())?;
    compare(SgdConfig { momentum: 0.9, dampening: 0.1, ..SgdConfig::default() })?;
    compare(SgdConfig { momentum: 0.9, nesterov: true, ..SgdConfig::default() })?;
    compare(LarsConfig::default())
}

#[test]
fn steps_do_not_depend_on_the_number_of_threads() {
    let run = |threads| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        pool.install(|| {
            let params = params(DType::F32);
            let groups = ParamGroups::new(params.clone()).unwrap();
            let mut optimizer = Lars::new(groups, LarsConfig::default()).with_clip(Clip::GlobalNorm(1.));
            for step in 0..3 {
                optimizer.step(&grads(&params, step)).unwrap();
            }
            params.iter().map(|(_, var)| values(var)).collect::<Vec<_>>()
        })
    };
    assert_eq!(run(1), run(3));
}

#[test]
fn groups_scale_rate_and_decay() -> Result<()> {
    let params = params(DType::F64);
    let before: Vec<Vec<f64>> = params.iter().map(|(_, var)| values(var)).collect();
    let groups = ParamGroups::builder(params.clone()).exclude_1d().lr_scale("large", 0.5).build()?;
    let mut optimizer = Sgd::new(groups, SgdConfig { lr: 1., weight_decay: 0.1, ..SgdConfig::default() })?;
    optimizer.set_lr(0.2);
    let grads = grads(&params, 1);
    optimizer.step(&grads)?;
    for (((_, var), before), (lr, decay)) in params.iter().zip(before).zip([(0.2, 0.1), (0.2, 0.), (0.1, 0.1)]) {
        let grad = values(grads.get(var).unwrap());
        for ((found, p), g) in values(var).iter().zip(before).zip(grad) {
            assert!((found - (p - lr * (g + decay * p))).abs() < 1e-14);
        }
    }
    Ok(())
}

#[test]
fn clipping_scales_gradients() -> Result<()> {
    let norms = |params: &[(String, Var)]| -> Vec<f64> {
        let grads = grads(params, 1);
        let norm = |var| values(grads.get(var).unwrap()).iter().map(|g| g * g).sum::<f64>().sqrt();
        params.iter().map(|(_, var)| norm(var)).collect()
    };
    for clip in [Clip::None, Clip::GlobalNorm(2.), Clip::PerTensor(2.)] {
        let params = params(DType::F64);
        let before: Vec<Vec<f64>> = params.iter().map(|(_, var)| values(var)).collect();
        let config = SgdConfig { lr: 1., ..SgdConfig::default() };
        let mut optimizer = Sgd::new(ParamGroups::new(params.clone())?, config)?.with_clip(clip);
        let report = optimizer.step(&grads(&params, 1))?;
        let norms = norms(&params);
        let total = norms.iter().map(|n| n * n).sum::<f64>().sqrt();
        assert!((report.grad_norm.unwrap() - total).abs() < 1e-9);
        for (((_, var), before), norm) in params.iter().zip(before).zip(&norms) {
            let moved = values(var).iter().zip(before).map(|(a, b)| (a - b).powi(2)).sum::<f64>().sqrt();
            let expected = match clip {
                Clip::None => *norm,
                Clip::GlobalNorm(max) => norm * max / (total + 1e-6),
                Clip::PerTensor(max) => norm * (max / (norm + 1e-6)).min(1.),
            };
            assert!((moved - expected).abs() < 1e-9, "{clip:?}: {moved} instead of {expected}");
        }
        let clipped = match clip {
            Clip::None => 0,
            Clip::GlobalNorm(_) => 3,
            Clip::PerTensor(_) => norms.iter().filter(|&&n| n > 2.).count(),
        };
        assert_eq!((report.clipped, report.updated, report.without_gradient), (clipped, 3, 0));
    }
    Ok(())
}

#[test]
fn a_gradient_that_is_not_finite_changes_nothing() -> Result<()> {
    let params = params(DType::F32);
    let before: Vec<Vec<f64>> = params.iter().map(|(_, var)| values(var)).collect();
    let bad = |value: f32| {
        let mut grads = grads(&params, 1);
        let grad = (Tensor::zeros(5, DType::F32, &Device::Cpu).unwrap() + f64::from(value)).unwrap();
        grads.insert(&params[1].1, grad);
        grads
    };
    let make = || AdamW::new(ParamGroups::new(params.clone()).unwrap(), AdamWConfig::default());
    for value in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
        let failed = make().step(&bad(value));
        assert!(matches!(failed, Err(Error::NonFiniteGradient { name }) if name == "bias"));
        let mut skipping = make().with_non_finite(NonFinite::Skip);
        assert_eq!(skipping.step(&bad(value))?.skipped.as_deref(), Some("bias"));
        assert!(params.iter().zip(&before).all(|((_, var), before)| values(var) == *before));
    }
    let large = make().step(&bad(1e30))?; // its square is not an f32
    assert_eq!(large.updated, 3);
    let ignored = make().with_non_finite(NonFinite::Ignore).step(&bad(f32::NAN))?;
    assert_eq!((ignored.updated, ignored.grad_norm), (3, None));
    assert!(values(&params[1].1).iter().all(|p| p.is_nan()));
    Ok(())
}

#[test]
fn gradients_that_do_not_fit_are_errors() -> Result<()> {
    let params = params(DType::F32);
    let mut optimizer = AdamW::new(ParamGroups::new(params.clone())?, AdamWConfig::default());
    assert!(matches!(optimizer.step(&GradStore::default()), Err(Error::NoGradient { parameters: 3 })));
    for wrong in [Tensor::zeros(4, DType::F32, &Device::Cpu)?, Tensor::zeros(5, DType::F64, &Device::Cpu)?] {
        let mut grads = grads(&params, 1);
        grads.insert(&params[1].1, wrong);
        assert!(matches!(optimizer.step(&grads), Err(Error::GradientMismatch { name, .. }) if name == "bias"));
    }
    // Any strides will do.
    let mut strided = GradStore::default();
    strided.insert(&params[0].1, Tensor::ones((5, 3), DType::F32, &Device::Cpu)?.t()?);
    let report = optimizer.step(&strided)?;
    assert_eq!((report.updated, report.without_gradient), (1, 2));
    Ok(())
}

/// The gradient of `a . b` for `a` has the values of `b`; here it is `b`.
#[test]
fn gradients_that_are_parameters_are_read_before_they_change() -> Result<()> {
    let a = Var::new(&[1f64, 2.], &Device::Cpu)?;
    let b = Var::new(&[3f64, 5.], &Device::Cpu)?;
    let groups = ParamGroups::new([("a".to_owned(), a.clone()), ("b".to_owned(), b.clone())])?;
    let mut optimizer = Sgd::new(groups, SgdConfig { lr: 1., ..SgdConfig::default() })?;
    let mut grads = GradStore::default();
    grads.insert(&a, b.as_tensor().clone());
    grads.insert(&b, b.as_tensor().clone());
    optimizer.step(&grads)?;
    assert_eq!((values(&a), values(&b)), (vec![-2., -3.], vec![0., 0.]));
    Ok(())
}

/// Bias correction of a parameter that joins late starts with it.
#[test]
fn each_parameter_counts_its_own_steps() -> Result<()> {
    let config = AdamWConfig { weight_decay: 0., eps: 0., lr: 0.1, ..AdamWConfig::default() };
    let a = Var::zeros(1, DType::F64, &Device::Cpu)?;
    let b = Var::zeros(1, DType::F64, &Device::Cpu)?;
    let groups = ParamGroups::new([("a".to_owned(), a.clone()), ("b".to_owned(), b.clone())])?;
    let mut optimizer = AdamW::new(groups, config);
    for _ in 0..5 {
        optimizer.backward_step(&a.sum_all()?)?;
    }
    optimizer.backward_step(&(a.sum_all()? + b.sum_all()?)?)?;
    assert!((values(&b)[0] + 0.1).abs() < 1e-12);
    Ok(())
}

#[test]
fn state_round_trip_is_exact() -> Result<()> {
    for dtype in [DType::F32, DType::F64, DType::BF16] {
        let makes: [fn(ParamGroups) -> Box<dyn Optimizer>; 4] = [
            |groups| Box::new(AdamW::new(groups, AdamWConfig::default())),
            |groups| Box::new(Lars::new(groups, LarsConfig::default())),
            |groups| Box::new(Sgd::new(groups, SgdConfig { momentum: 0.9, ..SgdConfig::default() }).unwrap()),
            |groups| Box::new(Sgd::new(groups, SgdConfig::default()).unwrap()),
        ];
        for make in makes {
            let params = params(dtype);
            let groups = ParamGroups::new(params.clone())?;
            let mut first = make(groups.clone());
            // The last parameter has no state yet when it is saved.
            let mut early = grads(&params, 1);
            early.remove(&params[2].1);
            first.step(&early)?;
            first.set_lr(1. / 3.);
            let mut second = make(groups);
            second.load_state(&first.state()?)?;
            assert_eq!(second.lr(), 1. / 3.);
            let saved: Vec<Tensor> = params.iter().map(|(_, var)| var.as_detached_tensor().copy().unwrap()).collect();
            let mut ends = Vec::new();
            for optimizer in [&mut first, &mut second] {
                for ((_, var), saved) in params.iter().zip(&saved) {
                    var.set(saved)?;
                }
                for step in 2..5 {
                    optimizer.step(&grads(&params, step))?;
                }
                ends.push(params.iter().map(|(_, var)| values(var)).collect::<Vec<_>>());
            }
            assert_eq!(ends[0], ends[1]);
        }
    }
    Ok(())
}

#[test]
fn state_of_something_else_is_refused_and_harmless() -> Result<()> {
    let params = params(DType::F32);
    let make = || AdamW::new(ParamGroups::new(params.clone()).unwrap(), AdamWConfig::default());
    let mut optimizer = make();
    optimizer.step(&grads(&params, 1))?;
    let good = optimizer.state()?;
    let other = OptimizerState { kind: "sgd".to_owned(), ..good.clone() };
    let mut target = make();
    assert!(matches!(target.load_state(&other), Err(Error::WrongOptimizer { .. })));
    for index in 0..good.tensors.len() {
        let mut missing = good.clone();
        let (removed, _) = missing.tensors.remove(index);
        assert!(matches!(target.load_state(&missing), Err(Error::MissingTensor { name, .. }) if name == removed));
        let mut mismatched = good.clone();
        mismatched.tensors[index].1 = Tensor::zeros((2, 2, 2), DType::F32, &Device::Cpu)?;
        assert!(matches!(target.load_state(&mismatched), Err(Error::TensorMismatch { .. })));
    }
    let mut extra = good.clone();
    extra.tensors.push(("exp_avg.other".to_owned(), Tensor::new(0f32, &Device::Cpu)?));
    assert!(matches!(target.load_state(&extra), Err(Error::UnexpectedTensor { name, .. }) if name == "exp_avg.other"));
    let mut negative = good.clone();
    let step = negative.tensors.iter_mut().find(|(name, _)| name == "step.bias").unwrap();
    step.1 = Tensor::new(-1i64, &Device::Cpu)?;
    assert!(matches!(target.load_state(&negative), Err(Error::Config(_))));
    assert_eq!(target.state()?.tensors.len(), make().state()?.tensors.len());
    Ok(())
}

#[test]
fn accumulated_gradients_are_means() -> Result<()> {
    let params = params(DType::F64);
    let groups = ParamGroups::new(params.clone())?;
    let mut accumulator = GradAccumulator::new(3)?;
    assert!(accumulator.add(grads(&params, 1), &groups)?.is_none());
    assert!(accumulator.add(grads(&params, 2), &groups)?.is_none());
    assert_eq!(accumulator.pending(), 2);
    let mean = accumulator.add(grads(&params, 3), &groups)?.unwrap();
    for (_, var) in &params {
        let of = |step| values(grads(&params, step).get(var).unwrap());
        let sum = of(1).into_iter().zip(of(2)).zip(of(3)).map(|((a, b), c)| (a + b + c) / 3.);
        assert!(sum.zip(values(mean.get(var).unwrap())).all(|(a, b)| (a - b).abs() < 1e-15));
    }
    assert!(accumulator.take(&groups)?.is_none());
    assert!(matches!(GradAccumulator::new(0), Err(Error::Config(_))));
    Ok(())
}
