//! Statistics of the initialisers.

use candle_core::{DType, Device, Shape};
use sconce_nn::{Fan, Generator, Init};

const CPU: &Device = &Device::Cpu;

fn draw(init: Init, shape: impl Into<Shape>) -> Vec<f64> {
    init.tensor(shape, DType::F64, CPU, &Generator::new(5)).unwrap().flatten_all().unwrap().to_vec1().unwrap()
}

fn moments(values: &[f64]) -> (f64, f64) {
    let mean = values.iter().sum::<f64>() / values.len() as f64;
    let variance = values.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / values.len() as f64;
    (mean, variance.sqrt())
}

fn largest(values: &[f64]) -> f64 {
    values.iter().fold(0., |m, x| x.abs().max(m))
}

#[test]
fn fans_count_the_receptive_field() {
    let of = |dims: &[usize]| (Fan::In.of(&dims.into()), Fan::Out.of(&dims.into()));
    assert_eq!(of(&[8, 3]), (3, 8));
    assert_eq!(of(&[8, 3, 4, 5]), (60, 160));
    assert_eq!(of(&[8]), (1, 8));
    assert_eq!(of(&[]), (1, 1));
}

#[test]
fn trunc_normal_is_cut_at_an_absolute_two() {
    let narrow = draw(Init::TruncNormal { std: 0.02 }, (200, 200));
    let (mean, std) = moments(&narrow);
    assert!(mean.abs() < 5e-4 && (std - 0.02).abs() < 2e-4, "{mean} {std}");
    // 40,000 draws go beyond two standard deviations: the cut is not relative.
    assert!(largest(&narrow) > 0.06);
    let wide = draw(Init::TruncNormal { std: 1.5 }, (200, 200));
    assert!(largest(&wide) <= 2. && largest(&wide) > 1.95);
    assert!(wide.iter().filter(|x| x.abs() > 1.999).count() < 100, "redrawn, not clamped");
}

#[test]
fn gaussian_families_have_their_standard_deviation() {
    let shape = (50, 40, 3, 3); // fan in 360, fan out 450
    let gain = 2f64.sqrt();
    for (init, expected) in [
        (Init::Normal { mean: 0., std: 0.3 }, 0.3),
        (Init::KaimingNormal { fan: Fan::In, gain }, (2. / 360f64).sqrt()),
        (Init::KaimingNormal { fan: Fan::Out, gain }, (2. / 450f64).sqrt()),
        (Init::XavierNormal, (2. / 810f64).sqrt()),
        (Init::LecunNormal, (1. / 360f64).sqrt()),
    ] {
        let (mean, std) = moments(&draw(init, shape));
        assert!(mean.abs() < 0.03 * expected && (std / expected - 1.).abs() < 0.02, "{init:?}: {mean} {std}");
    }
    let (mean, _) = moments(&draw(Init::Normal { mean: 2., std: 0.3 }, shape));
    assert!((mean - 2.).abs() < 0.01);
    assert!(largest(&draw(Init::LecunNormal, shape)) <= 2. / 360f64.sqrt() / 0.8796);
}

#[test]
fn uniform_families_have_their_bound() {
    let shape = (50, 40, 3, 3);
    let gain = 2f64.sqrt();
    for (init, bound) in [
        (Init::Uniform { lo: -0.7, hi: 0.7 }, 0.7),
        (Init::KaimingUniform { fan: Fan::In, gain }, (6. / 360f64).sqrt()),
        (Init::KaimingUniform { fan: Fan::Out, gain: 1. }, (3. / 450f64).sqrt()),
        (Init::XavierUniform, (6. / 810f64).sqrt()),
        (Init::TorchLinear, 1. / 360f64.sqrt()),
        (Init::torch_bias(&Shape::from(shape)), 1. / 360f64.sqrt()),
    ] {
        let values = draw(init, shape);
        let (mean, std) = moments(&values);
        assert!(largest(&values) <= bound && largest(&values) > 0.99 * bound, "{init:?}");
        assert!(mean.abs() < 0.02 * bound && (std * 3f64.sqrt() / bound - 1.).abs() < 0.02, "{init:?}: {mean} {std}");
    }
}

#[test]
fn constants_and_types() {
    assert_eq!(draw(Init::Const(0.25), 3), [0.25; 3]);
    assert_eq!((draw(Init::Zeros, 2), draw(Init::Ones, 2)), (vec![0.; 2], vec![1.; 2]));
    for dtype in [DType::F16, DType::BF16, DType::F32] {
        let tensor = Init::TruncNormal { std: 0.02 }.tensor((4, 4), dtype, CPU, &Generator::new(1)).unwrap();
        assert_eq!(tensor.dtype(), dtype);
    }
    assert!(Init::XavierNormal.tensor((4, 4), DType::U32, CPU, &Generator::new(1)).is_err());
    assert_eq!(
        Init::Const(3.).tensor(2, DType::I64, CPU, &Generator::new(1)).unwrap().to_vec1::<i64>().unwrap(),
        [3, 3]
    );
}
