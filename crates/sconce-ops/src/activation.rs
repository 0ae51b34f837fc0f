//! Activation functions, element by element.

use candle_core::{CpuStorage, CustomOp1, Layout, Module, Result, Shape, Tensor, WithDType, backend::BackendStorage};
use serde::{Deserialize, Serialize};

use crate::{
    check,
    kernel::{
        Math, Real,
        elementwise::{self, Map, Zip},
    },
    with_float,
};

/// An activation function, by name; in configurations `"gelu_tanh"` and the like.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Activation {
    /// `x`
    Identity,
    /// [`gelu`]
    #[default]
    Gelu,
    /// [`gelu_tanh`]
    GeluTanh,
    /// [`gelu_quick`]
    GeluQuick,
    /// [`relu`]
    Relu,
    /// [`relu6`]
    Relu6,
    /// [`silu`]
    Silu,
    /// `tanh x`
    Tanh,
    /// `1 / (1 + e^-x)`
    Sigmoid,
}

impl Activation {
    /// The name, as in configurations.
    pub fn name(self) -> &'static str {
        match self {
            Self::Identity => "identity",
            Self::Gelu => "gelu",
            Self::GeluTanh => "gelu_tanh",
            Self::GeluQuick => "gelu_quick",
            Self::Relu => "relu",
            Self::Relu6 => "relu6",
            Self::Silu => "silu",
            Self::Tanh => "tanh",
            Self::Sigmoid => "sigmoid",
        }
    }

    /// Applies the function to every element.
    ///
    /// # Errors
    /// When the type is not floating-point.
    pub fn forward(self, xs: &Tensor) -> Result<Tensor> {
        if self == Self::Identity {
            return Ok(xs.clone());
        }
        check::float(self.name(), xs)?;
        match xs.device().is_cpu() {
            true => xs.apply_op1(Kernel(self)),
            false => reference(xs, self),
        }
    }
}

impl Module for Activation {
    fn forward(&self, xs: &Tensor) -> Result<Tensor> {
        (*self).forward(xs)
    }
}

/// Gaussian error linear unit, Hendrycks and Gimpel 2016, the exact form: `x Phi(x)`, `Phi` the normal distribution.
///
/// # Errors
/// When the type is not floating-point.
pub fn gelu(xs: &Tensor) -> Result<Tensor> {
    Activation::Gelu.forward(xs)
}

/// The tanh approximation of [`gelu`]: `x / 2 (1 + tanh(sqrt(2 / pi) (x + 0.044715 x^3)))`.
///
/// # Errors
/// When the type is not floating-point.
pub fn gelu_tanh(xs: &Tensor) -> Result<Tensor> {
    Activation::GeluTanh.forward(xs)
}

/// The sigmoid approximation of [`gelu`], as in OpenAI's CLIP: `x sigmoid(1.702 x)`.
///
/// # Errors
/// When the type is not floating-point.
pub fn gelu_quick(xs: &Tensor) -> Result<Tensor> {
    Activation::GeluQuick.forward(xs)
}

/// Sigmoid linear unit, `x sigmoid(x)`.
///
/// # Errors
/// When the type is not floating-point.
pub fn silu(xs: &Tensor) -> Result<Tensor> {
    Activation::Silu.forward(xs)
}

/// `max(x, 0)`; its gradient at 0 is 0.
///
/// # Errors
/// When the type is not floating-point.
pub fn relu(xs: &Tensor) -> Result<Tensor> {
    Activation::Relu.forward(xs)
}

/// `min(max(x, 0), 6)`, as in nets made to be quantised; its gradient at 0 and 6 is 0.
///
/// # Errors
/// When the type is not floating-point.
pub fn relu6(xs: &Tensor) -> Result<Tensor> {
    Activation::Relu6.forward(xs)
}

/// A function and its slope, for kernels; see [`with_activation`].
pub(crate) trait Function: Copy + Send + Sync {
    /// The function at `x`.
    fn value<A: Real>(self, m: Math, x: A) -> A;

    /// Its derivative at `x`.
    fn slope<A: Real>(self, m: Math, x: A) -> A;
}

