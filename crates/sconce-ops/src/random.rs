//! Seeded randomness that does not depend on the number of threads, the order of construction or the device.

use std::{
    cell::RefCell,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use candle_core::{DType, Device, Result, Shape, Tensor};
use serde::{Deserialize, Serialize};

pub use crate::philox::philox;
use crate::{Error, kernel::parallel};

/// Where a [`Generator`] stands; enough to continue it elsewhere.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct GeneratorState {
    /// The seed, shared by all forks.
    pub seed: u64,
    /// Which of the seed's independent streams.
    pub stream: u64,
    /// How many 64-bit numbers have been drawn.
    pub counter: u64,
}

impl GeneratorState {
    /// The `index`-th number after this state, without drawing it.
    #[inline]
    pub fn at(&self, index: u64) -> u64 {
        let position = self.counter.wrapping_add(index);
        let block = philox([position >> 1, self.stream], self.seed);
        block[(position & 1) as usize]
    }
}

/// A seeded source of random numbers: Philox4x32-10, Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3".
///
/// Clones share their state, as handles to one source. Tensors are filled on the CPU and then moved, so the same seed gives
/// the same bits on any number of threads and on any device.
///
/// ```
/// use sconce_ops::Generator;
/// let generator = Generator::new(1);
/// let weights = generator.fork("blocks.0.attn"); // its own stream, whatever else is drawn
/// assert_eq!(weights.next_u64(), Generator::new(1).fork("blocks.0.attn").next_u64());
/// ```
#[derive(Debug, Clone)]
pub struct Generator(Arc<Mutex<GeneratorState>>);

thread_local! {
    static CURRENT: RefCell<Generator> = RefCell::new(Generator::new(0));
}

impl Generator {
    /// A generator at the start of the main stream of this seed.
    pub fn new(seed: u64) -> Self {
        Self::from_state(GeneratorState { seed, stream: 0, counter: 0 })
    }

    /// A generator that continues from a state.
    pub fn from_state(state: GeneratorState) -> Self {
        Self(Arc::new(Mutex::new(state)))
    }

    /// An independent stream of the same seed, named. It depends on the seed, this stream and the name only: not on what has
    /// been drawn, and it draws nothing.
    pub fn fork(&self, name: &str) -> Self {
        let GeneratorState { seed, stream, .. } = self.state();
        // FNV-1a over the name, then mixed with the parent's stream by the cipher itself.
        let hash = name
            .bytes()
            .fold(0xcbf2_9ce4_8422_2325_u64, |h, byte| (h ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3));
        let stream = philox([hash, stream], seed ^ 0x9e37_79b9_7f4a_7c15)[0];
        Self::from_state(GeneratorState { seed, stream, counter: 0 })
    }

    /// The generator of this thread: the innermost [`scope`](Self::scope), or else one with seed 0 that belongs to the thread.
    /// Layers with randomness draw from it.
    pub fn current() -> Self {
        CURRENT.with(|current| current.borrow().clone())
    }

    /// Runs `f` with this generator as the thread's [`current`](Self::current) one. Scopes nest; the former generator comes
    /// back also after a panic.
    pub fn scope<R>(&self, f: impl FnOnce() -> R) -> R {
        struct Restore(Option<Generator>);
        impl Drop for Restore {
            fn drop(&mut self) {
                if let Some(former) = self.0.take() {
                    // At the end of a thread the cell may be gone, and with it the need to restore.
                    let _ = CURRENT.try_with(|current| current.replace(former));
                }
            }
        }
        let former = CURRENT.with(|current| current.replace(self.clone()));
        let _restore = Restore(Some(former));
        f()
    }

    /// Where the generator stands.
    pub fn state(&self) -> GeneratorState {
        *self.lock()
    }

    /// Puts the generator, and all its clones, where `state` was taken.
    pub fn restore(&self, state: &GeneratorState) {
        *self.lock() = *state;
    }

