//! The error type of this crate: every variant says what was read and who can mend it.

use crate::ReadReport;
use std::path::{Path, PathBuf};

/// Result of this crate.
pub type Result<T> = std::result::Result<T, Error>;

/// What can go wrong between a file and a batch of tensors.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A file or folder cannot be read.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// The operating system's answer.
        source: std::io::Error,
    },
    /// A stream (a shard, a gzip member) ended badly.
    #[error("stream: {0}")]
    Stream(#[source] std::io::Error),
    /// Another error, with the file, shard or member in which it arose.
    #[error("{place}: {source}")]
    At {
        /// A path, or a path and a member.
        place: String,
        /// What happened there.
        source: Box<Error>,
    },
    /// The bytes are of a known image format and broken.
    #[error("broken {format} image: {reason}")]
    Image {
        /// `png`, `jpeg` or `webp`.
        format: &'static str,
        /// The decoder's answer.
        reason: String,
    },
    /// The bytes start like none of the formats that are decoded: png, jpeg, webp.
    #[error("not a png, jpeg or webp image (first bytes {head:02x?})")]
    UnknownFormat {
        /// The first bytes, at most eight.
        head: Vec<u8>,
    },
    /// An input is larger than the limit set for it: a guard against decompression bombs.
    #[error("{what} needs {size}, over the limit of {limit}")]
    TooLarge {
        /// What is too large, with its unit.
        what: &'static str,
        /// The size found.
        size: u64,
        /// The limit, adjustable by the options of the reader.
        limit: u64,
    },
    /// A file does not follow its own format.
    #[error("malformed {format}: {reason}")]
    Malformed {
        /// `tar`, `idx`, `gzip`, …
        format: &'static str,
        /// What is wrong.
        reason: String,
    },
    /// JSON that cannot be parsed or lacks a field.
    #[error("json: {0}")]
    Json(#[from] serde_json::Error),
    /// A sample has no member with the wanted extension.
    #[error("sample `{key}` has no member `.{wanted}`, only {found:?}")]
    MissingMember {
        /// The sample.
        key: String,
        /// The wanted extension.
        wanted: String,
        /// The extensions that it has.
        found: Vec<String>,
    },
    /// A folder or shard without anything to read.
    #[error("{}: {reason}", path.display())]
    Empty {
        /// The folder or shard.
        path: PathBuf,
        /// What was looked for.
        reason: String,
    },
    /// An index past the end of a data set.
    #[error("index {index} in a data set of {len}")]
    OutOfRange {
        /// The index asked for.
        index: usize,
        /// The data set's length.
        len: usize,
    },
    /// An argument that has no meaning.
    #[error("invalid {argument}: {reason}")]
    Invalid {
        /// The argument or field.
        argument: &'static str,
        /// Why it is refused.
        reason: String,
    },
    /// A worker thread panicked in the caller's own code.
    #[error("a data worker panicked: {message}")]
    Worker {
        /// The panic's message.
        message: String,
    },
    /// Inputs that a tolerant reader skipped, turned into an error by [`ReadReport::into_result`].
    #[error("{0}")]
    Unreadable(ReadReport),
    /// An error of a tensor operation.
    #[error(transparent)]
    Tensor(#[from] candle_core::Error),
}

impl Error {
    /// The same error, saying in which file, shard or member it arose.
    pub fn at(self, place: impl std::fmt::Display) -> Self {
        Self::At { place: place.to_string(), source: Box::new(self) }
    }

    pub(crate) fn io(path: &Path, source: std::io::Error) -> Self {
        Self::Io { path: path.to_path_buf(), source }
    }

    pub(crate) fn malformed(format: &'static str, reason: impl Into<String>) -> Self {
        Self::Malformed { format, reason: reason.into() }
    }

    pub(crate) fn invalid(argument: &'static str, reason: impl Into<String>) -> Self {
        Self::Invalid { argument, reason: reason.into() }
    }
}

impl From<Error> for candle_core::Error {
    fn from(error: Error) -> Self {
        match error {
            Error::Tensor(error) => error,
            other => candle_core::Error::wrap(other),
        }
    }
}
