//! A folder of checkpoints: the newest few, and which is the latest.

use std::path::{Path, PathBuf};

use candle_core::Device;

use crate::{Error, Result, TrainingState};

const LATEST: &str = "latest";
const PREFIX: &str = "step-";
const SUFFIX: &str = ".safetensors";

/// A folder that keeps the last checkpoints of a training, as `step-0000000123.safetensors`, and a file
/// `latest` with the name of the one to resume from.
#[derive(Clone, Debug)]
pub struct CheckpointFolder {
    folder: PathBuf,
    keep: usize,
}

impl CheckpointFolder {
    /// Keeps the last `keep` checkpoints in a folder, which is made if there is none.
    ///
    /// # Errors
    /// `keep` is zero; the folder cannot be made.
    pub fn new(folder: impl AsRef<Path>, keep: usize) -> Result<Self> {
        if keep == 0 {
            return Err(Error::Config("a folder that keeps no checkpoint".to_owned()));
        }
        let folder = folder.as_ref().to_owned();
        std::fs::create_dir_all(&folder).map_err(Error::io(&folder))?;
        Ok(Self { folder, keep })
    }

    /// The folder.
    pub fn path(&self) -> &Path {
        &self.folder
    }

    /// Writes a checkpoint, points `latest` to it, then removes the oldest ones beyond the number to
    /// keep. Whenever this is interrupted, `latest` names a complete checkpoint.
    ///
    /// # Errors
    /// A file cannot be written or removed.
    pub fn save(&self, state: &TrainingState) -> Result<PathBuf> {
        let name = format!("{PREFIX}{:010}{SUFFIX}", state.position.step);
        let path = self.folder.join(&name);
        state.write(&path)?;
        let latest = self.folder.join(LATEST);
        sconce_nn::fs::write_atomic(&latest, |out| writeln!(out, "{name}")).map_err(Error::io(&latest))?;
        let kept = self.list()?;
        // Steps after the one just saved are left over from a training that was taken back.
        let (older, newer): (Vec<_>, Vec<_>) = kept.into_iter().partition(|(step, _)| *step <= state.position.step);
        let oldest = older.iter().take(older.len().saturating_sub(self.keep));
        for (_, path) in oldest.chain(&newer) {
            std::fs::remove_file(path).map_err(Error::io(path))?;
        }
        Ok(path)
    }

    /// All checkpoints with their steps, oldest first.
    ///
    /// # Errors
    /// The folder cannot be read.
    pub fn list(&self) -> Result<Vec<(u64, PathBuf)>> {
        let mut found = Vec::new();
        for entry in std::fs::read_dir(&self.folder).map_err(Error::io(&self.folder))? {
            let entry = entry.map_err(Error::io(&self.folder))?;
            if let Some(step) = entry.file_name().to_str().and_then(step_of) {
                found.push((step, entry.path()));
            }
        }
        found.sort();
        Ok(found)
    }

    /// The checkpoint to resume from, if there is any: the one that `latest` names, or the newest if
    /// that file is missing.
    ///
    /// # Errors
    /// `latest` names what is not a checkpoint in this folder; the folder cannot be read.
    pub fn latest(&self) -> Result<Option<PathBuf>> {
        let pointer = self.folder.join(LATEST);
        match std::fs::read_to_string(&pointer) {
            Ok(text) => {
                let name = text.trim_end();
                let path = self.folder.join(name);
                if step_of(name).is_none() || !path.is_file() {
                    return Err(Error::corrupt(pointer, format!("there is no checkpoint {name:?}")));
                }
                Ok(Some(path))
            }
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(self.list()?.pop().map(|(_, path)| path)),
            Err(error) if error.kind() == std::io::ErrorKind::InvalidData => {
                Err(Error::corrupt(pointer, "it is not text"))
            }
            Err(source) => Err(Error::Io { path: pointer, source }),
        }
    }

    /// Reads the latest checkpoint, if there is any.
    ///
    /// # Errors
    /// Those of [`CheckpointFolder::latest`] and [`TrainingState::read`]. An earlier checkpoint is never
    /// taken in silence; [`CheckpointFolder::list`] shows which there are.
    pub fn load_latest(&self, device: &Device) -> Result<Option<TrainingState>> {
        match self.latest()? {
            Some(path) => TrainingState::read(path, device).map(Some),
            None => Ok(None),
        }
    }
}

fn step_of(name: &str) -> Option<u64> {
    let digits = name.strip_prefix(PREFIX)?.strip_suffix(SUFFIX)?;
    let plain = !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit());
    plain.then(|| digits.parse().ok()).flatten()
}
