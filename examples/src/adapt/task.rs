//! Which pictures, which classes, and who is tested on what.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use sconce::adapt::protocol::{
    ClassSubset, Half, Indices, Split, check_files, class_folders, class_names, labels, match_classes, resolve,
    split_two,
};
use sconce::data::Picture;
use sconce::train::StepError;

use super::embed::Pictures;
use super::options::DataOptions;
use crate::Error;
use crate::emoji::{self, TEST_DOMAIN, TRAIN_DOMAINS, subcategory_words};
use crate::pictures::warn;

/// Labelled pictures.
#[derive(Debug, Clone)]
pub struct Part {
    /// The pictures.
    pub pictures: Pictures,
    /// An index into the task's classes for each.
    pub labels: Vec<u32>,
    /// A name for each: a caption or a path.
    pub names: Vec<String>,
}

impl Part {
    /// Some of the pictures.
    #[must_use]
    pub fn some(&self, indices: &[usize]) -> Self {
        Self {
            pictures: self.pictures.some(indices),
            labels: indices.iter().map(|&i| self.labels[i]).collect(),
            names: indices.iter().map(|&i| self.names[i].clone()).collect(),
        }
    }

    /// Everything that tells these pictures from others.
    #[must_use]
    pub fn described(&self) -> String {
        format!("{:?} {:?} {}", self.names, self.labels, self.pictures.described())
    }

    /// The pictures of some classes, with their labels among these.
    #[must_use]
    pub fn of_classes(&self, classes: &ClassSubset) -> Self {
        let (indices, labels) = classes.relabel(&self.labels);
        Self { labels, ..self.some(&indices) }
    }

    /// A part taken from each class: the rest, and what was taken.
    fn halves(&self, share: f64, seed: u64) -> Result<(Self, Self), StepError> {
        let (rest, taken) = split_two(&self.labels, share, seed)?;
        Ok((self.some(&rest), self.some(&taken)))
    }
}

/// A classification task.
#[derive(Debug, Clone)]
pub struct Task {
    /// The classes in words.
    pub classes: Vec<String>,
    /// What labelled pictures are drawn from.
    pub pool: Part,
    /// Positions in the pool that are given instead of drawn.
    pub given: Option<Vec<usize>>,
    /// Pictures of the target whose labels are not used.
    pub unlabelled: Option<Part>,
    /// What is evaluated on, with labels among the classes.
    pub test: Part,
    /// The classes that occur in the test where it has some of them only, as ImageNet-A has of ImageNet.
    pub tested: ClassSubset,
    /// Names of the source and of the target.
    pub domains: [String; 2],
}

/// Pictures by the names of their classes.
struct Labelled {
    part: Part,
    classes: Vec<String>,
}

impl Task {
    /// Finds the pictures that the options ask for.
    ///
    /// # Errors
    /// Files that are not there, classes too small to be split, a style or folder that does not exist.
    pub fn load(options: &DataOptions) -> Result<Self, StepError> {
        if let (Some(split), Some(root)) = (&options.split, &options.root) {
            return Self::of_split(options, split, root);
        }
        let source = match (&options.images, &options.source) {
            (Some(folder), _) => folder.display().to_string(),
            (None, Some(style)) => style.clone(),
            (None, None) => TEST_DOMAIN.to_owned(),
        };
        let target = options.target.clone().unwrap_or_else(|| source.clone());
        let evaluated = load(&target, options.least)?;
        let (rest, test) = evaluated.part.halves(options.test_share, options.split_seed)?;
        let task = if target == source {
            Self {
                tested: ClassSubset::half(&test.labels, Half::All)?,
                classes: evaluated.classes,
                pool: rest,
                given: None,
                unlabelled: None,
                test,
                domains: [source, target],
            }
        } else {
            // Drawings: of the source those in the target's classes. Folders: of the target those in the source's.
            let least = if Path::new(&source).is_dir() { options.least } else { 1 };
            let labelled = load(&source, least)?;
            let (classes, pool, tested) = if Path::new(&source).is_dir() {
                let tested = ClassSubset::new(match_classes(&labelled.classes, &evaluated.classes)?)?;
                (labelled.classes, labelled.part, tested)
            } else {
                let kept = ClassSubset::new(match_classes(&labelled.classes, &evaluated.classes)?)?;
                let tested = ClassSubset::half(&test.labels, Half::All)?;
                (evaluated.classes, labelled.part.of_classes(&kept), tested)
            };
            let renamed = |mut part: Part| {
                if Path::new(&source).is_dir() {
                    part.labels.iter_mut().for_each(|label| *label = tested.labels[*label as usize]);
                }
                part
            };
            let (unlabelled, test) = (Some(renamed(rest)), renamed(test));
            Self { classes, pool, given: None, unlabelled, test, tested, domains: [source, target] }
        };
        task.tuned(options)
    }

