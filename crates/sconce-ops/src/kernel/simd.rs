//! Code that the compiler turns into vectors, for whatever vectors the machine has.
//!
//! [`dispatch`] compiles a closure three times (AVX-512, AVX2 with FMA, baseline) and picks one at run time. The closure holds
//! plain loops over slices; it must be marked `#[inline(always)]`, and so must all it calls, else the inner functions keep
//! the baseline instructions. The functions of [`Math`] have no branches, so loops around them vectorise.

use std::sync::LazyLock;

use pulp::{Arch, Simd, WithSimd};

use super::element::Real;

/// Runs `f` compiled for the best instruction set of this machine.
///
/// ```
/// use sconce_ops::kernel::{Math, dispatch};
/// let (xs, mut ys) = ([0f32, 1., 2.], [0f32; 3]);
/// dispatch(
///     #[inline(always)]
///     |m: Math| {
///         for (y, &x) in ys.iter_mut().zip(&xs) {
///             *y = m.exp(x);
///         }
///     },
/// );
/// assert!((ys[1] - 1f32.exp()).abs() < 1e-6);
/// ```
#[inline]
pub fn dispatch<R>(f: impl FnOnce(Math) -> R) -> R {
    struct Vectorised<F>(F);
    impl<R, F: FnOnce(Math) -> R> WithSimd for Vectorised<F> {
        type Output = R;

        #[inline(always)]
        fn with_simd<S: Simd>(self, _: S) -> R {
            (self.0)(Math { fused: !S::IS_SCALAR })
        }
    }
    // Asked for once: a virtual machine may take microseconds to answer, more than a short row does.
    static ARCH: LazyLock<Arch> = LazyLock::new(Arch::new);
    ARCH.dispatch(Vectorised(f))
}

/// Elementary functions for one instruction set; made by [`dispatch`].
///
/// Errors are stated in units in the last place of the result and hold with fused multiply-add; tests sweep them.
#[derive(Debug, Clone, Copy)]
pub struct Math {
    fused: bool,
}

impl Math {
    /// Without any instruction beyond the platform's baseline.
    pub(super) const BASELINE: Self = Self { fused: false };

    /// `a * b + c`, with one rounding where the machine has the instruction.
    #[inline(always)]
    pub fn fma<T: Real>(self, a: T, b: T, c: T) -> T {
        // Without the instruction `mul_add` would be a function call per element.
        if self.fused { a.mul_add(b, c) } else { a * b + c }
    }

    /// The polynomial with these coefficients, lowest first.
    #[inline(always)]
    pub fn polynomial<T: Real>(self, x: T, coefficients: &[T]) -> T {
        let mut y = T::zero();
        for &c in coefficients.iter().rev() {
            y = self.fma(y, x, c);
        }
        y
    }

    /// `e^x`, within 1.1 ulp; overflows to infinity, underflows through the subnormals to 0.
    #[inline(always)]
    pub fn exp<T: Real>(self, x: T) -> T {
        let (n, r) = self.split(clamp(x, T::EXP_MIN, T::EXP_MAX));
        let p = self.fma(self.polynomial(r, T::EXP) * r, r, r) + T::one();
        // In two steps, since 2^n alone may be out of range where the result is not.
        let (half, rest) = T::powers_of_two(n);
        p * half * rest
    }

    /// `x = n ln 2 + r`: the integer as it sits in the low bits of a float, and the rest.
    #[inline(always)]
    fn split<T: Real>(self, x: T) -> (T, T) {
        let n = self.fma(x, T::LOG2_E, T::ROUND);
        let k = n - T::ROUND;
        (n, self.fma(k, -T::LN_2_LOW, self.fma(k, -T::LN_2_HIGH, x)))
    }

