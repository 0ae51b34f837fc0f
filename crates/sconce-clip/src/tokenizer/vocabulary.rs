//! The tokens of a WordPiece tokenizer: a `vocab.txt`, one token a line, its number the line's.

use crate::{Error, Result};
use std::collections::{BTreeSet, HashMap};

/// Numbered tokens with BERT's special ones among them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Vocabulary {
    tokens: Vec<String>,
    ids: HashMap<String, u32>,
    /// `[UNK]`, `[CLS]`, `[SEP]`.
    special: [u32; 3],
}

impl Vocabulary {
    /// Fills a row after its end; its id must be 0.
    pub const PADDING: &str = "[PAD]";

    /// Special tokens that a text may hold: unknown, start, end.
    pub(super) const IN_TEXT: [&str; 3] = ["[UNK]", "[CLS]", "[SEP]"];

    /// Numbers tokens by their place.
    ///
    /// # Errors
    /// [`Error::Tokenizer`] for a token that occurs twice, when `[PAD]` is not the first, or when `[UNK]`, `[CLS]` or `[SEP]`
    /// is missing.
    pub fn new(tokens: Vec<String>) -> Result<Self> {
        let fail = |why: String| Err(Error::Tokenizer(why));
        if tokens.first().map(String::as_str) != Some(Self::PADDING) {
            return fail(format!("the vocabulary does not begin with {}, which fills rows with zeros", Self::PADDING));
        }
        let mut ids = HashMap::with_capacity(tokens.len());
        for (id, token) in tokens.iter().enumerate() {
            let Ok(id) = u32::try_from(id) else { return fail("the vocabulary is too long".into()) };
            if let Some(first) = ids.insert(token.clone(), id) {
                return fail(format!("the vocabulary has {token:?} twice, at {first} and {id}"));
            }
        }
        let mut special = [0; 3];
        for (id, token) in special.iter_mut().zip(Self::IN_TEXT) {
            match ids.get(token) {
                Some(&found) => *id = found,
                None => return fail(format!("the vocabulary has no {token}")),
            }
        }
        Ok(Self { tokens, ids, special })
    }

    /// Reads the text of a `vocab.txt`.
    ///
    /// # Errors
    /// As [`Self::new`].
    pub fn parse(text: &str) -> Result<Self> {
        Self::new(text.lines().map(|line| line.trim_end_matches('\r').to_owned()).collect())
    }

    /// The special tokens, then every first character of a word, then every other one with its `##`, each in the order of code
    /// points.
    pub(super) fn of_words(words: impl Iterator<Item = String>) -> Self {
        let [mut first, mut rest] = [BTreeSet::new(), BTreeSet::new()];
        for word in words.filter(|word| !Self::IN_TEXT.contains(&word.as_str())) {
            for (place, c) in word.chars().enumerate() {
                if place == 0 {
                    first.insert(c.to_string())
                } else {
                    rest.insert(format!("##{c}"))
                };
            }
        }
        let special = std::iter::once(Self::PADDING).chain(Self::IN_TEXT).map(str::to_owned);
        let tokens: Vec<String> = special.chain(first).chain(rest).collect();
        let ids = tokens.iter().cloned().zip(0..).collect();
        Self { tokens, ids, special: [1, 2, 3] }
    }

    /// The text of a `vocab.txt`.
    pub fn to_text(&self) -> String {
        self.tokens.iter().flat_map(|token| [token, "\n"]).collect()
    }

    /// Number of tokens.
    #[expect(clippy::len_without_is_empty, reason = "there are always the special tokens")]
    pub fn len(&self) -> usize {
        self.tokens.len()
    }

    /// A token by its id.
    pub fn token(&self, id: u32) -> Option<&str> {
        self.tokens.get(id as usize).map(String::as_str)
    }

    /// The id of a token.
    pub fn id(&self, token: &str) -> Option<u32> {
        self.ids.get(token).copied()
    }

    /// The id of `[UNK]`.
    pub fn unknown(&self) -> u32 {
        self.special[0]
    }

    /// The id of `[CLS]`.
    pub fn start(&self) -> u32 {
        self.special[1]
    }

    /// The id of `[SEP]`.
    pub fn end(&self) -> u32 {
        self.special[2]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_vocabulary_needs_its_special_tokens_once() {
        let parse = |text: &str| Vocabulary::parse(text).map_err(|e| e.to_string());
        assert_eq!(parse("[PAD]\n[UNK]\n[CLS]\n[SEP]\n猫\r\n").unwrap().id("猫"), Some(4));
        for (text, wanted) in [
            ("", "[PAD]"),
            ("[UNK]\n[PAD]\n[CLS]\n[SEP]", "[PAD]"),
            ("[PAD]\n[UNK]\n[CLS]", "[SEP]"),
            ("[PAD]\n[UNK]\n[CLS]\n[SEP]\n猫\n猫", "twice"),
        ] {
            assert!(parse(text).unwrap_err().contains(wanted), "{text:?}");
        }
    }
}
