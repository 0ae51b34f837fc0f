//! The single-byte code pages that text is most often decoded with by mistake (tables of the Unicode Consortium).
//!
//! Bytes that a Windows code page leaves unassigned stand for the control character of the same number, as programs in the
//! wild treat them; byte 0x1a stands for U+FFFD there, so that text which has already lost a character can still be encoded.

use std::{collections::HashMap, sync::LazyLock};

/// A code page whose lower half is ASCII.
pub(super) struct CodePage {
    pub(super) kind: Kind,
    encode: HashMap<char, u8>,
    decode: Vec<char>,
}

/// What the repair must know about a code page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Latin1,
    Windows,
    Iso,
    MacRoman,
    Dos,
}

impl CodePage {
    fn new(kind: Kind, upper: &str) -> Self {
        let mut decode: Vec<char> = (0..0x80u8).map(char::from).collect();
        decode.extend(upper.chars());
        if kind == Kind::Windows {
            decode[0x1a] = '\u{fffd}';
        }
        let encode = decode.iter().zip(0..=255u8).map(|(c, b)| (*c, b)).collect();
        Self { kind, encode, decode }
    }

    /// The bytes of `text`, or `None` when a character is not on the page.
    pub(super) fn encode(&self, text: &str) -> Option<Vec<u8>> {
        text.chars().map(|c| self.encode.get(&c).copied()).collect()
    }

    /// The character of one byte.
    pub(super) fn decode(&self, byte: u8) -> char {
        self.decode[usize::from(byte)]
    }
}

/// The pages in the order in which they are tried.
pub(super) static CODE_PAGES: LazyLock<Vec<CodePage>> = LazyLock::new(|| {
    let latin1: String = (0x80..=0xffu8).map(char::from).collect();
    vec![
        CodePage::new(Kind::Latin1, &latin1),
        CodePage::new(Kind::Windows, WINDOWS_1252),
        CodePage::new(Kind::Windows, WINDOWS_1251),
        CodePage::new(Kind::Windows, WINDOWS_1250),
        CodePage::new(Kind::Windows, WINDOWS_1253),
        CodePage::new(Kind::Windows, WINDOWS_1254),
        CodePage::new(Kind::Windows, WINDOWS_1257),
        CodePage::new(Kind::Iso, ISO_8859_2),
        CodePage::new(Kind::MacRoman, MAC_ROMAN),
        CodePage::new(Kind::Dos, CP437),
    ]
});

/// Bytes 0x80 to 0xff of Windows-1252.
pub(super) const WINDOWS_1252: &str = "\
     €\u{81}‚ƒ„…†‡ˆ‰Š‹Œ\u{8d}Ž\u{8f}\u{90}‘’“”•–—˜™š›œ\u{9d}žŸ\u{a0}¡¢£¤¥¦§¨©ª«¬\u{ad}®¯°±²³´µ¶·¸¹º»¼½¾¿ÀÁÂÃÄÅÆÇÈÉÊËÌÍÎÏÐÑÒ\
     ÓÔÕÖ×ØÙÚÛÜÝÞßàáâãäåæçèéêëìíîïðñòóôõö÷øùúûüýþÿ";

/// Bytes 0x80 to 0xff of Windows-1251.
const WINDOWS_1251: &str = "\
     ЂЃ‚ѓ„…†‡€‰Љ‹ЊЌЋЏђ‘’“”•–—\u{98}™љ›њќћџ\u{a0}ЎўЈ¤Ґ¦§Ё©Є«¬\u{ad}®Ї°±Ііґµ¶·ё№є»јЅѕїАБВГДЕЖЗИЙКЛМНОПРСТУФХЦЧШЩЪЫЬЭЮЯабвгдеж\
     зийклмнопрстуфхцчшщъыьэюя";

/// Bytes 0x80 to 0xff of Windows-1250.
const WINDOWS_1250: &str = "\
     €\u{81}‚\u{83}„…†‡\u{88}‰Š‹ŚŤŽŹ\u{90}‘’“”•–—\u{98}™š›śťžź\u{a0}ˇ˘Ł¤Ą¦§¨©Ş«¬\u{ad}®Ż°±˛ł´µ¶·¸ąş»Ľ˝ľżŔÁÂĂÄĹĆÇČÉĘËĚÍÎĎĐŃŇ\
     ÓÔŐÖ×ŘŮÚŰÜÝŢßŕáâăäĺćçčéęëěíîďđńňóôőö÷řůúűüýţ˙";

