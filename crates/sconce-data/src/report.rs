//! What a tolerant reader skipped, and why.

use crate::{Error, Result};
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};

/// One input that could not be read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ReadFailure {
    /// The file or shard.
    pub place: String,
    /// The member, sample or index within it, if the failure concerns one.
    pub member: Option<String>,
    /// What was wrong with it.
    pub cause: String,
}

impl fmt::Display for ReadFailure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.member {
            Some(member) => write!(f, "{}: {member}: {}", self.place, self.cause),
            None => write!(f, "{}: {}", self.place, self.cause),
        }
    }
}

/// The inputs that a tolerant reader skipped, in reading order.
///
/// Each is logged by `tracing` at level `warn` as it is added. [`Self::into_result`] makes a strict reader of
/// a tolerant one.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ReadReport {
    /// The failures, in reading order.
    pub failures: Vec<ReadFailure>,
}

impl ReadReport {
    /// Adds a failure.
    pub fn push(&mut self, place: impl Into<String>, member: Option<String>, cause: impl fmt::Display) {
        let failure = ReadFailure { place: place.into(), member, cause: cause.to_string() };
        tracing::warn!("skipped {failure}");
        self.failures.push(failure);
    }

    /// Adds the failures of another report.
    pub fn extend(&mut self, other: ReadReport) {
        self.failures.extend(other.failures);
    }

    /// Whether everything was read.
    pub fn is_empty(&self) -> bool {
        self.failures.is_empty()
    }

    /// Number of failures.
    pub fn len(&self) -> usize {
        self.failures.len()
    }

    /// # Errors
    /// [`Error::Unreadable`] when anything was skipped.
    pub fn into_result(self) -> Result<()> {
        if self.is_empty() { Ok(()) } else { Err(Error::Unreadable(self)) }
    }
}

impl fmt::Display for ReadReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const SHOWN: usize = 10;
        write!(f, "{} unreadable", self.len())?;
        for failure in self.failures.iter().take(SHOWN) {
            write!(f, "\n  {failure}")?;
        }
        if self.len() > SHOWN {
            write!(f, "\n  and {} more", self.len() - SHOWN)?;
        }
        Ok(())
    }
}

/// A report that is still being written, by a stream which may be on another thread.
#[derive(Debug, Clone, Default)]
pub struct ReportHandle(Arc<Mutex<ReadReport>>);

impl ReportHandle {
    /// The report as it is now.
    pub fn get(&self) -> ReadReport {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub(crate) fn extend(&self, other: ReadReport) {
        if !other.is_empty() {
            self.0.lock().unwrap_or_else(PoisonError::into_inner).extend(other);
        }
    }
}
