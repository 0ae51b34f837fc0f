//! Tables of values and sharpening, in Pillow's arithmetic.

use super::color::blend;
use image::{Rgb, RgbImage};

/// How often each value occurs in a channel.
fn histogram(image: &RgbImage, channel: usize) -> [u64; 256] {
    let mut counts = [0; 256];
    image.pixels().for_each(|pixel| counts[usize::from(pixel[channel])] += 1);
    counts
}

/// Replaces the values of each channel by a table of its own.
fn by_channel(image: &mut RgbImage, table: impl Fn(&[u64; 256]) -> [u8; 256]) {
    let tables = [0, 1, 2].map(|channel| table(&histogram(image, channel)));
    for pixel in image.pixels_mut() {
        for (value, table) in pixel.0.iter_mut().zip(&tables) {
            *value = table[usize::from(*value)];
        }
    }
}

fn same() -> [u8; 256] {
    std::array::from_fn(|value| value as u8)
}

/// Stretches each channel to the full range, as `PIL.ImageOps.autocontrast`.
pub fn autocontrast(image: &mut RgbImage) {
    by_channel(image, |counts| {
        let low = counts.iter().position(|count| *count > 0).unwrap_or(0);
        let high = counts.iter().rposition(|count| *count > 0).unwrap_or(0);
        if high <= low {
            return same();
        }
        let scale = 255.0 / (high - low) as f64;
        let offset = -(low as f64) * scale;
        // A cast from float clamps and cuts.
        std::array::from_fn(|value| (value as f64 * scale + offset) as u8)
    });
}

/// Makes each channel's values equally frequent, as `PIL.ImageOps.equalize`.
pub fn equalize(image: &mut RgbImage) {
    by_channel(image, |counts| {
        let last = counts.iter().rev().find(|count| **count > 0).copied().unwrap_or(0);
        let step = (counts.iter().sum::<u64>() - last) / 255;
        // Also where there is one value only.
        if step == 0 {
            return same();
        }
        let mut sum = step / 2;
        counts.map(|count| {
            let value = (sum / step).min(255) as u8;
            sum += count;
            value
        })
    });
}

/// Replaces every value by 255 less it.
pub fn invert(image: &mut RgbImage) {
    image.iter_mut().for_each(|value| *value = 255 - *value);
}

/// Keeps the upper `bits` bits of every value; 8 or more change nothing.
pub fn posterize(image: &mut RgbImage, bits: u8) {
    let mask = !(0xffu8.checked_shr(bits.into()).unwrap_or(0));
    image.iter_mut().for_each(|value| *value &= mask);
}

/// Adds to the values below `threshold`, at most up to 255 (timm's `solarize_add`).
pub fn solarize_add(image: &mut RgbImage, add: u8, threshold: u8) {
    image.iter_mut().filter(|value| **value < threshold).for_each(|value| *value = value.saturating_add(add));
}

/// Scales sharpness: a blend with the smoothed image, as `PIL.ImageEnhance.Sharpness`; factor 1 changes nothing.
pub fn adjust_sharpness(image: &mut RgbImage, factor: f64) {
    let smooth = smoothed(image);
    for (value, smooth) in image.iter_mut().zip(smooth.iter()) {
        *value = blend(*smooth, *value, factor as f32);
    }
}

/// The mean of the nine pixels around, in which the middle weighs five times as much; the outermost pixels stay.
fn smoothed(image: &RgbImage) -> RgbImage {
    let (width, height) = image.dimensions();
    let mut output = image.clone();
    for y in 1..height.saturating_sub(1) {
        for x in 1..width.saturating_sub(1) {
            let sum = |channel: usize| {
                let around = (y - 1..=y + 1).flat_map(|y| (x - 1..=x + 1).map(move |x| (x, y)));
                let sum: u32 = around.map(|(x, y)| u32::from(image.get_pixel(x, y)[channel])).sum();
                sum + 4 * u32::from(image.get_pixel(x, y)[channel])
            };
            // Rounded: a thirteenth never lies in the middle of two integers.
            output.put_pixel(x, y, Rgb([0, 1, 2].map(|channel| ((2 * sum(channel) + 13) / 26) as u8)));
        }
    }
    output
}
