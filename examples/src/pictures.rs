//! Pictures of the user's: found, decoded, named.

use std::path::{Path, PathBuf};

use rayon::prelude::*;
use sconce::data::{Picture, ReadReport, image_files};

use crate::Error;

/// Files as they are, and the pictures in folders.
///
/// # Errors
/// A path does not exist, or a folder holds no picture.
pub fn files(paths: &[PathBuf]) -> Result<Vec<PathBuf>, Error> {
    let mut files = Vec::new();
    for path in paths {
        if path.is_dir() {
            files.extend(image_files(path).map_err(|error| Error::new(error.to_string()))?);
        } else if path.exists() {
            files.push(path.clone());
        } else {
            return Err(Error::new(format!("{}: no such file or folder", path.display())));
        }
    }
    Ok(files)
}

/// Decodes in parallel; broken pictures are left out and named on standard error.
///
/// # Errors
/// When no picture is left.
pub fn open(files: &[PathBuf]) -> Result<(Vec<PathBuf>, Vec<Picture>), Error> {
    let opened: Vec<_> = files.par_iter().map(Picture::open).collect();
    let mut report = ReadReport::default();
    let (mut paths, mut pictures) = (Vec::new(), Vec::new());
    for (path, picture) in files.iter().zip(opened) {
        match picture {
            Ok(picture) => {
                paths.push(path.clone());
                pictures.push(picture);
            }
            Err(error) => report.push(shown(path), None, error),
        }
    }
    warn(&report);
    match pictures.is_empty() {
        true => Err(Error::new("there is no picture that can be read")),
        false => Ok((paths, pictures)),
    }
}

/// Names on standard error what was left out.
pub fn warn(report: &ReadReport) {
    if !report.is_empty() {
        eprintln!("skipped:\n{report}");
    }
}

/// A path as a person would type it from here.
#[must_use]
pub fn shown(path: &Path) -> String {
    let here = std::env::current_dir().and_then(|folder| folder.canonicalize());
    let whole = path.canonicalize();
    match (&here, &whole) {
        (Ok(here), Ok(whole)) => whole.strip_prefix(here).unwrap_or(path).display().to_string(),
        _ => path.display().to_string(),
    }
}
