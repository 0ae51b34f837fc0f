use std::path::{Path, PathBuf};

use crate::LoadReport;

/// Result of checkpoint and parameter-store operations.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What can go wrong when parameters are read, written or looked up.
///
/// Variants tell whose turn it is: the file is missing ([`Error::Io`]), damaged ([`Error::Corrupt`]), of a kind that is
/// not read ([`Error::Unsupported`]), or sound but of another model ([`Error::Missing`], [`Error::Shape`], [`Error::Load`]).
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The operating system could not read or write the file.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// The file claims to be of a known format and breaks its rules: truncated, damaged, or made to deceive.
    #[error("{}: damaged checkpoint: {reason}", path.display())]
    Corrupt {
        /// The file.
        path: PathBuf,
        /// The first rule that is broken.
        reason: String,
    },
    /// The file, or one tensor of it, is of a kind that this crate does not read.
    #[error("{}: {what}", path.display())]
    Unsupported {
        /// The file.
        path: PathBuf,
        /// What is not supported, and what to do instead.
        what: String,
    },
    /// No tensor of this name.
    #[error("{}: no tensor `{name}`{}", path.display(), describe_near(near))]
    Missing {
        /// The file, or empty for a parameter store.
        path: PathBuf,
        /// The name that was asked for.
        name: String,
        /// Names that exist and look alike.
        near: Vec<String>,
    },
    /// The tensor exists with another shape.
    #[error("`{name}`: expected shape {expected:?}, found {found:?}")]
    Shape {
        /// Name of the tensor.
        name: String,
        /// The shape that the model wants.
        expected: Vec<usize>,
        /// The shape that the file holds.
        found: Vec<usize>,
    },
    /// [`Checkpoint::select`](crate::Checkpoint::select) found nothing below the key.
    #[error("{}: nothing under key `{key}`; top-level keys: {}", path.display(), found.join(", "))]
    NoSuchKey {
        /// The file.
        path: PathBuf,
        /// The key that was asked for.
        key: String,
        /// The keys that exist at that level.
        found: Vec<String>,
    },
    /// Two tensors have the same name, so that a request would be ambiguous.
    #[error("{}: two tensors are called `{name}`", path.display())]
    Duplicate {
        /// The file.
        path: PathBuf,
        /// The name.
        name: String,
    },
    /// A strict load found differences. Nothing was changed.
    #[error("the checkpoint does not fit the model\n{0}")]
    Load(Box<LoadReport>),
    /// A name pattern matches no parameter.
    #[error("pattern `{pattern}` matches no parameter; the first names are: {}", names.join(", "))]
    NoMatch {
        /// The pattern.
        pattern: String,
        /// Some names of the store.
        names: Vec<String>,
    },
    /// The parameter was handed to its layer without gradient tracking and cannot be trained.
    #[error("`{name}` was created by `ParamStore::vb_fixed` and cannot be trained")]
    NotTrainable {
        /// Name of the parameter.
        name: String,
    },
    /// Candle reported an error.
    #[error(transparent)]
    Candle(#[from] candle_core::Error),
}

impl Error {
    pub(crate) fn io(path: &Path, source: std::io::Error) -> Self {
        Self::Io { path: path.to_path_buf(), source }
    }

    pub(crate) fn corrupt(path: &Path, reason: impl Into<String>) -> Self {
        Self::Corrupt { path: path.to_path_buf(), reason: reason.into() }
    }

    pub(crate) fn unsupported(path: &Path, what: impl Into<String>) -> Self {
        Self::Unsupported { path: path.to_path_buf(), what: what.into() }
    }
}

impl From<Error> for candle_core::Error {
    fn from(error: Error) -> Self {
        match error {
            Error::Candle(error) => error,
            other => candle_core::Error::wrap(other),
        }
    }
}

fn describe_near(near: &[String]) -> String {
    if near.is_empty() { String::new() } else { format!(" (similar names: {})", near.join(", ")) }
}
