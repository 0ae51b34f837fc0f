//! Word clouds: where each word stands, and how large.

use sconce_ops::Generator;
use serde::{Deserialize, Serialize};

use super::layout::Canvas;
use super::words::Weighted;
use crate::{Error, Result};

/// Options of a [`WordCloud`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct CloudOptions {
    /// Of the canvas, in pixels.
    pub width: usize,
    /// Of the canvas, in pixels.
    pub height: usize,
    /// The heaviest words that are tried.
    pub max_words: usize,
    /// How much sizes follow weights: 0 only their order, at 1 a word of half the weight is half as high.
    pub relative_scaling: f64,
    /// Of the heaviest word, in pixels.
    pub max_font: usize,
    /// No word is smaller, in pixels.
    pub min_font: usize,
    /// How often a word is tried level before upright.
    pub prefer_level: f64,
    /// Pixels between words.
    pub margin: usize,
    /// Decides places, directions and colours.
    pub seed: u64,
}

impl Default for CloudOptions {
    /// The paper's: 400 by 300 pixels, 500 words, at most 40 pixels high.
    fn default() -> Self {
        Self {
            width: 400,
            height: 300,
            max_words: 500,
            relative_scaling: 0.25,
            max_font: 40,
            min_font: 6,
            prefer_level: 0.9,
            margin: 2,
            seed: 1,
        }
    }
}

/// More than any screen has.
const MAX_PIXELS: usize = 1 << 24;

impl CloudOptions {
    fn check(&self) -> Result<()> {
        let share = |x: f64| (0.0..=1.0).contains(&x);
        let wrong = match self {
            o if o.width == 0 || o.height == 0 => "the canvas is empty",
            o if o.width.checked_mul(o.height).is_none_or(|pixels| pixels > MAX_PIXELS) => "the canvas is too large",
            o if o.min_font == 0 || o.min_font > o.max_font => "min_font must be from 1 to max_font",
            o if o.max_font > MAX_PIXELS || o.margin > MAX_PIXELS => "a font or margin beyond any canvas",
            o if !share(o.relative_scaling) || !share(o.prefer_level) => "a share is not from 0 to 1",
            _ => return Ok(()),
        };
        Err(Error::Config(format!("word cloud: {wrong}")))
    }
}

/// Ink on white, dark enough to read.
const COLOURS: [[u8; 3]; 6] = [[68, 1, 84], [59, 82, 139], [33, 120, 120], [40, 130, 70], [150, 90, 10], [150, 40, 60]];

/// A word of a cloud with the box it fills; no two boxes meet.
#[derive(Clone, Debug, PartialEq)]
pub struct PlacedWord {
    /// The word.
    pub text: String,
    /// Its weight as a share of the largest.
    pub weight: f64,
    /// Height of its letters, in pixels.
    pub font: usize,
    /// Left side of the box.
    pub x: usize,
    /// Upper side of the box.
    pub y: usize,
    /// Width of the box as it stands.
    pub width: usize,
    /// Height of the box as it stands.
    pub height: usize,
    /// Whether it reads from the bottom up.
    pub upright: bool,
    /// Red, green and blue.
    pub colour: [u8; 3],
}

/// Words that are the larger the more they weigh, laid out without overlaps; the same seed gives the same cloud.
///
/// Every letter takes a cell of the same width, so that the boxes hold for the SVG's monospaced font and the PNG's bitmaps
/// alike, on any machine.
#[derive(Clone, Debug, PartialEq)]
pub struct WordCloud {
    /// Of the canvas, in pixels.
    pub width: usize,
    /// Of the canvas, in pixels.
    pub height: usize,
    /// The heaviest first.
    pub words: Vec<PlacedWord>,
    /// Words above zero for which there was no room.
    pub left_out: usize,
}

impl WordCloud {
    /// Places words of a positive weight, the heaviest first, at random among the free places; a word without one is turned,
    /// then made smaller, and so are all after it.
    ///
    /// # Errors
    /// For options that make no sense, and weights that are no numbers.
    pub fn new(weights: &[Weighted], options: &CloudOptions) -> Result<Self> {
        options.check()?;
        if let Some((word, weight)) = weights.iter().find(|(_, weight)| !weight.is_finite()) {
            return Err(Error::Data(format!("word cloud: `{word}` weighs {weight}")));
        }
        let mut sorted: Vec<&Weighted> = weights.iter().filter(|(w, weight)| *weight > 0.0 && !w.is_empty()).collect();
        sorted.sort_by(|a, b| b.1.total_cmp(&a.1).then_with(|| a.0.cmp(&b.0)));
        let largest = sorted.first().map_or(1.0, |(_, weight)| *weight);
        let total = sorted.len();
        let generator = Generator::new(options.seed).fork("word cloud");
        let mut canvas = Canvas::new(options.width, options.height);
        let mut words: Vec<PlacedWord> = vec![];
        let (mut font, mut last) = (options.max_font, largest);
        for (text, weight) in sorted.into_iter().take(options.max_words) {
            let scaled = options.relative_scaling * (weight / last) + (1.0 - options.relative_scaling);
            font = ((scaled * font as f64).round() as usize).max(options.min_font);
            last = *weight;
            let mut upright = generator.f64() >= options.prefer_level;
            let colour = COLOURS[generator.index(COLOURS.len())];
            let mut size = font;
            let mut turned = false;
            let place = loop {
                let (width, height) = extent(text, size, upright);
                let found = canvas.place(width + options.margin, height + options.margin, &generator);
                match found {
                    Some(place) => break Some((place, width, height)),
                    None if !turned => (upright, turned) = (!upright, true),
                    None if size > options.min_font => (size, upright, turned) = (size - 1, false, false),
                    None => break None,
                }
            };
            // A word that is long rather than light says nothing about the room that the next ones find.
            let Some(((x, y), width, height)) = place else { continue };
            canvas.take((x, y), width + options.margin, height + options.margin);
            let (x, y) = (x + options.margin / 2, y + options.margin / 2);
            let (text, weight) = (text.clone(), weight / largest);
            words.push(PlacedWord { text, weight, font: size, x, y, width, height, upright, colour });
            font = size;
        }
        let left_out = total - words.len();
        Ok(Self { width: options.width, height: options.height, words, left_out })
    }
}

