//! Losses: gradients against central differences in f64, the straight-through sign by its definition, what is refused.

use candle_core::{DType, Device, Result, Tensor, Var};
use sconce_hash::losses::*;
use sconce_ops::Generator;

fn normal(seed: u64, shape: (usize, usize)) -> Tensor {
    Generator::new(seed).normal(0.0, 0.8, shape, DType::F64, &Device::Cpu).unwrap()
}

fn values(xs: &Tensor) -> Vec<f64> {
    xs.flatten_all().unwrap().to_vec1().unwrap()
}

/// Holds the gradient of `loss` at `xs` against differences.
fn check(name: &str, xs: &Tensor, loss: impl Fn(&Tensor) -> Result<Tensor>) {
    const STEP: f64 = 1e-6;
    let var = Var::from_tensor(xs).unwrap();
    let grads = loss(&var).unwrap().backward().unwrap();
    let grad = values(grads.get(&var).unwrap_or_else(|| panic!("{name} has no gradient")));
    let at = |i: usize, by: f64| {
        let mut values = values(xs);
        values[i] += by;
        loss(&Tensor::from_vec(values, xs.dims(), &Device::Cpu).unwrap()).unwrap().to_scalar::<f64>().unwrap()
    };
    let largest = grad.iter().fold(0f64, |m, g| m.max(g.abs()));
    assert!(largest > 0.0, "{name}: the gradient is 0");
    for (i, grad) in grad.iter().enumerate() {
        let slope = (at(i, STEP) - at(i, -STEP)) / (2.0 * STEP);
        assert!((slope - grad).abs() < 1e-7 * largest.max(1.0), "{name} at {i}: {grad}, differences say {slope}");
    }
}

#[test]
fn gradients_are_those_of_differences() {
    let (f0, f, h) = (normal(1, (5, 6)), normal(2, (5, 6)), normal(3, (5, 4)));
    let signs = sign(&normal(4, (5, 4))).unwrap();
    let weights = Vit2HashWeights { rec: 0.7, kl: 1.3, quant: 0.2, sim: 0.6, temperature: 0.4 };
    check("vit2hash by the student", &f, |f| Ok(vit2hash(&f0, f, &h, &weights)?.total));
    check("vit2hash by the outputs", &h, |h| Ok(vit2hash(&f0, &f, h, &weights)?.total));
    check("nt_xent", &h, |h| nt_xent(h, &f.narrow(1, 0, 4)?.contiguous()?, 0.3));
    check("nt_xent, other view", &h, |h| nt_xent(&f.narrow(1, 0, 4)?.contiguous()?, h, 0.3));
    check("greedy_quantisation", &h, greedy_quantisation);
    check("central_similarity", &h, |h| central_similarity(h, &signs));
    check("central_quantisation", &h, central_quantisation);
    let rows = sconce_ops::softmax(&normal(5, (5, 5)), 1).unwrap();
    check("weighted_contrast", &h, |h| weighted_contrast(h, &normal(6, (5, 4)), &rows, 0.3));
    let books = normal(7, (3, 6));
    check("soft_quantise", &f, |f| soft_quantise(f, &books, 2, 5.0)?.sqr()?.sum_all());
    check("soft_quantise by the books", &books, |books| soft_quantise(&f, books, 3, 5.0)?.sqr()?.sum_all());
}

#[test]
fn the_second_argument_of_a_divergence_takes_no_gradient() {
    let (h, other) = (normal(3, (5, 4)), normal(8, (5, 4)));
    let one_way = |h: &Tensor| -> Result<Tensor> {
        let p = ((h * 0.5)?.tanh()? + 1.0)?.affine(0.5, 0.0)?;
        let q = ((&other * 0.5)?.tanh()? + 1.0)?.affine(0.5, 0.0)?;
        let term = |p: &Tensor, q: &Tensor| p * ((p + 1e-8)?.log()? - (q + 1e-8)?.log()?)?;
        (term(&p, &q)? + term(&p.affine(-1.0, 1.0)?, &q.affine(-1.0, 1.0)?)?)?.sum(1)?.mean_all()? * 0.5
    };
    check("half of bit_kl", &h, one_way);
    let var = Var::from_tensor(&h).unwrap();
    let gradient = |loss: Tensor| values(loss.backward().unwrap().get(&var).unwrap());
    let (both, one) = (gradient(bit_kl(&var, &other).unwrap()), gradient(one_way(&var).unwrap()));
    assert!(both.iter().zip(&one).all(|(a, b)| (a - b).abs() < 1e-12));
}

