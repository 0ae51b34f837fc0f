//! Every method with every number of shots and every seed; results that are there already are kept.

use std::path::PathBuf;
use std::time::Instant;

use sconce::adapt::FitOptions;
use sconce::adapt::protocol::{ClassSubset, Half, Score, Shots, harmonic_mean, shots_per_class};
use sconce::candle::{Device, Tensor};
use sconce::clip::zero_shot::PHOTO;
use sconce::nn::SaveOptions;
use sconce::train::{Interrupt, Outcome, Progress, StepError};
use serde::{Deserialize, Serialize};

use super::curves;
use super::embed::Model;
use super::head::{Few, Frozen, Head, Trained};
use super::options::{Method, Options, ShotCount};
use super::recipe::Recipe;
use super::table::Table;
use super::task::{Part, Task};
use crate::emoji;
use crate::{Error, write_json};

/// How well one head does.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Cell {
    /// The method.
    pub method: Method,
    /// Labelled pictures of each class that were asked for; none for zero-shot.
    pub shots: Option<ShotCount>,
    /// Mean number that there were.
    pub shots_per_class: f64,
    /// The seed; none for zero-shot.
    pub seed: Option<u64>,
    /// Fraction of the test pictures that were told right; of the base classes with --base-to-new.
    pub accuracy: f64,
    /// Mean over classes.
    pub mean_class_accuracy: f64,
    /// Accuracy on the classes that were not trained on, with --base-to-new.
    pub new: Option<f64>,
    /// Harmonic mean of both.
    pub harmonic_mean: Option<f64>,
    /// Seconds of training and testing.
    pub seconds: f64,
    /// All that it depends on.
    identity: String,
}

/// What a run works on.
struct Run<'a> {
    options: &'a Options,
    model: Model,
    task: Task,
    templates: Vec<String>,
    /// What results depend on beside the method, in words.
    identity: String,
    interrupt: &'a Interrupt,
}

/// Trains and evaluates what the options ask for; writes heads, drawings and tables. Nothing when it was interrupted.
///
/// # Errors
/// Files that are missing or broken; options that cannot be meant; those of training.
pub fn run(options: &Options, device: &Device, interrupt: &Interrupt) -> Result<Option<Table>, StepError> {
    let mut options = options.clone();
    if options.table {
        options.method = vec![Method::ZeroShot, Method::Coop, Method::Cocoop, Method::ClipAdapter, Method::TipAdapterF];
        options.shots = [1, 2, 4, 8, 16].map(ShotCount::Some).to_vec();
        options.seeds = vec![1, 2, 3];
    }
    let small = options.data.model.is_none();
    let path = options.data.model.clone().unwrap_or_else(|| emoji::assets().join("weights/emoji-clip"));
    let model = Model::load(&path, &options.out.join("features"), device, interrupt, options.quiet)?;
    let task = Task::load(&options.data)?;
    let templates: Vec<String> = match options.data.template.as_slice() {
        [] if small => vec!["{}".to_owned()],
        [] => PHOTO.iter().map(|template| (*template).to_owned()).collect(),
        own => own.to_vec(),
    };
    if let Some(template) = templates.iter().find(|template| !template.contains("{}")) {
        return Err(Error::new(format!("the template {template:?} has no {{}} for the class")).into());
    }
    if let Some(method) = options.method.iter().find(|method| method.needs_target() && task.unlabelled.is_none()) {
        return Err(Error::new(format!("{} needs --source and --target", method.title())).into());
    }
    let identity = format!("{} {:?} {:?} {:?}", model.digest, options.data, options.training, templates);
    println!("model     {}", Model::shown(&path));
    println!(
        "pictures  {} classes; {} to learn from ({}), {} to test on ({})",
        task.classes.len(),
        task.pool.labels.len(),
        task.domains[0],
        task.test.labels.len(),
        task.domains[1],
    );
    Run { options: &options, model, task, templates, identity, interrupt }.all()
}

