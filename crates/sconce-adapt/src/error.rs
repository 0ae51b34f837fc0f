//! What can go wrong outside of tensor arithmetic.

use std::path::PathBuf;

/// Result of this crate's own errors; forward passes return [`candle_core::Result`].
pub type Result<T> = std::result::Result<T, Error>;

/// Errors of building heads, by who can mend them.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// There is no class to tell apart.
    #[error("there are no class names")]
    NoClasses,
    /// Prompt and class name are longer than the text tower's context.
    #[error("the prompt of `{class}` has {tokens} tokens with its start and end, the context holds {context}")]
    TooLong {
        /// The class.
        class: String,
        /// Tokens of its prompt.
        tokens: usize,
        /// Tokens the text tower takes.
        context: usize,
    },
    /// A name that no prompt can be made of.
    #[error("class {index}, named `{class}`, makes no prompt: {reason}")]
    ClassName {
        /// Number of the class.
        index: usize,
        /// Its name.
        class: String,
        /// Why not.
        reason: &'static str,
    },
    /// A word that a context is to begin as, and that is not one token. The official code counts words where it means tokens,
    /// so that it would learn a part of such a word and keep the rest as if it belonged to the class name.
    #[error(
        "the context cannot begin as `{word}`, which is {tokens} tokens instead of one;          choose a commoner word, or a number of tokens that begin at random"
    )]
    Words {
        /// The word.
        word: String,
        /// How many tokens it makes.
        tokens: usize,
    },
    /// A class-specific context for another number of classes.
    #[error(
        "the file holds a context for each of {found} classes, here are {classes}: such a context is bound to its classes"
    )]
    OtherClasses {
        /// Number of classes of the file.
        found: usize,
        /// Number of classes here.
        classes: usize,
    },
    /// Options that contradict each other.
    #[error("{0}")]
    Config(String),
    /// A tensor of the wrong shape.
    #[error("{what} has shape {found:?}, expected {expected}")]
    Shape {
        /// Which argument.
        what: &'static str,
        /// The shape wanted, in words.
        expected: String,
        /// The shape given.
        found: Vec<usize>,
    },
    /// A file that is missing, cannot be read or cannot be written.
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
    /// Data that cannot be used as they are: a split without a class, a label out of range.
    #[error("{0}")]
    Data(String),
    /// A label that is no class.
    #[error("picture {index} has label {label}, there are {classes} classes")]
    Label {
        /// Number of the picture.
        index: usize,
        /// Its label.
        label: u32,
        /// Number of classes.
        classes: usize,
    },
    /// A training that has gone astray: try a lower learning rate.
    #[error("the loss of step {step} is {loss}")]
    NonFiniteLoss {
        /// Number of the step.
        step: u64,
        /// Infinite or no number.
        loss: f64,
    },
    /// Lists of pictures, splits and class names.
    #[error(transparent)]
    Protocol(#[from] crate::protocol::ProtocolError),
    /// Stopped on request; what was done is kept.
    #[error("stopped on request")]
    Interrupted,
    /// A metric of what cannot be counted.
    #[error(transparent)]
    Metrics(#[from] sconce_metrics::Error),
    /// Reading pictures.
    #[error(transparent)]
    Pictures(#[from] sconce_data::Error),
    /// Reading or writing weights.
    #[error(transparent)]
    Nn(sconce_nn::Error),
    /// Optimisers, checkpoints of a training and its logs.
    #[error(transparent)]
    Train(sconce_train::Error),
    /// The tokenizer or the text tower.
    #[error(transparent)]
    Clip(sconce_clip::Error),
    /// Tensor arithmetic.
    #[error(transparent)]
    Candle(#[from] candle_core::Error),
}

impl From<sconce_clip::Error> for Error {
    fn from(error: sconce_clip::Error) -> Self {
        match error {
            sconce_clip::Error::Candle(inner) => Self::Candle(inner),
            other => Self::Clip(other),
        }
    }
}

impl From<sconce_nn::Error> for Error {
    fn from(error: sconce_nn::Error) -> Self {
        match error {
            sconce_nn::Error::Candle(inner) => Self::Candle(inner),
            other => Self::Nn(other),
        }
    }
}

impl From<sconce_train::Error> for Error {
    fn from(error: sconce_train::Error) -> Self {
        match error {
            sconce_train::Error::Candle(inner) => Self::Candle(inner),
            other => Self::Train(other),
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
