//! A table with a column for each scalar.

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};

use super::{Log, retain_lines};
use crate::{Error, Result};

/// A CSV file with the column `step` and one for each scalar.
///
/// The columns are fixed when the file is opened, since a later row cannot add one: scalars without a
/// column are left out, columns without a scalar stay empty. Numbers are written so that reading
/// them gives the same bits.
#[derive(Debug)]
pub struct CsvLog {
    path: PathBuf,
    columns: Vec<String>,
    file: File,
}

impl CsvLog {
    /// Starts a file anew.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn create(path: impl AsRef<Path>, columns: &[&str]) -> Result<Self> {
        let path = path.as_ref();
        let header = header(columns);
        sconce_nn::fs::write_atomic(path, |out| out.write_all(header.as_bytes())).map_err(Error::io(path))?;
        Self::append(path, columns)
    }

    /// Continues a file, or starts it if there is none.
    ///
    /// # Errors
    /// The file has other columns, or cannot be read or written.
    pub fn append(path: impl AsRef<Path>, columns: &[&str]) -> Result<Self> {
        let path = path.as_ref();
        if !path.exists() {
            return Self::create(path, columns);
        }
        let expected = header(columns);
        let mut found_header = false;
        retain_lines(path, |index, line| {
            if index == 0 {
                found_header = line == expected.trim_end();
            }
            Ok(true)
        })?;
        if !found_header {
            let path = path.to_owned();
            let reason = format!("the columns are not {}", expected.trim_end());
            return Err(Error::Log { path, reason });
        }
        let file = OpenOptions::new().append(true).open(path).map_err(Error::io(path))?;
        let columns = columns.iter().map(|&c| c.to_owned()).collect();
        Ok(Self { path: path.to_owned(), columns, file })
    }
}

impl Log for CsvLog {
    fn write(&mut self, step: u64, values: &[(&str, f64)]) -> Result<()> {
        let mut cells = vec![String::new(); self.columns.len()];
        for (name, value) in values {
            if let Some(index) = self.columns.iter().position(|column| column == name) {
                cells[index] = value.to_string();
            }
        }
        let row = format!("{step},{}\n", cells.join(","));
        self.file.write_all(row.as_bytes()).map_err(Error::io(&self.path))
    }

    fn rewind(&mut self, step: u64) -> Result<()> {
        let path = self.path.clone();
        retain_lines(&path, |index, line| {
            let number = line.split(',').next().and_then(|cell| cell.parse::<u64>().ok());
            match number {
                _ if index == 0 => Ok(true),
                Some(number) => Ok(number <= step),
                None => Err(Error::Log { path: path.clone(), reason: format!("line {} has no step", index + 1) }),
            }
        })?;
        // The file may have been replaced: an old handle would write to the one that is gone.
        self.file = OpenOptions::new().append(true).open(&path).map_err(Error::io(&path))?;
        Ok(())
    }
}

fn header(columns: &[&str]) -> String {
    let quote = |name: &&str| {
        if name.contains([',', '"', '\n', '\r']) {
            format!("\"{}\"", name.replace('"', "\"\"").replace(['\n', '\r'], " "))
        } else {
            (*name).to_owned()
        }
    };
    let names: Vec<String> = std::iter::once(&"step").chain(columns).map(quote).collect();
    format!("{}\n", names.join(","))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_are_written_rewound_and_continued() -> Result<()> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("log.csv");
        let columns = ["loss", "lr", "a,\"b\""];
        let mut log = CsvLog::append(&path, &columns)?;
        log.write(1, &[("loss", 0.1), ("other", 7.), ("lr", 1e-5)])?;
        log.write(2, &[("lr", 0.2), ("a,\"b\"", f64::NAN)])?;
        let read = || std::fs::read_to_string(&path).unwrap();
        assert_eq!(read(), "step,loss,lr,\"a,\"\"b\"\"\"\n1,0.1,0.00001,\n2,,0.2,NaN\n");
        log.rewind(1)?;
        log.write(2, &[("loss", 0.3)])?;
        assert!(read().ends_with("\n1,0.1,0.00001,\n2,0.3,,\n"));
        drop(log);
        // A killed process leaves half a row.
        std::fs::write(&path, format!("{}3,0.", read())).unwrap();
        let mut log = CsvLog::append(&path, &columns)?;
        log.write(3, &[("loss", 0.5)])?;
        assert!(read().ends_with("\n2,0.3,,\n3,0.5,,\n"));
        assert!(matches!(CsvLog::append(&path, &["loss"]), Err(Error::Log { .. })));
        std::fs::write(&path, format!("{}nonsense\n", read())).unwrap();
        assert!(matches!(log.rewind(9), Err(Error::Log { .. })));
        CsvLog::create(&path, &["loss"])?;
        assert_eq!(read(), "step,loss\n");
        Ok(())
    }
}