/// Bytes 0x80 to 0xff of Windows-1253.
const WINDOWS_1253: &str = "\
     €\u{81}‚ƒ„…†‡\u{88}‰\u{8a}‹\u{8c}\u{8d}\u{8e}\u{8f}\u{90}‘’“”•–—\u{98}™\u{9a}›\u{9c}\u{9d}\u{9e}\u{9f}\u{a0}΅Ά£¤¥¦§¨©ª\
     «¬\u{ad}®―°±²³΄µ¶·ΈΉΊ»Ό½ΎΏΐΑΒΓΔΕΖΗΘΙΚΛΜΝΞΟΠΡÒΣΤΥΦΧΨΩΪΫάέήίΰαβγδεζηθικλμνξοπρςστυφχψωϊϋόύώÿ";

/// Bytes 0x80 to 0xff of Windows-1254.
const WINDOWS_1254: &str = "\
     €\u{81}‚ƒ„…†‡ˆ‰Š‹Œ\u{8d}\u{8e}\u{8f}\u{90}‘’“”•–—˜™š›œ\u{9d}\u{9e}Ÿ\u{a0}¡¢£¤¥¦§¨©ª«¬\u{ad}®¯°±²³´µ¶·¸¹º»¼½¾¿ÀÁÂÃÄÅÆÇÈ\
     ÉÊËÌÍÎÏĞÑÒÓÔÕÖ×ØÙÚÛÜİŞßàáâãäåæçèéêëìíîïğñòóôõö÷øùúûüışÿ";

/// Bytes 0x80 to 0xff of Windows-1257.
const WINDOWS_1257: &str = "\
     €\u{81}‚\u{83}„…†‡\u{88}‰\u{8a}‹\u{8c}¨ˇ¸\u{90}‘’“”•–—\u{98}™\u{9a}›\u{9c}¯˛\u{9f}\u{a0}¡¢£¤¥¦§Ø©Ŗ«¬\u{ad}®Æ°±²³´µ¶·ø¹\
     ŗ»¼½¾æĄĮĀĆÄÅĘĒČÉŹĖĢĶĪĻŠŃŅÓŌÕÖ×ŲŁŚŪÜŻŽßąįāćäåęēčéźėģķīļšńņóōõö÷ųłśūüżž˙";

/// Bytes 0x80 to 0xff of Iso-8859-2.
const ISO_8859_2: &str = "\
     \u{80}\u{81}\u{82}\u{83}\u{84}\u{85}\u{86}\u{87}\u{88}\u{89}\u{8a}\u{8b}\u{8c}\u{8d}\u{8e}\u{8f}\u{90}\u{91}\u{92}\
     \u{93}\u{94}\u{95}\u{96}\u{97}\u{98}\u{99}\u{9a}\u{9b}\u{9c}\u{9d}\u{9e}\u{9f}\u{a0}Ą˘Ł¤ĽŚ§¨ŠŞŤŹ\u{ad}ŽŻ°ą˛ł´ľśˇ¸šşťź˝\
     žżŔÁÂĂÄĹĆÇČÉĘËĚÍÎĎĐŃŇÓÔŐÖ×ŘŮÚŰÜÝŢßŕáâăäĺćçčéęëěíîďđńňóôőö÷řůúűüýţ˙";

/// Bytes 0x80 to 0xff of Mac-Roman.
const MAC_ROMAN: &str = "\
     ÄÅÇÉÑÖÜáàâäãåçéèêëíìîïñóòôöõúùûü†°¢£§•¶ß®©™´¨≠ÆØ∞±≤≥¥µ∂∑∏π∫ªºΩæø¿¡¬√ƒ≈∆«»…\u{a0}ÀÃÕŒœ–—“”‘’÷◊ÿŸ⁄€‹›ﬁﬂ‡·‚„‰ÂÊÁËÈÍÎÏÌÓÔ\
     \u{f8ff}ÒÚÛÙıˆ˜¯˘˙˚¸˝˛ˇ";

/// Bytes 0x80 to 0xff of code page 437.
const CP437: &str = "\
     ÇüéâäàåçêëèïîìÄÅÉæÆôöòûùÿÖÜ¢£¥₧ƒáíóúñÑªº¿⌐¬½¼¡«»░▒▓│┤╡╢╖╕╣║╗╝╜╛┐└┴┬├─┼╞╟╚╔╩╦╠═╬╧╨╤╥╙╘╒╓╫╪┘┌█▄▌▐▀αßΓπΣσµτΦΘΩδ∞φε∩≡±≥≤⌠⌡\
     ÷≈°∙·√ⁿ²■\u{a0}";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_page_maps_256_bytes_one_to_one() {
        for page in CODE_PAGES.iter() {
            assert_eq!((page.decode.len(), page.encode.len()), (256, 256));
            assert!((0..=255u8).all(|b| page.encode[&page.decode(b)] == b));
        }
    }
}