    /// Sets `count` numbers aside and returns the state before them: kernels take them by [`GeneratorState::at`], in any order
    /// and as often as they like.
    pub fn reserve(&self, count: u64) -> GeneratorState {
        let mut state = self.lock();
        let before = *state;
        state.counter = state.counter.wrapping_add(count);
        before
    }

    /// 64 random bits.
    pub fn next_u64(&self) -> u64 {
        self.reserve(1).at(0)
    }

    /// Uniform in `[0, 1)`, all 53 bits random.
    pub fn f64(&self) -> f64 {
        unit(self.next_u64())
    }

    /// Normal with mean 0 and standard deviation 1.
    pub fn gaussian(&self) -> f64 {
        gaussian(self.next_u64())
    }

    /// Uniform in `0..n`, without bias; 0 when `n` is 0.
    pub fn index(&self, n: usize) -> usize {
        let n = n as u64;
        if n == 0 {
            return 0;
        }
        // Lemire 2019: the high half of a product, drawn again in the rare cases that would favour some results.
        loop {
            let product = u128::from(self.next_u64()) * u128::from(n);
            if product as u64 >= n.wrapping_neg() % n {
                return (product >> 64) as usize;
            }
        }
    }

    /// Shuffles in place, every order equally likely (Fisher and Yates).
    pub fn shuffle<T>(&self, items: &mut [T]) {
        for i in (1..items.len()).rev() {
            items.swap(i, self.index(i + 1));
        }
    }

    /// Uniform in `[lo, hi)`.
    ///
    /// # Errors
    /// When the limits are not finite and in order, or the type is not floating-point.
    pub fn uniform(&self, lo: f64, hi: f64, shape: impl Into<Shape>, dtype: DType, device: &Device) -> Result<Tensor> {
        if !(lo <= hi && (hi - lo).is_finite()) {
            return Err(range("uniform", format!("{lo}..{hi}")));
        }
        self.fill("uniform", shape, dtype, device, |bits| lo + (hi - lo) * unit(bits))
    }

    /// Normal with this mean and standard deviation.
    ///
    /// # Errors
    /// When the parameters are not finite, `std` is negative, or the type is not floating-point.
    pub fn normal(
        &self,
        mean: f64,
        std: f64,
        shape: impl Into<Shape>,
        dtype: DType,
        device: &Device,
    ) -> Result<Tensor> {
        check_normal("normal", mean, std)?;
        self.fill("normal", shape, dtype, device, |bits| mean + std * gaussian(bits))
    }

    /// Normal with this mean and standard deviation, cut to `[lo, hi]`: absolute limits, not multiples of `std`.
    ///
    /// # Errors
    /// When the parameters are not numbers, `std` is not positive, the limits are not in order, or the type is not
    /// floating-point.
    #[expect(clippy::too_many_arguments, reason = "four parameters, and what all draws take")]
    pub fn trunc_normal(
        &self,
        mean: f64,
        std: f64,
        lo: f64,
        hi: f64,
        shape: impl Into<Shape>,
        dtype: DType,
        device: &Device,
    ) -> Result<Tensor> {
        check_normal("trunc_normal", mean, std)?;
        if std == 0. || lo.partial_cmp(&hi).is_none_or(|o| o.is_gt()) {
            return Err(range("trunc_normal", format!("std {std}, {lo}..{hi}")));
        }
        // By the inverse of the distribution, mirrored so that the interval lies in the lower tail, where it is exact.
        let (mut a, mut b) = ((lo - mean) / std, (hi - mean) / std);
        let mirrored = a > 0.;
        if mirrored {
            (a, b) = (-b, -a);
        }
        let (from, to) = (normal_cdf(a), normal_cdf(b));
        self.fill("trunc_normal", shape, dtype, device, |bits| {
            let z = normal_quantile(from + (to - from) * (unit(bits) + 2f64.powi(-54))).clamp(a, b);
            (mean + std * if mirrored { -z } else { z }).clamp(lo, hi)
        })
    }

