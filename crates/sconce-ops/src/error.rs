//! What an operation can refuse.

use candle_core::{DType, Shape};

/// An argument that an operation cannot work on.
///
/// Operations return `candle_core::Result`; this enum is what they wrap, so that the message names the operation and the argument.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A tensor has the wrong shape.
    #[error("{op}: `{arg}` has shape {found:?}, expected {expected}")]
    Shape {
        /// The operation.
        op: &'static str,
        /// The argument.
        arg: &'static str,
        /// What is needed, in words or symbols.
        expected: String,
        /// What was given.
        found: Shape,
    },
    /// A tensor has the wrong element type.
    #[error("{op}: `{arg}` is {found:?}, expected {expected}")]
    DType {
        /// The operation.
        op: &'static str,
        /// The argument.
        arg: &'static str,
        /// What is needed, in words.
        expected: String,
        /// What was given.
        found: DType,
    },
    /// A number is out of its range.
    #[error("{op}: `{arg}` = {value}, expected {expected}")]
    Value {
        /// The operation.
        op: &'static str,
        /// The argument.
        arg: &'static str,
        /// What is needed, in words.
        expected: String,
        /// What was given.
        value: String,
    },
}

impl Error {
    /// A tensor of the wrong shape.
    pub fn shape(op: &'static str, arg: &'static str, expected: impl Into<String>, found: &Shape) -> Self {
        let (expected, found) = (expected.into(), found.clone());
        Self::Shape { op, arg, expected, found }
    }

    /// A tensor of the wrong element type.
    pub fn dtype(op: &'static str, arg: &'static str, expected: impl Into<String>, found: DType) -> Self {
        let expected = expected.into();
        Self::DType { op, arg, expected, found }
    }

    /// A number out of its range.
    pub fn value(op: &'static str, arg: &'static str, expected: impl Into<String>, value: impl ToString) -> Self {
        let (expected, value) = (expected.into(), value.to_string());
        Self::Value { op, arg, expected, value }
    }
}

impl From<Error> for candle_core::Error {
    fn from(err: Error) -> Self {
        candle_core::Error::wrap(err)
    }
}
