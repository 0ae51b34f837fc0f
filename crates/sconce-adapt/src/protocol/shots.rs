//! A few pictures of each class.

use std::path::Path;

use sconce_nn::Generator;
use serde::{Deserialize, Serialize};

use super::ProtocolError;
use super::rules::by_label;
use crate::{Error, Result};

/// How many pictures of each class are drawn, and how.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Shots {
    /// Pictures of each class: 1, 2, 4, 8 or 16 in the papers.
    pub per_class: usize,
    /// A class with fewer pictures gives all it has; with this it gives `per_class`, drawn with repetition, as Dassl's
    /// `repeat`.
    pub repeat: bool,
    /// Seed of the draw: 1, 2 and 3 in the papers.
    pub seed: u64,
}

impl Shots {
    /// Without repetition.
    pub fn new(per_class: usize, seed: u64) -> Self {
        Self { per_class, repeat: false, seed }
    }

    /// Draws from pictures with these labels: indices into them, class by class. With one seed, the pictures of fewer shots are
    /// among those of more.
    ///
    /// # Errors
    /// [`ProtocolError::Empty`] without pictures, [`ProtocolError::Option`] for no shots.
    pub fn sample(&self, labels: &[u32]) -> Result<Vec<usize>> {
        self.draw(labels, self.per_class, "shots")
    }

    /// Draws validation pictures from another list: as many of each class, but at most four, as CoOp does.
    ///
    /// # Errors
    /// As [`Shots::sample`].
    pub fn sample_validation(&self, labels: &[u32]) -> Result<Vec<usize>> {
        self.draw(labels, self.per_class.min(4), "validation")
    }

    fn draw(&self, labels: &[u32], n: usize, stream: &str) -> Result<Vec<usize>> {
        if n == 0 {
            return Err(ProtocolError::Option("at least one picture of each class is needed".into()).into());
        }
        let generator = Generator::new(self.seed);
        let mut drawn = Vec::new();
        for (label, mut members) in by_label(labels)? {
            let generator = generator.fork(&format!("{stream}/{label}"));
            if members.len() < n && self.repeat {
                drawn.extend((0..n).map(|_| members[generator.index(members.len())]));
                continue;
            }
            generator.shuffle(&mut members);
            drawn.extend(members.into_iter().take(n));
        }
        Ok(drawn)
    }
}

/// Mean number of pictures that the classes among `labels` have: what "16 shots" is where classes are smaller than that.
pub fn shots_per_class(labels: &[u32]) -> f64 {
    by_label(labels).map_or(0.0, |members| labels.len() as f64 / members.len() as f64)
}

/// Lists drawn elsewhere, as positions in the training and validation parts of a split; in JSON
/// `{"train": [3, 1], "val": []}`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Indices {
    /// Positions in the training part, in the order of use; one may repeat.
    pub train: Vec<usize>,
    /// Positions in the validation part.
    #[serde(default)]
    pub val: Vec<usize>,
}

impl Indices {
    /// Reads lists.
    ///
    /// # Errors
    /// [`Error::Io`], [`Error::Json`].
    pub fn read(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        let bytes = std::fs::read(path).map_err(|source| Error::Io { path: path.to_owned(), source })?;
        serde_json::from_slice(&bytes).map_err(|source| Error::Json { path: path.to_owned(), source })
    }

    /// Writes the lists, whole or not at all.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn write(&self, path: impl AsRef<Path>) -> Result<()> {
        let path = path.as_ref();
        sconce_nn::fs::write_atomic(path, |out| Ok(serde_json::to_writer(out, self)?))
            .map_err(|source| Error::Io { path: path.to_owned(), source })
    }

    /// Checks the lists against the sizes of the parts.
    ///
    /// # Errors
    /// [`ProtocolError::Index`], [`ProtocolError::Empty`] for nothing to train on.
    pub fn check(&self, train: usize, val: usize) -> Result<()> {
        if self.train.is_empty() {
            return Err(ProtocolError::Empty { what: "the list of training indices".into() }.into());
        }
        for (indices, len, what) in [(&self.train, train, "the training part"), (&self.val, val, "the validation part")]
        {
            if let Some(&index) = indices.iter().find(|index| **index >= len) {
                return Err(ProtocolError::Index { index, what, len }.into());
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Four classes of 20, 5, 1 and 9 pictures, mixed.
    fn labels() -> Vec<u32> {
        let mut labels: Vec<u32> =
            [(0, 20), (1, 5), (2, 1), (3, 9)].into_iter().flat_map(|(label, n)| vec![label; n]).collect();
        Generator::new(5).shuffle(&mut labels);
        labels
    }

    fn counts(labels: &[u32], drawn: &[usize]) -> [usize; 4] {
        [0, 1, 2, 3].map(|label| drawn.iter().filter(|&&i| labels[i] == label).count())
    }

    #[test]
    fn a_class_gives_at_most_what_it_has() {
        let labels = labels();
        let drawn = Shots::new(8, 1).sample(&labels).unwrap();
        assert_eq!(counts(&labels, &drawn), [8, 5, 1, 8]);
        let mut once = drawn.clone();
        once.sort_unstable();
        once.dedup();
        assert_eq!(once.len(), drawn.len());
        let of_drawn: Vec<u32> = drawn.iter().map(|&i| labels[i]).collect();
        assert_eq!(shots_per_class(&of_drawn), 5.5);
    }

    #[test]
    fn with_repetition_every_class_gives_as_many() {
        let labels = labels();
        let drawn = Shots { repeat: true, ..Shots::new(8, 1) }.sample(&labels).unwrap();
        assert_eq!(counts(&labels, &drawn), [8, 8, 8, 8]);
    }

    #[test]
    fn the_seed_decides_and_fewer_shots_are_among_more() {
        let labels = labels();
        let four = Shots::new(4, 2).sample(&labels).unwrap();
        assert_eq!(four, Shots::new(4, 2).sample(&labels).unwrap());
        assert_ne!(four, Shots::new(4, 3).sample(&labels).unwrap());
        let eight = Shots::new(8, 2).sample(&labels).unwrap();
        assert!(four.iter().all(|i| eight.contains(i)));
    }

    #[test]
    fn validation_has_at_most_four_of_a_class() {
        let labels = labels();
        let drawn = |n| counts(&labels, &Shots::new(n, 1).sample_validation(&labels).unwrap());
        assert_eq!((drawn(1), drawn(16)), ([1, 1, 1, 1], [4, 4, 1, 4]));
    }

    #[test]
    fn lists_from_elsewhere_are_checked() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("shot_1-seed_1.json");
        let indices = Indices { train: vec![4, 0, 4], val: vec![1] };
        indices.write(&path).unwrap();
        assert_eq!(Indices::read(&path).unwrap(), indices);
        indices.check(5, 2).unwrap();
        for (train, val) in [(4, 2), (5, 1)] {
            let found = indices.check(train, val);
            assert!(matches!(found, Err(Error::Protocol(ProtocolError::Index { .. }))));
        }
        std::fs::write(&path, r#"{"train": [-1]}"#).unwrap();
        assert!(matches!(Indices::read(&path), Err(Error::Json { .. })));
        assert!(matches!(Indices::default().check(1, 1), Err(Error::Protocol(ProtocolError::Empty { .. }))));
    }

    #[test]
    fn nothing_to_draw_is_an_error() {
        assert!(matches!(Shots::new(0, 1).sample(&[0]), Err(Error::Protocol(ProtocolError::Option(_)))));
        assert!(matches!(Shots::new(1, 1).sample(&[]), Err(Error::Protocol(ProtocolError::Empty { .. }))));
    }
}
