//! What can go wrong in training, by who can put it right.

use std::path::PathBuf;

use candle_core::{DType, Shape, Tensor};

/// Result of this crate.
pub type Result<T> = std::result::Result<T, Error>;

/// An error of a step written by the caller, of any type.
pub type StepError = Box<dyn std::error::Error + Send + Sync>;

/// Errors of optimisers, checkpoints, logs and the training loop.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A tensor operation failed.
    #[error(transparent)]
    Candle(#[from] candle_core::Error),
    /// A parameter store or a file of tensors.
    #[error(transparent)]
    Nn(#[from] sconce_nn::Error),
    /// A configuration that cannot be meant.
    #[error("invalid configuration: {0}")]
    Config(String),
    /// Two parameters with the same name.
    #[error("parameter {name} is given twice")]
    DuplicateParameter {
        /// Name of the parameter.
        name: String,
    },
    /// A parameter whose type cannot be trained.
    #[error("parameter {name} has type {dtype:?}: only floating point can be trained")]
    NotFloat {
        /// Name of the parameter.
        name: String,
        /// Its type.
        dtype: DType,
    },
    /// A gradient that does not fit its parameter.
    #[error("gradient of {name} is {found_dtype:?} {found:?}, the parameter {expected_dtype:?} {expected:?}")]
    GradientMismatch {
        /// Name of the parameter.
        name: String,
        /// Shape of the parameter.
        expected: Shape,
        /// Type of the parameter.
        expected_dtype: DType,
        /// Shape of the gradient.
        found: Shape,
        /// Type of the gradient.
        found_dtype: DType,
    },
    /// A gradient with an infinity or a NaN in it; the step was not taken.
    #[error("gradient of {name} is not finite; no parameter was changed")]
    NonFiniteGradient {
        /// Name of the first such parameter.
        name: String,
    },
    /// No parameter has a gradient: the loss does not depend on them.
    #[error("none of the {parameters} parameters has a gradient")]
    NoGradient {
        /// Number of parameters of the optimiser.
        parameters: usize,
    },
    /// Saved state that belongs to another optimiser.
    #[error("the saved state is of the optimiser {found}, not of {expected}")]
    WrongOptimizer {
        /// The optimiser that reads.
        expected: String,
        /// The optimiser that wrote.
        found: String,
    },
    /// A tensor that the saved state should hold and does not.
    #[error("{section} lacks {name}")]
    MissingTensor {
        /// Part of the saved state.
        section: String,
        /// Name of the tensor.
        name: String,
    },
    /// A tensor in the saved state that nothing here has a use for.
    #[error("{section} holds {name}, which nothing here has a use for")]
    UnexpectedTensor {
        /// Part of the saved state.
        section: String,
        /// Name of the tensor.
        name: String,
    },
    /// A tensor of the saved state with another shape or type.
    #[error("{section}: {name} is {found_dtype:?} {found:?}, expected {expected_dtype:?} {expected:?}")]
    TensorMismatch {
        /// Part of the saved state.
        section: String,
        /// Name of the tensor.
        name: String,
        /// Shape wanted.
        expected: Shape,
        /// Type wanted.
        expected_dtype: DType,
        /// Shape found.
        found: Shape,
        /// Type found.
        found_dtype: DType,
    },
    /// A file could not be read or written.
    #[error("{path}: {source}")]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// The system's error.
        source: std::io::Error,
    },
    /// A checkpoint that is truncated, altered or not a checkpoint.
    #[error("{path} is not an intact checkpoint: {reason}")]
    CorruptCheckpoint {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// A checkpoint of a later version of this crate.
    #[error("{path} has checkpoint format {found}; this version reads up to {supported}")]
    CheckpointVersion {
        /// The file.
        path: PathBuf,
        /// Version of the file.
        found: u64,
        /// Newest version that can be read.
        supported: u64,
    },
    /// A log that cannot be continued.
    #[error("{path}: {reason}")]
    Log {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// The Ctrl-C handler could not be installed.
    #[error("the Ctrl-C handler could not be installed: {0}")]
    Signal(#[from] ctrlc::Error),
    /// The caller's own code in the loop failed.
    #[error("step {step}: {source}")]
    Step {
        /// Number of the optimiser step that was being prepared.
        step: u64,
        /// The caller's error.
        source: StepError,
    },
}

impl Error {
    pub(crate) fn io(path: impl Into<PathBuf>) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.into();
        move |source| Self::Io { path, source }
    }

    /// That `found` has the shape and type of `expected`.
    pub(crate) fn check_tensor(section: &str, name: &str, expected: &Tensor, found: &Tensor) -> Result<()> {
        if expected.shape() == found.shape() && expected.dtype() == found.dtype() {
            return Ok(());
        }
        Err(Self::TensorMismatch {
            section: section.to_owned(),
            name: name.to_owned(),
            expected: expected.shape().clone(),
            expected_dtype: expected.dtype(),
            found: found.shape().clone(),
            found_dtype: found.dtype(),
        })
    }

    pub(crate) fn corrupt(path: impl Into<PathBuf>, reason: impl Into<String>) -> Self {
        Self::CorruptCheckpoint { path: path.into(), reason: reason.into() }
    }
}

impl From<Error> for candle_core::Error {
    fn from(error: Error) -> Self {
        match error {
            Error::Candle(error) => error,
            Error::Nn(error) => error.into(),
            other => Self::wrap(other),
        }
    }
}
