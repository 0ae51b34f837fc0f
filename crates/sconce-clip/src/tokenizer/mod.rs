//! Tokenizers: OpenAI's byte-pair encoding, BERT's WordPiece for Chinese, and any `tokenizer.json`, behind one trait.

mod cache;
mod clip;
mod export;
mod json;
mod merges;
mod vocabulary;
mod word_piece;

pub use clip::{ClipTokenizer, SpecialTokens, TokenizerConfig};
pub use json::JsonTokenizer;
pub use merges::{Merges, OPENAI_MERGES};
pub use vocabulary::Vocabulary;
pub use word_piece::WordPiece;

use crate::{Error, Result};
use candle_core::{Device, Tensor};

/// Text to token ids and back, in the layout that a text tower takes: start, text, end, zeros.
pub trait Tokenize: std::fmt::Debug + Send + Sync {
    /// The ids of a text alone: no start, no end, no padding, no limit of length.
    ///
    /// # Errors
    /// When the tokenizer cannot split the text.
    fn encode(&self, text: &str) -> Result<Vec<u32>>;

    /// The text that ids stand for. Spaces are where words end, so that `decode(encode(text))` is `text` cleaned and spaced.
    ///
    /// # Errors
    /// [`Error::UnknownToken`] for an id beyond the vocabulary.
    fn decode(&self, ids: &[u32]) -> Result<String>;

    /// Tokens in the vocabulary, special tokens included.
    fn vocab_size(&self) -> usize;

    /// The id before every text.
    fn start_token(&self) -> u32;

    /// The id after every text; the text tower reads its output there.
    fn end_token(&self) -> u32;

    /// Length of a row of [`Self::tokenize`].
    fn context_length(&self) -> usize;

    /// Whether a text that is too long is cut (its last id becomes the end token) instead of being an error.
    fn truncates(&self) -> bool;

    /// The text of the file that this tokenizer is read from again, for those that a record alone does not make.
    fn file(&self) -> Option<String> {
        None
    }

    /// One text as a row without padding: start, ids, end, at most [`Self::context_length`] in all.
    ///
    /// # Errors
    /// [`Error::TextTooLong`] unless [`Self::truncates`].
    fn row(&self, text: &str) -> Result<Vec<u32>> {
        let (context, end) = (self.context_length(), self.end_token());
        let mut row = vec![self.start_token()];
        row.extend(self.encode(text)?);
        row.push(end);
        if row.len() > context {
            if !self.truncates() {
                let text = text.chars().take(60).collect();
                return Err(Error::TextTooLong { tokens: row.len(), context, text });
            }
            row.truncate(context);
            if let Some(last) = row.last_mut() {
                *last = end;
            }
        }
        Ok(row)
    }

    /// Texts as a batch of ids, padded with zeros.
    ///
    /// # Shapes
    /// `(B, context_length)`, `u32`.
    ///
    /// # Errors
    /// As [`Self::row`]; an error for no text at all.
    fn tokenize(&self, texts: &[&str], device: &Device) -> Result<Tensor> {
        let context = self.context_length();
        if texts.is_empty() {
            return Err(Error::Tokenizer("there is no text to tokenise".into()));
        }
        let mut ids = Vec::with_capacity(texts.len() * context);
        for text in texts {
            let start = ids.len();
            ids.extend(self.row(text)?);
            ids.resize(start + context, 0);
        }
        Ok(Tensor::from_vec(ids, (texts.len(), context), device)?)
    }
}
