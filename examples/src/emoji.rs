//! The emoji data of the repository: one concept drawn in up to five styles, with captions.

use std::path::{Path, PathBuf};

use image::RgbImage;
use sconce::data::{ReadReport, Sample, SampleStream};
use serde::Deserialize;

use crate::Error;

/// The drawing styles that models are trained on.
pub const TRAIN_DOMAINS: [&str; 4] = ["noto", "fluent-flat", "fluent-3d", "fluent-line"];
/// The drawing style that is kept for evaluation.
pub const TEST_DOMAIN: &str = "noto-v1";

/// What the shards' JSON says of a picture. Captions are from Unicode CLDR.
#[derive(Debug, Clone, Deserialize)]
pub struct Caption {
    /// Code points in hexadecimal: the same in every drawing style.
    pub codepoint: String,
    /// The drawing style.
    pub domain: String,
    /// Short name, unique within a style.
    pub name: String,
    /// Search words.
    pub keywords: Vec<String>,
    /// Short name in Chinese, unique within a style.
    pub name_zh: String,
    /// Search words in Chinese.
    pub keywords_zh: Vec<String>,
    /// One of seven categories.
    pub category: String,
    /// One of about eighty subcategories.
    pub subcategory: String,
}

/// A picture, 64 x 64, with its captions.
#[derive(Debug, Clone)]
pub struct Emoji {
    /// Names and words.
    pub caption: Caption,
    /// The picture on white.
    pub picture: RgbImage,
}

impl Emoji {
    fn read(sample: &Sample) -> Result<Self, sconce::data::Error> {
        Ok(Self { caption: sample.json("json")?, picture: sample.picture()?.into_rgb() })
    }

    /// The subcategory in words: `animal-mammal` is "animal mammal".
    #[must_use]
    pub fn subcategory_words(&self) -> String {
        subcategory_words(&self.caption.subcategory)
    }
}

/// A subcategory's name as words for a prompt.
#[must_use]
pub fn subcategory_words(subcategory: &str) -> String {
    subcategory.replace('-', " ")
}

/// The folder of the repository's own data.
#[must_use]
pub fn assets() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../assets")
}

/// Reads the shards of the given drawing styles from `folder`, in order.
///
/// What is damaged is left out and told in the report.
///
/// # Errors
/// A shard that is not there, or in which no picture can be read.
pub fn load(folder: &Path, domains: &[&str]) -> Result<(Vec<Emoji>, ReadReport), Error> {
    let shards: Vec<PathBuf> = domains.iter().map(|domain| folder.join(format!("{domain}-64.tar.gz"))).collect();
    if let Some(missing) = shards.iter().find(|shard| !shard.is_file()) {
        return Err(Error::new(format!("no shard {}", missing.display())));
    }
    let stream = SampleStream::open(shards, Default::default());
    let handle = stream.report();
    let mut emoji = Vec::new();
    let mut unreadable = ReadReport::default();
    for sample in stream {
        match Emoji::read(&sample) {
            Ok(one) => emoji.push(one),
            Err(error) => unreadable.push(sample.shard.to_string(), Some(sample.key.clone()), error),
        }
    }
    let mut report = handle.get();
    report.extend(unreadable);
    if emoji.is_empty() {
        return Err(Error::new(format!("no readable picture in {}\n{report}", folder.display())));
    }
    Ok((emoji, report))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_test_style_draws_concepts_of_the_training_styles() {
        let folder = assets().join("emoji");
        let (train, report) = load(&folder, &TRAIN_DOMAINS).unwrap();
        assert!(report.is_empty(), "{report}");
        let (test, report) = load(&folder, &[TEST_DOMAIN]).unwrap();
        assert!(report.is_empty(), "{report}");
        assert_eq!((train.len(), test.len()), (5352, 977));
        let known: std::collections::HashSet<_> = train.iter().map(|e| &e.caption.codepoint).collect();
        assert!(test.iter().all(|e| known.contains(&e.caption.codepoint)));
        assert!(test.iter().all(|e| e.caption.domain == TEST_DOMAIN && e.picture.dimensions() == (64, 64)));
    }

    #[test]
    fn a_missing_shard_is_named() {
        let error = load(Path::new("/nowhere"), &["noto"]).unwrap_err();
        assert!(error.to_string().contains("noto-64.tar.gz"), "{error}");
    }
}