    /// `tanh x`, within 3 ulp.
    #[inline(always)]
    pub fn tanh<T: Real>(self, x: T) -> T {
        // By expm1(2|x|), which is exact near 0 where e^2x - 1 would cancel.
        let t = clamp(x.abs(), T::zero(), T::TANH_MAX);
        let (n, r) = self.split(t + t);
        let p = self.fma(self.polynomial(r, T::EXP) * r, r, r);
        let (half, rest) = T::powers_of_two(n);
        let scale = half * rest;
        let em1 = self.fma(scale, p, scale - T::one());
        (em1 / (em1 + T::one() + T::one())).copysign(x)
    }

    /// `1 / (1 + e^-x)`, within 3 ulp.
    #[inline(always)]
    pub fn sigmoid<T: Real>(self, x: T) -> T {
        let e = self.exp(-x.abs());
        let d = T::one() / (T::one() + e);
        if x < T::zero() { e * d } else { d }
    }

    /// `erf x`, within 3 ulp.
    #[inline(always)]
    pub fn erf<T: Real>(self, x: T) -> T {
        let t = clamp(x.abs(), T::zero(), T::ERF_MAX);
        let near = t * self.polynomial(t * t, T::ERF);
        let u = T::one() / self.fma(t, T::ERFCX_SLOPE, T::one());
        let far = T::one() - self.exp(-t * t) * self.polynomial(u, T::ERFCX);
        (if t < T::one() { near } else { far }).copysign(x)
    }

    /// The standard normal distribution: `(cdf(x), exp(-x^2 / 2))`. The first is within 8 ulp also in the lower tail (down to
    /// -13), where `(1 + erf) / 2` would have lost it.
    #[inline(always)]
    pub fn normal<T: Real>(self, x: T) -> (T, T) {
        let x = clamp(x, -T::NORMAL_MAX, T::NORMAL_MAX);
        let half = T::HALF * x;
        let square = -half * x;
        // What rounding took from the square would be multiplied by it in the exponential.
        let lost = self.fma(-half, x, -square);
        let e = self.exp(square);
        let e = self.fma(e, lost, e);
        let u = T::one() / self.fma(x.abs(), T::ERFCX_SLOPE * T::SQRT_HALF, T::one());
        let tail = T::HALF * e * self.polynomial(u, T::ERFCX);
        (if x < T::zero() { tail } else { T::one() - tail }, e)
    }
}

/// Like `clamp`, but without a panic and keeping NaN.
#[inline(always)]
fn clamp<T: Real>(x: T, low: T, high: T) -> T {
    let x = if x < low { low } else { x };
    if x > high { high } else { x }
}

const LANES: usize = 32;

/// Folds `f` over the elements in 32 independent lanes and joins the lanes pairwise; the order, and so the bits,
/// depend on the length alone. `join` with `start` on one side must give the other. Mark both functions as `#[inline(always)]`.
#[inline(always)]
pub fn fold<A: Real>(xs: &[A], start: A, f: impl Fn(A, A) -> A, join: impl Fn(A, A) -> A) -> A {
    let mut lanes = [start; LANES];
    let (chunks, rest) = xs.as_chunks::<LANES>();
    for chunk in chunks {
        for (lane, &x) in lanes.iter_mut().zip(chunk) {
            *lane = f(*lane, x);
        }
    }
    for (lane, &x) in lanes.iter_mut().zip(rest) {
        *lane = f(*lane, x);
    }
    join_lanes(lanes, join)
}

/// [`fold`] over pairs.
#[inline(always)]
pub fn fold2<A: Real>(xs: &[A], ys: &[A], start: A, f: impl Fn(A, A, A) -> A, join: impl Fn(A, A) -> A) -> A {
    let mut lanes = [start; LANES];
    let ((xc, xr), (yc, yr)) = (xs.as_chunks::<LANES>(), ys.as_chunks::<LANES>());
    for (x, y) in xc.iter().zip(yc) {
        for ((lane, &x), &y) in lanes.iter_mut().zip(x).zip(y) {
            *lane = f(*lane, x, y);
        }
    }
    for ((lane, &x), &y) in lanes.iter_mut().zip(xr).zip(yr) {
        *lane = f(*lane, x, y);
    }
    join_lanes(lanes, join)
}

