//! Likeness of pictures, values from 0 to 255.

use candle_core::{DType, Tensor};

use crate::{Error, Result};

/// What is compared.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ImageOptions {
    /// Pixels to leave out at each border.
    pub crop: usize,
    /// Compare the luma of RGB pictures (BT.601, studio range 16 to 235) instead of their channels.
    pub luma: bool,
}

/// One channel, row by row.
struct Plane {
    values: Vec<f64>,
    height: usize,
    width: usize,
}

fn planes(what: &'static str, image: &Tensor, options: ImageOptions) -> Result<Vec<Plane>> {
    let shape = |expected: &str| Error::Shape { what, expected: expected.to_owned(), found: image.dims().to_vec() };
    let &[channels, height, width] = image.dims() else { return Err(shape("(C, H, W)")) };
    if options.luma && channels != 3 {
        return Err(shape("(3, H, W) for luma"));
    }
    let crop = options.crop;
    if channels == 0 || height <= 2 * crop || width <= 2 * crop {
        return Err(shape("larger than the cropped border"));
    }
    let inner = image.narrow(1, crop, height - 2 * crop)?.narrow(2, crop, width - 2 * crop)?;
    let (height, width) = (height - 2 * crop, width - 2 * crop);
    let rows = inner.to_dtype(DType::F64)?.flatten_from(1)?.to_vec2::<f64>()?; // (C, H * W)
    if let Some((row, column)) =
        rows.iter().enumerate().find_map(|(c, r)| Some((c, r.iter().position(|v| v.is_nan())?)))
    {
        return Err(Error::Nan { row, column });
    }
    let plane = |values| Plane { values, height, width };
    match (&rows[..], options.luma) {
        ([r, g, b], true) => {
            let luma = |((r, g), b): ((&f64, &f64), &f64)| (65.481 * r + 128.553 * g + 24.966 * b) / 255.0 + 16.0;
            Ok(vec![plane(r.iter().zip(g).zip(b).map(luma).collect())])
        }
        _ => Ok(rows.into_iter().map(plane).collect()),
    }
}

fn pair(a: &Tensor, b: &Tensor, options: ImageOptions) -> Result<Vec<(Plane, Plane)>> {
    if a.dims() != b.dims() {
        let expected = format!("{:?}", a.dims());
        return Err(Error::Shape { what: "second picture", expected, found: b.dims().to_vec() });
    }
    Ok(planes("first picture", a, options)?.into_iter().zip(planes("second picture", b, options)?).collect())
}

/// Peak signal-to-noise ratio in decibels, the squared error taken over all channels; infinite for equal pictures.
///
/// # Shapes
/// - pictures `(C, H, W)`
///
/// # Errors
/// Other or different shapes, a NaN.
pub fn psnr(a: &Tensor, b: &Tensor, options: ImageOptions) -> Result<f64> {
    let pairs = pair(a, b, options)?;
    let squared = |(a, b): &(Plane, Plane)| a.values.iter().zip(&b.values).map(|(a, b)| (a - b) * (a - b)).sum::<f64>();
    let count: usize = pairs.iter().map(|(a, _)| a.values.len()).sum();
    let error = pairs.iter().map(squared).sum::<f64>() / count as f64;
    Ok(10.0 * (255.0 * 255.0 / error).log10())
}

const TAPS: usize = 11;
const SIGMA: f64 = 1.5;
const C1: f64 = (0.01 * 255.0) * (0.01 * 255.0);
const C2: f64 = (0.03 * 255.0) * (0.03 * 255.0);

/// Structural similarity of Wang et al. 2004 as their MATLAB program computes it: a Gaussian window of 11 taps and standard
/// deviation 1.5, only where the window fits, in double precision; mean over the map, then over the channels.
///
/// Other programs differ: a uniform window, sample covariances or padded borders give other numbers.
///
/// # Shapes
/// - pictures `(C, H, W)`, at least 11 pixels each way after the crop
///
/// # Errors
/// Other, different or smaller shapes, a NaN.
pub fn ssim(a: &Tensor, b: &Tensor, options: ImageOptions) -> Result<f64> {
    let pairs = pair(a, b, options)?;
    if pairs.iter().any(|(a, _)| a.height < TAPS || a.width < TAPS) {
        let expected = format!("at least {TAPS} pixels each way after the crop");
        return Err(Error::Shape { what: "first picture", expected, found: a.dims().to_vec() });
    }
    Ok(pairs.iter().map(|(a, b)| plane_ssim(a, b)).sum::<f64>() / pairs.len() as f64)
}

fn plane_ssim(a: &Plane, b: &Plane) -> f64 {
    let product = |x: &Plane, y: &Plane| blur(x.values.iter().zip(&y.values).map(|(x, y)| x * y).collect(), x);
    let (mean_a, mean_b) = (blur(a.values.clone(), a), blur(b.values.clone(), b));
    let (aa, bb, ab) = (product(a, a), product(b, b), product(a, b));
    let one = |i: usize| {
        let (ma, mb) = (mean_a[i], mean_b[i]);
        let (va, vb, cov) = (aa[i] - ma * ma, bb[i] - mb * mb, ab[i] - ma * mb);
        (2.0 * ma * mb + C1) * (2.0 * cov + C2) / ((ma * ma + mb * mb + C1) * (va + vb + C2))
    };
    (0..mean_a.len()).map(one).sum::<f64>() / mean_a.len() as f64
}

/// The Gaussian window where it fits: `(H - 10, W - 10)`.
fn blur(values: Vec<f64>, of: &Plane) -> Vec<f64> {
    let taps: Vec<f64> =
        (0..TAPS).map(|i| i as f64 - (TAPS / 2) as f64).map(|x| (-x * x / (2.0 * SIGMA * SIGMA)).exp()).collect();
    let sum: f64 = taps.iter().sum();
    let taps: Vec<f64> = taps.into_iter().map(|t| t / sum).collect();
    let (height, width) = (of.height, of.width - (TAPS - 1));
    let across: Vec<f64> = (0..height)
        .flat_map(|y| {
            let row = &values[y * of.width..(y + 1) * of.width];
            row.windows(TAPS)
                .map(|window| window.iter().zip(&taps).map(|(v, t)| v * t).sum::<f64>())
                .collect::<Vec<_>>()
        })
        .collect();
    let down = |y: usize, x: usize| taps.iter().enumerate().map(|(i, t)| t * across[(y + i) * width + x]).sum::<f64>();
    (0..height - (TAPS - 1)).flat_map(|y| (0..width).map(move |x| (y, x))).map(|(y, x)| down(y, x)).collect()
}
