//! The number types of kernels: what is stored, and what is computed with.

use candle_core::WithDType;
use half::{bf16, f16};

use super::coefficients::Coefficients;

/// A number that kernels compute with: `f32` or `f64`.
pub trait Real: Element<Acc = Self> + num_traits::Float + Coefficients + std::iter::Sum {}

impl Real for f32 {}
impl Real for f64 {}

/// A number that tensors store; half precision is computed in `f32`.
pub trait Element: WithDType + Send + Sync + Default {
    /// What to compute with.
    type Acc: Real;

    /// To the type of the computation, exactly.
    fn widen(self) -> Self::Acc;

    /// From the type of the computation, rounded to nearest, ties to even.
    fn narrow(x: Self::Acc) -> Self;
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
        }
    )*};
}
same!(f32, f64);

impl Element for bf16 {
    type Acc = f32;

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
