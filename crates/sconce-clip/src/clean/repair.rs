//! Repair of text that went wrong before it got here, with the behaviour of `ftfy.fix_text` (ftfy 6.3, default options).

use super::{
    code_pages::{CODE_PAGES, CodePage, Kind, WINDOWS_1252},
    html::unescape_strict,
    mojibake::{is_bad, replace_embedded},
};
use fancy_regex::Regex;
use std::{borrow::Cow, sync::LazyLock};
use unicode_normalization::{UnicodeNormalization, is_nfc};

/// Lines longer than this many characters are repaired piece by piece.
const MAX_SEGMENT: usize = 1_000_000;

/// Repairs are repeated until nothing changes; this bounds what a text made to defeat them can cost.
const MAX_ROUNDS: usize = 32;

/// Repairs `text`: character references that end in `;` (unless the text holds a `<` and so may be HTML), text decoded with
/// the wrong code page, C1 controls, Latin ligatures, full- and half-width forms, curly quotes, line breaks, terminal escapes,
/// invisible controls; then Unicode normalisation form C.
pub fn repair(text: &str) -> Cow<'_, str> {
    // Plain ASCII without references, escapes and controls is nearly all there is, and never changes.
    if text.bytes().all(|b| matches!(b, b' '..=b'~' | b'\n' | b'\t') && b != b'&') {
        return Cow::Borrowed(text);
    }
    let (mut out, mut html) = (String::with_capacity(text.len()), false);
    for line in text.split_inclusive('\n') {
        let mut rest = line;
        while !rest.is_empty() {
            let cut = rest.char_indices().nth(MAX_SEGMENT).map_or(rest.len(), |(i, _)| i);
            html |= rest[..cut].contains('<');
            out.push_str(&repair_segment(&rest[..cut], !html));
            rest = &rest[cut..];
        }
    }
    Cow::Owned(out)
}

fn repair_segment(segment: &str, references: bool) -> String {
    let mut text = segment.to_owned();
    for _ in 0..MAX_ROUNDS {
        let before = text.clone();
        if references {
            text = unescape_strict(&text).into_owned();
        }
        text = fix_encoding(text, 0);
        text = fix_c1(&text);
        text = fix_characters(&text);
        text = fix_controls(&text);
        if !is_nfc(&text) {
            text = text.nfc().collect();
        }
        if text == before {
            break;
        }
    }
    text
}

/// C1 controls are Windows-1252 characters that someone read as Latin-1.
fn fix_c1(text: &str) -> String {
    let fix = |c: char| match c {
        '\u{80}'..='\u{9f}' => WINDOWS_1252.chars().nth(c as usize - 0x80).unwrap_or(c),
        c => c,
    };
    text.chars().map(fix).collect()
}

/// Ligatures, width, quotes.
fn fix_characters(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            'Ĳ' => out.push_str("IJ"),
            'ĳ' => out.push_str("ij"),
            'ŉ' => out.push_str("'n"),
            'Ǳ' => out.push_str("DZ"),
            'ǲ' => out.push_str("Dz"),
            'ǳ' => out.push_str("dz"),
            'Ǆ' => out.push_str("DŽ"),
            'ǅ' => out.push_str("Dž"),
            'ǆ' => out.push_str("dž"),
            'Ǉ' => out.push_str("LJ"),
            'ǈ' => out.push_str("Lj"),
            'ǉ' => out.push_str("lj"),
            'Ǌ' => out.push_str("NJ"),
            'ǋ' => out.push_str("Nj"),
            'ǌ' => out.push_str("nj"),
            'ﬀ' => out.push_str("ff"),
            'ﬁ' => out.push_str("fi"),
            'ﬂ' => out.push_str("fl"),
            'ﬃ' => out.push_str("ffi"),
            'ﬄ' => out.push_str("ffl"),
            'ﬅ' => out.push_str("ſt"),
            'ﬆ' => out.push_str("st"),
            '\u{3000}' => out.push(' '),
            '\u{ff01}'..='\u{ffef}' => out.extend(std::iter::once(c).nfkc()),
            'ʼ' | '‘'..='‛' => out.push('\''),
            '“'..='‟' => out.push('"'),
            c => out.push(c),
        }
    }
    out
}

static TERMINAL_ESCAPE: LazyLock<Option<Regex>> = LazyLock::new(|| Regex::new(r"\x1b\[[\d;]*[a-zA-Z]").ok());

