//! CLIP dual encoders on candle: three checkpoint formats, tokenizer, preprocessing, zero-shot classification.

pub mod clean;
mod error;
pub mod tokenizer;

pub use error::{Error, Result};
pub use tokenizer::{ClipTokenizer, JsonTokenizer, SpecialTokens, Tokenize, TokenizerConfig};
