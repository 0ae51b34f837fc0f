//! What the test batteries of all operations share: tensors of random shapes and strides, and checks of gradients.

use candle_core::{DType, Device, Result, Tensor, Var};

use crate::Generator;

/// A source of random test inputs; one proptest seed makes a whole case.
pub(crate) struct Draw(Generator);

impl Draw {
    pub(crate) fn new(seed: u64) -> Self {
        Self(Generator::new(seed))
    }

    /// An integer in the range.
    pub(crate) fn int(&mut self, range: std::ops::RangeInclusive<usize>) -> usize {
        range.start() + self.0.index(range.end() - range.start() + 1)
    }

    pub(crate) fn bool(&mut self) -> bool {
        self.int(0..=1) == 1
    }

    pub(crate) fn pick<T: Copy>(&mut self, choices: &[T]) -> T {
        choices[self.int(0..=choices.len() - 1)]
    }

    pub(crate) fn shape(
        &mut self,
        rank: std::ops::RangeInclusive<usize>,
        size: std::ops::RangeInclusive<usize>,
    ) -> Vec<usize> {
        (0..self.int(rank)).map(|_| self.int(size.clone())).collect()
    }

    /// Contiguous standard normal values.
    pub(crate) fn normal(&mut self, shape: &[usize], dtype: DType) -> Result<Tensor> {
        self.0.normal(0., 1., shape, dtype, &Device::Cpu)
    }
}

/// Standard normal values laid out at random: permuted dimensions, an offset, gaps between elements, at times a
/// broadcast dimension.
pub(crate) fn strided(draw: &mut Draw, shape: &[usize], dtype: DType) -> Result<Tensor> {
    let rank = shape.len();
    if shape.contains(&0) {
        // Candle itself panics on empty views with an offset.
        return draw.normal(shape, dtype);
    }
    let mut order: Vec<usize> = (0..rank).collect();
    if draw.bool() {
        draw.0.shuffle(&mut order);
    }
    // Stored in `order`, each dimension with a margin around it.
    let margins: Vec<usize> = (0..rank).map(|_| draw.pick(&[0, 0, 1, 2])).collect();
    let broadcast = (rank > 0 && draw.int(0..=4) == 0).then(|| draw.int(0..=rank - 1));
    let stored: Vec<usize> =
        order.iter().map(|&d| if broadcast == Some(d) { 1 } else { shape[d] + margins[d] }).collect();
    let gap = draw.pick(&[1, 1, 2]);
    let mut padded = stored.clone();
    padded.push(gap);
    let mut x = draw.normal(&padded, dtype)?.narrow(rank, gap - 1, 1)?.squeeze(rank)?;
    for (position, &d) in order.iter().enumerate() {
        if broadcast != Some(d) {
            x = x.narrow(position, margins[d] / 2, shape[d])?;
        }
    }
    let mut inverse = vec![0; rank];
    for (position, &d) in order.iter().enumerate() {
        inverse[d] = position;
    }
    x.permute(inverse)?.broadcast_as(shape)
}

/// Panics unless `|got - want| <= tol * (1 + max |want|)` everywhere, NaN matching NaN.
#[track_caller]
pub(crate) fn assert_close(got: &Tensor, want: &Tensor, tol: f64) {
    assert_eq!(got.dims(), want.dims());
    let flat = |t: &Tensor| -> Vec<f64> {
        t.to_dtype(DType::F64).and_then(|t| t.flatten_all()).and_then(|t| t.to_vec1()).unwrap()
    };
    let (got, want) = (flat(got), flat(want));
    let scale = want.iter().filter(|w| w.is_finite()).fold(1f64, |m, w| m.max(w.abs()));
    for (i, (g, w)) in got.iter().zip(&want).enumerate() {
        let same = g == w || g.is_nan() && w.is_nan() || (g - w).abs() <= tol * scale;
        assert!(same, "element {i}: {g} instead of {w} (tolerance {tol} * {scale})");
    }
}

/// Tolerance for comparing results in this type.
pub(crate) fn tolerance(dtype: DType) -> f64 {
    match dtype {
        DType::F64 => 1e-11,
        DType::F32 => 1e-5,
        DType::F16 => 4e-3,
        _ => 3e-2,
    }
}

/// Gradients of `sum(f(inputs) * cotangent)` for the inputs.
pub(crate) fn gradients(
    inputs: &[Tensor],
    cotangent: &Tensor,
    f: impl Fn(&[Tensor]) -> Result<Tensor>,
) -> Result<Vec<Tensor>> {
    let vars = inputs.iter().map(Var::from_tensor).collect::<Result<Vec<_>>>()?;
    let tensors: Vec<Tensor> = vars.iter().map(|v| v.as_tensor().clone()).collect();
    let loss = f(&tensors)?.mul(&cotangent.to_dtype(inputs[0].dtype())?)?.sum_all()?;
    let grads = loss.backward()?;
    let missing = || candle_core::Error::Msg("an input has no gradient".into());
    vars.iter().map(|v| grads.get(v).cloned().ok_or_else(missing)).collect()
}

/// Compares the gradients of `f` with central differences in f64, for every element of every input, and its gradients in f32
/// with those in f64. Inputs are f64, small, and away from kinks.
#[track_caller]
pub(crate) fn check_gradients(inputs: &[Tensor], f: impl Fn(&[Tensor]) -> Result<Tensor>) {
    let run = || -> Result<()> {
        let out = f(inputs)?;
        let cotangent = Draw::new(17).normal(out.dims(), DType::F64)?;
        let grads = gradients(inputs, &cotangent, &f)?;
        for (i, x) in inputs.iter().enumerate() {
            let values: Vec<f64> = x.flatten_all()?.to_vec1()?;
            let mut numeric = Vec::with_capacity(values.len());
            for j in 0..values.len() {
                let loss = |h: f64| -> Result<f64> {
                    let mut moved = values.clone();
                    moved[j] += h;
                    let mut inputs = inputs.to_vec();
                    inputs[i] = Tensor::from_vec(moved, x.shape(), x.device())?;
                    f(&inputs)?.mul(&cotangent)?.sum_all()?.to_scalar()
                };
                // Richardson: the error of plain central differences cancels to fourth order.
                let (h, wide) = (1e-4, 2e-4);
                let narrow = (loss(h)? - loss(-h)?) / (2. * h);
                let broad = (loss(wide)? - loss(-wide)?) / (2. * wide);
                numeric.push((4. * narrow - broad) / 3.);
            }
            let numeric = Tensor::from_vec(numeric, x.shape(), x.device())?;
            assert_close(&grads[i], &numeric, 1e-7);
        }
        let single = inputs.iter().map(|x| x.to_dtype(DType::F32)).collect::<Result<Vec<_>>>()?;
        for (g32, g64) in gradients(&single, &cotangent, &f)?.iter().zip(&grads) {
            assert_eq!(g32.dtype(), DType::F32);
            assert_close(g32, g64, 2e-5);
        }
        Ok(())
    };
    run().unwrap();
}
