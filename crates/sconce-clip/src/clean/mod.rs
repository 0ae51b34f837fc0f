//! Text cleaning as CLIP was trained with: repair, entities, white space, lower case.
//!
//! CLIP's vocabulary was counted on text that had gone through `ftfy.fix_text`, two rounds of HTML unescaping, white-space
//! collapsing and lower-casing. A tokenizer that leaves out a step gives other ids for curly quotes, ligatures, full-width
//! letters, entities and text decoded with the wrong code page. All four steps are here; the repair follows the behaviour of
//! ftfy 6.3 (Speer 2019), see [`repair`].

mod code_pages;
mod html;
mod mojibake;
mod repair;

pub use html::unescape as unescape_html;
pub use repair::repair;

/// Cleans one text: [`repair`], [`unescape_html`] twice, strip, runs of white space to one space, lower case.
///
/// Lower-casing is Unicode's full mapping, final sigma included, as Python's `str.lower` does it.
pub fn clean(text: &str) -> String {
    collapse_whitespace(&unescape_html(&unescape_html(&repair(text)))).to_lowercase()
}

/// Joins the words of `text` with single spaces; no white space remains at either end.
pub fn collapse_whitespace(text: &str) -> String {
    let mut words = text.split_whitespace();
    let mut out = String::with_capacity(text.len());
    if let Some(first) = words.next() {
        out.push_str(first);
    }
    for word in words {
        out.push(' ');
        out.push_str(word);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cleans_as_the_training_text_was_cleaned() {
        for (text, expected) in [
            ("  A  Photo\tof\na CAT ", "a photo of a cat"),
            ("\u{ff11}\u{ff12} full", "12 full"),
            ("\u{fb01}n \u{2018}x\u{2019} \u{201c}y\u{201f}", "fin 'x' \"y\""),
            ("\u{1b}[31mred\u{1b}[0m", "red"),
            ("a\u{0}b\u{7}\u{feff}", "ab"),
            ("&amp;lt; &copy 2021", "< \u{a9} 2021"),
            ("\u{e2}\u{20ac}\u{2122} it\u{e2}\u{20ac}\u{2122}s", "' it's"),
            ("cafe\u{301}", "caf\u{e9}"),
            ("\u{39f}\u{394}\u{39f}\u{3a3}", "\u{3bf}\u{3b4}\u{3bf}\u{3c2}"),
            ("\u{85} nel", "\u{2026} nel"),
            ("P&EACUTE;REZ", "p\u{e9}rez"),
            ("", ""),
        ] {
            assert_eq!(clean(text), expected, "{text:?}");
        }
    }
}
