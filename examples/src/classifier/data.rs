//! Labelled pictures from folders, idx files and WebDataset shards.

mod open;
mod split;

use std::path::PathBuf;
use std::sync::Arc;

use clap::Args;
use image::RgbImage;
use sconce::data::{Dataset, Generator, ImageFolder, Result as DataResult, WebDataset};
use serde::{Deserialize, Serialize};

use crate::{Error, emoji};

/// Which pictures, and which of them are kept from training.
#[derive(Debug, Clone, PartialEq, Args, Serialize, Deserialize)]
pub struct DataOptions {
    /// Training pictures: a folder of class folders, one with `train` and `test` or `val` of these, a folder or a file of idx
    /// arrays (train-images-idx3-ubyte, gzipped or not), a folder or a file of WebDataset shards (.tar, .tar.gz).
    #[arg(long, default_value_os_t = emoji::assets().join("fashion-mnist"))]
    #[serde(skip)]
    pub data: PathBuf,
    /// Test pictures, where they do not lie beside the training pictures.
    #[arg(long)]
    #[serde(skip)]
    pub test: Option<PathBuf>,
    /// Share of every class that is taken from the training pictures for the test, where there are no test pictures.
    #[arg(long, conflicts_with = "test")]
    pub holdout: Option<f64>,
    /// Share of every class that is taken from the training pictures for validation.
    #[arg(long, default_value_t = 0.0)]
    pub validation: f64,
    /// Number of classes. [default: as many as the training pictures have]
    #[arg(long)]
    pub num_classes: Option<usize>,
    /// Field of the shards' json with the class. [default: the member `cls` with its number]
    #[arg(long)]
    pub label_key: Option<String>,
    /// Train on this many pictures only, spread over the data.
    #[arg(long)]
    pub limit: Option<usize>,
}

/// Pictures with class numbers.
#[derive(Debug)]
pub struct Labelled {
    source: Source,
    labels: Vec<u32>,
}

#[derive(Debug)]
enum Source {
    Memory(Vec<RgbImage>),
    Folder(ImageFolder),
    Shards(WebDataset),
}

impl Labelled {
    /// The class of every picture.
    pub fn labels(&self) -> &[u32] {
        &self.labels
    }

    /// Whether the pictures are arrays of a few pixels rather than photographs.
    pub fn is_idx(&self) -> bool {
        matches!(self.source, Source::Memory(_))
    }
}

impl Dataset for Labelled {
    type Item = (RgbImage, u32);

    fn len(&self) -> usize {
        self.labels.len()
    }

    fn get(&self, index: usize, generator: &Generator) -> DataResult<Self::Item> {
        let len = self.labels.len();
        let label = *self.labels.get(index).ok_or(sconce::data::Error::OutOfRange { index, len })?;
        let picture = match &self.source {
            Source::Memory(pictures) => pictures[index].clone(),
            Source::Folder(folder) => folder.get(index, generator)?.0.into_rgb(),
            Source::Shards(shards) => shards.sample(index)?.picture()?.into_rgb(),
        };
        Ok((picture, label))
    }
}

/// The pictures of a training in their parts.
#[derive(Debug, Clone)]
pub struct Data {
    /// Class names; a label is an index into them.
    pub classes: Vec<String>,
    /// What training and validation are taken from.
    pub pictures: Arc<Labelled>,
    /// The pictures to train on.
    pub train: Vec<usize>,
    /// Pictures that select weights.
    pub validation: Vec<usize>,
    /// What the test pictures are taken from.
    pub test_pictures: Arc<Labelled>,
    /// The pictures that are looked at in the end.
    pub test: Vec<usize>,
}

impl Data {
    /// Opens and splits the data. The splits are the same for every seed.
    ///
    /// # Errors
    /// What cannot be read, no test pictures, labels that are no class, shares that leave nothing.
    pub fn open(options: &DataOptions) -> Result<Self, Error> {
        let found = open::locate(&options.data)?;
        let (pictures, classes) = open::labelled(&found.train, options, None)?;
        let pictures = Arc::new(pictures);
        let mut train: Vec<usize> = (0..pictures.len()).collect();
        let generator = Generator::new(0).fork("split");
        let test_path = options.test.clone().or(found.test);
        let (test_pictures, test) = match (test_path, options.holdout) {
            (None, None) => {
                let data = options.data.display();
                let message = format!("{data}: no test pictures; give --test PATH, or --holdout 0.2 to keep some back");
                return Err(Error::new(message));
            }
            (_, Some(share)) => {
                let (rest, held) = split::stratified(pictures.labels(), &train, share, &generator.fork("test"))?;
                train = rest;
                (Arc::clone(&pictures), held)
            }
            (Some(path), None) => {
                let (test, _) = open::labelled(&path, options, Some(&classes))?;
                let all = (0..test.len()).collect();
                (Arc::new(test), all)
            }
        };
        let (train, validation) = match options.validation {
            0.0 => (train, Vec::new()),
            share => split::stratified(pictures.labels(), &train, share, &generator.fork("validation"))?,
        };
        let train = split::spread(train, options.limit);
        for (what, part) in [("to train on", &train), ("to test on", &test)] {
            if part.is_empty() {
                return Err(Error::new(format!("{}: no picture {what}", options.data.display())));
            }
        }
        Ok(Self { classes, pictures, train, validation, test_pictures, test })
    }
}
