//! Tells text that was decoded with the wrong code page ("mojibake") from text that was not.
//!
//! The few hundred characters that occur in mojibake fall into classes; some neighbourhoods of classes (a lower-case accented
//! letter before a currency sign) practically never occur in intended text. Classes and neighbourhoods are those of ftfy 6.3
//! (Robyn Speer, Apache-2.0, see NOTICE): a heuristic has no other definition than its tables.

use super::code_pages::{CODE_PAGES, Kind};
use fancy_regex::Regex;
use std::{collections::BTreeSet, sync::LazyLock};

/// Classes by name, in the notation of a regular expression's brackets.
const CLASSES: &[(&str, &str)] = &[
    ("common", "\u{a0}\u{ad}´·–-―’…"),
    ("c1", "\u{80}-\u{9f}"),
    ("bad", "¤¦¨ª¬¯¸ºƒˆˇ˘˛˜†‡‰⌐◊\u{fffd}"),
    ("law", "§¶"),
    ("currency", "¢£¥₧€"),
    ("start", "¡©«¿΄΅‘‚“„•‹\u{f8ff}"),
    ("end", "®»˝”›™"),
    ("numeric", "±-³µ¹¼-¾×÷⁄№∂∆∏∑√∞∩∫≈≠≡≤≥"),
    ("kaomoji", "°Ò-ÖÙ-Üò-öø-üŌŐŪŲ"),
    ("Accented", "À-ÑØÜÝĀĂĄĆČĎĐĒĖĘĚĞĢĪİĶĹĻĽŁŃŅŇŒŘŚŞŠŢŤŮŰŸŹŻŽҐ"),
    ("accented", "ß-ñüāăąćčďđēėęěğģīįķĺļľłœŕśşšťźżžґﬁﬂ"),
    ("Letter", "ÞΆΈ-ΊΌΎΏΑ-ΫЁ-Я"),
    ("letter", "ά-ωа-џ"),
    ("box", "│┌┐┘├┤┬┼═-╬▀▄█▌▐-▓"),
    ("space", r"\s\x1c-\x1f"),
    ("word", r"\p{L}\p{N}_"),
];

/// Neighbourhoods that give mojibake away; `<name>` stands for the members of a class.
const BAD: &[&str] = &[
    "[<c1>]",
    "[<bad><accented><Accented><box><start><end><currency><numeric><law>][<bad>]",
    "[a-zA-Z][<letter><Letter>][<bad>]",
    "[<bad>][<accented><Accented><box><start><end><currency><numeric><law>]",
    "[<accented><letter><box><end><currency><numeric>][<Accented>]",
    "[<box><end><currency><numeric>][<accented>]",
    "[<accented><box><end>][<currency>]",
    "[<space>][<Accented>][<currency>]",
    "[<Accented><box>][<numeric><law>]",
    "[<accented><Accented><box><currency><end>][<start>][<numeric>]",
    "[<accented><Accented><currency><numeric><box><law>][<end>][<start>]",
    "[<currency><numeric><box>][<start>]",
    "[a-z][<Accented>][<start><currency>]",
    "[<box>][<kaomoji>]",
    "[<accented><Accented><currency><numeric><start><end><law>][<box>]",
    "[<box>][<end>]",
    "[<accented><Accented>][<start><end>][<word>]",
    // The ligature before anything but a plain letter; a degree sign after a capital.
    "[Œœ][^A-Za-z]",
    "[<Accented>]°",
    // Windows-1252: two-byte sequences, then Arabic (twice over, because its members are common), then South Asian scripts.
    "[ÂÃÎÐ][€œŠš¢£Ÿž\u{a0}\u{ad}®©°·»<start><end>–—´]",
    "×[²³]",
    "[ØÙ][<common><currency><bad><numeric><start>ŸŠ®°µ»][ØÙ][<common><currency><bad><numeric><start>ŸŠ®°µ»]",
    "à[²µ¹¼½¾]",
    // Mac Roman.
    "√[±∂†≠®™´≤≥¥µø]",
    "≈[°¢]",
    "‚Ä[ìîïòôúùû†°¢π]",
    "‚[âó][àä°ê]",
    // Windows-1251: punctuation, Cyrillic, and Cyrillic upon Latin.
    "вЂ",
    "[ВГРС][<c1><bad><start><end><currency>°µ][ВГРС]",
    "ГўВЂВ.[A-Za-z ]",
    // An encoded a-grave, a-acute or no-break space.
    "Ã[\u{a0}¡]",
    "[a-z][<space>]?[ÃÂ] ",
    "^[ÃÂ] ",
    "[a-z.,?!<end>]Â[ <start><end>]",
    // Windows-1253 and Windows-1257.
    "β€[™\u{a0}Ά\u{ad}®°]",
    "[ΒΓΞΟ][<c1><bad><start><end><currency>°][ΒΓΞΟ]",
    "ā€",
];