    /// 1 with probability `p`, else 0.
    ///
    /// # Errors
    /// When `p` is not in `[0, 1]`, or the type is not floating-point.
    pub fn bernoulli(&self, p: f64, shape: impl Into<Shape>, dtype: DType, device: &Device) -> Result<Tensor> {
        if !(0. ..=1.).contains(&p) {
            return Err(Error::value("bernoulli", "p", "a probability", p).into());
        }
        self.fill("bernoulli", shape, dtype, device, |bits| f64::from(u8::from(unit(bits) < p)))
    }

    fn fill(
        &self,
        op: &'static str,
        shape: impl Into<Shape>,
        dtype: DType,
        device: &Device,
        f: impl Fn(u64) -> f64 + Sync,
    ) -> Result<Tensor> {
        let shape = shape.into();
        if !dtype.is_float() {
            return Err(Error::dtype(op, "dtype", "a floating-point type", dtype).into());
        }
        let n = shape.elem_count();
        let state = self.reserve(n as u64);
        // One number of 64 bits for each element, whatever its type: rounding is all that types differ in.
        let tensor = if dtype == DType::F64 {
            let values = parallel::fill_rows(n, 1, |range, out| {
                out.rows(1, |i, one| one.fill(f(state.at((range.start + i) as u64))))
            });
            Tensor::from_vec(values, shape, &Device::Cpu)?
        } else {
            let values = parallel::fill_rows(n, 1, |range, out| {
                out.rows(1, |i, one| one.fill(f(state.at((range.start + i) as u64)) as f32))
            });
            Tensor::from_vec(values, shape, &Device::Cpu)?
        };
        tensor.to_dtype(dtype)?.to_device(device)
    }

    fn lock(&self) -> MutexGuard<'_, GeneratorState> {
        // The state is plain numbers: a panic elsewhere cannot leave it half written.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn range(op: &'static str, found: String) -> candle_core::Error {
    Error::value(op, "range", "finite parameters in order", found).into()
}

fn check_normal(op: &'static str, mean: f64, std: f64) -> Result<()> {
    match mean.is_finite() && std.is_finite() && std >= 0. {
        true => Ok(()),
        false => Err(range(op, format!("mean {mean}, std {std}"))),
    }
}

/// Box and Muller, one number from each 64 bits: 40 for the radius, which sets how far tails reach, 24 for the angle.
fn gaussian(bits: u64) -> f64 {
    let radius = ((bits >> 24) as f64 + 0.5) * 2f64.powi(-40);
    let angle = (bits & 0xff_ffff) as f64 * (std::f64::consts::TAU / 16_777_216.);
    (-2. * radius.ln()).sqrt() * angle.cos()
}

fn unit(bits: u64) -> f64 {
    (bits >> 11) as f64 * 2f64.powi(-53)
}

/// `P(X <= x)` for a standard normal `X`, keeping its relative accuracy in the lower tail.
fn normal_cdf(x: f64) -> f64 {
    crate::kernel::dispatch(
        #[inline(always)]
        |m| m.normal(x).0,
    )
}

