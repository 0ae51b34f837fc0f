//! One head: its pictures, its training, its test.

use std::path::Path;
use std::time::Instant;

use sconce::adapt::FitOptions;
use sconce::adapt::features::Digest;
use sconce::adapt::protocol::{ClassSubset, Half, Score, Shots, harmonic_mean, shots_per_class};
use sconce::candle::Tensor;
use sconce::nn::SaveOptions;
use sconce::train::{Interrupt, Outcome, Progress, StepError};
use serde::{Deserialize, Serialize};

use super::cells::Wanted;
use super::curves;
use super::embed::Model;
use super::head::{Few, Frozen, Head, Trained};
use super::options::{Method, Options, ShotCount};
use super::recipe::Recipe;
use super::task::{Part, Task};
use crate::{Error, write_json};

/// How well one head does.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Cell {
    /// Which one.
    #[serde(flatten)]
    pub wanted: Wanted,
    /// Mean number of labelled pictures of a class that there were.
    pub shots_per_class: f64,
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

/// What all heads of a run have in common.
#[derive(Debug)]
pub struct Run<'a> {
    options: &'a Options,
    model: &'a Model,
    task: &'a Task,
    templates: &'a [String],
    interrupt: &'a Interrupt,
    /// The run is for one head.
    alone: bool,
    /// The classes that are trained on: all, or the base classes.
    classes: ClassSubset,
    identity: String,
}

impl<'a> Run<'a> {
    /// A run; with `alone` a training is kept after each epoch, else head by head.
    ///
    /// # Errors
    /// Too few classes for --base-to-new.
    pub fn new(
        options: &'a Options,
        model: &'a Model,
        task: &'a Task,
        templates: &'a [String],
        interrupt: &'a Interrupt,
        alone: bool,
    ) -> Result<Self, StepError> {
        let all: Vec<u32> = (0..task.classes.len() as u32).collect();
        let half = if options.data.base_to_new { Half::Base } else { Half::All };
        let (data, training) = (&options.data, &options.training);
        let described = [&task.pool, &task.test].map(Part::described).concat();
        let pictures = Digest::of(&[described.as_bytes()]).hex();
        let identity = format!("{} {pictures} {data:?} {training:?} {templates:?}", model.digest);
        let classes = ClassSubset::half(&all, half)?;
        Ok(Self { options, model, task, templates, interrupt, alone, classes, identity })
    }

