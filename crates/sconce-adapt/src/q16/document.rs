//! What a data set holds of a kind of pictures: lists and word clouds in a folder.

use std::fmt::Write;
use std::path::Path;

use sconce_nn::fs::write_atomic;
use serde::{Deserialize, Serialize};

use super::words::{Unseen, Weighted, WordOptions, chi_square, count_words, frequencies};
use super::{CloudOptions, Flags, WordCloud, csv};
use crate::{Error, Result};

/// A picture and what is said about it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Item {
    /// The picture's file, as the report should name it.
    pub filename: String,
    /// Captions, as many as there are.
    pub captions: Vec<String>,
}

/// Options of [`document`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct DocumentOptions {
    /// Names of the classes, for the summary; their numbers where there are none.
    pub classes: Vec<String>,
    /// Whether the report lists every picture instead of the flagged ones.
    pub all: bool,
    /// How words are counted.
    pub words: WordOptions,
    /// What is expected of words that only captions of flagged pictures have.
    pub unseen: Unseen,
    /// How clouds are drawn.
    pub cloud: CloudOptions,
    /// Words in the summary.
    pub top: usize,
}

impl Default for DocumentOptions {
    /// Flagged pictures alone, and the 50 heaviest words.
    fn default() -> Self {
        Self {
            classes: vec![],
            all: false,
            words: WordOptions::default(),
            unseen: Unseen::default(),
            cloud: CloudOptions::default(),
            top: 50,
        }
    }
}

/// What [`document`] found; `summary.json` holds the same.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Summary {
    /// Pictures.
    pub items: usize,
    /// Flagged ones.
    pub flagged: usize,
    /// The class that is looked for.
    pub class: String,
    /// The probability that it takes.
    pub threshold: f64,
    /// Pictures by their most probable class, whatever its probability.
    pub by_class: Vec<(String, usize)>,
    /// Flagged pictures with a caption.
    pub flagged_with_captions: usize,
    /// Others with a caption.
    pub others_with_captions: usize,
    /// Words of the captions of flagged pictures that come more often than in the others', the most telling first.
    pub words: Vec<WordSummary>,
}

/// A word of [`Summary::words`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct WordSummary {
    /// The word, or a pair of words.
    pub word: String,
    /// Its frequency in captions of flagged pictures, as a share of the most frequent word there.
    pub observed: f64,
    /// The same in captions of the others; `None` where it does not occur.
    pub expected: Option<f64>,
    /// How far the first is above the second, see [`chi_square`].
    pub weight: f64,
}

/// Writes what was flagged to a folder, which is made if need be:
///
/// - `report.csv`, `label,idx,score,filename`: the class, the number among `items`, the probability of the class, the file;
/// - `summary.json`, see [`Summary`];
/// - `words.svg` and `words.png`: the words of the captions of flagged pictures, by frequency;
/// - `words_weighted.svg` and `words_weighted.png`: the same by how far they are above the captions of pictures that were not
///   flagged.
///
/// # Errors
/// When there are other numbers of items and flags, for options that make no sense, and when the folder cannot be written.
pub fn document(folder: &Path, items: &[Item], flags: &Flags, options: &DocumentOptions) -> Result<Summary> {
    let counts = [flags.labels.len(), flags.scores.len(), flags.flagged.len()];
    if counts.iter().any(|count| *count != items.len()) {
        let (what, expected) = ("flags", format!("those of {} items", items.len()));
        return Err(Error::Shape { what, expected, found: counts.into() });
    }
    let captions = |flagged: bool| -> Vec<&str> {
        let of = items.iter().zip(&flags.flagged).filter(|(_, is)| **is == flagged);
        of.flat_map(|(item, _)| item.captions.iter().map(String::as_str)).collect()
    };
    let words = |flagged: bool| frequencies(&count_words(&captions(flagged), &options.words));
    let (observed, expected) = (words(true), words(false));
    let weights = chi_square(&observed, &expected, options.unseen);
    let clouds = [("words", WordCloud::new(&observed, &options.cloud)?)];
    let clouds = clouds.into_iter().chain([("words_weighted", WordCloud::new(&weights, &options.cloud)?)]);

    let failed = |source: std::io::Error| Error::Io { path: folder.into(), source };
    std::fs::create_dir_all(folder).map_err(failed)?;
    let write = |name: String, bytes: &[u8]| {
        let path = folder.join(name);
        write_atomic(&path, |out| out.write_all(bytes)).map_err(|source| Error::Io { path, source })
    };
    for (name, cloud) in clouds {
        write(format!("{name}.svg"), cloud.to_svg().as_bytes())?;
        write(format!("{name}.png"), &cloud.to_png()?)?;
    }
    write("report.csv".into(), report(items, flags, options.all).as_bytes())?;
    let summary = summary(items, flags, options, [&observed, &expected, &weights]);
    let path = folder.join("summary.json");
    let text = serde_json::to_string_pretty(&summary).map_err(|source| Error::Json { path, source })?;
    write("summary.json".into(), (text + "\n").as_bytes())?;
    Ok(summary)
}

fn report(items: &[Item], flags: &Flags, all: bool) -> String {
    let mut table = "label,idx,score,filename\n".to_owned();
    for (i, item) in items.iter().enumerate().filter(|(i, _)| all || flags.flagged[*i]) {
        // Writing to a String cannot fail.
        let _ = writeln!(table, "{},{i},{},{}", flags.labels[i], flags.scores[i], csv::cell(&item.filename));
    }
    table
}

fn summary(
    items: &[Item],
    flags: &Flags,
    options: &DocumentOptions,
    [observed, expected, weights]: [&[Weighted]; 3],
) -> Summary {
    let name = |class: u32| options.classes.get(class as usize).cloned().unwrap_or_else(|| class.to_string());
    let most = flags.labels.iter().copied().max().unwrap_or(0).max(flags.class);
    let most = most.max((options.classes.len() as u32).saturating_sub(1));
    let by_class = (0..=most).map(|c| (name(c), flags.labels.iter().filter(|label| **label == c).count())).collect();
    let with_captions = |flagged: bool| {
        let of = items.iter().zip(&flags.flagged).filter(|(item, is)| **is == flagged && !item.captions.is_empty());
        of.count()
    };
    let of = |words: &[Weighted], word: &str| words.iter().find(|(known, _)| known == word).map(|(_, f)| *f);
    let mut telling: Vec<&Weighted> = weights.iter().filter(|(_, weight)| *weight > 0.0).collect();
    telling.sort_by(|a, b| b.1.total_cmp(&a.1).then_with(|| a.0.cmp(&b.0)));
    let words = telling.into_iter().take(options.top).map(|(word, weight)| WordSummary {
        word: word.clone(),
        observed: of(observed, word).unwrap_or(0.0),
        expected: of(expected, word),
        weight: *weight,
    });
    Summary {
        items: items.len(),
        flagged: flags.count(),
        class: name(flags.class),
        threshold: flags.threshold,
        by_class,
        flagged_with_captions: with_captions(true),
        others_with_captions: with_captions(false),
        words: words.collect(),
    }
}
