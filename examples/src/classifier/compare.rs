//! Several models under one recipe, seed by seed, and a table of what they reach.

mod plot;
mod table;

use std::path::{Path, PathBuf};
use std::process::Command;

use sconce::train::Interrupt;

use super::{Options, Summary};
use crate::{Error, write_json, write_text};

/// What is compared.
#[derive(Debug, Clone)]
pub struct Comparison {
    /// Names in the registry.
    pub models: Vec<String>,
    /// A training for each.
    pub seeds: Vec<u64>,
    /// Folder of the trainings and of the table.
    pub out: PathBuf,
    /// Options of every training, checked: `options.model`, seed and folder do not count.
    pub options: Options,
    /// The same as words of a command line, without model, seed and folder.
    pub arguments: Vec<String>,
}

impl Comparison {
    fn folder(&self, model: &str, seed: u64) -> PathBuf {
        self.out.join(format!("{model}-seed{seed}"))
    }

    /// Does every training that has no summary yet, each by a process of its own so that its peak memory is its own, and
    /// writes `table.md`, `table.json` and `table.svg` after each.
    ///
    /// `command` is the program and its first words; `--model`, `--seed`, `--out`, `--resume` and the arguments follow. A
    /// training that was stopped is resumed. Returns whether all are done.
    ///
    /// # Errors
    /// A model that does not exist, a summary of other options, a training that fails, files that cannot be written.
    pub fn run(&self, command: &[String], interrupt: &Interrupt) -> Result<bool, Error> {
        for model in &self.models {
            sconce::backbones::pretrained(model).map_err(|error| Error::new(error.to_string()))?;
        }
        let mut done = self.finished()?;
        self.write(&done)?;
        for &seed in &self.seeds {
            for model in &self.models {
                let folder = self.folder(model, seed);
                if done.iter().any(|summary| summary.model == *model && summary.options.recipe.seed == seed) {
                    eprintln!("{} is done", folder.display());
                    continue;
                }
                eprintln!("{}", folder.display());
                self.train(command, model, seed, &folder)?;
                let Some(summary) = self.summary(model, seed)? else {
                    // The training was stopped: it has left a checkpoint, and the same command goes on from there.
                    return Ok(false);
                };
                done.push(summary);
                self.write(&done)?;
                if interrupt.is_requested() {
                    return Ok(false);
                }
            }
        }
        Ok(true)
    }

    fn train(&self, command: &[String], model: &str, seed: u64, folder: &Path) -> Result<(), Error> {
        let Some((program, first)) = command.split_first() else {
            return Err(Error::new("no program to train with"));
        };
        let fail = |why: String| Error::new(format!("{}: {why}", folder.display()));
        let status = Command::new(program)
            .args(first)
            .args(["--model", model, "--seed", &seed.to_string(), "--resume", "--out"])
            .arg(folder)
            .args(&self.arguments)
            .status()
            .map_err(|error| fail(format!("{program}: {error}")))?;
        if !status.success() {
            return Err(fail(format!("the training ended with {status}")));
        }
        Ok(())
    }

    /// The trainings that are done.
    fn finished(&self) -> Result<Vec<Summary>, Error> {
        let mut found = Vec::new();
        for &seed in &self.seeds {
            for model in &self.models {
                found.extend(self.summary(model, seed)?);
            }
        }
        Ok(found)
    }

    /// The summary of a training, if it is done.
    fn summary(&self, model: &str, seed: u64) -> Result<Option<Summary>, Error> {
        let path = self.folder(model, seed).join("summary.json");
        let fail = |why: String| Error::new(format!("{}: {why}", path.display()));
        let text = match std::fs::read_to_string(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(fail(error.to_string())),
        };
        let summary: Summary = serde_json::from_str(&text).map_err(|error| fail(error.to_string()))?;
        let mut wanted = self.options.clone();
        wanted.model = model.to_owned();
        wanted.recipe.seed = seed;
        let json = |options: &Options| serde_json::to_value(options).map_err(|error| fail(error.to_string()));
        if json(&summary.options)? != json(&wanted)? {
            return Err(fail("a training of other options; take another --out or remove it".into()));
        }
        Ok(Some(summary))
    }

    fn write(&self, done: &[Summary]) -> Result<(), Error> {
        let rows = table::rows(&self.models, done);
        std::fs::create_dir_all(&self.out).map_err(|error| Error::new(format!("{}: {error}", self.out.display())))?;
        write_text(&self.out.join("table.md"), &table::markdown(&rows, self.seeds.len()))?;
        write_text(&self.out.join("table.svg"), &plot::svg(&rows))?;
        write_json(&self.out.join("table.json"), &rows)
    }
}
