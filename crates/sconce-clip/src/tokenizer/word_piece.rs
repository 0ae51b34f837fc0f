//! BERT's WordPiece with its pre-tokenisation for Chinese (Devlin et al. 2019, arXiv:1810.04805), as Wukong's text tower
//! reads it: `[CLS]`, text, `[SEP]`, zeros.

use super::{Tokenize, vocabulary::Vocabulary};
use crate::{Error, Result};
use fancy_regex::Regex;
use std::{path::Path, sync::Arc};
use unicode_normalization::UnicodeNormalization;

/// A word longer than this is unknown as a whole.
const MAX_CHARS: usize = 100;

/// Characters split by rules, the pieces of words by greedy longest match in a [`Vocabulary`]. Cheap to clone.
///
/// Equal to the tokenizer of `bert-base-chinese` on text without literal special tokens. Of those, `[UNK]`, `[CLS]` and `[SEP]`
/// are kept whole where they stand between spaces.
#[derive(Clone, Debug)]
pub struct WordPiece {
    vocabulary: Arc<Vocabulary>,
    rules: Arc<Rules>,
    context_length: usize,
    truncate: bool,
}

impl WordPiece {
    /// Ids in a row of Wukong's text tower.
    pub const CONTEXT_LENGTH: usize = 32;

    /// A tokenizer over a vocabulary. Texts that are too long are cut; see [`Self::with_truncate`].
    ///
    /// # Errors
    /// [`Error::Tokenizer`] when the context has no room for start and end.
    pub fn new(vocabulary: Vocabulary, context_length: usize) -> Result<Self> {
        if context_length < 2 {
            return Err(Error::Tokenizer("the context needs room for start and end".into()));
        }
        let rules = Arc::new(Rules::new()?);
        Ok(Self { vocabulary: Arc::new(vocabulary), rules, context_length, truncate: true })
    }

    /// Reads a `vocab.txt`.
    ///
    /// # Errors
    /// [`Error::Io`], and as [`Vocabulary::parse`] and [`Self::new`].
    pub fn from_file(path: impl AsRef<Path>, context_length: usize) -> Result<Self> {
        let path = path.as_ref();
        let text = std::fs::read_to_string(path).map_err(|source| Error::Io { path: path.to_owned(), source })?;
        Self::new(Vocabulary::parse(&text)?, context_length)
    }

    /// A tokenizer whose vocabulary is all characters of a corpus: no text of it has an unknown token.
    ///
    /// # Errors
    /// As [`Self::new`].
    pub fn of_corpus<S: AsRef<str>>(corpus: &[S], context_length: usize) -> Result<Self> {
        let rules = Rules::new()?;
        let words = corpus.iter().flat_map(|text| rules.words(text.as_ref()));
        Self::new(Vocabulary::of_words(words), context_length)
    }

    /// Whether to cut texts that are too long (the default) or to refuse them.
    #[must_use]
    pub fn with_truncate(self, truncate: bool) -> Self {
        Self { truncate, ..self }
    }

    /// The vocabulary.
    pub fn vocabulary(&self) -> &Vocabulary {
        &self.vocabulary
    }

    /// The pieces of a text, as the vocabulary writes them.
    pub fn pieces(&self, text: &str) -> Vec<&str> {
        self.ids(text).into_iter().filter_map(|id| self.vocabulary.token(id)).collect()
    }

    fn ids(&self, text: &str) -> Vec<u32> {
        let mut ids = Vec::new();
        for word in self.rules.words(text) {
            match self.split(&word) {
                Some(pieces) => ids.extend(pieces),
                None => ids.push(self.vocabulary.unknown()),
            }
        }
        ids
    }

    /// The longest piece at each place, from the left; nothing when a place has none.
    fn split(&self, word: &str) -> Option<Vec<u32>> {
        if word.chars().count() > MAX_CHARS {
            return None;
        }
        let mut ids = Vec::new();
        let mut start = 0;
        while start < word.len() {
            let ends = word[start..].char_indices().map(|(at, c)| start + at + c.len_utf8()).rev();
            let piece = |end: usize| {
                let id = match start {
                    0 => self.vocabulary.id(&word[..end]),
                    _ => self.vocabulary.id(&format!("##{}", &word[start..end])),
                };
                id.map(|id| (id, end))
            };
            let (id, end) = ends.into_iter().find_map(piece)?;
            ids.push(id);
            start = end;
        }
        Some(ids)
    }
}

impl Tokenize for WordPiece {
    fn encode(&self, text: &str) -> Result<Vec<u32>> {
        Ok(self.ids(text))
    }

    fn decode(&self, ids: &[u32]) -> Result<String> {
        let mut text = String::new();
        for &id in ids {
            let size = self.vocab_size();
            let token = self.vocabulary.token(id).ok_or(Error::UnknownToken { id, size })?;
            match token.strip_prefix("##") {
                Some(rest) if !rest.is_empty() => text.push_str(rest),
                _ => {
                    let between = |last: char| !(is_cjk(last) && token.chars().all(is_cjk));
                    if text.chars().next_back().is_some_and(between) {
                        text.push(' ');
                    }
                    text.push_str(token);
                }
            }
        }
        Ok(text)
    }

    fn vocab_size(&self) -> usize {
        self.vocabulary.len()
    }

    fn start_token(&self) -> u32 {
        self.vocabulary.start()
    }

