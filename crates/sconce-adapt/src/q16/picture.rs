//! A word cloud as pixels, with a bitmap font that needs no files.

use std::io::Cursor;

use font8x8::UnicodeFonts;
use image::{ImageFormat, Rgb, RgbImage};

use super::WordCloud;
use super::cloud::{CELL, PlacedWord, cells};
use crate::{Error, Result};

/// Rows and columns of a letter's bitmap.
const BITS: usize = 8;

impl WordCloud {
    /// The cloud as a picture on white. Letters that the font lacks (it has Latin, Greek, hiragana and boxes) are outlined
    /// boxes; the SVG has them all.
    pub fn to_image(&self) -> RgbImage {
        let side = |n: usize| n.min(u32::MAX as usize) as u32;
        let mut picture = RgbImage::from_pixel(side(self.width), side(self.height), Rgb([255; 3]));
        for word in &self.words {
            draw(&mut picture, word);
        }
        picture
    }

    /// The picture as the bytes of a PNG file.
    ///
    /// # Errors
    /// When it cannot be encoded.
    pub fn to_png(&self) -> Result<Vec<u8>> {
        let mut png = Cursor::new(vec![]);
        let failed = |error: image::ImageError| Error::Data(format!("word cloud: {error}"));
        self.to_image().write_to(&mut png, ImageFormat::Png).map_err(failed)?;
        Ok(png.into_inner())
    }
}

fn draw(picture: &mut RgbImage, word: &PlacedWord) {
    let (long, high) = if word.upright { (word.height, word.width) } else { (word.width, word.height) };
    let mut start = 0.0;
    for letter in word.text.chars() {
        let end = start + cells(letter) * CELL * word.font as f64;
        let bitmap = bitmap(letter);
        for along in start.floor() as usize..(end.ceil() as usize).min(long) {
            let across = |column: usize| (column as f64 - start) * BITS as f64 / (end - start);
            let columns = (across(along), across(along + 1));
            for down in 0..high {
                let row = |row: usize| (row * BITS) as f64 / high as f64;
                let share = coverage(&bitmap, columns, (row(down), row(down + 1)));
                let (x, y) = match word.upright {
                    false => (word.x + along, word.y + down),
                    true => (word.x + down, word.y + word.height - 1 - along),
                };
                if share > 0.0 && x < picture.width() as usize && y < picture.height() as usize {
                    let pixel = picture.get_pixel_mut(x as u32, y as u32);
                    for (old, ink) in pixel.0.iter_mut().zip(word.colour) {
                        *old = (f64::from(*old) * (1.0 - share) + f64::from(ink) * share).round() as u8;
                    }
                }
            }
        }
        start = end;
    }
}

/// The share of a rectangle of a bitmap that is set.
fn coverage(bitmap: &[u8; BITS], (left, right): (f64, f64), (top, bottom): (f64, f64)) -> f64 {
    let overlap = |cell: usize, from: f64, to: f64| (to.min(cell as f64 + 1.0) - from.max(cell as f64)).max(0.0);
    let range = |from: f64, to: f64| from.max(0.0) as usize..(to.ceil().max(0.0) as usize).min(BITS);
    let mut set = 0.0;
    for row in range(top, bottom) {
        for column in range(left, right).filter(|column| (bitmap[row] >> column) & 1 == 1) {
            set += overlap(row, top, bottom) * overlap(column, left, right);
        }
    }
    (set / ((right - left) * (bottom - top))).clamp(0.0, 1.0)
}

fn bitmap(letter: char) -> [u8; BITS] {
    const OUTLINE: [u8; BITS] = [0, 0x7e, 0x42, 0x42, 0x42, 0x42, 0x7e, 0];
    if letter.is_whitespace() {
        return [0; BITS];
    }
    let plain = match letter {
        '\u{2018}' | '\u{2019}' => '\'',
        '\u{2013}' | '\u{2014}' => '-',
        other => other,
    };
    let fonts = [font8x8::BASIC_FONTS.get(plain), font8x8::LATIN_FONTS.get(plain), font8x8::GREEK_FONTS.get(plain)];
    let known = fonts.into_iter().flatten().next().or_else(|| font8x8::HIRAGANA_FONTS.get(plain));
    known.unwrap_or(OUTLINE)
}

#[cfg(test)]
mod tests {
    use super::super::CloudOptions;
    use super::*;

    #[test]
    fn every_word_leaves_ink_in_its_box_and_none_outside() {
        let weights: Vec<_> = ["tea", "Käse", "猫", "ice cream"].map(|word| (word.to_owned(), 1.0)).into();
        for prefer_level in [0.0, 1.0] {
            let options = CloudOptions { prefer_level, ..Default::default() };
            let cloud = WordCloud::new(&weights, &options).unwrap();
            let picture = cloud.to_image();
            assert_eq!((cloud.words.len(), picture.dimensions()), (4, (400, 300)));
            let inside = |word: &PlacedWord, x: u32, y: u32| {
                (word.x..word.x + word.width).contains(&(x as usize))
                    && (word.y..word.y + word.height).contains(&(y as usize))
            };
            let mut ink = vec![0; cloud.words.len()];
            for (x, y, _) in picture.enumerate_pixels().filter(|(_, _, pixel)| pixel.0 != [255; 3]) {
                let word = cloud.words.iter().position(|word| inside(word, x, y));
                ink[word.expect("ink outside of all boxes")] += 1;
            }
            assert!(ink.iter().all(|pixels| *pixels > 50), "{ink:?}");
        }
    }

    #[test]
    fn an_upright_word_is_the_level_one_turned() {
        let cloud = |prefer_level| {
            let options = CloudOptions { prefer_level, width: 90, height: 90, ..Default::default() };
            WordCloud::new(&[("Tea".to_owned(), 1.0)], &options).unwrap()
        };
        let part = |cloud: &WordCloud| {
            let word = &cloud.words[0];
            let [x, y, w, h] = [word.x, word.y, word.width, word.height].map(|n| n as u32);
            let mut part = image::imageops::crop_imm(&cloud.to_image(), x, y, w, h).to_image();
            part.pixels_mut().for_each(|pixel| pixel.0 = [u8::from(pixel.0 != [255; 3]); 3]);
            part
        };
        assert_eq!(image::imageops::rotate270(&part(&cloud(1.0))), part(&cloud(0.0)));
    }

    #[test]
    fn the_png_is_the_picture() {
        let cloud = WordCloud::new(&[("tea".to_owned(), 1.0)], &CloudOptions::default()).unwrap();
        let read = image::load_from_memory(&cloud.to_png().unwrap()).unwrap().to_rgb8();
        assert_eq!(read, cloud.to_image());
    }
}
