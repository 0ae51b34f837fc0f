//! Filter kernels and their fixed-point weights.

use super::Filter;
use std::f64::consts::PI;
use std::ops::Range;

/// Fraction bits of a weight: 32, less 8 for the pixel and 2 for sign and overshoot.
pub(super) const PRECISION_BITS: u32 = 32 - 8 - 2;

/// A symmetric kernel: its function and its support in units of the (stretched) pixel.
pub(super) struct Kernel {
    weight: fn(f64) -> f64,
    support: f64,
}

impl Filter {
    /// The kernel, none for [`Filter::Nearest`].
    pub(super) fn kernel(self) -> Option<Kernel> {
        let (weight, support): (fn(f64) -> f64, f64) = match self {
            Self::Nearest => return None,
            Self::Box => (box_weight, 0.5),
            Self::Bilinear => (triangle, 1.0),
            Self::Hamming => (hamming, 1.0),
            Self::Bicubic => (cubic, 2.0),
            Self::Lanczos => (lanczos, 3.0),
        };
        Some(Kernel { weight, support })
    }
}

fn box_weight(x: f64) -> f64 {
    if x > -0.5 && x <= 0.5 { 1.0 } else { 0.0 }
}

fn triangle(x: f64) -> f64 {
    (1.0 - x.abs()).max(0.0)
}

fn sinc(x: f64) -> f64 {
    if x == 0.0 { 1.0 } else { (x * PI).sin() / (x * PI) }
}

fn hamming(x: f64) -> f64 {
    let x = x.abs();
    if x == 0.0 {
        return 1.0;
    }
    if x >= 1.0 {
        return 0.0;
    }
    // The window's constants are single precision in Pillow.
    sinc(x) * (f64::from(0.54f32) + f64::from(0.46f32) * (x * PI).cos())
}

fn cubic(x: f64) -> f64 {
    const A: f64 = -0.5;
    let x = x.abs();
    if x < 1.0 {
        ((A + 2.0) * x - (A + 3.0)) * x * x + 1.0
    } else if x < 2.0 {
        (((x - 5.0) * x + 8.0) * x - 4.0) * A
    } else {
        0.0
    }
}

fn lanczos(x: f64) -> f64 {
    if (-3.0..3.0).contains(&x) { sinc(x) * sinc(x / 3.0) } else { 0.0 }
}

/// The weights of one axis: for each output position a run of source positions.
pub(super) struct Weights {
    /// First source position of each output position.
    pub(super) first: Vec<usize>,
    /// Number of source positions of each output position.
    pub(super) count: Vec<usize>,
    /// Weights in fixed point, `taps` for each output position, zero past its count.
    pub(super) fixed: Vec<i32>,
    /// Room for the longest run.
    pub(super) taps: usize,
}

impl Weights {
    /// Weights that map the stretch `from..to` of an axis of `len` pixels to `out` pixels, of which `positions` are
    /// wanted.
    pub(super) fn new(kernel: &Kernel, len: u32, [from, to]: [f32; 2], out: u32, positions: Range<u32>) -> Self {
        let scale = f64::from(to - from) / f64::from(out);
        let stretch = scale.max(1.0);
        let support = kernel.support * stretch;
        let taps = support.ceil() as usize * 2 + 1;
        let (mut first, mut count) = (Vec::with_capacity(positions.len()), Vec::with_capacity(positions.len()));
        let mut fixed = vec![0i32; positions.len() * taps];
        let mut exact = Vec::with_capacity(taps);
        let inverse = 1.0 / stretch;
        for (position, fixed) in positions.zip(fixed.chunks_exact_mut(taps)) {
            let center = f64::from(from) + (f64::from(position) + 0.5) * scale;
            // A cast cuts towards zero, so this rounds; a negative start is clamped first.
            // An axis beyond 2^24 pixels may be a little longer as `f32`, hence the bound.
            let start = ((center - support + 0.5).max(0.0) as usize).min(len as usize - 1);
            let end = ((center + support + 0.5) as usize).min(len as usize);
            exact.clear();
            exact.extend((start..end).map(|x| (kernel.weight)((x as f64 - center + 0.5) * inverse)));
            let total: f64 = exact.iter().sum();
            for (fixed, &weight) in fixed.iter_mut().zip(&exact) {
                let weight = if total != 0.0 { weight / total } else { weight };
                let scaled = weight * f64::from(1u32 << PRECISION_BITS);
                *fixed = (scaled + if weight < 0.0 { -0.5 } else { 0.5 }) as i32;
            }
            first.push(start);
            count.push(end.saturating_sub(start));
        }
        Self { first, count, fixed, taps }
    }

    /// The weights of one output position.
    pub(super) fn of(&self, position: usize) -> &[i32] {
        &self.fixed[position * self.taps..][..self.count[position]]
    }

    /// The source positions that any output position reads.
    pub(super) fn used(&self) -> Range<usize> {
        let end = self.first.last().zip(self.count.last()).map_or(0, |(first, count)| first + count);
        self.first.first().copied().unwrap_or(0)..end
    }

    /// Makes all positions relative to `start`.
    pub(super) fn shift(&mut self, start: usize) {
        self.first.iter_mut().for_each(|first| *first -= start);
    }
}
