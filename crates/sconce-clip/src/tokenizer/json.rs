//! Any `tokenizer.json` (the Hugging Face format), as the tokenizer of a text tower.

use super::Tokenize;
use crate::{Error, Result};
use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    path::Path,
};
use tokenizers::Tokenizer;

/// A tokenizer read from a `tokenizer.json`.
///
/// Its own padding and truncation settings are ignored: rows are laid out as for every [`Tokenize`].
#[derive(Clone, Debug)]
pub struct JsonTokenizer {
    inner: Tokenizer,
    start: u32,
    end: u32,
    context_length: usize,
    truncate: bool,
}

impl JsonTokenizer {
    /// Reads a file.
    ///
    /// # Errors
    /// [`Error::Io`], and as [`Self::from_bytes`].
    pub fn from_file(path: impl AsRef<Path>, context_length: usize) -> Result<Self> {
        let path = path.as_ref();
        let bytes = std::fs::read(path).map_err(|source| Error::Io { path: path.to_owned(), source })?;
        Self::from_bytes(&bytes, context_length)
    }

    /// Parses the text of a `tokenizer.json`. Start and end are what its post-processor puts around a text.
    ///
    /// # Errors
    /// [`Error::Tokenizer`] for what is no tokenizer, and for one that puts nothing around a text.
    pub fn from_bytes(bytes: &[u8], context_length: usize) -> Result<Self> {
        if context_length < 2 {
            return Err(Error::Tokenizer("the context needs room for start and end".into()));
        }
        let mut inner = guarded(|| Tokenizer::from_bytes(bytes))?;
        inner.with_padding(None);
        inner.with_truncation(None).map_err(|e| Error::Tokenizer(e.to_string()))?;
        let around = guarded(|| inner.encode("", true))?;
        let [start, .., end] = *around.get_ids() else {
            return Err(Error::Tokenizer("tokenizer.json puts no start and end around a text".into()));
        };
        Ok(Self { inner, start, end, context_length, truncate: true })
    }

    /// Whether to cut texts that are too long (the default) or to refuse them.
    pub fn with_truncate(self, truncate: bool) -> Self {
        Self { truncate, ..self }
    }
}

/// Runs a call into the parser. It is written to return errors, but what it reads may come from anywhere.
fn guarded<T>(call: impl FnOnce() -> tokenizers::Result<T>) -> Result<T> {
    match catch_unwind(AssertUnwindSafe(call)) {
        Ok(result) => result.map_err(|e| Error::Tokenizer(e.to_string())),
        Err(_) => Err(Error::Tokenizer("the tokenizer.json contradicts itself".into())),
    }
}

impl Tokenize for JsonTokenizer {
    fn encode(&self, text: &str) -> Result<Vec<u32>> {
        Ok(guarded(|| self.inner.encode(text, false))?.get_ids().to_vec())
    }

    fn decode(&self, ids: &[u32]) -> Result<String> {
        let size = self.vocab_size();
        if let Some(&id) = ids.iter().find(|id| self.inner.id_to_token(**id).is_none()) {
            return Err(Error::UnknownToken { id, size });
        }
        guarded(|| self.inner.decode(ids, false))
    }

    fn vocab_size(&self) -> usize {
        self.inner.get_vocab_size(true)
    }

    fn start_token(&self) -> u32 {
        self.start
    }

    fn end_token(&self) -> u32 {
        self.end
    }

    fn context_length(&self) -> usize {
        self.context_length
    }

    fn truncates(&self) -> bool {
        self.truncate
    }
}