/// Width of a letter's cell as a share of the font's height: that of common monospaced fonts.
pub(super) const CELL: f64 = 0.6;

/// How many cells a letter takes: East Asian ones are wider.
pub(super) fn cells(letter: char) -> f64 {
    let wide = matches!(u32::from(letter),
        0x1100..=0x115f | 0x2e80..=0x303e | 0x3041..=0xa4cf | 0xac00..=0xd7a3 | 0xf900..=0xfaff | 0xfe30..=0xfe4f
        | 0xff00..=0xff60 | 0xffe0..=0xffe6 | 0x1f300..=0x1faff | 0x20000..=0x3fffd);
    if wide { 1.0 / CELL } else { 1.0 }
}

/// Width and height of the box of a word.
fn extent(text: &str, font: usize, upright: bool) -> (usize, usize) {
    let long = (text.chars().map(cells).sum::<f64>() * CELL * font as f64).ceil() as usize;
    if upright { (font, long) } else { (long, font) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(count: usize) -> Vec<Weighted> {
        (0..count).map(|i| (format!("word{i}"), 1.0 / (i + 1) as f64)).collect()
    }

    fn options() -> CloudOptions {
        CloudOptions { width: 200, height: 120, max_words: 80, max_font: 20, ..Default::default() }
    }

    #[test]
    fn boxes_lie_on_the_canvas_and_do_not_meet() {
        for seed in 0..3 {
            let cloud = WordCloud::new(&words(120), &CloudOptions { seed, ..options() }).unwrap();
            assert!(cloud.words.len() > 20, "{}", cloud.words.len());
            assert_eq!(cloud.left_out, 120 - cloud.words.len());
            for (i, a) in cloud.words.iter().enumerate() {
                assert!(a.x + a.width <= 200 && a.y + a.height <= 120, "{a:?}");
                for b in &cloud.words[..i] {
                    let apart =
                        a.x + a.width <= b.x || b.x + b.width <= a.x || a.y + a.height <= b.y || b.y + b.height <= a.y;
                    assert!(apart, "{a:?} {b:?}");
                }
            }
            assert!(cloud.words.windows(2).all(|pair| pair[0].font >= pair[1].font));
        }
    }

    #[test]
    fn the_seed_decides() {
        let cloud = |seed| WordCloud::new(&words(20), &CloudOptions { seed, ..options() }).unwrap();
        assert_eq!(cloud(1), cloud(1));
        assert_ne!(cloud(1), cloud(2));
        // The order of the words does not.
        let mut reversed = words(20);
        reversed.reverse();
        assert_eq!(WordCloud::new(&reversed, &options()).unwrap(), cloud(1));
    }

    #[test]
    fn sizes_follow_weights() {
        let sizes = |relative_scaling| {
            let weights = [("a".to_owned(), 2.0), ("b".to_owned(), 1.0)];
            let cloud = WordCloud::new(&weights, &CloudOptions { relative_scaling, ..options() }).unwrap();
            cloud.words.iter().map(|word| word.font).collect::<Vec<_>>()
        };
        assert_eq!(sizes(0.0), [20, 20]);
        assert_eq!(sizes(0.25), [20, 18]);
        assert_eq!(sizes(1.0), [20, 10]);
    }

    #[test]
    fn a_word_longer_than_the_canvas_is_left_out_alone() {
        let weights = [("x".repeat(500), 2.0), ("short".to_owned(), 1.0), ("none".to_owned(), 0.0)];
        let cloud = WordCloud::new(&weights, &options()).unwrap();
        assert_eq!((cloud.words.len(), cloud.left_out), (1, 1));
        assert!(cloud.words[0].font > 15);
        assert!(WordCloud::new(&[], &options()).unwrap().words.is_empty());
    }

    #[test]
    fn wrong_options_are_errors() {
        for wrong in [
            CloudOptions { width: 0, ..options() },
            CloudOptions { width: usize::MAX, ..options() },
            CloudOptions { min_font: 0, ..options() },
            CloudOptions { max_font: 3, ..options() },
            CloudOptions { relative_scaling: 2.0, ..options() },
            CloudOptions { prefer_level: f64::NAN, ..options() },
            CloudOptions { margin: usize::MAX, ..options() },
        ] {
            assert!(WordCloud::new(&words(2), &wrong).is_err(), "{wrong:?}");
        }
        assert!(WordCloud::new(&[("a".into(), f64::NAN)], &options()).is_err());
    }
}
