//! HTML character references (HTML Standard, section 13.2.5.72 onwards), decoded as Python's `html.unescape` decodes them.

use std::{borrow::Cow, collections::HashMap, sync::LazyLock};

/// One line per reference of the HTML Standard: name (with its `;` where it has one), tab, code points in hexadecimal.
static ENTITIES: LazyLock<HashMap<&'static str, String>> = LazyLock::new(|| {
    let parse = |codes: &str| {
        codes.split(' ').filter_map(|c| u32::from_str_radix(c, 16).ok().and_then(char::from_u32)).collect()
    };
    let table = include_str!("../../assets/html5_entities.tsv");
    table.lines().filter_map(|line| line.split_once('\t')).map(|(name, codes)| (name, parse(codes))).collect()
});

/// What the references `&#x80;` to `&#x9f;` stand for: Windows-1252, as in every browser.
const WINDOWS_1252: &str = super::code_pages::WINDOWS_1252;

/// The longest name a reference may have, in characters.
const MAX_NAME: usize = 32;

/// Replaces every character reference in `text`: named (`&amp;`, also the old names without a semicolon, by longest prefix),
/// decimal and hexadecimal. What is not a reference stays as it is.
pub fn unescape(text: &str) -> Cow<'_, str> {
    if !text.contains('&') {
        return Cow::Borrowed(text);
    }
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find('&') {
        out.push_str(&rest[..at]);
        rest = &rest[at + 1..];
        let used = reference(rest, &mut out);
        if used == 0 {
            out.push('&');
        }
        rest = &rest[used..];
    }
    out.push_str(rest);
    Cow::Owned(out)
}

/// Decodes the reference whose text (without `&`) starts `rest`; returns how many bytes it took, 0 when there is none.
fn reference(rest: &str, out: &mut String) -> usize {
    if let Some(number) = rest.strip_prefix('#') {
        let (digits, radix, skip) = match number.strip_prefix(['x', 'X']) {
            Some(hex) => (hex, 16, 2),
            None => (number, 10, 1),
        };
        let len = digits.bytes().take_while(|b| (*b as char).is_digit(radix)).count();
        if len == 0 {
            return 0;
        }
        out.extend(code_point(&digits[..len], radix));
        return skip + len + usize::from(digits[len..].starts_with(';'));
    }
    let end = rest
        .char_indices()
        .take(MAX_NAME)
        .find(|(_, c)| "\t\n\u{c} <&#;".contains(*c))
        .map_or_else(|| rest.char_indices().nth(MAX_NAME).map_or(rest.len(), |(i, _)| i), |(i, _)| i);
    if end == 0 {
        return 0;
    }
    let end = end + usize::from(rest[end..].starts_with(';'));
    if let Some(value) = ENTITIES.get(&rest[..end]) {
        out.push_str(value);
        return end;
    }
    // Longest known prefix of at least two characters: `&notit;` is "¬it;".
    let cuts = rest[..end].char_indices().skip(2).map(|(i, _)| i);
    for cut in cuts.collect::<Vec<_>>().into_iter().rev() {
        if let Some(value) = ENTITIES.get(&rest[..cut]) {
            out.push_str(value);
            return cut;
        }
    }
    0
}

/// The character a number stands for: none for control and non-characters, U+FFFD for what Unicode does not have.
fn code_point(digits: &str, radix: u32) -> Option<char> {
    const REPLACEMENT: char = '\u{fffd}';
    let number = digits.chars().try_fold(0u32, |n, d| n.checked_mul(radix)?.checked_add(d.to_digit(radix)?));
    match number {
        Some(0) | None => Some(REPLACEMENT),
        Some(n @ 0x80..=0x9f) => WINDOWS_1252.chars().nth(n as usize - 0x80),
        Some(0x1..=0x8 | 0xb | 0xe..=0x1f | 0x7f | 0xfdd0..=0xfdef) => None,
        Some(n) if n <= 0x10_ffff && n & 0xfffe == 0xfffe => None,
        Some(n) => Some(char::from_u32(n).unwrap_or(REPLACEMENT)),
    }
}

/// Decodes references that end in a semicolon, and only those; also names written in capitals (`&EACUTE;`) where that is
/// unambiguous. This is the cautious form that [`super::repair`] uses on text that may not be HTML at all.
pub(super) fn unescape_strict(text: &str) -> Cow<'_, str> {
    if !text.contains('&') {
        return Cow::Borrowed(text);
    }
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find('&') {
        out.push_str(&rest[..at]);
        rest = &rest[at..];
        let hash = usize::from(rest[1..].starts_with('#'));
        let name = rest[1 + hash..].bytes().take_while(u8::is_ascii_alphanumeric).count();
        let end = 1 + hash + name;
        if !(1..=24).contains(&name) || !rest[end..].starts_with(';') {
            out.push('&');
            rest = &rest[1..];
            continue;
        }
        match strict_value(&rest[..=end]) {
            Some(value) => out.push_str(&value),
            None => out.push_str(&rest[..=end]),
        }
        rest = &rest[end + 1..];
    }
    out.push_str(rest);
    Cow::Owned(out)
}

/// The value of a whole reference `&...;`, or `None` where it should be left alone.
fn strict_value(whole: &str) -> Option<String> {
    let name = &whole[1..];
    if let Some(value) = ENTITIES.get(name) {
        return Some(value.clone());
    }
    if name.starts_with('#') {
        return Some(unescape(whole).into_owned()).filter(|value| !value.contains(';'));
    }
    let lower = name.to_ascii_lowercase();
    let shouted = name == name.to_ascii_uppercase() && unescape(whole) == whole;
    ENTITIES.get(lower.as_str()).filter(|_| shouted).map(|value| value.to_uppercase())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unescapes_as_python_does() {
        for (text, expected) in [
            ("&lt;&gt;&amp;&quot;&#39;", "<>&\"'"),
            ("&notit; &notin; &no", "\u{ac}it; \u{2209} &no"),
            ("&#x1F600;&#128;&#0;&#xD800;&#x110000;&#1;", "\u{1f600}\u{20ac}\u{fffd}\u{fffd}\u{fffd}"),
            ("&#;&#x;& &;&&amp", "&#;&#x;& &;&&"),
            ("&fjlig;&NotEqualTilde;", "fj\u{2242}\u{338}"),
            ("&#99999999999999999999999;", "\u{fffd}"),
            ("&#xFFFE;|&#x1FFFF;|&#xFDD0;|&#13;|", "|||\r|"),
        ] {
            assert_eq!(unescape(text), expected, "{text}");
        }
        assert_eq!(
            unescape_strict("&ntilde; &Ntilde; &NTILDE; &nTILDE; &amp &#59; &SZLIG;"),
            "\u{f1} \u{d1} \u{d1} &nTILDE; &amp &#59; SS"
        );
    }
}
