//! OpenAI's tokenizer for CLIP (Radford et al. 2021), with its cleaning, its pattern and its 49,408 tokens.

use super::{
    Tokenize,
    cache::WordCache,
    merges::{BASE, Merges, OPENAI_MERGES},
};
use crate::{Error, Result, clean::clean};
use fancy_regex::Regex;
use serde::{Deserialize, Serialize};
use std::sync::Arc;

/// How the start and the end of a text are written. Only texts that contain these strings literally tell them apart.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SpecialTokens {
    /// `<|startoftext|>` and `<|endoftext|>`.
    #[default]
    Openai,
    /// `<start_of_text>` and `<end_of_text>`.
    OpenClip,
}

impl SpecialTokens {
    /// The two strings, start first.
    pub fn names(self) -> [&'static str; 2] {
        match self {
            Self::Openai => ["<|startoftext|>", "<|endoftext|>"],
            Self::OpenClip => ["<start_of_text>", "<end_of_text>"],
        }
    }
}

/// What makes a [`ClipTokenizer`]; part of a model's configuration file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct TokenizerConfig {
    /// How many of OpenAI's merges to use, the most frequent first. The vocabulary has `512 + merges + 2` tokens: small models
    /// want a few thousand, because an embedding row that is hardly ever used does not train.
    pub merges: usize,
    /// How start and end are written.
    pub special_tokens: SpecialTokens,
    /// Ids in a row, start and end included.
    pub context_length: usize,
    /// Cut texts that are too long (open_clip's habit) instead of refusing them (OpenAI's).
    pub truncate: bool,
}

impl Default for TokenizerConfig {
    fn default() -> Self {
        Self { merges: OPENAI_MERGES, special_tokens: SpecialTokens::Openai, context_length: 77, truncate: false }
    }
}

impl TokenizerConfig {
    /// Tokens of the vocabulary.
    pub fn vocab_size(&self) -> usize {
        BASE + self.merges + 2
    }
}

/// Byte-pair encoding over cleaned, lower-cased text. Cheap to clone; clones share their cache.
///
/// Equal to OpenAI's `SimpleTokenizer` id for id; with [`SpecialTokens::OpenClip`] equal to open_clip's.
#[derive(Clone, Debug)]
pub struct ClipTokenizer {
    config: TokenizerConfig,
    merges: Arc<Merges>,
    pattern: Arc<Regex>,
    cache: Arc<WordCache>,
}

impl ClipTokenizer {
    /// A tokenizer over OpenAI's merges.
    ///
    /// # Errors
    /// [`Error::Tokenizer`] when `merges` is above [`OPENAI_MERGES`] or the context has no room for start and end.
    pub fn new(config: &TokenizerConfig) -> Result<Self> {
        Self::with_merges(Merges::openai()?, config)
    }

    /// A tokenizer over the first `config.merges` of any table.
    ///
    /// # Errors
    /// As [`Self::new`].
    pub fn with_merges(merges: Arc<Merges>, config: &TokenizerConfig) -> Result<Self> {
        if config.merges > merges.len() {
            let why = format!("{} merges are asked for, the table has {}", config.merges, merges.len());
            return Err(Error::Tokenizer(why));
        }
        if config.context_length < 2 {
            return Err(Error::Tokenizer("the context needs room for start and end".into()));
        }
        let [start, end] = config.special_tokens.names().map(|name| name.replace('|', r"\|"));
        let pattern = format!(r"(?i){start}|{end}|'s|'t|'re|'ve|'m|'ll|'d|\p{{L}}+|\p{{N}}|[^\s\p{{L}}\p{{N}}]+");
        let pattern = Regex::new(&pattern).map_err(|e| Error::Tokenizer(e.to_string()))?;
        Ok(Self { config: config.clone(), merges, pattern: Arc::new(pattern), cache: Arc::default() })
    }

    /// OpenAI's tokenizer: context 77, refuses texts that are too long.
    ///
    /// # Errors
    /// None in a correct build.
    pub fn openai() -> Result<Self> {
        Self::new(&TokenizerConfig::default())
    }

    /// open_clip's tokenizer: other special tokens, cuts texts that are too long.
    ///
    /// # Errors
    /// None in a correct build.
    pub fn open_clip() -> Result<Self> {
        Self::new(&TokenizerConfig { special_tokens: SpecialTokens::OpenClip, truncate: true, ..Default::default() })
    }