#[test]
fn the_sign_passes_gradients_straight_through() {
    // What the loss says of the codes reaches the outputs unchanged.
    let (h, x) = (normal(1, (6, 4)), normal(2, (6, 5)));
    let outputs = Var::from_tensor(&h).unwrap();
    let through = greedy_similarity(&outputs, &x).unwrap().backward().unwrap();
    let codes = Var::from_tensor(&sign(&h).unwrap()).unwrap();
    let direct = greedy_similarity(&codes, &x).unwrap().backward().unwrap();
    assert_eq!(values(through.get(&outputs).unwrap()), values(direct.get(&codes).unwrap()));
    assert_eq!(values(&sign(&Tensor::new(&[-0f64, 0.0], &Device::Cpu).unwrap()).unwrap()), [1.0, 1.0]);
}

#[test]
fn the_teacher_takes_no_gradient() {
    let teacher = Var::from_tensor(&normal(1, (4, 5))).unwrap();
    let (f, h) = (Var::from_tensor(&normal(2, (4, 5))).unwrap(), Var::from_tensor(&normal(3, (4, 3))).unwrap());
    let grads = vit2hash(&teacher, &f, &h, &Vit2HashWeights::default()).unwrap().total.backward().unwrap();
    assert!(grads.get(&teacher).is_none() && grads.get(&f).is_some() && grads.get(&h).is_some());
    let grads = greedy_similarity(&h, &teacher).unwrap().backward().unwrap();
    assert!(grads.get(&teacher).is_none());
}

#[test]
fn a_perfect_student_loses_nothing() {
    let f = normal(1, (4, 5));
    let zero = |loss: Tensor| assert!(loss.to_scalar::<f64>().unwrap().abs() < 1e-15);
    zero(feature_distance(&f, &f).unwrap());
    zero(relation_kl(&f, &(&f * 3.0).unwrap(), 0.5).unwrap());
    let signs = sign(&f).unwrap();
    zero(quantisation(&signs).unwrap());
    zero(greedy_quantisation(&signs).unwrap());
    zero(similarity(&signs, &signs).unwrap());
    zero(bit_kl(&f, &f).unwrap());
}

#[test]
fn saturated_outputs_stay_finite() {
    let h = Tensor::new(&[[1e4f32, -1e4, 0.0], [-1e4, 1e4, 0.0]], &Device::Cpu).unwrap();
    let far = h.neg().unwrap();
    let var = Var::from_tensor(&h).unwrap();
    for loss in [bit_kl(&var, &far).unwrap(), central_similarity(&var, &sign(&far).unwrap()).unwrap()] {
        assert!(loss.to_scalar::<f32>().unwrap().is_finite());
        let grads = loss.backward().unwrap();
        let grad = grads.get(&var).unwrap().flatten_all().unwrap().to_vec1::<f32>().unwrap();
        assert!(grad.iter().all(|g| g.is_finite()), "{grad:?}");
    }
}

#[test]
fn half_precision_is_computed_in_single() {
    let (f, h) = (normal(1, (4, 5)), normal(2, (4, 3)));
    for dtype in [DType::F16, DType::BF16] {
        let (f, h) = (f.to_dtype(dtype).unwrap(), h.to_dtype(dtype).unwrap());
        let found = vit2hash(&f, &f, &h, &Vit2HashWeights::default()).unwrap();
        let wide = |t: &Tensor| t.to_dtype(DType::F32).unwrap();
        let wanted = vit2hash(&wide(&f), &wide(&f), &wide(&h), &Vit2HashWeights::default()).unwrap();
        assert_eq!(found.total.to_scalar::<f32>().unwrap(), wanted.total.to_scalar::<f32>().unwrap());
        for loss in [code_contrast(&h, &h, 0.3), bit_kl(&h, &h), greedy_similarity(&h, &f), central_quantisation(&h)] {
            assert_eq!(loss.unwrap().dtype(), DType::F32);
        }
    }
}

#[test]
fn wrong_input_is_refused() {
    let (h, one) = (normal(1, (4, 3)), normal(2, (1, 3)));
    assert!(relations(&one, 0.5).is_err() && relations(&h, 0.0).is_err() && relations(&h, f64::NAN).is_err());
    assert!(nt_xent(&h, &one, 0.3).is_err() && nt_xent(&h, &h, -1.0).is_err());
    assert!(bit_kl(&h, &one).is_err() && feature_distance(&h, &one).is_err());
    assert!(greedy_similarity(&one, &one).is_err() && greedy_similarity(&h, &one).is_err());
    assert!(central_similarity(&h, &one).is_err());
    assert!(relation_kl(&h, &normal(1, (5, 3)), 0.5).is_err());
    assert!(soft_quantise(&h, &h, 2, 5.0).is_err() && soft_quantise(&h, &h, 0, 5.0).is_err());
    assert!(soft_quantise(&h, &normal(1, (4, 4)), 1, 5.0).is_err());
}
