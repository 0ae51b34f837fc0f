//! What the examples share: the repository's data, training and evaluation on it, labelled contact sheets.

pub mod adapt;
pub mod chinese;
pub mod classifier;
pub mod contact_sheet;
pub mod contrastive;
pub mod emoji;
pub mod evaluate;
pub mod few_shot;
pub mod numbers;
pub mod pictures;
pub mod pretrain;
pub mod retrieval;

/// What went wrong, for the person who ran the example.
#[derive(Debug)]
pub struct Error(String);

impl Error {
    /// An error with a message for people.
    pub fn new(message: impl Into<String>) -> Self {
        Self(message.into())
    }
}

impl std::fmt::Display for Error {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Error {}

/// Writes JSON for people, complete or not at all.
///
/// # Errors
/// The file cannot be written.
pub fn write_json(path: &std::path::Path, value: &impl serde::Serialize) -> Result<(), Error> {
    let text = serde_json::to_string_pretty(value).map_err(|error| Error::new(error.to_string()))?;
    write_text(path, &format!("{text}\n"))
}

/// Writes a text file, complete or not at all.
///
/// # Errors
/// The file cannot be written.
pub fn write_text(path: &std::path::Path, text: &str) -> Result<(), Error> {
    sconce::nn::fs::write_atomic(path, |out| out.write_all(text.as_bytes()))
        .map_err(|error| Error::new(format!("{}: {error}", path.display())))
}

/// Ctrl-C, where the system lets us have it: a job in the background has it ignored.
#[must_use]
pub fn interrupt() -> sconce::train::Interrupt {
    sconce::train::Interrupt::on_ctrl_c().unwrap_or_else(|error| {
        eprintln!("{error}; the training cannot be stopped between steps");
        sconce::train::Interrupt::new()
    })
}
