//! What can go wrong outside of forward passes.

/// Result of the registry's functions.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What can go wrong when a model is asked for by name.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// No model has this name.
    #[error("no model named `{name}`{}", suggest(similar))]
    UnknownModel {
        /// The name that was asked for.
        name: String,
        /// Names that come near.
        similar: Vec<String>,
    },
    /// The checkpoint cannot be read or does not fit.
    #[error(transparent)]
    Checkpoint(#[from] sconce_nn::Error),
    /// Candle reported an error: in most cases a tensor that is missing or of another shape.
    #[error(transparent)]
    Candle(#[from] candle_core::Error),
}

fn suggest(similar: &[String]) -> String {
    match similar {
        [] => "; `list_models(\"*\")` names them all".into(),
        names => format!("; similar names: {}", names.join(", ")),
    }
}

impl From<Error> for candle_core::Error {
    fn from(error: Error) -> Self {
        match error {
            Error::Candle(error) => error,
            Error::Checkpoint(error) => error.into(),
            other => candle_core::Error::wrap(other),
        }
    }
}
