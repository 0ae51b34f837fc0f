//! Every method with every number of shots and every seed; results that are there already are kept.

use std::fmt;

use sconce::candle::Device;
use sconce::clip::zero_shot::PHOTO;
use sconce::train::{Interrupt, StepError};
use serde::{Deserialize, Serialize};

use super::cell::Run;
use super::documentation::{self, Documented};
use super::embed::Model;
use super::options::{Method, Options, ShotCount};
use super::table::Table;
use super::task::Task;
use crate::{Error, emoji};

/// What came of a run.
#[derive(Debug)]
pub enum Done {
    /// Results of all cells.
    Table(Table),
    /// Q16's.
    Documented(Documented),
    /// It was interrupted; the same command goes on.
    Interrupted,
}

/// A head to be trained.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Wanted {
    /// The method.
    pub method: Method,
    /// Labelled pictures of each class; none for zero-shot.
    pub shots: Option<ShotCount>,
    /// The seed; none for zero-shot.
    pub seed: Option<u64>,
}

impl fmt::Display for Wanted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.method.title())?;
        self.shots.map_or(Ok(()), |shots| write!(f, " {}", shots.in_words()))?;
        self.seed.map_or(Ok(()), |seed| write!(f, " seed {seed}"))
    }
}

impl Wanted {
    /// Name of its folder.
    #[must_use]
    pub fn folder(&self) -> String {
        let shots = self.shots.map_or_else(String::new, |shots| format!("-{shots}-shots"));
        let seed = self.seed.map_or_else(String::new, |seed| format!("-seed-{seed}"));
        format!("{}{shots}{seed}", self.method.name())
    }

    fn all(options: &Options) -> Vec<Self> {
        let mut wanted = Vec::new();
        for &method in &options.method {
            if method == Method::ZeroShot {
                wanted.push(Self { method, shots: None, seed: None });
                continue;
            }
            for &shots in &options.shots {
                let seeded = |&seed: &u64| Self { method, shots: Some(shots), seed: Some(seed) };
                wanted.extend(options.seeds.iter().map(seeded));
            }
        }
        wanted
    }
}

/// Trains and evaluates what the options ask for; writes heads, drawings and tables.
///
/// # Errors
/// Files that are missing or broken; options that cannot be meant; those of training.
pub fn run(options: &Options, device: &Device, interrupt: &Interrupt) -> Result<Done, StepError> {
    let mut options = options.clone();
    if options.table {
        options.method = vec![Method::ZeroShot, Method::Coop, Method::Cocoop, Method::ClipAdapter, Method::TipAdapterF];
        options.shots = [1, 2, 4, 8, 16].map(ShotCount::Some).to_vec();
        options.seeds = vec![1, 2, 3];
    }
    let small = options.data.model.is_none();
    let templates: Vec<String> = match options.data.template.as_slice() {
        [] if small => vec!["{}".to_owned()],
        [] => PHOTO.iter().map(|template| (*template).to_owned()).collect(),
        own => own.to_vec(),
    };
    check(&options, &templates)?;
    let path = options.data.model.clone().unwrap_or_else(|| emoji::assets().join("weights/emoji-clip"));
    let model = Model::load(&path, &options.out.join("features"), device, interrupt, options.quiet)?;
    let task = Task::load(&options.data)?;
    println!("model     {}", crate::pictures::shown(&path));
    println!(
        "pictures  {} classes; {} to learn from ({}), {} to test on ({})",
        task.classes.len(),
        task.pool.labels.len(),
        task.domains[0],
        task.test.labels.len(),
        task.domains[1],
    );
    if options.method == [Method::Q16] {
        let documented = documentation::run(&options, &model, &task, interrupt)?;
        return Ok(documented.map_or(Done::Interrupted, Done::Documented));
    }

    let wanted = Wanted::all(&options);
    let run = Run::new(&options, &model, &task, &templates, interrupt, wanted.len() == 1)?;
    let mut cells = Vec::with_capacity(wanted.len());
    for (number, one) in (1..).zip(&wanted) {
        let Some(cell) = run.cell(one)? else { return Ok(Done::Interrupted) };
        if !options.quiet {
            let (accuracy, seconds) = (100.0 * cell.accuracy, cell.seconds);
            eprintln!("[{number:>3}/{}] {one}: top-1 {accuracy:.2} %, {seconds:.1} s", wanted.len());
        }
        cells.push(cell);
    }
    let table = Table::new(&task, cells)?;
    table.write(&options.out)?;
    Ok(Done::Table(table))
}

/// What can be said before anything is read.
fn check(options: &Options, templates: &[String]) -> Result<(), Error> {
    if !matches!(options.training.domains.len(), 0 | 2) {
        return Err(Error::new("--domains takes two names, of the source and of the target"));
    }
    if let Some(template) = templates.iter().find(|template| !template.contains("{}")) {
        return Err(Error::new(format!("the template {template:?} has no {{}} for the class")));
    }
    let method = |wrong: fn(&Method) -> bool| options.method.iter().copied().find(wrong);
    if let (Some(method), None) = (method(|method| method.needs_target()), &options.data.target) {
        return Err(Error::new(format!("{} needs --source and --target", method.title())));
    }
    let cached = |method: &Method| matches!(method, Method::TipAdapter | Method::TipAdapterF);
    if let (Some(method), true) = (method(cached), options.data.base_to_new) {
        let message = format!("{}'s cache has the classes of its pictures: no --base-to-new", method.title());
        return Err(Error::new(message));
    }
    if options.method.len() > 1 && options.method.contains(&Method::Q16) {
        return Err(Error::new("q16 has a task of its own and stands alone"));
    }
    Ok(())
}
