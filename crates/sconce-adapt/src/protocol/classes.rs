//! Some of the classes: base and new ones, those of another data set.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::{Item, ProtocolError};
use crate::Result;

/// Which classes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Half {
    /// All of them.
    #[default]
    All,
    /// The first half by label, the larger one: these are trained on.
    Base,
    /// The rest.
    New,
}

/// Classes in an order of their own: the new label of a class is its place here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClassSubset {
    /// The former labels.
    pub labels: Vec<u32>,
}

impl ClassSubset {
    /// Classes with these labels.
    ///
    /// # Errors
    /// [`ProtocolError::Empty`] for none, [`ProtocolError::Option`] for one that occurs twice.
    pub fn new(labels: Vec<u32>) -> Result<Self> {
        let mut seen = labels.clone();
        seen.sort_unstable();
        if let Some(twice) = seen.windows(2).find(|pair| pair[0] == pair[1]) {
            return Err(ProtocolError::Option(format!("class {} is chosen twice", twice[0])).into());
        }
        match labels.is_empty() {
            true => Err(ProtocolError::Empty { what: "the chosen classes".into() }.into()),
            false => Ok(Self { labels }),
        }
    }

    /// Base or new classes of those that occur in `labels`: the first `ceil(n / 2)` by label are the base.
    ///
    /// # Errors
    /// [`ProtocolError::Empty`] when there is none: a single class has no new half.
    pub fn half(labels: &[u32], half: Half) -> Result<Self> {
        let mut labels = labels.to_vec();
        labels.sort_unstable();
        labels.dedup();
        let middle = labels.len().div_ceil(2);
        Self::new(match half {
            Half::All => labels,
            Half::Base => labels[..middle].to_vec(),
            Half::New => labels[middle..].to_vec(),
        })
    }

    /// The pictures of these classes: their indices and their new labels.
    pub fn relabel(&self, labels: &[u32]) -> (Vec<usize>, Vec<u32>) {
        let new: BTreeMap<u32, u32> = self.labels.iter().copied().zip(0..).collect();
        labels.iter().enumerate().filter_map(|(index, label)| Some((index, *new.get(label)?))).unzip()
    }

    /// The pictures of these classes with their new labels.
    pub fn items(&self, items: &[Item]) -> Vec<Item> {
        let (indices, labels) = self.relabel(&super::labels(items));
        indices.into_iter().zip(labels).map(|(index, label)| Item { label, ..items[index].clone() }).collect()
    }

    /// The names of these classes by new label; none for a label that `names` does not reach.
    pub fn names<S: AsRef<str>>(&self, names: &[S]) -> Vec<String> {
        self.labels.iter().filter_map(|label| Some(names.get(*label as usize)?.as_ref().to_owned())).collect()
    }
}

/// `2 b n / (b + n)`, how accuracies on base and new classes are put together; 0 when both are.
pub fn harmonic_mean(base: f64, new: f64) -> f64 {
    match base + new {
        sum if sum > 0.0 => 2.0 * base * new / sum,
        _ => 0.0,
    }
}

/// For each class of another data set the class of the first one that has its name, as a prompt would read it (`_` is a
/// space). A data set with some of the classes, as ImageNet-A and -R, is evaluated on these columns of the logits.
///
/// # Errors
/// [`ProtocolError::UnknownClasses`], [`ProtocolError::Ambiguous`] for a name that several source classes have.
pub fn match_classes<S: AsRef<str>, T: AsRef<str>>(source: &[S], target: &[T]) -> Result<Vec<u32>> {
    let spaced = |name: &str| name.replace('_', " ").trim().to_owned();
    let mut known = BTreeMap::<String, Vec<u32>>::new();
    for (label, name) in (0..).zip(source) {
        known.entry(spaced(name.as_ref())).or_default().push(label);
    }
    let (mut matched, mut unknown) = (Vec::new(), Vec::new());
    for name in target.iter().map(AsRef::as_ref) {
        match known.get(&spaced(name)).map(Vec::as_slice) {
            Some([label]) => matched.push(*label),
            Some(labels) => {
                return Err(ProtocolError::Ambiguous { name: name.to_owned(), labels: labels.to_vec() }.into());
            }
            None => unknown.push(name.to_owned()),
        }
    }
    match unknown.is_empty() {
        true => Ok(matched),
        false => Err(ProtocolError::UnknownClasses { names: unknown }.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Error;

    #[test]
    fn base_is_the_larger_half_by_label() {
        let labels = [4, 0, 2, 2, 1, 3, 0];
        let [all, base, new] = [Half::All, Half::Base, Half::New].map(|half| ClassSubset::half(&labels, half).unwrap());
        assert_eq!(all.labels, [0, 1, 2, 3, 4]);
        assert_eq!((base.labels.as_slice(), new.labels.as_slice()), (&[0, 1, 2][..], &[3, 4][..]));
        assert_eq!(new.relabel(&labels), (vec![0, 5], vec![1, 0]));
        assert_eq!(new.names(&["a", "b", "c", "d", "e"]), ["d", "e"]);
        assert!(matches!(ClassSubset::half(&[3], Half::New), Err(Error::Protocol(ProtocolError::Empty { .. }))));
        assert!(ClassSubset::new(vec![1, 0, 1]).is_err());
    }

    #[test]
    fn items_take_their_new_labels_along() {
        let item = |path: &str, label, class: &str| Item { path: path.into(), label, class: class.into() };
        let items = [item("1", 0, "a"), item("2", 1, "b"), item("3", 2, "c")];
        let new = ClassSubset::half(&[0, 1, 2], Half::New).unwrap().items(&items);
        assert_eq!(new, [item("3", 0, "c")]);
    }

    #[test]
    fn the_harmonic_mean_of_the_paper() {
        // CLIP and CoCoOp on the average of eleven data sets.
        assert!((harmonic_mean(69.34, 74.22) - 71.70).abs() < 0.005);
        assert!((harmonic_mean(80.47, 71.69) - 75.83).abs() < 0.005);
        assert_eq!(harmonic_mean(0.0, 0.0), 0.0);
    }

    #[test]
    fn classes_are_found_by_name() {
        let source = ["tabby_cat", "crane", "dog", "crane"];
        assert_eq!(match_classes(&source, &["dog", "tabby cat"]).unwrap(), [2, 0]);
        let Err(Error::Protocol(ProtocolError::UnknownClasses { names })) =
            match_classes(&source, &["dog", "Dog", "x"])
        else {
            panic!("case counts")
        };
        assert_eq!(names, ["Dog", "x"]);
        let found = match_classes(&source, &["crane"]);
        assert!(matches!(found, Err(Error::Protocol(ProtocolError::Ambiguous { labels, .. })) if labels == [1, 3]));
    }
}
