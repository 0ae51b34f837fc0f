//! Labels from mean ratings, and splits that keep their shares.
//!
//! SMID, the Socio-Moral Image Database (Crone et al. 2018), rates 2,941 pictures from 1 to 5 for morality, valence and harm.

use std::collections::{BTreeMap, HashSet};
use std::path::Path;

use sconce_ops::Generator;
use serde::{Deserialize, Serialize};

use super::csv;
use crate::{Error, Result};

/// Which columns of a table to read, by their heads.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Columns {
    /// The picture's name.
    pub name: String,
    /// Its mean rating.
    pub rating: String,
}

impl Default for Columns {
    /// The means of moral ratings in SMID's table of norms.
    fn default() -> Self {
        Self { name: "img_name".into(), rating: "moral_mean".into() }
    }
}

/// A picture and what people make of it.
#[derive(Clone, Debug, PartialEq)]
pub struct Rating {
    /// The picture's name.
    pub name: String,
    /// Its mean rating.
    pub mean: f64,
}

/// Reads ratings from a CSV file with a line of heads. Rows without a rating are left out.
///
/// # Errors
/// For a file that cannot be read, columns that it lacks, and ratings that are no numbers, with their line.
pub fn read_ratings(path: impl AsRef<Path>, columns: &Columns) -> Result<Vec<Rating>> {
    let path = path.as_ref();
    let text = std::fs::read_to_string(path).map_err(|source| Error::Io { path: path.into(), source })?;
    let wrong = |reason: String| Error::Data(format!("{}: {reason}", path.display()));
    let rows = csv::parse(&text).map_err(wrong)?;
    let Some((heads, rows)) = rows.split_first() else { return Err(wrong("the table is empty".into())) };
    let column = |head: &str| {
        let found = heads.iter().position(|known| known.trim() == head);
        found.ok_or_else(|| wrong(format!("no column `{head}`, but {}", heads.join(", "))))
    };
    let (name, rating) = (column(&columns.name)?, column(&columns.rating)?);
    let mut ratings = vec![];
    for (row, number) in rows.iter().zip(2..) {
        let cell = |column: usize| row.get(column).map_or("", |cell| cell.trim());
        if matches!(cell(rating), "" | "NA" | "NaN" | "nan") {
            continue;
        }
        let mean = cell(rating).parse().ok().filter(|mean: &f64| mean.is_finite());
        let mean = mean.ok_or_else(|| wrong(format!("row {number}: `{}` is no rating", cell(rating))))?;
        if cell(name).is_empty() {
            return Err(wrong(format!("row {number} names no picture")));
        }
        ratings.push(Rating { name: cell(name).to_owned(), mean });
    }
    Ok(ratings)
}

/// Where ratings are clear enough to be labels.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Thresholds {
    /// Label 1 is below this.
    pub below: f64,
    /// Label 0 is above this.
    pub above: f64,
}

impl Default for Thresholds {
    /// The paper's: 2.5 and 3.5.
    fn default() -> Self {
        Self { below: 2.5, above: 3.5 }
    }
}

impl Thresholds {
    /// The label of a mean rating; `None` where people do not agree.
    pub fn label(&self, mean: f64) -> Option<u32> {
        match mean {
            mean if mean < self.below => Some(1),
            mean if mean > self.above => Some(0),
            _ => None,
        }
    }
}

/// Numbers of the pictures to train on and to test with.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct IndexSplit {
    /// To train on.
    pub train: Vec<usize>,
    /// To test with.
    pub test: Vec<usize>,
}

impl IndexSplit {
    /// Reads `{"train": [..], "test": [..]}`: the folds of others, whose random numbers are not ours (scikit-learn's, for the
    /// published results).
    ///
    /// # Errors
    /// For a file that cannot be read, a number from `count` on, and one that comes twice.
    pub fn read(path: impl AsRef<Path>, count: usize) -> Result<Self> {
        let path = path.as_ref();
        let text = std::fs::read_to_string(path).map_err(|source| Error::Io { path: path.into(), source })?;
        let split: Self = serde_json::from_str(&text).map_err(|source| Error::Json { path: path.into(), source })?;
        let mut seen = HashSet::new();
        for &index in split.train.iter().chain(&split.test) {
            if index >= count || !seen.insert(index) {
                let reason = if index >= count { format!("of {count}") } else { "twice".into() };
                return Err(Error::Data(format!("{}: picture {index} {reason}", path.display())));
            }
        }
        Ok(split)
    }
}

/// Random splits that keep the shares of strata.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct StratifiedShuffle {
    /// Number of splits.
    pub splits: usize,
    /// Share of the pictures to test with.
    pub test: f64,
    /// Share of the remaining ones to train on.
    pub train: f64,
    /// Decides the splits.
    pub seed: u64,
}

impl Default for StratifiedShuffle {
    /// The paper's: ten splits, a tenth to test with, all others to train on.
    fn default() -> Self {
        Self { splits: 10, test: 0.1, train: 1.0, seed: 42 }
    }
}

/// The strata that the paper splits by: mean ratings rounded to whole numbers.
pub fn strata(ratings: &[f64]) -> Vec<i64> {
    ratings.iter().map(|mean| mean.round_ties_even() as i64).collect()
}