    fn end_token(&self) -> u32 {
        self.vocabulary.end()
    }

    fn context_length(&self) -> usize {
        self.context_length
    }

    fn truncates(&self) -> bool {
        self.truncate
    }

    fn file(&self) -> Option<String> {
        Some(self.vocabulary.to_text())
    }
}

/// BERT's rules for what a word is.
#[derive(Debug)]
struct Rules {
    /// Control and format characters.
    control: Regex,
    /// Marks that canonical decomposition splits off.
    mark: Regex,
    punctuation: Regex,
}

impl Rules {
    fn new() -> Result<Self> {
        let regex = |pattern: &str| Regex::new(pattern).map_err(|e| Error::Tokenizer(e.to_string()));
        Ok(Self { control: regex(r"\p{Cc}|\p{Cf}")?, mark: regex(r"\p{Mn}")?, punctuation: regex(r"\p{P}")? })
    }

    fn words(&self, text: &str) -> Vec<String> {
        let mut spaced = String::with_capacity(text.len());
        for c in text.chars() {
            match c {
                '\t' | '\n' | '\r' => spaced.push(' '),
                '\0' | '\u{fffd}' => {}
                c if is_cjk(c) => spaced.extend([' ', c, ' ']),
                c if is(&self.control, c) => {}
                c => spaced.push(c),
            }
        }
        let mut words = Vec::new();
        for word in spaced.split_whitespace() {
            if Vocabulary::IN_TEXT.contains(&word) {
                words.push(word.to_owned());
            } else {
                self.split_punctuation(&self.folded(word), &mut words);
            }
        }
        words
    }

    /// Without case and accents.
    fn folded(&self, word: &str) -> String {
        word.to_lowercase().nfd().filter(|c| !is(&self.mark, *c)).collect()
    }

    /// Every punctuation mark is a word of its own.
    fn split_punctuation(&self, word: &str, words: &mut Vec<String>) {
        let mut open = false;
        for c in word.chars() {
            // ASCII's symbols count, `$`, `+` and `^` included, which Unicode files elsewhere.
            if c.is_ascii_punctuation() || is(&self.punctuation, c) {
                words.push(c.into());
                open = false;
            } else if c.is_whitespace() {
                open = false;
            } else {
                match words.last_mut() {
                    Some(last) if open => last.push(c),
                    _ => words.push(c.into()),
                }
                open = true;
            }
        }
    }
}

fn is(class: &Regex, c: char) -> bool {
    !c.is_ascii_alphanumeric() && class.is_match(c.encode_utf8(&mut [0; 4])).unwrap_or(false)
}

/// The blocks of CJK ideographs that BERT knows; no kana, no hangul.
fn is_cjk(c: char) -> bool {
    matches!(
        u32::from(c),
        0x4e00..=0x9fff
            | 0x3400..=0x4dbf
            | 0x20000..=0x2a6df
            | 0x2a700..=0x2b73f
            | 0x2b740..=0x2b81f
            | 0x2b820..=0x2ceaf
            | 0xf900..=0xfaff
            | 0x2f800..=0x2fa1f
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::Device;

    fn tokenizer() -> Result<WordPiece> {
        WordPiece::of_corpus(&["一只猫，在睡觉", "OK 2022", "café"], 8)
    }

    #[test]
    fn a_corpus_is_fully_known() -> Result<()> {
        let tokenizer = tokenizer()?;
        assert_eq!(tokenizer.pieces("猫 ok"), ["猫", "o", "##k"]);
        assert_eq!(tokenizer.pieces("CAFÉ2"), ["c", "##a", "##f", "##e", "##2"]);
        assert_eq!(tokenizer.pieces("k[SEP] [SEP]"), ["[UNK]", "[UNK]", "[UNK]", "[UNK]", "[SEP]"]);
        assert_eq!(tokenizer.decode(&tokenizer.encode("一只猫 OK，2022")?)?, "一只猫 ok ， 2022");
        assert!(matches!(tokenizer.decode(&[9999]), Err(Error::UnknownToken { id: 9999, .. })));
        Ok(())
    }

    #[test]
    fn rows_start_end_and_are_cut() -> Result<()> {
        let tokenizer = tokenizer()?;
        let [start, end] = [tokenizer.start_token(), tokenizer.end_token()];
        let ids = tokenizer.tokenize(&["猫", "一只猫在睡觉一只猫"], &Device::Cpu)?.to_vec2::<u32>()?;
        assert_eq!((ids[0][0], ids[0][2], &ids[0][3..]), (start, end, &[0; 5][..]));
        assert_eq!((ids[1][0], ids[1][7]), (start, end));
        let strict = tokenizer.with_truncate(false);
        assert!(matches!(strict.row("一只猫在睡觉一只猫"), Err(Error::TextTooLong { tokens: 11, context: 8, .. })));
        Ok(())
    }

    #[test]
    fn a_written_vocabulary_reads_the_same() -> Result<()> {
        let tokenizer = tokenizer()?;
        let text = tokenizer.file().unwrap_or_default();
        let again = WordPiece::new(Vocabulary::parse(&text)?, 8)?;
        assert_eq!(again.vocabulary(), tokenizer.vocabulary());
        assert!(matches!(WordPiece::of_corpus(&["猫"], 1), Err(Error::Tokenizer(_))));
        Ok(())
    }
}
