//! Sampling positions and weights along one axis, as PyTorch's CPU kernels compute them.

use super::{ResizeMode, ResizeOptions};
use crate::banded::Band;

/// Arithmetic in `f64`, or in `f32` carried in `f64`: rounding the `f64` result of one operation on `f32` values to
/// `f32` gives the `f32` result exactly.
#[derive(Clone, Copy)]
struct Precision {
    single: bool,
}

impl Precision {
    fn round(self, x: f64) -> f64 {
        if self.single { f64::from(x as f32) } else { x }
    }
}

/// The map from `input` to `output` pixels; `scale` is the factor given by the caller, whose inverse is the step.
pub(super) fn band(options: &ResizeOptions, input: usize, output: usize, scale: Option<f64>, single: bool) -> Band {
    match options.mode {
        ResizeMode::Nearest => nearest(input, output, scale),
        // PyTorch leaves such an axis alone even where a scale factor gives another step, except in plain bicubic.
        ResizeMode::Bilinear if input == output => Band::identity(input),
        ResizeMode::Bicubic if input == output && options.antialias => Band::identity(input),
        _ => {
            let p = Precision { single };
            let step = step(p, input, output, scale, options.align_corners);
            let filter = Filter::of(options.mode, options.antialias);
            if options.antialias {
                antialiased(p, filter, input, output, step)
            } else {
                interpolated(p, filter, input, output, step, options.align_corners)
            }
        }
    }
}

/// PyTorch computes nearest positions in `f32` for every type of element.
fn nearest(input: usize, output: usize, scale: Option<f64>) -> Band {
    let step = match scale {
        Some(scale) => (1.0 / scale) as f32,
        None => input as f32 / output as f32,
    };
    let mut band = Band::new(input);
    for at in 0..output {
        let source = if output == input {
            at
        } else if output == 2 * input {
            at / 2
        } else {
            (at as f32 * step).floor() as usize
        };
        band.push(source.min(input - 1), [1.0]);
    }
    band
}

fn step(p: Precision, input: usize, output: usize, scale: Option<f64>, align_corners: bool) -> f64 {
    match scale {
        _ if align_corners && output > 1 => p.round((input - 1) as f64 / (output - 1) as f64),
        _ if align_corners => 0.0,
        Some(scale) => p.round(1.0 / scale),
        None => p.round(input as f64 / output as f64),
    }
}

/// An interpolation kernel.
#[derive(Clone, Copy)]
enum Filter {
    Triangle,
    /// Keys' cubic with its parameter a.
    Cubic(f64),
}

impl Filter {
    fn of(mode: ResizeMode, antialias: bool) -> Self {
        match mode {
            ResizeMode::Bicubic if antialias => Self::Cubic(-0.5),
            ResizeMode::Bicubic => Self::Cubic(-0.75),
            _ => Self::Triangle,
        }
    }

    /// Half of the width outside which the kernel is zero.
    fn support(self) -> f64 {
        match self {
            Self::Triangle => 1.0,
            Self::Cubic(_) => 2.0,
        }
    }

    fn at(self, p: Precision, x: f64) -> f64 {
        let r = |x| p.round(x);
        let x = x.abs();
        match self {
            Self::Triangle if x < 1.0 => r(1.0 - x),
            Self::Cubic(a) if x < 1.0 => r(r(r(r(r(a + 2.0) * x) - r(a + 3.0)) * x) * x) + 1.0,
            Self::Cubic(a) if x < 2.0 => r(r(r(r(r(r(r(a * x) - 5.0 * a) * x) + 8.0 * a) * x) - 4.0 * a)),
            _ => 0.0,
        }
    }
}

/// Two or four neighbours of the sampling position; those outside the image are replaced by its border.
fn interpolated(p: Precision, filter: Filter, input: usize, output: usize, step: f64, align_corners: bool) -> Band {
    let r = |x| p.round(x);
    let last = input - 1;
    let mut band = Band::new(input);
    for at in 0..output {
        let source = if align_corners { r(step * at as f64) } else { r(r(step * (at as f64 + 0.5)) - 0.5) };
        let taps: Vec<(usize, f64)> = match filter {
            Filter::Triangle => {
                let source = source.max(0.0);
                let low = (source.floor() as usize).min(last);
                let t = r(source - low as f64).clamp(0.0, 1.0);
                vec![(low, r(1.0 - t)), ((low + 1).min(last), t)]
            }
            Filter::Cubic(_) => {
                let low = source.floor();
                let t = r(source - low);
                (-1..=2)
                    .map(|k| {
                        let index = (low + f64::from(k)).clamp(0.0, last as f64) as usize;
                        (index, filter.at(p, r(t - f64::from(k))))
                    })
                    .collect()
            }
        };
        // Indices never decrease, and repeated ones (the border) add up.
        let start = taps[0].0;
        let mut weights = vec![0.0; taps[taps.len() - 1].0 - start + 1];
        for (index, weight) in taps {
            weights[index - start] += weight;
        }
        band.push(start, weights);
    }
    band
}

/// The kernel stretched to the step where it is larger than 1, cut at the borders and normalised.
fn antialiased(p: Precision, filter: Filter, input: usize, output: usize, step: f64) -> Band {
    let r = |x| p.round(x);
    let stretch = step.max(1.0);
    let (support, inverse) = (r(filter.support() * stretch), r(1.0 / stretch));
    let mut band = Band::new(input);
    for at in 0..output {
        let center = r(step * (at as f64 + 0.5));
        let start = r(r(center - support) + 0.5).max(0.0) as usize;
        let end = (r(r(center + support) + 0.5).max(0.0) as usize).min(input);
        // With a given scale the last positions can lie outside the image; its border stands for them.
        let start = start.min(input - 1);
        let end = end.max(start + 1);
        let mut weights: Vec<f64> =
            (start..end).map(|at| filter.at(p, r(r(r(at as f64 - center) + 0.5) * inverse))).collect();
        let total = weights.iter().fold(0.0, |sum, &w| r(sum + w));
        if total == 0.0 {
            weights.fill(0.0);
            weights[0] = 1.0;
        } else {
            weights.iter_mut().for_each(|w| *w = r(*w / total));
        }
        band.push(start, weights);
    }
    band
}
