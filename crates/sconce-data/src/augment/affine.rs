//! Affine warps in Pillow's arithmetic: rotation, shear, translation.

use crate::{Error, Filter, Result};
use image::{Rgb, RgbImage};

/// What a warp does between pixels and beyond the edges.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Warp {
    /// Nearest, bilinear or bicubic.
    pub filter: Filter,
    /// Colour of what comes from outside the image.
    pub fill: [u8; 3],
}

impl Default for Warp {
    /// torchvision's: the nearest pixel, black outside.
    fn default() -> Self {
        Self { filter: Filter::Nearest, fill: [0; 3] }
    }
}

/// An image of the same size in which the pixel at `(x, y)` comes from `(a x + b y + c, d x + e y + f)`, as
/// `PIL.Image.transform` with `AFFINE` and `[a, b, c, d, e, f]`.
///
/// # Errors
/// [`Error::Invalid`] for a filter other than nearest, bilinear and bicubic, and for coefficients that are not finite.
pub fn affine(image: &RgbImage, matrix: [f64; 6], warp: Warp) -> Result<RgbImage> {
    if !matrix.iter().all(|value| value.is_finite()) {
        return Err(Error::invalid("matrix", format!("{matrix:?}")));
    }
    let sample: fn(&RgbImage, f64, f64) -> [u8; 3] = match warp.filter {
        Filter::Nearest => return Ok(nearest(image, matrix, warp.fill)),
        Filter::Bilinear => bilinear,
        Filter::Bicubic => bicubic,
        other => return Err(Error::invalid("filter", format!("{other:?} for a warp"))),
    };
    let [a, b, c, d, e, f] = matrix;
    let (width, height) = (f64::from(image.width()), f64::from(image.height()));
    Ok(RgbImage::from_fn(image.width(), image.height(), |x, y| {
        let (x, y) = (f64::from(x) + 0.5, f64::from(y) + 0.5);
        let (from_x, from_y) = (a * x + b * y + c, d * x + e * y + f);
        let inside = (0.0..width).contains(&from_x) && (0.0..height).contains(&from_y);
        Rgb(if inside { sample(image, from_x - 0.5, from_y - 0.5) } else { warp.fill })
    }))
}

/// Turned counter-clockwise about the centre, the size kept, as `PIL.Image.rotate`.
///
/// # Errors
/// As [`affine`].
pub fn rotate(image: &RgbImage, degrees: f64, warp: Warp) -> Result<RgbImage> {
    let degrees = degrees.rem_euclid(360.0);
    // Quarter turns are copies there.
    if degrees == 0.0 {
        return Ok(image.clone());
    }
    if degrees == 180.0 {
        return Ok(image::imageops::rotate180(image));
    }
    if image.width() == image.height() && degrees == 90.0 {
        return Ok(image::imageops::rotate270(image));
    }
    if image.width() == image.height() && degrees == 270.0 {
        return Ok(image::imageops::rotate90(image));
    }
    // Python's `round(x, 15)` makes quarter turns of other images exact. By text, since the product with 1e15 would round too.
    let rounded = |x: f64| format!("{x:.15}").parse().unwrap_or(x);
    let (sin, cos) = (-degrees.to_radians()).sin_cos();
    let (sin, cos) = (rounded(sin), rounded(cos));
    let (x, y) = (f64::from(image.width()) / 2.0, f64::from(image.height()) / 2.0);
    let c = cos * -x + sin * -y + 0.0 + x;
    let f = -sin * -x + cos * -y + 0.0 + y;
    affine(image, [cos, sin, c, -sin, cos, f], warp)
}

/// Rows moved left by `factor` times their height from the top.
///
/// # Errors
/// As [`affine`].
pub fn shear_x(image: &RgbImage, factor: f64, warp: Warp) -> Result<RgbImage> {
    affine(image, [1.0, factor, 0.0, 0.0, 1.0, 0.0], warp)
}

/// Columns moved up by `factor` times their distance from the left.
///
/// # Errors
/// As [`affine`].
pub fn shear_y(image: &RgbImage, factor: f64, warp: Warp) -> Result<RgbImage> {
    affine(image, [1.0, 0.0, 0.0, factor, 1.0, 0.0], warp)
}

/// Moved left and up by a number of pixels, not necessarily whole.
///
/// # Errors
/// As [`affine`].
pub fn translate(image: &RgbImage, left: f64, up: f64, warp: Warp) -> Result<RgbImage> {
    affine(image, [1.0, 0.0, left, 0.0, 1.0, up], warp)
}

/// The whole pixel that a coordinate falls into.
fn cell(at: f64, len: u32) -> Option<u32> {
    (at >= 0.0 && at < f64::from(len)).then_some(at as u32)
}

