//! A JSON object for each step.

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};

use serde_json::{Map, Value};

use super::{Log, retain_lines};
use crate::{Error, Result};

/// A file with a JSON object in each line: `{"step":1,"loss":0.5}`.
///
/// JSON has no NaN and no infinities: they become `null`.
#[derive(Debug)]
pub struct JsonlLog {
    path: PathBuf,
    file: File,
}

impl JsonlLog {
    /// Starts a file anew.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn create(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        let file = File::create(path).map_err(Error::io(path))?;
        Ok(Self { path: path.to_owned(), file })
    }

    /// Continues a file, or starts it if there is none.
    ///
    /// # Errors
    /// The file cannot be read or written.
    pub fn append(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        if !path.exists() {
            return Self::create(path);
        }
        retain_lines(path, |_, _| Ok(true))?;
        let file = OpenOptions::new().append(true).open(path).map_err(Error::io(path))?;
        Ok(Self { path: path.to_owned(), file })
    }
}

impl Log for JsonlLog {
    fn write(&mut self, step: u64, values: &[(&str, f64)]) -> Result<()> {
        let mut fields: Map<String, Value> = Map::new();
        fields.insert("step".to_owned(), step.into());
        for (name, value) in values {
            fields.insert((*name).to_owned(), (*value).into());
        }
        let line = format!("{}\n", Value::Object(fields));
        self.file.write_all(line.as_bytes()).map_err(Error::io(&self.path))
    }

    fn rewind(&mut self, step: u64) -> Result<()> {
        let path = self.path.clone();
        retain_lines(&path, |index, line| {
            let number = serde_json::from_str::<Value>(line).ok().and_then(|value| value["step"].as_u64());
            match number {
                Some(number) => Ok(number <= step),
                None => Err(Error::Log { path: path.clone(), reason: format!("line {} has no step", index + 1) }),
            }
        })?;
        self.file = OpenOptions::new().append(true).open(&path).map_err(Error::io(&path))?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_written_rewound_and_continued() -> Result<()> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("log.jsonl");
        let mut log = JsonlLog::append(&path)?;
        log.write(1, &[("loss", 0.1)])?;
        log.write(2, &[("loss", f64::INFINITY)])?;
        let read = || std::fs::read_to_string(&path).unwrap();
        let lines: Vec<Value> = read().lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        assert_eq!(lines[0], serde_json::json!({"step": 1, "loss": 0.1}));
        assert_eq!(lines[1], serde_json::json!({"step": 2, "loss": null}));
        log.rewind(1)?;
        std::fs::write(&path, format!("{}{{\"st", read())).unwrap();
        let mut log = JsonlLog::append(&path)?;
        log.write(2, &[])?;
        assert_eq!(read().lines().count(), 2);
        std::fs::write(&path, "[]\n").unwrap();
        assert!(matches!(log.rewind(1), Err(Error::Log { .. })));
        Ok(())
    }
}
