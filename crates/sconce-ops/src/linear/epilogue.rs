//! Bias and activation on a row of a product, and the slope of the activation for its gradient.

use crate::{
    Activation,
    kernel::{Math, Real, Uninit, dispatch},
};

/// `act(x)`
#[inline(always)]
fn value<T: Real>(m: Math, act: Activation, x: T) -> T {
    match act {
        Activation::Identity => x,
        Activation::Gelu => x * m.normal(x).0,
        Activation::GeluTanh => x * m.sigmoid(tanh_argument(m, x)),
        Activation::GeluQuick => x * m.sigmoid(constant::<T>(1.702) * x),
        // Comparing this way keeps NaN.
        Activation::Relu => {
            if x < T::zero() {
                T::zero()
            } else {
                x
            }
        }
        Activation::Silu => x * m.sigmoid(x),
        Activation::Tanh => m.tanh(x),
        Activation::Sigmoid => m.sigmoid(x),
    }
}

/// `act'(x)`
#[inline(always)]
fn slope<T: Real>(m: Math, act: Activation, x: T) -> T {
    let one = T::one();
    match act {
        Activation::Identity => one,
        Activation::Gelu => {
            let (cdf, e) = m.normal(x);
            m.fma(x * e, constant(0.5 * std::f64::consts::FRAC_2_SQRT_PI * std::f64::consts::FRAC_1_SQRT_2), cdf)
        }
        Activation::GeluTanh => {
            let c = 2. * (2. / std::f64::consts::PI).sqrt();
            gated(m, x, tanh_argument(m, x), m.fma(constant::<T>(c * 3. * 0.044715) * x, x, constant(c)))
        }
        Activation::GeluQuick => gated(m, x, constant::<T>(1.702) * x, constant(1.702)),
        Activation::Relu => {
            if x > T::zero() {
                one
            } else {
                T::zero()
            }
        }
        Activation::Silu => gated(m, x, x, one),
        Activation::Tanh => {
            let t = m.tanh(x);
            m.fma(-t, t, one)
        }
        Activation::Sigmoid => {
            let s = m.sigmoid(x);
            s * (one - s)
        }
    }
}

/// Twice the argument of the tanh in the approximate GELU: `(1 + tanh u) / 2 = sigmoid(2u)`.
#[inline(always)]
fn tanh_argument<T: Real>(m: Math, x: T) -> T {
    let c = 2. * (2. / std::f64::consts::PI).sqrt();
    x * m.fma(constant::<T>(c * 0.044715) * x, x, constant(c))
}

#[inline(always)]
fn constant<T: Real>(x: f64) -> T {
    T::from_f64(x)
}

/// Calls `$body` with the activation as a constant, so that each gets a loop of its own that vectorises.
macro_rules! specialise {
    ($act:expr, $a:ident => $body:expr) => {
        specialise!(@ $act, $a, $body, Identity, Gelu, GeluTanh, GeluQuick, Relu, Silu, Tanh, Sigmoid)
    };
    (@ $act:expr, $a:ident, $body:expr, $($name:ident),*) => {
        match $act {
            $(Activation::$name => {
                const $a: Activation = Activation::$name;
                $body
            })*
        }
    };
}

/// `line = act(line + bias)`; `kept`, when wanted, receives the argument of the activation.
pub(crate) fn finish<T: Real>(act: Activation, bias: Option<&[T]>, line: &mut [T], kept: Option<&mut [T]>) {
    if let Some(bias) = bias {
        dispatch(
            #[inline(always)]
            |_| {
                for (x, &b) in line.iter_mut().zip(bias) {
                    *x = *x + b;
                }
            },
        );
    }
    if let Some(kept) = kept {
        kept.copy_from_slice(line);
    }
    if act != Activation::Identity {
        // A pass of its own: one loop per activation to compile, over numbers that are still in the nearest cache.
        dispatch(
            #[inline(always)]
            |m| {
                specialise!(act, ACT => {
                    for x in line.iter_mut() {
                        *x = value(m, ACT, *x);
                    }
                })
            },
        );
    }
}

/// `grad * act'(xs)`, element by element.
#[inline(always)]
pub(super) fn backward<'a, T: Real>(m: Math, act: Activation, grad: &[T], xs: &[T], out: Uninit<'a, T>) -> &'a mut [T] {
    specialise!(act, ACT => out.map2(grad, xs, #[inline(always)] |g, x| g * slope(m, ACT, x)))
}

/// The slope of `x sigmoid(u(x))`, given `u` and its slope.
#[inline(always)]
fn gated<T: Real>(m: Math, x: T, u: T, du: T) -> T {
    let s = m.sigmoid(u);
    m.fma(x * du * s, T::one() - s, s)
}
