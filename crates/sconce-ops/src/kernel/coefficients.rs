//! The numbers behind the functions of [`Math`](super::Math).

/// Numbers behind the functions of `Math`: minimax polynomials (Remez) and the limits of the type.
#[allow(missing_docs, reason = "constants of the functions above, named after their place there")]
pub trait Coefficients: Sized + 'static {
    const HALF: Self;
    const SQRT_HALF: Self;
    const LOG2_E: Self;
    const LN_2_HIGH: Self;
    const LN_2_LOW: Self;
    /// 1.5 * 2^mantissa bits: adding it rounds to an integer in the low bits.
    const ROUND: Self;
    const EXP_MIN: Self;
    const EXP_MAX: Self;
    const TANH_MAX: Self;
    const ERF_MAX: Self;
    const NORMAL_MAX: Self;
    /// `(e^r - 1 - r) / r^2` for `|r| <= ln 2 / 2`.
    const EXP: &'static [Self];
    /// `erf(t) / t` in `t^2` for `t < 1`.
    const ERF: &'static [Self];
    /// `e^(t^2) erfc(t)` in `1 / (1 + slope t)`.
    const ERFCX: &'static [Self];
    const ERFCX_SLOPE: Self;

    /// Two powers of two whose product is `2^n`, `n` in the low bits of a float near [`Self::ROUND`].
    fn powers_of_two(n: Self) -> (Self, Self);
}

impl Coefficients for f32 {
    const HALF: f32 = 0.5;
    const SQRT_HALF: f32 = std::f32::consts::FRAC_1_SQRT_2;
    const LOG2_E: f32 = std::f32::consts::LOG2_E;
    const LN_2_HIGH: f32 = 0.693_359_4;
    const LN_2_LOW: f32 = -2.121_944_4e-4;
    const ROUND: f32 = 12_582_912.;
    const EXP_MIN: f32 = -105.;
    const EXP_MAX: f32 = 89.;
    const TANH_MAX: f32 = 10.;
    const ERF_MAX: f32 = 5.;
    const NORMAL_MAX: f32 = 15.;
    const EXP: &'static [f32] = &EXP_F32;
    const ERF: &'static [f32] = &ERF_F32;
    const ERFCX: &'static [f32] = &ERFCX_F32;
    const ERFCX_SLOPE: f32 = 0.3;

    #[inline(always)]
    fn powers_of_two(n: f32) -> (f32, f32) {
        let n = n.to_bits().wrapping_sub(Self::ROUND.to_bits()) as i32;
        let half = n >> 1;
        let power = |n: i32| f32::from_bits((n.wrapping_add(127) as u32) << 23);
        (power(half), power(n.wrapping_sub(half)))
    }
}

impl Coefficients for f64 {
    const HALF: f64 = 0.5;
    const SQRT_HALF: f64 = std::f64::consts::FRAC_1_SQRT_2;
    const LOG2_E: f64 = std::f64::consts::LOG2_E;
    const LN_2_HIGH: f64 = 0.693_147_180_369_123_8;
    const LN_2_LOW: f64 = 1.908_214_929_270_587_7e-10;
    const ROUND: f64 = 6_755_399_441_055_744.;
    const EXP_MIN: f64 = -746.;
    const EXP_MAX: f64 = 710.;
    const TANH_MAX: f64 = 22.;
    const ERF_MAX: f64 = 7.;
    const NORMAL_MAX: f64 = 38.6;
    const EXP: &'static [f64] = &EXP_F64;
    const ERF: &'static [f64] = &ERF_F64;
    const ERFCX: &'static [f64] = &ERFCX_F64;
    const ERFCX_SLOPE: f64 = 0.3;

    #[inline(always)]
    fn powers_of_two(n: f64) -> (f64, f64) {
        let n = n.to_bits().wrapping_sub(Self::ROUND.to_bits()) as i64;
        let half = n >> 1;
        let power = |n: i64| f64::from_bits((n.wrapping_add(1023) as u64) << 52);
        (power(half), power(n.wrapping_sub(half)))
    }
}

#[allow(clippy::excessive_precision, reason = "as the fit gave them")]
const EXP_F32: [f32; 5] = [0.4999999812, 0.166665054248, 0.0416670918521, 0.00837033654863, 0.00138934119807];
#[allow(clippy::excessive_precision, reason = "as the fit gave them")]
const EXP_F64: [f64; 11] = [
    0.5,
    0.16666666666666671,
    0.041666666666666618,
    0.0083333333333261095,
    0.0013888888888918159,
    0.00019841269874923416,
    2.4801587245492495e-5,
    2.755725525745929e-6,
    2.7557349655012493e-7,
    2.5105280410882582e-8,
    2.0889428522630233e-9,
];
#[allow(clippy::excessive_precision, reason = "as the fit gave them")]
const ERF_F32: [f32; 7] = [
    std::f32::consts::FRAC_2_SQRT_PI,
    -0.376126258,
    0.112835852,
    -0.0268538118,
    0.00518832732,
    -0.000801018925,
    7.85384405e-5,
];
#[allow(clippy::excessive_precision, reason = "as the fit gave them")]
const ERF_F64: [f64; 13] = [
    std::f64::consts::FRAC_2_SQRT_PI,
    -0.37612638903183748,
    0.11283791670954857,
    -0.026866170645072891,
    0.0052239776247808347,
    -0.00085483269787405676,
    0.00012055331036846668,
    -1.4925593505766363e-5,
    1.6460972801190718e-6,
    -1.6350025076223881e-7,
    1.4657878989888879e-8,
    -1.1365663136628493e-9,
    5.9452576939415425e-11,
];
#[allow(clippy::excessive_precision, reason = "as the fit gave them")]
const ERFCX_F32: [f32; 10] = [
    -7.47659266e-6,
    0.169324522,
    0.169641693,
    0.153113437,
    0.201681589,
    -0.0708551,
    0.519994188,
    -0.492045807,
    0.477160032,
    -0.128007095,
];
#[allow(clippy::excessive_precision, reason = "as the fit gave them")]
const ERFCX_F64: [f64; 22] = [
    6.0722112318974924e-12,
    0.16925687462766937,
    0.16925688960486146,
    0.16164001745744976,
    0.14641142456128274,
    0.12454169186725917,
    0.09858312845150346,
    0.0680161024627764,
    0.054510785000652469,
    -0.021676317165682535,
    0.1457421609962669,
    -0.3709705631551692,
    0.78177496129126969,
    -1.3676476271548017,
    1.894942555360713,
    -2.0853099561700554,
    1.7790433627601897,
    -1.1310107440020977,
    0.51308980570108934,
    -0.15663389224803405,
    0.028873957889894706,
    -0.0024346181431098008,
];