/// Adds up `f(sum, x, y, z)` over triples, in the manner of [`fold`].
#[inline(always)]
pub fn fold3<A: Real>(xs: &[A], ys: &[A], zs: &[A], f: impl Fn(A, A, A, A) -> A) -> A {
    let mut lanes = [A::zero(); LANES];
    let ((xc, xr), (yc, yr), (zc, zr)) = (xs.as_chunks::<LANES>(), ys.as_chunks::<LANES>(), zs.as_chunks::<LANES>());
    for ((x, y), z) in xc.iter().zip(yc).zip(zc) {
        for (((lane, &x), &y), &z) in lanes.iter_mut().zip(x).zip(y).zip(z) {
            *lane = f(*lane, x, y, z);
        }
    }
    for (((lane, &x), &y), &z) in lanes.iter_mut().zip(xr).zip(yr).zip(zr) {
        *lane = f(*lane, x, y, z);
    }
    join_lanes(
        lanes,
        #[inline(always)]
        |a, b| a + b,
    )
}

/// Sum of the elements.
#[inline(always)]
pub fn sum<A: Real>(xs: &[A]) -> A {
    fold(
        xs,
        A::zero(),
        #[inline(always)]
        |a, x| a + x,
        #[inline(always)]
        |a, b| a + b,
    )
}

/// Sum of `(x - centre)^2`.
#[inline(always)]
pub fn squares<A: Real>(m: Math, xs: &[A], centre: A) -> A {
    fold(
        xs,
        A::zero(),
        #[inline(always)]
        |sum, x| m.fma(x - centre, x - centre, sum),
        #[inline(always)]
        |a, b| a + b,
    )
}

/// Sum of the products of pairs.
#[inline(always)]
pub fn dot<A: Real>(m: Math, xs: &[A], ys: &[A]) -> A {
    fold2(
        xs,
        ys,
        A::zero(),
        #[inline(always)]
        |a, x, y| m.fma(x, y, a),
        #[inline(always)]
        |a, b| a + b,
    )
}

/// Largest element; minus infinity when there is none. NaN is passed over.
#[inline(always)]
pub fn max<A: Real>(xs: &[A]) -> A {
    fold(xs, A::neg_infinity(), larger, larger)
}

#[inline(always)]
fn larger<A: Real>(a: A, b: A) -> A {
    if b > a { b } else { a }
}