/// The inverse of [`normal_cdf`] to about 1e-15: Wichura 1988, algorithm AS 241, rational approximations in three ranges.
fn normal_quantile(p: f64) -> f64 {
    const CENTRE: [[f64; 8]; 2] = [
        [
            3.387_132_872_796_366_5,
            133.141_667_891_784_38,
            1_971.590_950_306_551_3,
            13_731.693_765_509_46,
            45_921.953_931_549_87,
            67_265.770_927_008_7,
            33_430.575_583_588_13,
            2_509.080_928_730_122_7,
        ],
        [
            1.,
            42.313_330_701_600_91,
            687.187_007_492_057_9,
            5_394.196_021_424_751,
            21_213.794_301_586_597,
            39_307.895_800_092_71,
            28_729.085_735_721_943,
            5_226.495_278_852_854,
        ],
    ];
    const MIDDLE: [[f64; 8]; 2] = [
        [
            1.423_437_110_749_683_5,
            4.630_337_846_156_546,
            5.769_497_221_460_691,
            3.647_848_324_763_204_5,
            1.270_458_252_452_368_4,
            2.417_807_251_774_506e-1,
            2.272_384_498_926_918_4e-2,
            7.745_450_142_783_414e-4,
        ],
        [
            1.,
            2.053_191_626_637_759,
            1.676_384_830_183_803_8,
            6.897_673_349_851e-1,
            1.481_039_764_274_800_8e-1,
            1.519_866_656_361_645_7e-2,
            5.475_938_084_995_345e-4,
            1.050_750_071_644_416_9e-9,
        ],
    ];
    const TAIL: [[f64; 8]; 2] = [
        [
            6.657_904_643_501_103,
            5.463_784_911_164_114,
            1.784_826_539_917_291_3,
            2.965_605_718_285_048_7e-1,
            2.653_218_952_657_612_4e-2,
            1.242_660_947_388_078_4e-3,
            2.711_555_568_743_487_6e-5,
            2.010_334_399_292_288_1e-7,
        ],
        [
            1.,
            5.998_322_065_558_88e-1,
            1.369_298_809_227_358e-1,
            1.487_536_129_085_061_5e-2,
            7.868_691_311_456_133e-4,
            1.846_318_317_510_054_8e-5,
            1.421_511_758_316_446e-7,
            2.044_263_103_389_939_8e-15,
        ],
    ];
    let ratio = |[over, under]: &[[f64; 8]; 2], x: f64| {
        let polynomial = |c: &[f64; 8]| c.iter().rev().fold(0., |sum, c| sum * x + c);
        polynomial(over) / polynomial(under)
    };
    let q = p - 0.5;
    if q.abs() <= 0.425 {
        return q * ratio(&CENTRE, 0.180_625 - q * q);
    }
    let tail = p.min(1. - p);
    if tail <= 0. {
        return if q < 0. { f64::NEG_INFINITY } else { f64::INFINITY };
    }
    let r = (-tail.ln()).sqrt();
    let z = if r <= 5. { ratio(&MIDDLE, r - 1.6) } else { ratio(&TAIL, r - 5.) };
    if q < 0. { -z } else { z }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn forks_are_named_and_independent_of_draws() {
        let a = Generator::new(7);
        let before = a.fork("x").next_u64();
        a.next_u64();
        assert_eq!(a.fork("x").next_u64(), before);
        assert_ne!(a.fork("y").next_u64(), before);
        assert_ne!(a.fork("x").fork("x").next_u64(), before);
        assert_ne!(Generator::new(8).fork("x").next_u64(), before);
    }

    #[test]
    fn a_state_continues_where_it_was_taken() {
        let a = Generator::new(3);
        a.next_u64();
        let state = a.state();
        let next: Vec<u64> = (0..5).map(|_| a.next_u64()).collect();
        let b = Generator::from_state(state);
        assert_eq!((0..5).map(|_| b.next_u64()).collect::<Vec<_>>(), next);
        a.restore(&state);
        assert_eq!(a.next_u64(), next[0]);
    }

    #[test]
    fn scopes_nest_and_survive_panics() {
        let (outer, inner) = (Generator::new(1), Generator::new(2));
        let seed = || Generator::current().state().seed;
        assert_eq!(seed(), 0);
        outer.scope(|| {
            assert_eq!(inner.scope(seed), 2);
            let panicked = std::panic::catch_unwind(|| inner.scope(|| panic!("on purpose")));
            assert!(panicked.is_err());
            assert_eq!(seed(), 1);
        });
        assert_eq!(seed(), 0);
    }

    fn values(t: Result<Tensor>) -> Vec<f64> {
        t.and_then(|t| t.flatten_all()?.to_vec1()).unwrap()
    }

    fn moments(xs: &[f64]) -> (f64, f64) {
        let mean = xs.iter().sum::<f64>() / xs.len() as f64;
        (mean, (xs.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / xs.len() as f64).sqrt())
    }

    #[test]
    fn distributions_have_their_moments() {
        let (g, n, dev) = (Generator::new(5), 100_000, Device::Cpu);
        let (mean, std) = moments(&values(g.uniform(-1., 3., n, DType::F64, &dev)));
        assert!((mean - 1.).abs() < 0.02 && (std - 4. / 12f64.sqrt()).abs() < 0.02);
        let (mean, std) = moments(&values(g.normal(2., 3., n, DType::F64, &dev)));
        assert!((mean - 2.).abs() < 0.05 && (std - 3.).abs() < 0.05);
        let state = g.state();
        let alone: Vec<f64> = (0..5).map(|_| g.gaussian()).collect();
        let tensor = Generator::from_state(state).normal(0., 1., 5, DType::F64, &dev);
        assert_eq!(alone, values(tensor));
        let (mean, _) = moments(&values(g.bernoulli(0.3, n, DType::F64, &dev)));
        assert!((mean - 0.3).abs() < 0.01);
        // Cut at one standard deviation: the variance is 1 - 2 phi(1) / (2 Phi(1) - 1).
        let cut = values(g.trunc_normal(0., 1., -1., 1., n, DType::F64, &dev));
        assert!(cut.iter().all(|x| x.abs() <= 1.));
        let (mean, std) = moments(&cut);
        assert!(mean.abs() < 0.01 && (std - 0.291_13_f64.sqrt()).abs() < 0.01);
        // Far out in a tail, where 1 - p would be 0.
        let far = values(g.trunc_normal(0., 1., 9., 10., n, DType::F64, &dev));
        assert!(far.iter().all(|x| (9. ..=10.).contains(x)));
        assert!((moments(&far).0 - 9.1085).abs() < 0.01);
    }

    #[test]
    fn quantiles_invert_the_distribution() {
        for i in -300..=80 {
            let z = f64::from(i) / 10.;
            let back = normal_quantile(normal_cdf(z));
            // Near 1 a step of p is a wide step of z.
            let tol = if z < 3. { 1e-12 } else { 1e-3 };
            assert!((back - z).abs() <= tol * (1. + z.abs()), "{z} came back as {back}");
        }
    }

    #[test]
    fn types_and_threads_do_not_change_the_draw() -> Result<()> {
        let draw = |dtype| Generator::new(9).normal(0., 1., (300, 301), dtype, &Device::Cpu);
        let wide = draw(DType::F64)?;
        for dtype in [DType::F32, DType::F16, DType::BF16] {
            crate::testing::assert_close(&draw(dtype)?, &wide, crate::testing::tolerance(dtype));
        }
        let pool = rayon::ThreadPoolBuilder::new().num_threads(1).build().unwrap();
        assert_eq!(pool.install(|| values(draw(DType::F64))), values(Ok(wide)));
        Ok(())
    }

    #[test]
    fn shuffles_and_indices() {
        let g = Generator::new(1);
        let mut items: Vec<usize> = (0..50).collect();
        g.shuffle(&mut items);
        assert_ne!(items, (0..50).collect::<Vec<_>>());
        items.sort_unstable();
        assert_eq!(items, (0..50).collect::<Vec<_>>());
        assert_eq!((g.index(0), g.index(1)), (0, 0));
        let mut seen = [0; 3];
        (0..3000).for_each(|_| seen[g.index(3)] += 1);
        assert!(seen.iter().all(|&n| (900..1100).contains(&n)), "{seen:?}");
    }

    #[test]
    fn nonsense_is_refused() {
        let (g, dev) = (Generator::new(1), Device::Cpu);
        assert!(g.uniform(1., 0., 3, DType::F32, &dev).is_err());
        assert!(g.uniform(0., f64::INFINITY, 3, DType::F32, &dev).is_err());
        assert!(g.normal(0., -1., 3, DType::F32, &dev).is_err());
        assert!(g.normal(f64::NAN, 1., 3, DType::F32, &dev).is_err());
        assert!(g.trunc_normal(0., 0., -1., 1., 3, DType::F32, &dev).is_err());
        assert!(g.bernoulli(1.5, 3, DType::F32, &dev).is_err());
        assert!(g.normal(0., 1., 3, DType::U8, &dev).is_err());
        assert_eq!(g.normal(0., 1., (2, 0), DType::F32, &dev).unwrap().dims(), [2, 0]);
    }
}
