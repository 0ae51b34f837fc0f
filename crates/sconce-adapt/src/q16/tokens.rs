//! Words of a text, one spelling and one number for each.

use std::collections::{HashMap, HashSet};

/// The words of a text: a letter, digit or underscore, then those and apostrophes; `'s` at the end is cut off.
pub(super) fn split(text: &str) -> Vec<&str> {
    let inner = |c: char| c.is_alphanumeric() || c == '_';
    let mut words = vec![];
    let mut rest = text;
    while let Some(start) = rest.find(inner) {
        let word = &rest[start..];
        let end = word.find(|c| !inner(c) && c != '\'').unwrap_or(word.len());
        words.push(possessive(&word[..end]));
        rest = &word[end..];
    }
    words
}

fn possessive(word: &str) -> &str {
    word.strip_suffix("'s").or_else(|| word.strip_suffix("'S")).unwrap_or(word)
}

/// Counts of words that differ in more than case and number, in the order in which they came.
#[derive(Debug, Default)]
pub(super) struct Tally {
    /// Spelling and count; `None` where the word went into its singular.
    words: Vec<Option<(String, u64)>>,
    /// From the lower case of a word, in either number, to its place.
    places: HashMap<String, usize>,
}

impl Tally {
    /// Each word stands in its most frequent spelling, the first of several; a plural in `s` is counted as its singular where
    /// that occurs too, unless it ends in `ss`.
    pub(super) fn new<S: AsRef<str>>(words: impl IntoIterator<Item = S>, fold_plurals: bool) -> Self {
        // Spellings of each lower case, both in the order in which they came.
        let mut spellings: Vec<Vec<(String, u64)>> = vec![];
        let mut places: HashMap<String, usize> = HashMap::new();
        let mut order: Vec<String> = vec![];
        for word in words {
            let (word, lower) = (word.as_ref(), word.as_ref().to_lowercase());
            let place = *places.entry(lower).or_insert_with_key(|lower| {
                order.push(lower.clone());
                spellings.push(vec![]);
                spellings.len() - 1
            });
            add(&mut spellings[place], word, 1);
        }
        let mut folded = HashSet::new();
        if fold_plurals {
            for plural in &order {
                let Some(singular) = plural.strip_suffix('s').filter(|singular| !singular.ends_with('s')) else {
                    continue;
                };
                let (Some(&to), from) = (places.get(singular), places[plural]) else { continue };
                for (word, count) in std::mem::take(&mut spellings[from]) {
                    let end = word.char_indices().next_back().map_or(0, |(end, _)| end);
                    add(&mut spellings[to], &word[..end], count);
                }
                places.insert(plural.clone(), to);
                folded.insert(from);
            }
        }
        let fused = spellings.into_iter().enumerate().map(|(place, spellings)| {
            let total = spellings.iter().map(|(_, count)| count).sum();
            let first = spellings.into_iter().reduce(|best, next| if next.1 > best.1 { next } else { best });
            first.filter(|_| !folded.contains(&place)).map(|(word, _)| (word, total))
        });
        Self { words: fused.collect(), places }
    }

    /// The place of a word in any case and number.
    pub(super) fn place(&self, word: &str) -> Option<usize> {
        self.places.get(&word.to_lowercase()).copied()
    }

    /// The words with their places.
    pub(super) fn iter(&self) -> impl Iterator<Item = (usize, &str, u64)> {
        let known = self.words.iter().enumerate();
        known.filter_map(|(place, word)| word.as_ref().map(|(word, count)| (place, word.as_str(), *count)))
    }

    /// The count at a place.
    pub(super) fn count(&self, place: usize) -> u64 {
        self.words.get(place).and_then(Option::as_ref).map_or(0, |(_, count)| *count)
    }
}

fn add(spellings: &mut Vec<(String, u64)>, word: &str, count: u64) {
    match spellings.iter_mut().find(|(known, _)| known == word) {
        Some((_, known)) => *known += count,
        None => spellings.push((word.to_owned(), count)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tally(words: &[&str]) -> Vec<(String, u64)> {
        Tally::new(words, true).iter().map(|(_, word, count)| (word.to_owned(), count)).collect()
    }

    #[test]
    fn words_keep_apostrophes_and_lose_possession() {
        assert_eq!(
            split("The cat's toy, don't! x_1 - 'quoted' É́té"),
            ["The", "cat", "toy", "don't", "x_1", "quoted'", "É", "té"]
        );
        assert!(split(" ,.- '").is_empty());
        assert_eq!(split("it's's S's"), ["it's", "S"]);
    }

    #[test]
    fn plurals_join_their_singular_wherever_it_stands() {
        let owned = |pairs: &[(&str, u64)]| pairs.iter().map(|(w, c)| ((*w).to_owned(), *c)).collect::<Vec<_>>();
        assert_eq!(tally(&["dogs", "cat", "dog"]), owned(&[("cat", 1), ("dog", 2)]));
        assert_eq!(tally(&["glass", "glas", "pens"]), owned(&[("glass", 1), ("glas", 1), ("pens", 1)]));
        assert_eq!(tally(&["Tea", "tea", "tea", "TEAS"]), owned(&[("tea", 4)]));
    }
}