fn nearest(image: &RgbImage, [a, b, c, d, e, f]: [f64; 6], fill: [u8; 3]) -> RgbImage {
    let (width, height) = image.dimensions();
    let mut output = RgbImage::from_pixel(width, height, Rgb(fill));
    if b == 0.0 && d == 0.0 {
        // Scaling and moving: positions are summed up in double precision.
        let positions = |start: f64, step: f64, len: u32| {
            let mut at = start + step * 0.5;
            (0..len)
                .map(|_| {
                    let found = cell(at, len);
                    at += step;
                    found
                })
                .collect::<Vec<_>>()
        };
        let (columns, rows) = (positions(c, a, width), positions(f, e, height));
        for (y, from_y) in rows.iter().enumerate() {
            for (x, from_x) in columns.iter().enumerate() {
                if let (Some(from_x), Some(from_y)) = (from_x, from_y) {
                    output.put_pixel(x as u32, y as u32, *image.get_pixel(*from_x, *from_y));
                }
            }
        }
        return output;
    }
    let corners = [(0, 0), (width, 0), (0, height), (width, height)].map(|(x, y)| {
        let (x, y) = (f64::from(x) + 0.5, f64::from(y) + 0.5);
        (a * x + b * y + c).abs().max((d * x + e * y + f).abs())
    });
    let fixed = corners.iter().all(|corner| *corner < 32768.0);
    let fix = |value: f64| (value * 65536.0 + 0.5).floor() as i64;
    let (a0, b0, d0, e0) = (fix(a), fix(b), fix(d), fix(e));
    let (c0, f0) = (fix(c + a * 0.5 + b * 0.5), fix(f + d * 0.5 + e * 0.5));
    for y in 0..height {
        for x in 0..width {
            let from = if fixed {
                // 16 bits after the point.
                let (x, y) = (i64::from(x), i64::from(y));
                let at = |at: i64, len: u32| u32::try_from(at >> 16).ok().filter(|at| *at < len);
                (at(c0 + b0 * y + a0 * x, width), at(f0 + e0 * y + d0 * x, height))
            } else {
                let (x, y) = (f64::from(x) + 0.5, f64::from(y) + 0.5);
                (cell(a * x + b * y + c, width), cell(d * x + e * y + f, height))
            };
            if let (Some(from_x), Some(from_y)) = from {
                output.put_pixel(x, y, *image.get_pixel(from_x, from_y));
            }
        }
    }
    output
}

/// A sample; those at the edges are repeated outside.
fn value(image: &RgbImage, x: i64, y: i64, channel: usize) -> f64 {
    let clip = |at: i64, len: u32| at.clamp(0, i64::from(len) - 1) as u32;
    f64::from(image.get_pixel(clip(x, image.width()), clip(y, image.height()))[channel])
}

fn bilinear(image: &RgbImage, x: f64, y: f64) -> [u8; 3] {
    let (left, top) = (x.floor(), y.floor());
    let (dx, dy) = (x - left, y - top);
    let (left, top) = (left as i64, top as i64);
    let blend = |a: f64, b: f64, d: f64| a + (b - a) * d;
    std::array::from_fn(|c| {
        let row = |y: i64| blend(value(image, left, y, c), value(image, left + 1, y, c), dx);
        // Clipping repeats the row where there is none below.
        blend(row(top), row(top + 1), dy) as u8
    })
}

fn bicubic(image: &RgbImage, x: f64, y: f64) -> [u8; 3] {
    let (left, top) = (x.floor(), y.floor());
    let (dx, dy) = (x - left, y - top);
    let (left, top) = (left as i64 - 1, top as i64 - 1);
    // The cubic with a = -1 through four points, in Horner's form.
    let curve = |v: [f64; 4], d: f64| {
        let p2 = -v[0] + v[2];
        let p3 = 2.0 * (v[0] - v[1]) + v[2] - v[3];
        let p4 = -v[0] + v[1] - v[2] + v[3];
        v[1] + d * (p2 + d * (p3 + d * p4))
    };
    let height = i64::from(image.height());
    std::array::from_fn(|c| {
        let row = |y: i64| curve([0, 1, 2, 3].map(|i| value(image, left + i, y, c)), dx);
        // Below the first row, a row outside the image repeats the result of the one before it.
        let mut rows = [row(top); 4];
        for i in 1..4 {
            let y = top + i as i64;
            rows[i] = if (0..height).contains(&y) { row(y) } else { rows[i - 1] };
        }
        // A cast from float clamps and cuts.
        curve(rows, dy) as u8
    })
}