impl Run<'_> {
    fn all(&self) -> Result<Option<Table>, StepError> {
        let mut wanted = Vec::new();
        for &method in &self.options.method {
            if method == Method::ZeroShot {
                wanted.push((method, None, None));
                continue;
            }
            for &shots in &self.options.shots {
                wanted.extend(self.options.seeds.iter().map(|seed| (method, Some(shots), Some(*seed))));
            }
        }
        let count = wanted.len();
        let mut cells = Vec::with_capacity(count);
        for (number, (method, shots, seed)) in (1..).zip(wanted) {
            let Some(cell) = self.cell(method, shots, seed, count == 1)? else {
                eprintln!("stopped; the same command goes on from here");
                return Ok(None);
            };
            if !self.options.quiet {
                let shots = shots.map_or_else(String::new, |shots| format!(" {shots} shots"));
                let seed = seed.map_or_else(String::new, |seed| format!(" seed {seed}"));
                let (title, accuracy) = (method.title(), 100.0 * cell.accuracy);
                eprintln!("[{number:>3}/{count}] {title}{shots}{seed}: top-1 {accuracy:.2} %, {:.1} s", cell.seconds);
            }
            cells.push(cell);
        }
        let table = Table::new(&self.task, cells)?;
        table.write(&self.options.out)?;
        Ok(Some(table))
    }

    fn folder(&self, method: Method, shots: Option<ShotCount>, seed: Option<u64>) -> PathBuf {
        let shots = shots.map_or_else(String::new, |shots| format!("-{shots}-shots"));
        let seed = seed.map_or_else(String::new, |seed| format!("-seed-{seed}"));
        self.options.out.join("cells").join(format!("{}{shots}{seed}", method.name()))
    }

    fn cell(
        &self,
        method: Method,
        shots: Option<ShotCount>,
        seed: Option<u64>,
        alone: bool,
    ) -> Result<Option<Cell>, StepError> {
        if self.interrupt.is_requested() {
            return Ok(None);
        }
        let folder = self.folder(method, shots, seed);
        std::fs::create_dir_all(&folder).map_err(|error| Error::new(format!("{}: {error}", folder.display())))?;
        let result = folder.join("result.json");
        let classes = self.trained_classes()?;
        let (part, pool) = self.labelled(&classes, shots, seed.unwrap_or(1))?;
        let per_class = shots_per_class(&part.labels);
        let small = self.options.data.model.is_none();
        let recipe = Recipe::new(method, per_class.round() as usize, seed.unwrap_or(1), small, &self.options.training);
        let identity = format!("{} {recipe:?} {pool:?}", self.identity);
        if !self.options.fresh
            && let Ok(bytes) = std::fs::read(&result)
            && let Ok(cell) = serde_json::from_slice::<Cell>(&bytes)
            && cell.identity == identity
        {
            return Ok(Some(cell));
        }

        let started = Instant::now();
        let training = &self.options.training;
        let views = if method == Method::ZeroShot { 0 } else { training.views };
        let features = self.model.views(&part.pictures, views, training.view_area, seed.unwrap_or(1))?;
        let unlabelled = match &self.task.unlabelled {
            Some(part) if method.needs_target() => Some(self.model.features(&part.of_classes(&classes).pictures)?),
            _ => None,
        };
        let few = Few { features, labels: part.labels, unlabelled };
        let names = classes.names(&self.task.classes);
        let options = FitOptions {
            progress: if self.options.quiet || !alone { Progress::Off } else { Progress::Auto },
            interrupt: self.interrupt.clone(),
            // Many short trainings are resumed head by head.
            out: alone.then(|| folder.clone()),
            resume: !self.options.fresh,
            validation: None,
        };
        let trained = Trained::new(method, &self.frozen(&names), &few, recipe, &options)?;
        if trained.report.as_ref().is_some_and(|report| report.outcome == Outcome::Interrupted) {
            return Ok(None);
        }
        let score = self.score(&trained.head, &classes)?;
        let new = self.new_classes(&trained, &classes)?;
        let cell = Cell {
            method,
            shots,
            shots_per_class: if method == Method::ZeroShot { 0.0 } else { per_class },
            seed,
            accuracy: score.accuracy,
            mean_class_accuracy: score.mean_class_accuracy,
            new,
            harmonic_mean: new.map(|new| harmonic_mean(score.accuracy, new)),
            seconds: started.elapsed().as_secs_f64(),
            identity,
        };
        if trained.store.count() > 0 {
            let classes = serde_json::to_string(&names)?;
            let saved = SaveOptions::default().with_metadata("classes", classes).with_metadata("method", method.name());
            trained.store.save_with(folder.join("head.safetensors"), &saved)?;
        }
        let history = trained.report.map_or_else(Vec::new, |report| report.history);
        let tested = self.tested(&classes)?.names(&self.task.classes);
        curves::draw(
            &folder,
            &format!("{}, {}", method.title(), self.task.domains[1]),
            &history,
            &score.confusion,
            &tested,
        )?;
        write_json(&result, &cell)?;
        Ok(Some(cell))
    }

    fn frozen<'a>(&'a self, classes: &'a [String]) -> Frozen<'a> {
        let domains = [self.task.domains[0].as_str(), self.task.domains[1].as_str()];
        Frozen { bundle: &self.model.bundle, classes, templates: &self.templates, domains }
    }

    /// The classes that are trained on: all, or the base classes.
    fn trained_classes(&self) -> Result<ClassSubset, StepError> {
        let all: Vec<u32> = (0..self.task.classes.len() as u32).collect();
        let half = if self.options.data.base_to_new { Half::Base } else { Half::All };
        Ok(ClassSubset::half(&all, half)?)
    }

    /// The labelled pictures, and their positions in the pool.
    fn labelled(
        &self,
        classes: &ClassSubset,
        shots: Option<ShotCount>,
        seed: u64,
    ) -> Result<(Part, Vec<usize>), StepError> {
        let positions = match (&self.task.given, shots) {
            (Some(given), _) => given.clone(),
            (None, Some(ShotCount::Some(per_class))) => Shots::new(per_class, seed).sample(&self.task.pool.labels)?,
            (None, Some(ShotCount::All)) => (0..self.task.pool.labels.len()).collect(),
            // One of each class, which zero-shot does not look at.
            (None, None) => Shots::new(1, seed).sample(&self.task.pool.labels)?,
        };
        let part = self.task.pool.some(&positions).of_classes(classes);
        Ok((part, positions))
    }

    /// Classes among `classes` that the test has, by their labels in the task.
    fn tested(&self, classes: &ClassSubset) -> Result<ClassSubset, StepError> {
        let tested = self.task.tested.labels.iter().filter(|label| classes.labels.contains(label));
        Ok(ClassSubset::new(tested.copied().collect())?)
    }

    /// Evaluates a head for `classes` on the test pictures of those that the test has.
    fn score(&self, head: &Head, classes: &ClassSubset) -> Result<Score, StepError> {
        let tested = self.tested(classes)?;
        let part = self.task.test.of_classes(&tested);
        let logits = head.predict(&self.model.features(&part.pictures)?)?; // (N, K)
        let column = |label: &u32| classes.labels.iter().position(|own| own == label).unwrap_or_default() as u32;
        let columns: Vec<u32> = tested.labels.iter().map(column).collect();
        let logits = logits.index_select(&Tensor::new(columns, logits.device())?, 1)?;
        Ok(Score::new(&logits, &part.labels)?)
    }

    /// Accuracy on the classes that were not trained on.
    fn new_classes(&self, trained: &Trained, base: &ClassSubset) -> Result<Option<f64>, StepError> {
        if !self.options.data.base_to_new {
            return Ok(None);
        }
        let all = 0..self.task.classes.len() as u32;
        let new = ClassSubset::new(all.filter(|label| !base.labels.contains(label)).collect())?;
        let names = new.names(&self.task.classes);
        let head = trained.with_classes(&self.frozen(&names))?;
        Ok(Some(self.score(&head, &new)?.accuracy))
    }
}
