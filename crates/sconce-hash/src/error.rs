//! What can go wrong outside of tensor arithmetic.

use std::path::PathBuf;

/// Result of this crate's own errors; forward passes return [`candle_core::Result`].
pub type Result<T> = std::result::Result<T, Error>;

/// Errors of codes, indices and hashing methods, by who can mend them.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// Options that contradict each other.
    #[error("{0}")]
    Config(String),
    /// Input that cannot be used as it is.
    #[error("{0}")]
    Input(String),
    /// A file that is missing, cannot be read or cannot be written.
    #[error("{path}: {source}")]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// A file that is damaged or not of the kind it should be.
    #[error("{path}: {what}")]
    Corrupt {
        /// The file.
        path: PathBuf,
        /// What is wrong, and where.
        what: String,
    },
    /// An index that another writer has open.
    #[error("{path}: another writer has it open")]
    Locked {
        /// The file.
        path: PathBuf,
    },
    /// Reading or writing weights.
    #[error(transparent)]
    Nn(sconce_nn::Error),
    /// Optimisers, checkpoints of a training and its logs.
    #[error(transparent)]
    Train(sconce_train::Error),
    /// A loss that is no number: the step was not taken.
    #[error("step {step}: the loss is {loss}")]
    NonFiniteLoss {
        /// Optimiser steps taken before.
        step: u64,
        /// The loss.
        loss: f64,
    },
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

impl From<sconce_backbones::Error> for Error {
    fn from(error: sconce_backbones::Error) -> Self {
        match error {
            sconce_backbones::Error::Candle(inner) => Self::Candle(inner),
            sconce_backbones::Error::Checkpoint(inner) => inner.into(),
            other => Self::Config(other.to_string()),
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