impl StratifiedShuffle {
    /// Splits pictures by their strata; labels or [`strata`] of ratings. Every split draws anew.
    ///
    /// # Errors
    /// For shares that leave nothing to train on or to test with.
    pub fn split(&self, strata: &[i64]) -> Result<Vec<IndexSplit>> {
        let share = |x: f64| x > 0.0 && x <= 1.0;
        let test = (strata.len() as f64 * self.test).ceil() as usize;
        let rest = strata.len().saturating_sub(test);
        // Rounded down, as scikit-learn does.
        let train = (rest as f64 * self.train).floor() as usize;
        if !share(self.test) || !share(self.train) || test == 0 || train == 0 {
            let shares = format!("{} to test with and {} of the others to train on", self.test, self.train);
            return Err(Error::Config(format!("{} pictures cannot be split: {shares}", strata.len())));
        }
        let one = |number: usize| {
            let generator = Generator::new(self.seed).fork(&format!("split/{number}"));
            let all: Vec<usize> = (0..strata.len()).collect();
            let (test, rest) = draw(&all, strata, test, &generator);
            let (train, _) = draw(&rest, strata, train, &generator);
            IndexSplit { train, test }
        };
        Ok((0..self.splits).map(one).collect())
    }
}

/// So many of the given pictures, each stratum by its share, and the rest.
fn draw(from: &[usize], strata: &[i64], count: usize, generator: &Generator) -> (Vec<usize>, Vec<usize>) {
    let mut members: BTreeMap<i64, Vec<usize>> = BTreeMap::new();
    from.iter().for_each(|&index| members.entry(strata[index]).or_default().push(index));
    let shares: Vec<f64> = members.values().map(|m| count as f64 * m.len() as f64 / from.len() as f64).collect();
    let mut quotas: Vec<usize> = shares.iter().map(|share| share.floor() as usize).collect();
    // What is left goes to the largest remainders; which of equal ones is drawn.
    let mut order: Vec<usize> = (0..shares.len()).collect();
    generator.shuffle(&mut order);
    order.sort_by(|&a, &b| shares[b].fract().total_cmp(&shares[a].fract()));
    let left = count.saturating_sub(quotas.iter().sum());
    order.iter().take(left).for_each(|&stratum| quotas[stratum] += 1);
    let (mut drawn, mut rest) = (vec![], vec![]);
    for (members, quota) in members.values_mut().zip(quotas) {
        generator.shuffle(members);
        let quota = quota.min(members.len());
        drawn.extend(members.drain(..quota));
        rest.append(members);
    }
    generator.shuffle(&mut drawn);
    rest.sort_unstable();
    (drawn, rest)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ratings_become_labels() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("norms.csv");
        let table = "img_name,valence_mean,moral_mean\n\"a, b.jpg\",1,2.4\nc.jpg,2,3.0\nd.jpg,3,\ne.jpg,4,3.6\n";
        std::fs::write(&path, table).unwrap();
        let ratings = read_ratings(&path, &Columns::default()).unwrap();
        assert_eq!(ratings[0], Rating { name: "a, b.jpg".into(), mean: 2.4 });
        let labels: Vec<_> = ratings.iter().map(|rating| Thresholds::default().label(rating.mean)).collect();
        assert_eq!(labels, [Some(1), None, Some(0)]);
        assert_eq!(Thresholds::default().label(2.5).or(Thresholds::default().label(3.5)), None);

        let columns = Columns { rating: "harm_mean".into(), ..Default::default() };
        assert!(read_ratings(&path, &columns).unwrap_err().to_string().contains("harm_mean"));
        std::fs::write(&path, "img_name,moral_mean\na,much\n").unwrap();
        assert!(read_ratings(&path, &Columns::default()).unwrap_err().to_string().contains("row 2: `much`"));
        assert!(read_ratings(folder.path().join("none.csv"), &Columns::default()).is_err());
    }

    #[test]
    fn splits_keep_the_shares_and_have_the_published_sizes() {
        // As many as the paper uses: 1,506 to train on and 168 to test with; 60 at 4 %, 150 at 10 %.
        let strata: Vec<i64> = (0..1674).map(|i| [1, 2, 4, 4, 5][i % 5]).collect();
        let splits = StratifiedShuffle::default().split(&strata).unwrap();
        assert_eq!(splits.len(), 10);
        assert_ne!(splits[0], splits[1]);
        for split in &splits {
            assert_eq!((split.train.len(), split.test.len()), (1506, 168));
            let mut all: Vec<usize> = split.train.iter().chain(&split.test).copied().collect();
            all.sort_unstable();
            assert!(all.iter().copied().eq(0..1674));
            let fours = split.test.iter().filter(|index| strata[**index] == 4).count();
            assert!((66..=68).contains(&fours), "{fours}");
        }
        for (train, count) in [(0.04, 60), (0.1, 150)] {
            let few = StratifiedShuffle { train, ..Default::default() }.split(&strata).unwrap();
            assert_eq!((few[0].train.len(), few[0].test.len()), (count, 168));
        }
        assert_eq!(StratifiedShuffle::default().split(&strata).unwrap(), splits);
        for wrong in [0.0, 1.0, -1.0, f64::NAN] {
            assert!(StratifiedShuffle { test: wrong, ..Default::default() }.split(&strata).is_err());
        }
        assert!(StratifiedShuffle::default().split(&[]).is_err());
    }

    #[test]
    fn index_files_are_checked() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("fold.json");
        let read = |text: &str| {
            std::fs::write(&path, text).unwrap();
            IndexSplit::read(&path, 4).map_err(|error| error.to_string())
        };
        assert_eq!(read(r#"{"train": [3, 0], "test": [1]}"#).unwrap().train, [3, 0]);
        for (text, word) in [
            (r#"{"train": [4], "test": []}"#, "picture 4 of 4"),
            (r#"{"train": [1], "test": [1]}"#, "twice"),
            (r#"{"train": [1]}"#, "test"),
            (r#"{"train": [], "test": [], "val": []}"#, "val"),
        ] {
            assert!(read(text).unwrap_err().contains(word), "{text}");
        }
    }

    #[test]
    fn strata_are_rounded_ratings() {
        assert_eq!(strata(&[1.4, 2.5, 3.5, 4.51]), [1, 2, 4, 5]);
    }
}
