//! What the tests of several mixers share.

use candle_core::{D, DType, Result, Tensor, Var};
use sconce_nn::Generator;

/// Panics unless `|got - want| <= tol * (1 + max |want|)` everywhere.
#[track_caller]
pub(crate) fn assert_close(got: &Tensor, want: &Tensor, tol: f64) {
    assert_eq!(got.dims(), want.dims());
    let (error, largest) = (distance(got, want), largest(want));
    assert!(error <= tol * (1.0 + largest), "differ by {error}, the largest value is {largest}");
}

/// The largest difference; NaN where one is not a number.
pub(crate) fn distance(a: &Tensor, b: &Tensor) -> f64 {
    largest(&(a.to_dtype(DType::F64).unwrap() - b.to_dtype(DType::F64).unwrap()).unwrap())
}

fn largest(xs: &Tensor) -> f64 {
    let values = xs.abs().unwrap().flatten_all().unwrap().to_dtype(DType::F64).unwrap().to_vec1::<f64>().unwrap();
    // `max` would pass over what is not a number.
    values.into_iter().fold(0.0, |m, v| if v.is_nan() || v > m { v } else { m })
}

/// Compares the gradients of `f` with central differences in f64, for every element of every input.
#[track_caller]
pub(crate) fn check_gradients(inputs: &[Tensor], f: impl Fn(&[Tensor]) -> Result<Tensor>) {
    let vars: Vec<Var> = inputs.iter().map(|t| Var::from_tensor(t).unwrap()).collect();
    let tensors: Vec<Tensor> = vars.iter().map(|v| v.as_tensor().clone()).collect();
    let out = f(&tensors).unwrap();
    let cotangent = Generator::new(17).normal(0.0, 1.0, out.shape(), DType::F64, out.device()).unwrap();
    let loss = |ys: Tensor| (ys * &cotangent).unwrap().sum_all().unwrap();
    let grads = loss(out).backward().unwrap();
    for (i, x) in inputs.iter().enumerate() {
        let values: Vec<f64> = x.flatten_all().unwrap().to_vec1().unwrap();
        let at = |j: usize, h: f64| {
            let mut moved = values.clone();
            moved[j] += h;
            let mut inputs = inputs.to_vec();
            inputs[i] = Tensor::from_vec(moved, x.shape(), x.device()).unwrap();
            loss(f(&inputs).unwrap()).to_scalar::<f64>().unwrap()
        };
        // Richardson: the error of plain central differences cancels to fourth order.
        let slope = |j, h: f64| (at(j, h) - at(j, -h)) / (2.0 * h);
        let numeric = (0..values.len()).map(|j| (4.0 * slope(j, 1e-4) - slope(j, 2e-4)) / 3.0).collect::<Vec<_>>();
        let numeric = Tensor::from_vec(numeric, x.shape(), x.device()).unwrap();
        let found = grads.get(&vars[i]).unwrap_or_else(|| panic!("input {i} has no gradient"));
        assert_close(found, &numeric, 1e-7);
    }
}

/// Mean over the last axis of the squared values.
pub(crate) fn mean_square(xs: &Tensor) -> Tensor {
    xs.sqr().unwrap().mean(D::Minus1).unwrap()
}
