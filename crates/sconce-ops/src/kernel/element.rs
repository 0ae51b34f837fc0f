//! The number types of kernels: what is stored, and what is computed with.

use candle_core::WithDType;
use half::{bf16, f16};

use super::{
    coefficients::Coefficients,
    parallel::fill_once,
    simd::{Math, dispatch},
    uninit::Uninit,
};

/// A number that kernels compute with: `f32` or `f64`.
pub trait Real: Element<Acc = Self> + num_traits::Float + Coefficients {
    /// Runs a kernel: in `f32` compiled for the best instruction set, in `f64`, which is for checking gradients, for the baseline
    /// alone. Mark `f` as `#[inline(always)]`.
    fn dispatch<R>(f: impl FnOnce(Math) -> R) -> R;
}

impl Real for f32 {
    #[inline(always)]
    fn dispatch<R>(f: impl FnOnce(Math) -> R) -> R {
        dispatch(f)
    }
}

impl Real for f64 {
    #[inline(always)]
    fn dispatch<R>(f: impl FnOnce(Math) -> R) -> R {
        f(Math::BASELINE)
    }
}

/// A number that tensors store; half precision is computed in `f32`.
///
/// Kernels are written for [`Real`] and see half precision converted block by block, so that there is one of each for `f32`.
pub trait Element: WithDType + Send + Sync + Default {
    /// What to compute with.
    type Acc: Real;

    /// To the type of the computation, exactly.
    fn widen(self) -> Self::Acc;

    /// From the type of the computation, rounded to nearest, ties to even.
    fn narrow(x: Self::Acc) -> Self;

    /// A slice in the type of the computation: itself, or converted into `scratch`.
    fn widen_slice<'s>(xs: &'s [Self], scratch: &'s mut Vec<Self::Acc>) -> &'s [Self::Acc];

    /// Lets a kernel write a result in the type of the computation and stores it in this type.
    fn produce<'a, F>(out: Uninit<'a, Self>, kernel: F) -> &'a mut [Self]
    where
        F: for<'b> FnOnce(Uninit<'b, Self::Acc>) -> &'b mut [Self::Acc];

    /// A vector in the type of the computation, stored in this type.
    fn narrow_vec(xs: Vec<Self::Acc>) -> Vec<Self>;
}

macro_rules! same {
    ($($t:ty),*) => {$(
        impl Element for $t {
            type Acc = $t;

            #[inline(always)]
            fn widen(self) -> $t {
                self
            }

            #[inline(always)]
            fn narrow(x: $t) -> $t {
                x
            }

            fn widen_slice<'s>(xs: &'s [$t], _: &'s mut Vec<$t>) -> &'s [$t] {
                xs
            }

            fn produce<'a, F>(out: Uninit<'a, $t>, kernel: F) -> &'a mut [$t]
            where
                F: for<'b> FnOnce(Uninit<'b, $t>) -> &'b mut [$t],
            {
                kernel(out)
            }

            fn narrow_vec(xs: Vec<$t>) -> Vec<$t> {
                xs
            }
        }
    )*};
}
same!(f32, f64);

/// What both half types do by `widen` and `narrow`.
macro_rules! through_f32 {
    () => {
        fn widen_slice<'s>(xs: &'s [Self], scratch: &'s mut Vec<f32>) -> &'s [f32] {
            *scratch = fill_once(xs.len(), |out| {
                dispatch(
                    #[inline(always)]
                    |_| {
                        out.map(
                            xs,
                            #[inline(always)]
                            |x: Self| x.widen(),
                        )
                    },
                )
            });
            scratch
        }

        fn produce<'a, F>(out: Uninit<'a, Self>, kernel: F) -> &'a mut [Self]
        where
            F: for<'b> FnOnce(Uninit<'b, f32>) -> &'b mut [f32],
        {
            let wide = fill_once(out.len(), kernel);
            dispatch(
                #[inline(always)]
                |_| {
                    out.map(
                        &wide,
                        #[inline(always)]
                        |x| Self::narrow(x),
                    )
                },
            )
        }

        fn narrow_vec(xs: Vec<f32>) -> Vec<Self> {
            xs.into_iter().map(Self::narrow).collect()
        }
    };
}

impl Element for bf16 {
    type Acc = f32;

    through_f32!();

