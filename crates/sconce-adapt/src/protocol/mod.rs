//! The few-shot protocol of Zhou et al. 2022 (`arXiv:2109.01134`): who is trained on what, and how it is counted.
//!
//! | step | here |
//! | --- | --- |
//! | pictures with labels and class names | [`Item`], [`Split`]: `split_zhou_<Name>.json`, or a folder for each class |
//! | no split is given | [`split_three`] (50/20/30), [`split_two`] (80/20) |
//! | 1, 2, 4, 8 or 16 pictures of each class | [`Shots`]; [`Indices`] for lists drawn elsewhere |
//! | classes not trained on, other data sets | [`ClassSubset`], [`match_classes`], [`harmonic_mean`] |
//! | accuracy, mean over seeds | [`Score`], [`OverSeeds`] |
//!
//! What works on labels takes `&[u32]`, so that it serves data sets that are no files as well. A label is an index into the
//! class names. Everything drawn depends on the seed and the labels alone. The official code draws with Python's `random`
//! after other draws, which nothing outside of that process can repeat: give its pickled lists as [`Indices`] or as a
//! [`Split`].
//!
//! ```
//! use sconce_adapt::protocol::{ClassSubset, Half, Shots, split_two};
//!
//! let labels: Vec<u32> = (0..60).map(|i| i % 5).collect(); // 12 pictures in each of 5 classes
//! let (train, test) = split_two(&labels, 0.5, 1)?;
//! let pool: Vec<u32> = train.iter().map(|&i| labels[i]).collect();
//! let shots = Shots::new(4, 1).sample(&pool)?; // positions in `pool`
//! assert_eq!((test.len(), shots.len()), (30, 20));
//!
//! let base = ClassSubset::half(&labels, Half::Base)?; // 3 of 5 classes
//! assert_eq!(base.names(&["a", "b", "c", "d", "e"]), ["a", "b", "c"]);
//! # Ok::<(), sconce_adapt::Error>(())
//! ```

mod classes;
mod error;
mod item;
mod rules;
mod score;
mod shots;

pub use classes::{ClassSubset, Half, harmonic_mean, match_classes};
pub use error::ProtocolError;
pub use item::{Item, Split, check_files, class_folders, class_names, labels, resolve};
pub use rules::{Parts, split_three, split_two};
pub use score::{OverSeeds, Score};
pub use shots::{Indices, Shots, shots_per_class};