/// Declares the types behind the variants of [`Activation`].
macro_rules! functions {
    ($($name:ident: |$m:ident, $x:ident| $value:expr, $slope:expr;)*) => {
        pub(crate) mod function {
            use super::*;
            $(
                #[derive(Debug, Clone, Copy)]
                pub(crate) struct $name;

                impl Function for $name {
                    #[inline(always)]
                    fn value<A: Real>(self, $m: Math, $x: A) -> A {
                        $value
                    }

                    #[inline(always)]
                    fn slope<A: Real>(self, $m: Math, $x: A) -> A {
                        $slope
                    }
                }
            )*
        }
    };
}

functions! {
    Identity: |_m, x| x, { let _ = x; A::one() };
    Gelu: |m, x| x * m.normal(x).0, {
        let (cdf, e) = m.normal(x);
        m.fma(x * A::from_f64(0.398_942_280_401_432_7), e, cdf) // 1 / sqrt(2 pi)
    };
    GeluTanh: |m, x| x * m.sigmoid(tanh_argument(m, x).0), {
        let (argument, slope) = tanh_argument(m, x);
        let s = m.sigmoid(argument);
        m.fma(x * slope * s, A::one() - s, s)
    };
    GeluQuick: |m, x| x * m.sigmoid(A::from_f64(1.702) * x), {
        let scaled = A::from_f64(1.702) * x;
        let s = m.sigmoid(scaled);
        m.fma(scaled * s, A::one() - s, s)
    };
    Relu: |_m, x| if x < A::zero() { A::zero() } else { x },
        if x > A::zero() { A::one() } else { A::zero() };
    Relu6: |_m, x| {
        let x = if x < A::zero() { A::zero() } else { x };
        if x > A::from_f64(6.) { A::from_f64(6.) } else { x }
    }, if x > A::zero() && x < A::from_f64(6.) { A::one() } else { A::zero() };
    Silu: |m, x| x * m.sigmoid(x), {
        let s = m.sigmoid(x);
        m.fma(x * s, A::one() - s, s)
    };
    Tanh: |m, x| m.tanh(x), {
        let t = m.tanh(x);
        A::one() - t * t
    };
    Sigmoid: |m, x| m.sigmoid(x), {
        let s = m.sigmoid(x);
        s * (A::one() - s)
    };
}

/// `2 sqrt(2 / pi) (x + 0.044715 x^3)` and its derivative: since `(1 + tanh u) / 2` is the sigmoid of `2u`.
#[inline(always)]
fn tanh_argument<A: Real>(m: Math, x: A) -> (A, A) {
    let (k, c) = (A::from_f64(1.595_769_121_605_730_7), A::from_f64(0.044_715));
    // From here on the sigmoid is 0 or 1 and squares could only overflow.
    let limit = A::from_f64(30.);
    let x = if x < -limit { -limit } else { x };
    let x = if x > limit { limit } else { x };
    let square = x * x * c;
    (k * m.fma(square, x, x), k * m.fma(square, A::from_f64(3.), A::one()))
}

/// Runs an expression with a name bound to the [`Function`] of an [`Activation`].
macro_rules! with_activation {
    ($activation:expr, $f:ident => $body:expr) => {
        match $activation {
            $crate::Activation::Identity => {
                let $f = $crate::activation::function::Identity;
                $body
            }
            $crate::Activation::Gelu => {
                let $f = $crate::activation::function::Gelu;
                $body
            }
            $crate::Activation::GeluTanh => {
                let $f = $crate::activation::function::GeluTanh;
                $body
            }
            $crate::Activation::GeluQuick => {
                let $f = $crate::activation::function::GeluQuick;
                $body
            }
            $crate::Activation::Relu => {
                let $f = $crate::activation::function::Relu;
                $body
            }
            $crate::Activation::Relu6 => {
                let $f = $crate::activation::function::Relu6;
                $body
            }
            $crate::Activation::Silu => {
                let $f = $crate::activation::function::Silu;
                $body
            }
            $crate::Activation::Tanh => {
                let $f = $crate::activation::function::Tanh;
                $body
            }
            $crate::Activation::Sigmoid => {
                let $f = $crate::activation::function::Sigmoid;
                $body
            }
        }
    };
}
pub(crate) use with_activation;

struct Kernel(Activation);

