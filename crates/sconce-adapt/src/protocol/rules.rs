//! Splits where no file says which.

use std::collections::BTreeMap;

use sconce_nn::Generator;

use super::ProtocolError;
use crate::Result;

/// Indices of the pictures of each part, ascending.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Parts {
    /// Of the training part.
    pub train: Vec<usize>,
    /// Of the validation part.
    pub val: Vec<usize>,
    /// Of the test part.
    pub test: Vec<usize>,
}

/// The indices of each label, ascending.
pub(super) fn by_label(labels: &[u32]) -> Result<BTreeMap<u32, Vec<usize>>> {
    let mut members = BTreeMap::<u32, Vec<usize>>::new();
    for (index, label) in labels.iter().enumerate() {
        members.entry(*label).or_default().push(index);
    }
    match members.is_empty() {
        true => Err(ProtocolError::Empty { what: "the list to draw from".into() }.into()),
        false => Ok(members),
    }
}

/// How many of `count` pictures a share is: rounded, halves to the even number, as Python's `round` in the official readers.
fn rounded(count: usize, share: f64) -> usize {
    (count as f64 * share).round_ties_even() as usize
}

fn share(what: &str, value: f64) -> Result<()> {
    match value > 0.0 && value < 1.0 {
        true => Ok(()),
        false => Err(ProtocolError::Option(format!("the share {value} of the {what} is not between 0 and 1")).into()),
    }
}

/// Splits each class into training, validation and test pictures at random: `train` and `val` are shares, 0.5 and 0.2 in the
/// official reader of DTD and the like, and the rest is for the test.
///
/// # Errors
/// [`ProtocolError::TooFew`] when a class would miss one of the parts; [`ProtocolError::Option`] for shares that leave nothing.
pub fn split_three(labels: &[u32], train: f64, val: f64, seed: u64) -> Result<Parts> {
    share("training pictures", train)?;
    share("validation pictures", val)?;
    share("training and validation pictures", train + val)?;
    let generator = Generator::new(seed);
    let mut parts = Parts::default();
    for (label, mut members) in by_label(labels)? {
        generator.fork(&format!("split/{label}")).shuffle(&mut members);
        let (count, first) = (members.len(), rounded(members.len(), train));
        let second = first + rounded(count, val);
        if first == 0 || second == first || second >= count {
            let rule = format!("into {train}, {val} and the rest");
            return Err(ProtocolError::TooFew { label, count, rule }.into());
        }
        parts.train.extend(&members[..first]);
        parts.val.extend(&members[first..second]);
        parts.test.extend(&members[second..]);
    }
    for part in [&mut parts.train, &mut parts.val, &mut parts.test] {
        part.sort_unstable();
    }
    Ok(parts)
}

/// Takes a share of each class away at random, 0.2 in the official readers that make validation pictures out of training ones:
/// the indices that stay, and those taken.
///
/// # Errors
/// [`ProtocolError::TooFew`] when nothing would be taken of a class, or everything; [`ProtocolError::Option`] for a share that
/// is not between 0 and 1.
pub fn split_two(labels: &[u32], taken: f64, seed: u64) -> Result<(Vec<usize>, Vec<usize>)> {
    share("pictures to take", taken)?;
    let generator = Generator::new(seed);
    let (mut rest, mut out) = (Vec::new(), Vec::new());
    for (label, mut members) in by_label(labels)? {
        generator.fork(&format!("split/{label}")).shuffle(&mut members);
        let (count, first) = (members.len(), rounded(members.len(), taken));
        if first == 0 || first >= count {
            let rule = format!("with a share of {taken} taken");
            return Err(ProtocolError::TooFew { label, count, rule }.into());
        }
        out.extend(&members[..first]);
        rest.extend(&members[first..]);
    }
    rest.sort_unstable();
    out.sort_unstable();
    Ok((rest, out))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Error;

    fn count(labels: &[u32], part: &[usize], label: u32) -> usize {
        part.iter().filter(|&&i| labels[i] == label).count()
    }

    #[test]
    fn three_parts_have_pythons_rounding_and_every_picture_once() {
        // 13 pictures: round(6.5) is 6 and round(2.6) is 3; 15: round(7.5) is 8 and 3.
        let labels: Vec<u32> = (0..28).map(|i| u32::from(i >= 13)).collect();
        let parts = split_three(&labels, 0.5, 0.2, 3).unwrap();
        let sizes = |label| [&parts.train, &parts.val, &parts.test].map(|part| count(&labels, part, label));
        assert_eq!((sizes(0), sizes(1)), ([6, 3, 4], [8, 3, 4]));
        let mut all = [parts.train.clone(), parts.val.clone(), parts.test.clone()].concat();
        all.sort_unstable();
        assert_eq!(all, (0..28).collect::<Vec<_>>());
        assert_eq!(parts, split_three(&labels, 0.5, 0.2, 3).unwrap());
        assert_ne!(parts, split_three(&labels, 0.5, 0.2, 4).unwrap());
    }

    #[test]
    fn a_fifth_of_each_class_is_taken() {
        let labels: Vec<u32> = (0..30).map(|i| u32::from(i % 3 == 0)).collect();
        let (rest, taken) = split_two(&labels, 0.2, 1).unwrap();
        assert_eq!([0, 1].map(|label| count(&labels, &taken, label)), [4, 2]);
        assert_eq!(rest.len() + taken.len(), 30);
        assert!(taken.iter().all(|i| !rest.contains(i)));
    }

    #[test]
    fn a_class_too_small_for_the_rule_is_named() {
        let labels = [0, 0, 0, 0, 0, 0, 7, 7];
        let Err(Error::Protocol(ProtocolError::TooFew { label: 7, count: 2, .. })) = split_two(&labels, 0.2, 1) else {
            panic!("a class of two gives no fifth away")
        };
        assert!(matches!(split_three(&[0, 0], 0.5, 0.2, 1), Err(Error::Protocol(ProtocolError::TooFew { .. }))));
        for (train, val) in [(0.0, 0.2), (0.5, 0.5), (f64::NAN, 0.2), (0.5, -0.1), (f64::INFINITY, 0.2)] {
            let found = split_three(&labels, train, val, 1);
            assert!(matches!(found, Err(Error::Protocol(ProtocolError::Option(_)))), "{train} {val}");
        }
        assert!(matches!(split_two(&[], 0.2, 1), Err(Error::Protocol(ProtocolError::Empty { .. }))));
    }
}