    fn of_split(options: &DataOptions, file: &Path, root: &Path) -> Result<Self, StepError> {
        let split = Split::read(file)?;
        check_files(root, split.items())?;
        let part = |items: &[sconce::adapt::protocol::Item]| {
            let paths = items.iter().map(|item| resolve(root, item)).collect::<Result<Vec<_>, _>>()?;
            let names = items.iter().map(|item| item.path.clone()).collect();
            Ok::<_, StepError>(Part { pictures: Pictures::Files(paths), labels: labels(items), names })
        };
        let given = match &options.indices {
            Some(path) => {
                let indices = Indices::read(path)?;
                indices.check(split.train.len(), split.val.len())?;
                Some(indices.train)
            }
            None => None,
        };
        let (pool, test) = (part(&split.train)?, part(&split.test)?);
        let name = file.display().to_string();
        let tested = ClassSubset::half(&test.labels, Half::All)?;
        let classes = split.classes()?.iter().map(|class| class.replace('_', " ")).collect();
        let domains = [name.clone(), name];
        Self { classes, pool, given, unlabelled: None, test, tested, domains }.tuned(options)
    }

    /// With --tune, half of the pictures that are learned from take the place of the test.
    fn tuned(self, options: &DataOptions) -> Result<Self, StepError> {
        if !options.tune {
            return Ok(self);
        }
        if self.given.is_some() {
            return Err(Error::new("--tune divides the training pictures, of which --indices gives a list").into());
        }
        Ok(match &self.unlabelled {
            Some(unlabelled) => {
                let (unlabelled, test) = unlabelled.halves(0.5, options.split_seed)?;
                Self { unlabelled: Some(unlabelled), test, ..self }
            }
            None => {
                let (pool, test) = self.pool.halves(0.5, options.split_seed)?;
                Self { pool, test, ..self }
            }
        })
    }
}

/// A drawing style of the repository, or class folders.
fn load(name: &str, least: usize) -> Result<Labelled, StepError> {
    let styles = || TRAIN_DOMAINS.iter().chain(&[TEST_DOMAIN]);
    if styles().any(|style| *style == name) {
        return drawings(name, least);
    }
    let root = Path::new(name);
    if !root.is_dir() {
        let styles: Vec<_> = styles().copied().collect();
        let message = format!("{name} is neither a folder nor a drawing style ({})", styles.join(", "));
        return Err(Error::new(message).into());
    }
    let items = class_folders(root)?;
    let paths = items.iter().map(|item| resolve(root, item)).collect::<Result<Vec<PathBuf>, _>>()?;
    let names = items.iter().map(|item| item.path.clone()).collect();
    let classes = class_names(&items)?.iter().map(|class| class.replace('_', " ")).collect();
    Ok(Labelled { part: Part { pictures: Pictures::Files(paths), labels: labels(&items), names }, classes })
}

/// The repository's drawings in one style, by subcategory.
fn drawings(style: &str, least: usize) -> Result<Labelled, StepError> {
    let (emoji, report) = emoji::load(&emoji::assets().join("emoji"), &[style])?;
    warn(&report);
    let mut members = BTreeMap::<String, Vec<usize>>::new();
    for (index, one) in emoji.iter().enumerate() {
        members.entry(subcategory_words(&one.caption.subcategory)).or_default().push(index);
    }
    members.retain(|_, indices| indices.len() >= least);
    if members.is_empty() {
        return Err(Error::new(format!("no subcategory of {style} has {least} pictures")).into());
    }
    let mut part = Part { pictures: Pictures::Memory(vec![]), labels: vec![], names: vec![] };
    let mut pictures = Vec::new();
    for (label, indices) in (0..).zip(members.values()) {
        for one in indices.iter().map(|&i| &emoji[i]) {
            pictures.push(Picture::from(one.picture.clone()));
            part.labels.push(label);
            part.names.push(one.caption.name.clone());
        }
    }
    part.pictures = Pictures::Memory(pictures);
    Ok(Labelled { part, classes: members.into_keys().collect() })
}