/// Line breaks to `\n`; terminal escapes and characters without any visible effect removed.
fn fix_controls(text: &str) -> String {
    let text = text.replace("\r\n", "\n").replace(['\r', '\u{2028}', '\u{2029}', '\u{85}'], "\n");
    let text = match TERMINAL_ESCAPE.as_ref() {
        Some(escape) if text.contains('\u{1b}') => escape.replace_all(&text, "").into_owned(),
        _ => text,
    };
    let invisible = |c: &char| matches!(c, '\0'..='\u{8}' | '\u{b}' | '\u{e}'..='\u{1f}' | '\u{7f}' | '\u{206a}'..='\u{206f}' | '\u{feff}' | '\u{fff9}'..='\u{fffc}');
    text.chars().filter(|c| !invisible(c)).collect()
}

/// Undoes decoding with the wrong code page, as often as it happened.
fn fix_encoding(text: String, depth: usize) -> String {
    let mut text = text;
    for _ in 0..MAX_ROUNDS {
        match fix_encoding_once(&text, depth) {
            Some(fixed) if fixed != text => text = fixed,
            _ => break,
        }
    }
    text
}

fn fix_encoding_once(text: &str, depth: usize) -> Option<String> {
    if !is_bad(text) {
        return None;
    }
    // UTF-8 read through one code page: encode it back and decode it properly.
    let pages = CODE_PAGES.iter().filter_map(|page| Some((page, page.encode(text)?)));
    if let Some(fixed) = pages.clone().find_map(|(page, bytes)| decode_nearly_utf8(page, bytes)) {
        return Some(fixed);
    }
    // Mojibake in the midst of other text: fix the pieces, each shorter than the whole so that this ends.
    let fix = |piece: &str| {
        let shorter = piece.len() < text.len() && depth < MAX_ROUNDS;
        if shorter && is_bad(piece) { fix_encoding(piece.to_owned(), depth + 1) } else { piece.to_owned() }
    };
    if let Some(fixed) = replace_embedded(text, fix).filter(|fixed| fixed != text) {
        return Some(fixed);
    }
    // What remains bad is Windows-1252 read as Latin-1.
    Some(fix_c1(text))
}

/// Decodes bytes that are UTF-8, allowing for no-break spaces turned into spaces, lost bytes, CESU-8 and Java's NUL.
fn decode_nearly_utf8(page: &CodePage, bytes: Vec<u8>) -> Option<String> {
    let mut bytes = bytes;
    // In Mac Roman a dash before a space would look like such a sequence.
    if page.kind != Kind::MacRoman && (0..bytes.len()).any(|i| altered_len(&bytes[i..]).is_some()) {
        bytes = restore_no_break_spaces(&bytes);
    }
    if page.kind == Kind::Windows {
        bytes = rewrite(&bytes, |rest| lossy_len(rest).map(|len| (len, "\u{fffd}".as_bytes().to_vec())));
    }
    if bytes.iter().any(|b| matches!(b, 0xed | 0xc0)) {
        bytes = rewrite(&bytes, decode_variant);
    }
    String::from_utf8(bytes).ok()
}

/// Copies `bytes`, replacing at each position what `at` matches: (length, replacement).
fn rewrite(bytes: &[u8], at: impl Fn(&[u8]) -> Option<(usize, Vec<u8>)>) -> Vec<u8> {
    let (mut out, mut i) = (Vec::with_capacity(bytes.len()), 0);
    while i < bytes.len() {
        match at(&bytes[i..]) {
            Some((len, replacement)) => {
                out.extend(replacement);
                i += len;
            }
            None => {
                out.push(bytes[i]);
                i += 1;
            }
        }
    }
    out
}

fn restore_no_break_spaces(bytes: &[u8]) -> Vec<u8> {
    // "Ã " alone is nearly always the word "à": keep its space, unless it begins a Portuguese contraction.
    let words = rewrite(bytes, |rest| {
        let after = rest.strip_prefix(b"\xc3 ")?;
        let part = [&b" "[..], b"quele", b"quela", b"quilo", b"s "].iter().any(|p| after.starts_with(p));
        (!part).then(|| (2, b"\xc3\xa0 ".to_vec()))
    });
    rewrite(&words, |rest| {
        let len = altered_len(rest)?;
        Some((len, rest[..len].iter().map(|b| if *b == b' ' { 0xa0 } else { *b }).collect()))
    })
}

