//! What can go wrong outside of tensor arithmetic.

use std::path::PathBuf;

/// Result of this crate's own errors; forward passes return [`candle_core::Result`].
pub type Result<T> = std::result::Result<T, Error>;

/// Errors of tokenising, reading model folders and configurations, by who can mend them.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A text has more tokens than the model's context; shorten it or allow truncation.
    #[error("the text has {tokens} tokens with its start and end, the context holds {context}: {text:?}")]
    TextTooLong {
        /// Tokens of the text, start and end included.
        tokens: usize,
        /// Tokens the model takes.
        context: usize,
        /// The beginning of the text.
        text: String,
    },
    /// An id that is not in the vocabulary.
    #[error("token {id} is not in the vocabulary of {size}")]
    UnknownToken {
        /// The id.
        id: u32,
        /// Tokens in the vocabulary.
        size: usize,
    },
    /// A vocabulary, merges table or tokenizer configuration that cannot be used.
    #[error("tokenizer: {0}")]
    Tokenizer(String),
    /// A call without what it works on.
    #[error("{0}")]
    Input(String),
    /// A model configuration that contradicts itself or names sizes that no model can have.
    #[error("model configuration: {0}")]
    Config(String),
    /// A checkpoint whose tensors are not those of a CLIP model.
    #[error("checkpoint: {0}")]
    Checkpoint(String),
    /// A file that is missing or cannot be read.
    #[error("{path}: {source}")]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// A JSON file that is not what it should be.
    #[error("{path}: {source}")]
    Json {
        /// The file.
        path: PathBuf,
        /// Where and why parsing failed.
        source: serde_json::Error,
    },
    /// Reading or writing weights.
    #[error(transparent)]
    Nn(sconce_nn::Error),
    /// Reading or preparing a picture.
    #[error(transparent)]
    Data(#[from] sconce_data::Error),
    /// Tensor arithmetic.
    #[error(transparent)]
    Candle(#[from] candle_core::Error),
}

impl From<sconce_nn::Error> for Error {
    fn from(error: sconce_nn::Error) -> Self {
        match error {
            sconce_nn::Error::Candle(inner) => Self::Candle(inner),
            other => Self::Nn(other),
        }
    }
}

impl From<Error> for candle_core::Error {
    fn from(error: Error) -> Self {
        match error {
            Error::Candle(inner) => inner,
            other => candle_core::Error::wrap(other),
        }
    }
}