/// Characters that, standing for a trailing byte of UTF-8, may as well stand for themselves next to mojibake.
const OFTEN_INTENDED: &str = "–—―‘’‚“”„•…";

fn compile(pattern: &str) -> Option<Regex> {
    Regex::new(pattern).ok()
}

static BADNESS: LazyLock<Option<Regex>> = LazyLock::new(|| {
    let pattern = CLASSES.iter().fold(BAD.join("|"), |p, (name, members)| p.replace(&format!("<{name}>"), members));
    compile(&pattern)
});

/// Whether `text` contains a sequence that gives mojibake away.
pub(super) fn is_bad(text: &str) -> bool {
    !text.is_ascii() && matches(&BADNESS, text)
}

fn matches(regex: &Option<Regex>, text: &str) -> bool {
    regex.as_ref().is_some_and(|r| r.is_match(text).unwrap_or(false))
}

/// Runs of characters that are the bytes of UTF-8 read by a Western, Cyrillic, Greek, Turkish or Baltic code page.
static EMBEDDED: LazyLock<Option<Regex>> = LazyLock::new(|| {
    let read_as = |bytes: &[u8]| -> BTreeSet<char> {
        let pages = CODE_PAGES.iter().filter(|p| matches!(p.kind, Kind::Latin1 | Kind::Windows));
        pages.flat_map(|page| bytes.iter().map(|b| page.decode(*b))).collect()
    };
    let range = |lo: u8, hi: u8| read_as(&(lo..=hi).collect::<Vec<_>>());
    let class = |set: BTreeSet<char>| set.iter().map(|c| format!("\\x{{{:x}}}", u32::from(*c))).collect::<String>();
    let trailing = range(0x80, 0xbf);
    let strict = trailing.iter().copied().filter(|c| !OFTEN_INTENDED.contains(*c)).collect();
    let (two, three, four) = (class(range(0xc2, 0xdf)), class(range(0xe0, 0xef)), class(read_as(&[0xf0, 0xf3])));
    // A plain space may have been a no-break space, which is a trailing byte.
    let (trailing, strict) = (format!("{}\\x{{20}}", class(trailing)), class(strict));
    compile(&format!("(?<![{strict}])(?:[{two}][{trailing}]|[{three}][{trailing}]{{2}}|[{four}][{trailing}]{{3}})+"))
});

/// Replaces each run that looks like embedded mojibake by what `fix` makes of it; `None` when there is no such run.
pub(super) fn replace_embedded(text: &str, fix: impl Fn(&str) -> String) -> Option<String> {
    let regex = EMBEDDED.as_ref()?;
    let (mut out, mut end) = (String::new(), 0);
    for found in regex.find_iter(text).map_while(Result::ok) {
        out.push_str(&text[end..found.start()]);
        out.push_str(&fix(found.as_str()));
        end = found.end();
    }
    (end > 0).then(|| out + &text[end..])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_compile_and_tell_mojibake_from_text() {
        assert!(BADNESS.is_some() && EMBEDDED.is_some());
        for bad in ["â€™", "Ã©", "voilÃ ", "Ð¿Ñ€", "вЂњ", "\u{85}"] {
            assert!(is_bad(bad), "{bad}");
        }
        for good in ["café", "naïve", "Ångström", "привет", "こんにちは", "plain", "¡Hola!", "10 €"] {
            assert!(!is_bad(good), "{good}");
        }
    }
}