/// The length of a UTF-8 sequence at the start of `bytes` that has a space in place of byte 0xa0.
fn altered_len(bytes: &[u8]) -> Option<usize> {
    let trail = |b: u8| matches!(b, 0x80..=0xbf);
    let likely = |b: u8| matches!(b, 0x80..=0x84 | 0x86..=0x9f | 0xa1..=0xbf);
    match bytes {
        [0xc2 | 0xc3 | 0xc5 | 0xce | 0xd0 | 0xd9, b' ', ..] => Some(2),
        [0xe2 | 0xe3, b' ', c, ..] if likely(*c) => Some(3),
        [0xe0..=0xe3, b, b' ', ..] if likely(*b) => Some(3),
        [0xf0, b' ', c, d, ..] if trail(*c) && trail(*d) => Some(4),
        [0xf0, b, b' ', d, ..] if trail(*b) && trail(*d) => Some(4),
        [0xf0, b, c, b' ', ..] if trail(*b) && trail(*c) => Some(4),
        _ => None,
    }
}

/// The length of a UTF-8 sequence at the start of `bytes` of which bytes were lost (0x1a, or one `?`).
fn lossy_len(bytes: &[u8]) -> Option<usize> {
    const LOST: u8 = 0x1a;
    let gone = |b: u8| matches!(b, LOST | b'?');
    let trail = |b: u8| matches!(b, LOST | 0x80..=0xbf);
    let any = |b: u8| trail(b) || b == b'?';
    match bytes {
        [0xc2..=0xdf, LOST, ..] | [0xc2 | 0xc3, b'?', ..] => Some(2),
        [0xed, 0xa0..=0xaf, c, 0xed, 0xb0..=0xbf, f, ..] if (gone(*c) && any(*f)) || (any(*c) && gone(*f)) => Some(6),
        [0xe0..=0xef, b, c, ..] if (gone(*b) && trail(*c)) || (trail(*b) && gone(*c)) => Some(3),
        [0xf0..=0xf4, b, c, d, ..]
            if (gone(*b) && trail(*c) && trail(*d))
                || (trail(*b) && gone(*c) && trail(*d))
                || (trail(*b) && trail(*c) && gone(*d)) =>
        {
            Some(4)
        }
        [LOST, ..] => Some(1),
        _ => None,
    }
}

/// Two forms that are not UTF-8 but meant as it: Java's NUL (C0 80), and a surrogate pair written as twice three bytes (CESU-8).
fn decode_variant(bytes: &[u8]) -> Option<(usize, Vec<u8>)> {
    match bytes {
        [0xc0, 0x80, ..] => Some((2, vec![0])),
        [0xed, b @ 0xa0..=0xaf, c @ 0x80..=0xbf, 0xed, e @ 0xb0..=0xbf, f @ 0x80..=0xbf, ..] => {
            let bits = |byte: u8, mask: u8, shift: u32| u32::from(byte & mask) << shift;
            let code = 0x1_0000 + bits(*b, 0x0f, 16) + bits(*c, 0x3f, 10) + bits(*e, 0x0f, 6) + bits(*f, 0x3f, 0);
            char::from_u32(code).map(|c| (6, c.to_string().into_bytes()))
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn repairs_mojibake() {
        for (text, expected) in [
            ("âœ” No problems", "✔ No problems"),
            ("sÃ³", "só"),
            ("voilÃ le travail", "voilà le travail"),
            ("â€œ like this â€\u{fffd}", "\" like this \u{fffd}"),
            ("&macr;\\_(ã\u{83}\u{84})_/&macr;", "¯\\_(ツ)_/¯"),
            ("Ð¿Ñ€Ð¸Ð²ÐµÑ‚", "привет"),
            ("The MÃ¼nchen cafÃ©", "The München café"),
            ("<b>&amp;</b>", "<b>&amp;</b>"),
            ("plain \u{2014} text", "plain \u{2014} text"),
        ] {
            assert_eq!(repair(text), expected, "{text:?}");
        }
    }

    #[test]
    fn any_text_ends_and_is_stable() {
        let nasty = [
            "Ã".repeat(2000),
            "ÃÂ¢".repeat(500),
            "\u{ed}\u{a0}\u{80}".repeat(100),
            "â€".repeat(300),
            "&#".repeat(3000),
        ];
        for text in nasty {
            let once = repair(&text).into_owned();
            assert_eq!(repair(&once), once);
        }
    }
}
