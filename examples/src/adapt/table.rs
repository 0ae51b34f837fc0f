//! Results of all methods, shots and seeds together.

use std::fmt::Write;
use std::path::Path;

use sconce::adapt::protocol::OverSeeds;
use sconce::train::StepError;
use serde::Serialize;

use super::cell::Cell;
use super::options::{Method, ShotCount};
use super::task::Task;
use crate::{write_json, write_text};

/// One method with one number of shots, over its seeds; fractions.
#[derive(Debug, Clone, Serialize)]
pub struct Entry {
    /// The method.
    pub method: Method,
    /// Labelled pictures of each class asked for.
    pub shots: Option<ShotCount>,
    /// Mean number that there were.
    pub shots_per_class: f64,
    /// Top-1; of the base classes with --base-to-new.
    pub accuracy: OverSeeds,
    /// Mean over classes.
    pub mean_class_accuracy: OverSeeds,
    /// Of the classes that were not trained on.
    pub new: Option<OverSeeds>,
    /// Harmonic mean of base and new.
    pub harmonic_mean: Option<OverSeeds>,
    /// Mean top-1 above zero-shot's, where that was evaluated.
    pub above_zero_shot: Option<f64>,
    /// Whether that is more than the spread over the seeds.
    pub above_spread: Option<bool>,
    /// Mean seconds of a training and its test.
    pub seconds: f64,
}

/// All results.
#[derive(Debug, Clone, Serialize)]
pub struct Table {
    /// Names of source and target.
    pub domains: [String; 2],
    /// Number of classes.
    pub classes: usize,
    /// Pictures tested on.
    pub tested: usize,
    /// One over the number of classes.
    pub chance: f64,
    /// In the order of the command line.
    pub entries: Vec<Entry>,
}

impl Table {
    /// Puts cells together.
    ///
    /// # Errors
    /// Results that are no numbers.
    pub fn new(task: &Task, cells: Vec<Cell>) -> Result<Self, StepError> {
        let zero_shot = cells.iter().find(|cell| cell.wanted.method == Method::ZeroShot).map(|cell| cell.accuracy);
        let mut entries = Vec::new();
        for group in cells.chunk_by(|a, b| (a.wanted.method, a.wanted.shots) == (b.wanted.method, b.wanted.shots)) {
            let over = |value: &dyn Fn(&Cell) -> Option<f64>| -> Result<Option<OverSeeds>, StepError> {
                let values: Vec<f64> = group.iter().filter_map(value).collect();
                Ok(if values.is_empty() { None } else { Some(OverSeeds::new(values)?) })
            };
            let mean = |value: fn(&Cell) -> f64| group.iter().map(value).sum::<f64>() / group.len() as f64;
            let (method, shots) = (group[0].wanted.method, group[0].wanted.shots);
            let accuracy = OverSeeds::new(group.iter().map(|cell| cell.accuracy).collect())?;
            let above = zero_shot.filter(|_| method != Method::ZeroShot).map(|zero_shot| accuracy.mean - zero_shot);
            entries.push(Entry {
                method,
                shots,
                shots_per_class: mean(|cell| cell.shots_per_class),
                mean_class_accuracy: OverSeeds::new(group.iter().map(|cell| cell.mean_class_accuracy).collect())?,
                new: over(&|cell| cell.new)?,
                harmonic_mean: over(&|cell| cell.harmonic_mean)?,
                above_zero_shot: above,
                above_spread: above.map(|above| above > accuracy.std),
                seconds: mean(|cell| cell.seconds),
                accuracy,
            });
        }
        let classes = task.tested.labels.len();
        Ok(Self {
            domains: task.domains.clone(),
            classes,
            tested: task.test.labels.len(),
            chance: 1.0 / classes as f64,
            entries,
        })
    }