    /// The result of a head, from its folder or anew. Nothing when it was interrupted.
    ///
    /// # Errors
    /// Pictures that cannot be read; those of training; files that cannot be written.
    pub fn cell(&self, wanted: &Wanted) -> Result<Option<Cell>, StepError> {
        if self.interrupt.is_requested() {
            return Ok(None);
        }
        let (Wanted { method, shots, .. }, seed) = (*wanted, wanted.seed.unwrap_or(1));
        let folder = self.options.out.join("cells").join(wanted.folder());
        std::fs::create_dir_all(&folder).map_err(|error| Error::new(format!("{}: {error}", folder.display())))?;
        let result = folder.join("result.json");
        let (part, positions) = self.labelled(shots, seed)?;
        let per_class = shots_per_class(&part.labels);
        let small = self.options.data.model.is_none();
        let recipe = Recipe::new(method, per_class.round() as usize, seed, small, &self.options.training);
        let identity = format!("{} {recipe:?} {positions:?}", self.identity);
        if let (Some(cell), false) = (known(&result, &identity), self.options.fresh) {
            return Ok(Some(cell));
        }

        let started = Instant::now();
        let names = self.classes.names(&self.task.classes);
        let few = self.few(method, part, recipe.views, seed)?;
        let trained = Trained::new(method, &self.frozen(&names), &few, recipe, &self.fit_options(&folder))?;
        if trained.report.as_ref().is_some_and(|report| report.outcome == Outcome::Interrupted) {
            return Ok(None);
        }
        let score = self.score(&trained.head, &self.classes)?;
        let new = self.new_classes(&trained)?;
        let cell = Cell {
            wanted: *wanted,
            shots_per_class: if method == Method::ZeroShot { 0.0 } else { per_class },
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
        let tested = self.tested(&self.classes)?.names(&self.task.classes);
        let title = format!("{wanted}, {}", self.task.domains[1]);
        curves::draw(&folder, &title, &history, &score.confusion, &tested)?;
        write_json(&result, &cell)?;
        forget(&folder);
        Ok(Some(cell))
    }

    /// The labelled pictures, and their positions in the pool.
    fn labelled(&self, shots: Option<ShotCount>, seed: u64) -> Result<(Part, Vec<usize>), StepError> {
        let pool = &self.task.pool;
        let positions = match (&self.task.given, shots) {
            (Some(given), _) => given.clone(),
            (None, Some(ShotCount::Some(per_class))) => Shots::new(per_class, seed).sample(&pool.labels)?,
            (None, Some(ShotCount::All)) => (0..pool.labels.len()).collect(),
            (None, None) => vec![0],
        };
        Ok((pool.some(&positions).of_classes(&self.classes), positions))
    }

    fn few(&self, method: Method, part: Part, views: u32, seed: u64) -> Result<Few, StepError> {
        let least_area = self.options.training.view_area;
        let features = self.model.views(&part.pictures, views, least_area, seed)?;
        let unlabelled = match &self.task.unlabelled {
            Some(part) if method.needs_target() => Some(self.model.features(&part.of_classes(&self.classes).pictures)?),
            _ => None,
        };
        Ok(Few { features, labels: part.labels, unlabelled })
    }

    fn fit_options(&self, folder: &Path) -> FitOptions {
        let Options { quiet, fresh, .. } = *self.options;
        FitOptions {
            progress: if quiet || !self.alone { Progress::Off } else { Progress::Auto },
            interrupt: self.interrupt.clone(),
            out: self.alone.then(|| folder.to_owned()),
            resume: !fresh,
            validation: None,
        }
    }

    fn frozen<'b>(&'b self, classes: &'b [String]) -> Frozen<'b> {
        let domains = match self.options.training.domains.as_slice() {
            [source, target] => [source.as_str(), target.as_str()],
            _ => self.task.domains.each_ref().map(|domain| domain_words(domain)),
        };
        Frozen { bundle: &self.model.bundle, classes, templates: self.templates, domains }
    }

    /// Those of the classes that the test has, by their labels in the task.
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
    fn new_classes(&self, trained: &Trained) -> Result<Option<f64>, StepError> {
        if !self.options.data.base_to_new {
            return Ok(None);
        }
        let all = 0..self.task.classes.len() as u32;
        let new = ClassSubset::new(all.filter(|label| !self.classes.labels.contains(label)).collect())?;
        let names = new.names(&self.task.classes);
        let head = trained.with_classes(&self.frozen(&names))?;
        Ok(Some(self.score(&head, &new)?.accuracy))
    }
}

/// A result that is there and depends on the same.
fn known(path: &Path, identity: &str) -> Option<Cell> {
    let cell: Cell = serde_json::from_slice(&std::fs::read(path).ok()?).ok()?;
    (cell.identity == identity).then_some(cell)
}

/// Checkpoints of a finished training are of no more use; one that stays does no harm but to the disk.
pub(super) fn forget(folder: &Path) {
    let _ = std::fs::remove_dir_all(folder.join("checkpoints"));
}

/// What a domain is called in a prompt: a drawing style in a word that the small model knows, the last part of a path.
fn domain_words(domain: &str) -> &str {
    match domain {
        "fluent-3d" => "3d",
        "fluent-flat" => "flat",
        "fluent-line" => "line",
        "noto" => "new",
        "noto-v1" => "old",
        other => other.trim_end_matches('/').rsplit('/').next().unwrap_or(other),
    }
}
