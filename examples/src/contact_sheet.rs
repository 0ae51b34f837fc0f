//! A labelled grid of pictures, written as one PNG.

use std::io::Cursor;
use std::path::Path;

use font8x8::UnicodeFonts;
use image::{ImageFormat, Rgb, RgbImage, imageops};

/// Side of a picture on the sheet, in pixels.
const PICTURE: u32 = 96;
const MARGIN: u32 = 12;
/// Height of a line of text: an 8-pixel glyph and its leading.
const LINE: u32 = 11;
const GLYPH: u32 = 8;
const CELL: u32 = PICTURE + 2 * MARGIN;
const LABEL_LINES: usize = 3;
const INK: Rgb<u8> = Rgb([32, 32, 32]);
const FAINT: Rgb<u8> = Rgb([120, 120, 120]);
const PAPER: Rgb<u8> = Rgb([250, 250, 248]);

/// One picture with its label and a second, fainter line.
#[derive(Debug, Clone)]
pub struct Tile {
    /// The picture, of any size.
    pub picture: RgbImage,
    /// The label, wrapped to two lines.
    pub label: String,
    /// One line below the label: a score, a folder.
    pub note: String,
}

/// Draws `tiles` in rows of `columns` under `title`.
#[must_use]
pub fn draw(title: &str, tiles: &[Tile], columns: u32) -> RgbImage {
    let columns = columns.max(1).min(tiles.len().max(1) as u32);
    let rows = (tiles.len() as u32).div_ceil(columns).max(1);
    let cell_height = PICTURE + MARGIN + LINE * LABEL_LINES as u32 + 4;
    let title_width = title.chars().count() as u32 * 2 * GLYPH + 2 * MARGIN;
    let width = (columns * CELL).max(title_width.min(4 * CELL));
    let head = 2 * GLYPH + 2 * MARGIN;
    let mut sheet = RgbImage::from_pixel(width, head + rows * cell_height + MARGIN, PAPER);
    let title_room = ((width - 2 * MARGIN) / (2 * GLYPH)) as usize;
    write_text(&mut sheet, &shorten(title, title_room), MARGIN, MARGIN, 2, INK);

    for (index, tile) in tiles.iter().enumerate() {
        let x = (index as u32 % columns) * CELL + MARGIN;
        let y = head + (index as u32 / columns) * cell_height;
        let (w, h) = fit(tile.picture.width(), tile.picture.height());
        let picture = imageops::resize(&tile.picture, w, h, imageops::FilterType::CatmullRom);
        imageops::replace(&mut sheet, &picture, i64::from(x + (PICTURE - w) / 2), i64::from(y + (PICTURE - h) / 2));
        let room = ((CELL - MARGIN) / GLYPH) as usize;
        let mut at = y + PICTURE + 6;
        for line in wrap(&tile.label, room, LABEL_LINES - 1) {
            write_text(&mut sheet, &line, x, at, 1, INK);
            at += LINE;
        }
        write_text(&mut sheet, &shorten(&tile.note, room), x, at, 1, FAINT);
    }
    sheet
}

/// Writes a sheet as PNG: complete or not at all.
///
/// # Errors
/// The folder does not exist, the disk is full, or the picture cannot be encoded.
pub fn save(sheet: &RgbImage, path: &Path) -> Result<(), Box<dyn std::error::Error>> {
    let mut png = Cursor::new(Vec::new());
    sheet.write_to(&mut png, ImageFormat::Png)?;
    sconce::nn::fs::write_atomic(path, |out| out.write_all(png.get_ref()))?;
    Ok(())
}

fn fit(width: u32, height: u32) -> (u32, u32) {
    let longest = width.max(height).max(1);
    let side = |n: u32| (u64::from(n) * u64::from(PICTURE) / u64::from(longest)).max(1) as u32;
    (side(width), side(height))
}

fn shorten(text: &str, room: usize) -> String {
    if text.chars().count() <= room {
        return text.to_string();
    }
    text.chars().take(room.saturating_sub(2)).chain("..".chars()).collect()
}

fn wrap(text: &str, room: usize, most: usize) -> Vec<String> {
    let mut lines: Vec<String> = vec![String::new()];
    for word in text.split_whitespace() {
        let last = lines.len() - 1;
        let taken = lines[last].chars().count();
        if taken == 0 {
            lines[last].push_str(word);
        } else if taken + 1 + word.chars().count() <= room || lines.len() == most {
            lines[last].push(' ');
            lines[last].push_str(word);
        } else {
            lines.push(word.to_string());
        }
    }
    lines.iter().map(|line| shorten(line, room)).collect()
}

fn write_text(sheet: &mut RgbImage, text: &str, x: u32, y: u32, scale: u32, ink: Rgb<u8>) {
    for (column, letter) in text.chars().enumerate() {
        let Some(glyph) = glyph(letter) else { continue };
        for (row, bits) in glyph.iter().enumerate() {
            for bit in (0..8).filter(|bit| (bits >> bit) & 1 == 1) {
                for dy in 0..scale {
                    for dx in 0..scale {
                        let px = x + (column as u32 * GLYPH + bit) * scale + dx;
                        let py = y + row as u32 * scale + dy;
                        if px < sheet.width() && py < sheet.height() {
                            sheet.put_pixel(px, py, ink);
                        }
                    }
                }
            }
        }
    }
}

/// The bitmap of a letter; typographic quotes become plain ones, the unknown a question mark.
fn glyph(letter: char) -> Option<[u8; 8]> {
    let letter = match letter {
        '\u{2018}' | '\u{2019}' => '\'',
        '\u{201c}' | '\u{201d}' => '"',
        '\u{2013}' | '\u{2014}' => '-',
        other => other,
    };
    font8x8::BASIC_FONTS
        .get(letter)
        .or_else(|| font8x8::LATIN_FONTS.get(letter))
        .or_else(|| font8x8::BASIC_FONTS.get('?'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_labels_are_wrapped_and_cut() {
        assert_eq!(wrap("woman getting massage", 8, 2), ["woman", "gettin.."]);
        assert_eq!(wrap("taco", 8, 2), ["taco"]);
        assert_eq!(wrap("", 8, 2), [""]);
        assert_eq!(shorten("nine o’clock", 8), "nine o..");
    }

    #[test]
    fn every_tile_and_the_title_leave_ink() {
        let tile = |shade| Tile {
            picture: RgbImage::from_pixel(40, 20, Rgb([shade, 0, 0])),
            label: "“label”".into(),
            note: "0.5".into(),
        };
        let sheet = draw("a title", &[tile(200), tile(210), tile(220)], 2);
        for shade in [200, 210, 220] {
            assert!(sheet.pixels().any(|p| p.0 == [shade, 0, 0]), "{shade}");
        }
        assert!(sheet.pixels().any(|p| *p == INK) && sheet.pixels().any(|p| *p == FAINT));
        assert_eq!(draw("", &[], 4).get_pixel(0, 0), &PAPER);
    }

    #[test]
    fn pictures_of_odd_shapes_fit() {
        assert_eq!(fit(1, 10_000), (1, PICTURE));
        assert_eq!(fit(64, 64), (PICTURE, PICTURE));
    }
}
