//! Parts of a data set.

use sconce::data::Generator;

use crate::Error;

/// Takes a share of every class from `indices`, rounded, at least one picture where a class has two; gives the rest and what
/// was taken, both in order.
pub(super) fn stratified(
    labels: &[u32],
    indices: &[usize],
    share: f64,
    generator: &Generator,
) -> Result<(Vec<usize>, Vec<usize>), Error> {
    if !(share > 0.0 && share < 1.0) {
        return Err(Error::new(format!("a share of {share} of the pictures cannot be kept back")));
    }
    let mut by_class = std::collections::BTreeMap::<u32, Vec<usize>>::new();
    for &index in indices {
        by_class.entry(labels[index]).or_default().push(index);
    }
    let (mut rest, mut taken) = (Vec::new(), Vec::new());
    for members in by_class.values_mut() {
        generator.shuffle(members);
        let count = ((share * members.len() as f64).round() as usize).clamp(1, members.len().max(2) - 1);
        let count = if members.len() < 2 { 0 } else { count };
        taken.extend(&members[..count]);
        rest.extend(&members[count..]);
    }
    rest.sort_unstable();
    taken.sort_unstable();
    Ok((rest, taken))
}

/// At most `limit` of the items, at equal distances.
pub(super) fn spread(items: Vec<usize>, limit: Option<usize>) -> Vec<usize> {
    match limit {
        Some(limit) if limit < items.len() => (0..limit).map(|i| items[i * items.len() / limit]).collect(),
        _ => items,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_class_gives_its_share_and_no_picture_twice() {
        let labels: Vec<u32> = (0..130).map(|i| if i < 100 { i % 2 } else { 2 + i / 129 }).collect();
        let all: Vec<usize> = (0..130).collect();
        let (rest, taken) = stratified(&labels, &all, 0.1, &Generator::new(1)).unwrap();
        let count = |part: &[usize], class| part.iter().filter(|&&i| labels[i] == class).count();
        assert_eq!([0, 1, 2, 3].map(|class| count(&taken, class)), [5, 5, 3, 0]);
        let mut together = [rest.clone(), taken.clone()].concat();
        together.sort_unstable();
        assert_eq!(together, all);
        assert_eq!(stratified(&labels, &all, 0.1, &Generator::new(1)).unwrap().1, taken);
        assert_ne!(stratified(&labels, &all, 0.1, &Generator::new(2)).unwrap().1, taken);
        for share in [0.0, 1.0, f64::NAN, -0.1] {
            assert!(stratified(&labels, &all, share, &Generator::new(1)).is_err());
        }
    }

    #[test]
    fn a_limit_is_spread_over_the_data() {
        assert_eq!(spread((0..10).collect(), Some(4)), [0, 2, 5, 7]);
        assert_eq!(spread((0..3).collect(), Some(4)), [0, 1, 2]);
        assert_eq!(spread((0..3).collect(), None), [0, 1, 2]);
    }
}
