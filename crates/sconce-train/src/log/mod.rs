//! Scalars over steps, written where people and tools look for them.

mod csv;
mod jsonl;
pub mod tensorboard;

use crate::Result;

pub use csv::CsvLog;
pub use jsonl::JsonlLog;
pub use tensorboard::TensorBoardLog;

/// A place that scalars are written to.
pub trait Log: Send {
    /// Writes the values of one step; they are on their way to disk when this returns.
    ///
    /// # Errors
    /// The file cannot be written.
    fn write(&mut self, step: u64, values: &[(&str, f64)]) -> Result<()>;

    /// Forgets what was written for steps after `step`, before training is resumed from there.
    ///
    /// # Errors
    /// The file cannot be read or written, or is not such a log.
    fn rewind(&mut self, step: u64) -> Result<()>;
}

/// Rewrites a log of lines, keeping those for which `keep` says so; the last line counts only if it
/// is complete, because a killed process may leave half of one.
fn retain_lines(path: &std::path::Path, mut keep: impl FnMut(usize, &str) -> Result<bool>) -> Result<()> {
    use crate::Error;
    let text = std::fs::read_to_string(path).map_err(Error::io(path))?;
    let mut kept = String::with_capacity(text.len());
    for (index, line) in text.split_inclusive('\n').enumerate() {
        if let Some(whole) = line.strip_suffix('\n')
            && keep(index, whole)?
        {
            kept.push_str(line);
        }
    }
    if kept.len() != text.len() {
        sconce_nn::fs::write_atomic(path, |out| out.write_all(kept.as_bytes())).map_err(Error::io(path))?;
    }
    Ok(())
}