#[derive(Clone, Copy)]
struct Value<F>(F);

impl<F: Function> Map for Value<F> {
    #[inline(always)]
    fn apply<A: Real>(self, m: Math, x: A) -> A {
        self.0.value(m, x)
    }
}

#[derive(Clone, Copy)]
struct Slope<F>(F);

impl<F: Function> Zip for Slope<F> {
    #[inline(always)]
    fn apply<A: Real>(self, m: Math, x: A, dy: A) -> A {
        self.0.slope(m, x) * dy
    }
}

impl CustomOp1 for Kernel {
    fn name(&self) -> &'static str {
        self.0.name()
    }

    fn cpu_fwd(&self, storage: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let storage = with_float!(storage.dtype(), self.name(), T => {
            let data = T::cpu_storage_as_slice(storage)?;
            let out = with_activation!(self.0, f => elementwise::map(data, layout, Value(f)));
            Ok(T::to_cpu_storage_owned(out))
        })?;
        Ok((storage, layout.shape().clone()))
    }

    fn bwd(&self, xs: &Tensor, _: &Tensor, grad: &Tensor) -> Result<Option<Tensor>> {
        if !xs.track_op() {
            return Ok(None);
        }
        let grad = with_float!(xs.dtype(), self.name(), T => {
            with_activation!(self.0, f => elementwise::zip::<T>(self.name(), xs, grad, Slope(f)))
        })?;
        Ok(Some(grad))
    }
}

/// The same by candle's own operations; differentiable. Candle's ready GELUs are avoided: their gradients use constants of six
/// digits.
pub(crate) fn reference(xs: &Tensor, activation: Activation) -> Result<Tensor> {
    let x = xs.to_dtype(check::wide(xs.dtype()))?;
    let sigmoid = |x: &Tensor| ((x * 0.5)?.tanh()? * 0.5)? + 0.5;
    let y = match activation {
        Activation::Identity => x,
        Activation::Gelu => {
            let phi = (((&x * std::f64::consts::FRAC_1_SQRT_2)?.erf()? * 0.5)? + 0.5)?;
            (&x * phi)?
        }
        Activation::GeluTanh => {
            let inner = (&x * ((x.sqr()? * 0.044715)? + 1.)?)?;
            let scale = (2. / std::f64::consts::PI).sqrt();
            (&x * (((inner * scale)?.tanh()? * 0.5)? + 0.5)?)?
        }
        Activation::GeluQuick => (&x * sigmoid(&(&x * 1.702)?)?)?,
        Activation::Relu => (&x * x.gt(0.)?.to_dtype(x.dtype())?)?,
        Activation::Relu6 => {
            let inside = (x.gt(0.)?.to_dtype(x.dtype())? * x.lt(6.)?.to_dtype(x.dtype())?)?;
            ((&x * inside)? + (x.ge(6.)?.to_dtype(x.dtype())? * 6.)?)?
        }
        Activation::Silu => (&x * sigmoid(&x)?)?,
        Activation::Tanh => x.tanh()?,
        Activation::Sigmoid => sigmoid(&x)?,
    };
    y.to_dtype(xs.dtype())
}

#[cfg(test)]
mod tests {
    use candle_core::{DType, Device};
    use proptest::prelude::*;

    use super::*;
    use crate::testing::{Draw, assert_close, check_gradients, gradients, strided, tolerance};

    const ALL: [Activation; 9] = [
        Activation::Identity,
        Activation::Gelu,
        Activation::GeluTanh,
        Activation::GeluQuick,
        Activation::Relu,
        Activation::Relu6,
        Activation::Silu,
        Activation::Tanh,
        Activation::Sigmoid,
    ];

    #[test]
    fn known_values() -> Result<()> {
        let x = Tensor::new(&[-1f64, 0., 2.], &Device::Cpu)?;
        let check = |f: Activation, want: [f64; 3]| {
            assert_close(&f.forward(&x).unwrap(), &Tensor::new(&want, &Device::Cpu).unwrap(), 1e-12);
        };
        check(Activation::Gelu, [-0.158_655_253_931_457_05, 0., 1.954_499_736_103_641_6]);
        check(Activation::GeluTanh, [-0.158_808_009_391_723_24, 0., 1.954_597_694_087_775]);
        check(Activation::GeluQuick, [-1. / (1. + 1.702f64.exp()), 0., 2. / (1. + (-3.404f64).exp())]);
        check(Activation::Relu, [0., 0., 2.]);
        check(Activation::Relu6, [0., 0., 2.]);
        check(Activation::Silu, [-0.268_941_421_369_995_1, 0., 1.761_594_155_955_764_9]);
        Ok(())
    }