    #[inline(always)]
    fn widen(self) -> f32 {
        f32::from_bits(u32::from(self.to_bits()) << 16)
    }

    #[inline(always)]
    fn narrow(x: f32) -> Self {
        let bits = x.to_bits();
        let rounded = bits.wrapping_add(0x7fff + ((bits >> 16) & 1));
        // A NaN keeps its top bits and must not be carried into an infinity.
        let bits = if x.is_nan() { bits | 0x0040_0000 } else { rounded };
        Self::from_bits((bits >> 16) as u16)
    }
}

// `half` converts one f16 at a time through a function call; without branches the loop around it vectorises.
impl Element for f16 {
    type Acc = f32;

    through_f32!();

    #[inline(always)]
    fn widen(self) -> f32 {
        let bits = u32::from(self.to_bits());
        let shifted = (bits & 0x7fff) << 13;
        // 2^112 moves the exponent's bias from 15 to 127 and normalises subnormals on the way.
        let finite = f32::from_bits(shifted) * f32::from_bits(0x7780_0000);
        let magnitude = if bits & 0x7c00 == 0x7c00 { shifted | 0x7f80_0000 } else { finite.to_bits() };
        f32::from_bits(magnitude | (bits & 0x8000) << 16)
    }

    #[inline(always)]
    fn narrow(x: f32) -> Self {
        let bits = x.to_bits();
        let sign = (bits >> 16) & 0x8000;
        let magnitude = bits & 0x7fff_ffff;
        // Normal: rebias the exponent and round the 13 bits that fall off to even; overflow carries into infinity.
        let normal = magnitude.wrapping_add(0xc800_0fff + ((magnitude >> 13) & 1)) >> 13;
        // Subnormal: adding 0.5 lets the addition's own rounding cut at 2^-24.
        let subnormal = (f32::from_bits(magnitude) + 0.5).to_bits().wrapping_sub(0x3f00_0000);
        let result = if magnitude < 0x3880_0000 { subnormal } else { normal };
        let result = if magnitude >= 0x4780_0000 { 0x7c00 } else { result };
        let nan = 0x7e00 | (magnitude >> 13) & 0x3ff;
        let result = if magnitude > 0x7f80_0000 { nan } else { result };
        Self::from_bits((result | sign) as u16)
    }
}

/// Runs an expression with a type alias bound to the Rust type of a floating-point `DType`; other types give
/// candle's `UnsupportedDTypeForOp`.
#[macro_export]
macro_rules! with_float {
    ($dtype:expr, $op:expr, $t:ident => $body:expr) => {
        match $dtype {
            ::candle_core::DType::F32 => {
                type $t = f32;
                $body
            }
            ::candle_core::DType::F64 => {
                type $t = f64;
                $body
            }
            ::candle_core::DType::F16 => {
                type $t = ::half::f16;
                $body
            }
            ::candle_core::DType::BF16 => {
                type $t = ::half::bf16;
                $body
            }
            other => Err(::candle_core::Error::UnsupportedDTypeForOp(other, $op)),
        }
    };
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_half_widens_exactly() {
        for bits in 0..=u16::MAX {
            let (h, b) = (f16::from_bits(bits), bf16::from_bits(bits));
            assert!(h.widen() == h.to_f32() || h.is_nan() && h.widen().is_nan(), "{bits:#x}");
            assert!(b.widen() == b.to_f32() || b.is_nan() && b.widen().is_nan(), "{bits:#x}");
        }
    }

    #[test]
    fn narrowing_rounds_as_half_does() {
        // Every exponent and sign, with the bits around each rounding boundary.
        for high in 0..=0xffff_u32 {
            for low in [0, 1, 0x0fff, 0x1000, 0x1001, 0x7fff, 0x8000, 0x8001, 0xffff] {
                let x = f32::from_bits(high << 16 | low);
                let (h, b) = (f16::narrow(x), bf16::narrow(x));
                if x.is_nan() {
                    assert!(h.is_nan() && b.is_nan(), "{x:?}");
                } else {
                    assert_eq!(h.to_bits(), f16::from_f32(x).to_bits(), "{x:e}");
                    assert_eq!(b.to_bits(), bf16::from_f32(x).to_bits(), "{x:e}");
                }
            }
        }
    }
}