    /// Markdown: a row for each method, a column for each number of shots; with --base-to-new a row for each of both.
    #[must_use]
    pub fn markdown(&self) -> String {
        let percent = |over: &OverSeeds| match over.values.len() {
            1 => format!("{:.1}", 100.0 * over.mean),
            _ => format!("{:.1} ± {:.1}", 100.0 * over.mean, 100.0 * over.std),
        };
        let mut text = String::new();
        if self.entries.iter().any(|entry| entry.new.is_some()) {
            text += "| method | shots | base | new | harmonic mean |\n| --- | --- | --- | --- | --- |\n";
            for entry in &self.entries {
                let shots = entry.shots.map_or_else(|| "0".to_owned(), |shots| shots.to_string());
                let cells = [Some(&entry.accuracy), entry.new.as_ref(), entry.harmonic_mean.as_ref()];
                let cells = cells.map(|over| over.map_or_else(String::new, percent));
                let _ = writeln!(text, "| {} | {shots} | {} |", entry.method.title(), cells.join(" | "));
            }
            return text;
        }
        let mut columns: Vec<ShotCount> = self.entries.iter().filter_map(|entry| entry.shots).collect();
        columns.sort_unstable();
        columns.dedup();
        if columns.is_empty() {
            text += "| method | top-1 (%) |\n| --- | --- |\n";
            for entry in &self.entries {
                let _ = writeln!(text, "| {} | {} |", entry.method.title(), percent(&entry.accuracy));
            }
            return text;
        }
        let heads: Vec<String> = columns
            .iter()
            .map(|shots| {
                let entry = self.entries.iter().find(|entry| entry.shots == Some(*shots));
                let mean = entry.map_or(0.0, |entry| entry.shots_per_class);
                match shots {
                    ShotCount::Some(count) if (mean - *count as f64).abs() < 0.05 => shots.in_words(),
                    _ => format!("{} ({mean:.1} on average)", shots.in_words()),
                }
            })
            .collect();
        let _ = writeln!(text, "| top-1 (%) | {} |", heads.join(" | "));
        let _ = writeln!(text, "| --- |{}", " --- |".repeat(columns.len()));
        let mut methods: Vec<Method> = self.entries.iter().map(|entry| entry.method).collect();
        methods.dedup();
        for method in methods {
            let cell = |shots: &ShotCount| {
                // Zero-shot is the same for any number.
                let own = |entry: &&Entry| entry.method == method && entry.shots.is_none_or(|own| own == *shots);
                self.entries.iter().find(own).map_or_else(String::new, |entry| percent(&entry.accuracy))
            };
            let _ =
                writeln!(text, "| {} | {} |", method.title(), columns.iter().map(cell).collect::<Vec<_>>().join(" | "));
        }
        text
    }

    /// What is said of methods that are not better than zero-shot by more than their spread.
    #[must_use]
    pub fn not_above(&self) -> Vec<String> {
        let below = self.entries.iter().filter(|entry| entry.above_spread == Some(false));
        let said = |entry: &Entry| {
            let above = entry.above_zero_shot.unwrap_or_default();
            let shots = entry.shots.map_or_else(String::new, |shots| format!(" at {}", shots.in_words()));
            let (title, above, std) = (entry.method.title(), 100.0 * above, 100.0 * entry.accuracy.std);
            format!("{title}{shots} is {above:+.1} points from zero-shot, spread {std:.1}")
        };
        below.map(said).collect()
    }

    /// Writes `table.md`, `figures.json` and, with the feature `plot`, `shots.svg`.
    ///
    /// # Errors
    /// Files that cannot be written.
    pub fn write(&self, out: &Path) -> Result<(), StepError> {
        write_text(&out.join("table.md"), &self.markdown())?;
        write_json(&out.join("figures.json"), self)?;
        #[cfg(feature = "plot")]
        self.draw(out)?;
        Ok(())
    }

    #[cfg(feature = "plot")]
    fn draw(&self, out: &Path) -> Result<(), StepError> {
        use sconce::plot::{Axis, Chart, Series};
        let shots = |entry: &Entry| match entry.shots {
            Some(ShotCount::Some(count)) => Some(count as f64),
            _ => None,
        };
        let mut ticks: Vec<f64> = self.entries.iter().filter_map(shots).collect();
        ticks.sort_by(f64::total_cmp);
        ticks.dedup();
        let mut methods: Vec<Method> = self.entries.iter().map(|entry| entry.method).collect();
        methods.dedup();
        let mut series = Vec::new();
        for method in methods {
            let own = self.entries.iter().filter(|entry| entry.method == method);
            let point = |entry: &Entry| {
                let (y, spread) = (100.0 * entry.accuracy.mean, 100.0 * entry.accuracy.std);
                match shots(entry) {
                    Some(x) => vec![(x, y, spread)],
                    // Zero-shot is a line across.
                    None if entry.shots.is_none() => ticks.iter().map(|x| (*x, y, 0.0)).collect(),
                    None => vec![],
                }
            };
            let points: Vec<_> = own.flat_map(point).collect();
            if !points.is_empty() {
                series.push(Series::new(method.title(), points));
            }
        }
        if ticks.len() < 2 {
            return Ok(());
        }
        let title = format!("{} classes, tested on {} pictures of {}", self.classes, self.tested, self.domains[1]);
        let x = Axis::log("labelled pictures of each class").with_ticks(ticks);
        Chart { title, x, y: Axis::linear("top-1 (%)"), series }.svg()?.write(out.join("shots.svg"))?;
        Ok(())
    }
}