    #[test]
    fn gradients_are_exact() -> Result<()> {
        let x = Tensor::new(&[-6f64, -2.5, -1., -0.3, 0.02, 0.7, 1.9, 3.3, 7.], &Device::Cpu)?;
        for f in ALL.into_iter().filter(|&f| f != Activation::Identity) {
            check_gradients(std::slice::from_ref(&x), |t| f.forward(&t[0]));
        }
        Ok(())
    }

    #[test]
    fn relu6_is_flat_from_six_on() -> Result<()> {
        let x = Tensor::new(&[-0.5f32, 0., 5.5, 6., 6.5], &Device::Cpu)?;
        let slope = gradients(std::slice::from_ref(&x), &x.ones_like()?, |t| relu6(&t[0]))?.remove(0);
        for y in [relu6(&x)?, reference(&x, Activation::Relu6)?] {
            assert_eq!(y.to_vec1::<f32>()?, [0., 0., 5.5, 6., 6.]);
        }
        assert_eq!(slope.to_vec1::<f32>()?, [0., 0., 1., 0., 0.]);
        Ok(())
    }

    #[test]
    fn extremes_stay_finite_and_nan_stays_nan() -> Result<()> {
        for f in ALL {
            let x = Tensor::new(&[-1e30f32, -100., -20., 20., 100., 1e30], &Device::Cpu)?;
            let ones = x.ones_like()?;
            let slope = match f {
                Activation::Identity => ones,
                _ => gradients(std::slice::from_ref(&x), &ones, |t| f.forward(&t[0]))?.remove(0),
            };
            for y in [f.forward(&x)?, slope] {
                assert!(y.to_vec1::<f32>()?.iter().all(|y| y.is_finite()), "{f:?}: {y}");
            }
            assert!(f.forward(&Tensor::new(&[f32::NAN], &Device::Cpu)?)?.to_vec1::<f32>()?[0].is_nan());
        }
        Ok(())
    }

    #[test]
    fn wrong_types_are_refused_and_empty_tensors_are_not() -> Result<()> {
        for f in ALL.into_iter().filter(|&f| f != Activation::Identity) {
            assert!(f.forward(&Tensor::new(&[1u32], &Device::Cpu)?).is_err());
            assert_eq!(f.forward(&Tensor::zeros((0, 3), DType::F32, &Device::Cpu)?)?.dims(), [0, 3]);
        }
        Ok(())
    }

    #[test]
    fn names_are_what_serde_writes() {
        use serde::de::{
            IntoDeserializer,
            value::{Error, StrDeserializer},
        };
        for f in ALL {
            let name: StrDeserializer<'_, Error> = f.name().into_deserializer();
            assert_eq!(Activation::deserialize(name), Ok(f));
        }
        assert_eq!(Activation::default(), Activation::Gelu);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(32))]

        #[test]
        fn agrees_with_the_reference(seed: u64) {
            let mut draw = Draw::new(seed);
            let shape = draw.shape(0..=4, 0..=6);
            let (f, dtype) = (draw.pick(&ALL), draw.pick(&[DType::F32, DType::F64, DType::F16, DType::BF16]));
            let x = (strided(&mut draw, &shape, dtype).unwrap() * 3.).unwrap();
            assert_close(&f.forward(&x).unwrap(), &reference(&x, f).unwrap(), tolerance(dtype));
            if f != Activation::Identity {
                let dy = strided(&mut draw, &shape, dtype).unwrap();
                let ours = gradients(std::slice::from_ref(&x), &dy, |t| f.forward(&t[0])).unwrap();
                let theirs = gradients(&[x], &dy, |t| reference(&t[0], f)).unwrap();
                assert_close(&ours[0], &theirs[0], tolerance(dtype));
            }
        }
    }
}