    /// What this tokenizer was made from.
    pub fn config(&self) -> &TokenizerConfig {
        &self.config
    }

    /// The table behind the vocabulary.
    pub fn merges(&self) -> &Merges {
        &self.merges
    }

    /// Ids of the words of a text that is clean already.
    fn encode_clean(&self, text: &str) -> Result<Vec<u32>> {
        let limit = self.start_token();
        let [start, end] = self.config.special_tokens.names();
        let mut ids = Vec::with_capacity(text.len() / 4 + 1);
        for word in self.pattern.find_iter(text) {
            let word = word.map_err(|e| Error::Tokenizer(e.to_string()))?.as_str();
            match word {
                word if word == start => ids.push(self.start_token()),
                word if word == end => ids.push(self.end_token()),
                word => ids.extend_from_slice(&self.cache.get(word, || self.merges.split(word, limit))),
            }
        }
        Ok(ids)
    }
}

impl Tokenize for ClipTokenizer {
    fn encode(&self, text: &str) -> Result<Vec<u32>> {
        self.encode_clean(&clean(text))
    }

    fn decode(&self, ids: &[u32]) -> Result<String> {
        let [start, end] = self.config.special_tokens.names();
        let mut bytes = Vec::new();
        for &id in ids {
            match id {
                id if id == self.start_token() => bytes.extend_from_slice(start.as_bytes()),
                id if id == self.end_token() => bytes.extend_from_slice(end.as_bytes()),
                id => {
                    let token = self.merges.token(id).filter(|_| id < self.start_token());
                    let size = self.vocab_size();
                    bytes.extend_from_slice(token.ok_or(Error::UnknownToken { id, size })?);
                }
            }
        }
        Ok(String::from_utf8_lossy(&bytes).replace("</w>", " "))
    }

    fn vocab_size(&self) -> usize {
        self.config.vocab_size()
    }

    fn start_token(&self) -> u32 {
        (BASE + self.config.merges) as u32
    }

    fn end_token(&self) -> u32 {
        self.start_token() + 1
    }

    fn context_length(&self) -> usize {
        self.config.context_length
    }

    fn truncates(&self) -> bool {
        self.config.truncate
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::Device;

    #[test]
    fn known_ids() -> Result<()> {
        let tokenizer = ClipTokenizer::openai()?;
        assert_eq!(tokenizer.vocab_size(), 49408);
        assert_eq!(tokenizer.row("A photo of a CAT")?, [49406, 320, 1125, 539, 320, 2368, 49407]);
        assert_eq!(tokenizer.decode(&tokenizer.encode("Hello world!")?)?, "hello world ! ");
        assert_eq!(tokenizer.row("")?, [49406, 49407]);
        let ids = tokenizer.tokenize(&["a", ""], &Device::Cpu)?.to_vec2::<u32>()?;
        assert_eq!((ids[0].len(), &ids[0][..4]), (77, &[49406, 320, 49407, 0][..]));
        assert!(tokenizer.decode(&[49408]).is_err());
        Ok(())
    }

    #[test]
    fn long_texts() -> Result<()> {
        let text = "cat ".repeat(80);
        assert!(matches!(ClipTokenizer::openai()?.row(&text), Err(Error::TextTooLong { tokens: 82, context: 77, .. })));
        let row = ClipTokenizer::open_clip()?.row(&text)?;
        assert_eq!((row.len(), row[76]), (77, 49407));
        Ok(())
    }

    #[test]
    fn a_small_vocabulary_is_a_prefix() -> Result<()> {
        let config = TokenizerConfig { merges: 1000, context_length: 16, ..Default::default() };
        let small = ClipTokenizer::new(&config)?;
        assert_eq!((small.vocab_size(), small.end_token()), (1514, 1513));
        let text = "a photo of a supercalifragilistic cat, 漢字";
        let ids = small.encode(text)?;
        assert!(ids.iter().all(|id| *id < 1512) && ids.len() > ClipTokenizer::openai()?.encode(text)?.len());
        assert_eq!(small.decode(&ids)?, "a photo of a supercalifragilistic cat , 漢字 ");
        let json = serde_json::to_string(&config).map_err(|e| Error::Tokenizer(e.to_string()))?;
        assert_eq!(serde_json::from_str::<TokenizerConfig>(&json).ok(), Some(config.clone()));
        assert!(ClipTokenizer::new(&TokenizerConfig { merges: OPENAI_MERGES + 1, ..config }).is_err());
        Ok(())
    }
}
