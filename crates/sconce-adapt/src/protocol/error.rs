//! What can be wrong with a list of pictures.

use std::path::PathBuf;

/// Errors of lists, splits and class names.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ProtocolError {
    /// A list without a picture.
    #[error("there is no picture in {what}")]
    Empty {
        /// Which list.
        what: String,
    },
    /// A class that must have pictures has none.
    #[error("class {label} (`{class}`) has no picture in {what}")]
    EmptyClass {
        /// Its label.
        label: u32,
        /// Its name.
        class: String,
        /// Which list.
        what: String,
    },
    /// Labels that are not `0, 1, 2, ...`.
    #[error("no picture has the label {missing}, though there are labels up to {last}")]
    LabelGap {
        /// The first label that does not occur.
        missing: u32,
        /// The highest label.
        last: u32,
    },
    /// A label with two class names.
    #[error("label {label} is called both `{first}` and `{second}`")]
    TwoNames {
        /// The label.
        label: u32,
        /// Its name at first.
        first: String,
        /// Its name later on.
        second: String,
    },
    /// A path that is absolute or climbs out of the root with `..`.
    #[error("the path {path:?} leaves the data set's root")]
    LeavesRoot {
        /// The path as it was given.
        path: String,
    },
    /// A path that a split file cannot hold.
    #[error("the path {} is not UTF-8", .path.display())]
    NotUtf8 {
        /// The path.
        path: PathBuf,
    },
    /// Pictures of the list that are not there.
    #[error("{count} pictures of the list are not in {}: {}{}", .root.display(), .first.join(", "), if .count > &.first.len() { ", ..." } else { "" })]
    MissingFiles {
        /// The data set's root.
        root: PathBuf,
        /// How many there are.
        count: usize,
        /// The names of the first of them.
        first: Vec<String>,
    },
    /// An index past the end of the list that it points into.
    #[error("index {index} in {what}, which has {len} pictures")]
    Index {
        /// The index.
        index: usize,
        /// Which list.
        what: &'static str,
        /// Its length.
        len: usize,
    },
    /// A class has too few pictures for every part to get one.
    #[error("class {label} has {count} pictures: too few to be split {rule}")]
    TooFew {
        /// Its label.
        label: u32,
        /// Its pictures.
        count: usize,
        /// The shares of the parts.
        rule: String,
    },
    /// Class names that the other data set does not have.
    #[error("the classes to evaluate have no counterpart by name: {}", .names.join(", "))]
    UnknownClasses {
        /// Their names.
        names: Vec<String>,
    },
    /// A class name that stands for several classes.
    #[error("the class name `{name}` belongs to the classes {labels:?}: which is meant?")]
    Ambiguous {
        /// The name.
        name: String,
        /// The labels that have it.
        labels: Vec<u32>,
    },
    /// An option without meaning: no shots, a share that is not between 0 and 1.
    #[error("{0}")]
    Option(String),
}
