//! A word cloud as text that scales.

use std::fmt::Write;

use super::WordCloud;

/// Where letters stand, as a share of the font's height from the top.
const BASELINE: f64 = 0.78;

impl WordCloud {
    /// The cloud as an SVG document: letters in the viewer's monospaced font, stretched into their boxes, on white.
    pub fn to_svg(&self) -> String {
        let (width, height) = (self.width, self.height);
        let mut svg = format!(
            "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{width}\" height=\"{height}\" \
             viewBox=\"0 0 {width} {height}\" font-family=\"DejaVu Sans Mono, Menlo, Consolas, monospace\">\n\
             <rect width=\"{width}\" height=\"{height}\" fill=\"white\"/>\n"
        );
        for word in &self.words {
            let down = BASELINE * word.font as f64;
            let [r, g, b] = word.colour;
            let (length, x, y, turn) = match word.upright {
                false => (word.width, word.x as f64, word.y as f64 + down, ""),
                true => (word.height, word.x as f64 + down, (word.y + word.height) as f64, " rotate(-90)"),
            };
            // Writing to a String cannot fail.
            let _ = writeln!(
                svg,
                "<text transform=\"translate({x:.1} {y:.1}){turn}\" font-size=\"{}\" textLength=\"{length}\" \
                 lengthAdjust=\"spacingAndGlyphs\" fill=\"#{r:02x}{g:02x}{b:02x}\">{}</text>",
                word.font,
                escape(&word.text)
            );
        }
        svg + "</svg>\n"
    }
}

/// Text as XML takes it; what XML cannot hold becomes a replacement character.
fn escape(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for letter in text.chars() {
        match letter {
            '&' => escaped += "&amp;",
            '<' => escaped += "&lt;",
            '>' => escaped += "&gt;",
            '"' => escaped += "&quot;",
            '\'' => escaped += "&#39;",
            '\u{fffe}' | '\u{ffff}' => escaped.push('\u{fffd}'),
            control if control.is_control() => escaped.push('\u{fffd}'),
            other => escaped.push(other),
        }
    }
    escaped
}

#[cfg(test)]
mod tests {
    use super::super::CloudOptions;
    use super::*;

    #[test]
    fn text_cannot_leave_its_element() {
        let weights = [("</text><script>&\"'\u{0}\n".to_owned(), 1.0), ("tea".to_owned(), 0.5)];
        let svg = WordCloud::new(&weights, &CloudOptions::default()).unwrap().to_svg();
        assert!(svg.contains("&lt;/text&gt;&lt;script&gt;&amp;&quot;&#39;\u{fffd}\u{fffd}</text>"), "{svg}");
        assert!(!svg.contains("<script") && svg.contains(">tea</text>"));
        assert_eq!(svg.matches("<text ").count(), 2);
        assert!(svg.starts_with("<svg ") && svg.ends_with("</svg>\n"));
    }

    #[test]
    fn upright_words_are_turned() {
        let upright = CloudOptions { prefer_level: 0.0, ..Default::default() };
        let cloud = WordCloud::new(&[("tea".to_owned(), 1.0)], &upright).unwrap();
        assert!(cloud.words[0].upright && cloud.to_svg().contains("rotate(-90)"));
    }
}