#[inline(always)]
fn join_lanes<A: Copy>(mut lanes: [A; LANES], join: impl Fn(A, A) -> A) -> A {
    let mut n = LANES / 2;
    while n > 0 {
        for i in 0..n {
            lanes[i] = join(lanes[i], lanes[i + n]);
        }
        n /= 2;
    }
    lanes[0]
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Sweeps a range densely and returns the largest error in units of the last place, against f64.
    fn worst(range: std::ops::Range<f32>, f: impl Fn(Math, f32) -> f32, truth: impl Fn(f64) -> f64) -> f64 {
        let steps = 400_000;
        let mut worst = 0f64;
        for i in 0..=steps {
            let x = range.start + (range.end - range.start) * (i as f32 / steps as f32);
            let y = f64::from(dispatch(
                #[inline(always)]
                |m| f(m, x),
            ));
            let want = truth(f64::from(x));
            let ulp = (f64::from((want as f32).abs().next_up()) - f64::from((want as f32).abs())).max(1e-45);
            worst = worst.max((y - want).abs() / ulp);
        }
        worst
    }

    fn erf64(x: f64) -> f64 {
        candle_core::cpu::erf::erf_f64(x)
    }

    fn erfc64(x: f64) -> f64 {
        candle_core::cpu::erf::erfc_f64(x)
    }

    #[test]
    fn f32_functions_keep_their_bounds() {
        let exp = worst(-104. ..88.7, |m, x| m.exp(x), f64::exp);
        let tanh = worst(-12. ..12., |m, x| m.tanh(x), f64::tanh);
        let near = worst(-0.01..0.01, |m, x| m.tanh(x), f64::tanh);
        let sigmoid = worst(-86. ..30., |m, x| m.sigmoid(x), |x| 1. / (1. + (-x).exp()));
        let erf = worst(-5. ..5., |m, x| m.erf(x), erf64);
        let cdf = |x: f64| 0.5 * erfc64(-x * std::f64::consts::FRAC_1_SQRT_2);
        let normal = worst(-5. ..9., |m, x| m.normal(x).0, cdf);
        let tail = worst(-13. ..-5., |m, x| m.normal(x).0, cdf);
        println!(
            "exp {exp:.3} tanh {tanh:.3} {near:.3} sigmoid {sigmoid:.3} erf {erf:.3} normal {normal:.3} {tail:.3}"
        );
        assert!(exp <= 1.1 && tanh <= 3. && near <= 3. && sigmoid <= 3. && erf <= 3. && normal <= 8. && tail <= 8.);
    }

    #[test]
    fn f64_functions_agree_with_libm() {
        let close = |a: f64, b: f64| assert!((a - b).abs() <= 1e-15 * b.abs() + 1e-300, "{a:e} instead of {b:e}");
        for i in -20_000..=20_000 {
            let x = f64::from(i) * 1e-3;
            let (exp, tanh, sigmoid, erf) = dispatch(
                #[inline(always)]
                |m| (m.exp(x * 30.), m.tanh(x), m.sigmoid(x), m.erf(x)),
            );
            close(exp, (x * 30.).exp());
            close(tanh, x.tanh());
            close(sigmoid, 1. / (1. + (-x).exp()));
            close(erf, erf64(x));
            let (normal, density) = dispatch(
                #[inline(always)]
                |m| m.normal(x),
            );
            // Here the square itself is rounded.
            assert!((density / (-0.5 * x * x).exp() - 1.).abs() < 1e-13);
            assert!((normal - 0.5 * erfc64(-x * std::f64::consts::FRAC_1_SQRT_2)).abs() <= 4e-16);
        }
    }

    #[test]
    fn limits_and_nan() {
        let check = |m: Math| {
            assert_eq!(m.exp(f32::INFINITY), f32::INFINITY);
            assert_eq!(m.exp(f32::NEG_INFINITY), 0.);
            assert_eq!(m.exp(1e9f64), f64::INFINITY);
            assert_eq!(m.exp(0f32), 1.);
            assert_eq!(m.tanh(f32::INFINITY), 1.);
            assert_eq!(m.tanh(-0f32).to_bits(), (-0f32).to_bits());
            assert_eq!(m.sigmoid(f32::NEG_INFINITY), 0.);
            assert_eq!(m.erf(f64::NEG_INFINITY), -1.);
            assert_eq!(m.normal(f32::NEG_INFINITY), (0., 0.));
            assert_eq!(m.normal(f32::INFINITY), (1., 0.));
            for y in [m.exp(f32::NAN), m.tanh(f32::NAN), m.sigmoid(f32::NAN), m.erf(f32::NAN), m.normal(f32::NAN).0] {
                assert!(y.is_nan());
            }
        };
        dispatch(check);
        check(Math::BASELINE);
    }

    #[test]
    fn folds_see_every_element_once() {
        for n in 0..200 {
            let xs: Vec<f64> = (1..=n).map(f64::from).collect();
            assert_eq!(sum(&xs), f64::from(n * (n + 1) / 2));
            assert_eq!(squares(Math::BASELINE, &xs, 1.), xs.iter().map(|x| (x - 1.).powi(2)).sum::<f64>());
            assert_eq!(max(&xs), if n == 0 { f64::NEG_INFINITY } else { f64::from(n) });
            let dot = dot(Math::BASELINE, &xs, &xs);
            assert_eq!(dot, xs.iter().map(|x| x * x).sum::<f64>());
        }
    }
}
