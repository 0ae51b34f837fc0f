//! Words of captions: how often they come, and how much more often than in other captions.

use std::collections::{BTreeSet, HashMap};

use serde::{Deserialize, Serialize};

use super::stop_words::STOP_WORDS;
use super::tokens::{Tally, split};

/// Options of [`count_words`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct WordOptions {
    /// Words that are not counted, in lower case.
    pub stop_words: BTreeSet<String>,
    /// Whether pairs of neighbouring words are counted as one where they come together often.
    pub pairs: bool,
    /// The score above which they do, see [`collocation`].
    pub pair_threshold: f64,
    /// Whether `dogs` counts as `dog` where both occur.
    pub fold_plurals: bool,
    /// Whether words of digits alone are counted.
    pub numbers: bool,
}

impl Default for WordOptions {
    /// Those of the Python package wordcloud, with its English stop words.
    fn default() -> Self {
        let stop_words = STOP_WORDS.iter().map(|word| (*word).to_owned()).collect();
        Self { stop_words, pairs: true, pair_threshold: 30.0, fold_plurals: true, numbers: false }
    }
}

/// A word, or two with a space between them, and its number or weight.
pub type Weighted = (String, f64);

/// Counts the words of texts, in the order in which they come; pairs follow.
///
/// Cases and, where asked for, singular and plural are one word in its most frequent spelling. A pair whose
/// [`collocation`] score is above the threshold counts as a word of its own and no more for its two words; neither may be a
/// stop word, and a pair does not reach from one text into the next.
pub fn count_words<S: AsRef<str>>(texts: &[S], options: &WordOptions) -> Vec<Weighted> {
    let number = |word: &str| word.chars().all(char::is_numeric);
    let kept = |word: &&str| options.numbers || !number(word);
    let words =
        |text: &'_ S| -> Vec<String> { split(text.as_ref()).into_iter().filter(kept).map(str::to_owned).collect() };
    let texts: Vec<Vec<String>> = texts.iter().map(words).collect();
    let says = |word: &str| !options.stop_words.contains(&word.to_lowercase());
    let singles: Vec<&str> = texts.iter().flatten().map(String::as_str).filter(|word| says(word)).collect();
    let total = singles.len() as f64;
    let tally = Tally::new(singles, options.fold_plurals);
    let mut counts: Vec<(usize, &str, f64)> =
        tally.iter().map(|(place, word, count)| (place, word, count as f64)).collect();
    let mut together = vec![];
    let neighbours = texts.iter().flat_map(|words| words.windows(2)).filter(|pair| pair.iter().all(|word| says(word)));
    let pairs = match options.pairs {
        true => Tally::new(neighbours.map(|pair| pair.join(" ")), options.fold_plurals),
        false => Tally::default(),
    };
    for (_, pair, count) in pairs.iter() {
        let places = pair.split_once(' ').and_then(|(a, b)| Some((tally.place(a)?, tally.place(b)?)));
        let Some((first, second)) = places else { continue };
        let [a, b] = [first, second].map(|place| tally.count(place) as f64);
        if collocation(count as f64, a, b, total) > options.pair_threshold {
            for place in [first, second] {
                if let Some((_, _, left)) = counts.iter_mut().find(|(known, _, _)| *known == place) {
                    *left -= count as f64;
                }
            }
            together.push((pair.to_owned(), count as f64));
        }
    }
    // A word in several pairs may have been taken away more often than it came.
    let rest = counts.into_iter().filter(|(_, _, count)| *count > 0.0);
    rest.map(|(_, word, count)| (word.to_owned(), count)).chain(together).collect()
}

/// How much likelier a text of `total` words is when the second word depends on the first: Dunning's logarithm of the
/// likelihood ratio (1993), times -2, for words that come `first` and `second` times, `pair` times of them together. 0 when the
/// text has no other word.
pub fn collocation(pair: f64, first: f64, second: f64, total: f64) -> f64 {
    if total <= first || total <= second {
        return 0.0;
    }
    let log = |p: f64| p.max(1e-10).ln();
    // Of `count` successes in `trials` of probability `p`.
    let likelihood = |count: f64, trials: f64, p: f64| log(p) * count + log(1.0 - p) * (trials - count);
    let (without, rest) = (second - pair, total - first);
    let (p, given, otherwise) = (second / total, pair / first, without / rest);
    -2.0 * (likelihood(pair, first, p) + likelihood(without, rest, p)
        - likelihood(pair, first, given)
        - likelihood(without, rest, otherwise))
}

/// Counts as shares of the largest one.
pub fn frequencies(counts: &[Weighted]) -> Vec<Weighted> {
    let largest = counts.iter().fold(0f64, |largest, (_, count)| largest.max(*count));
    if largest <= 0.0 {
        return vec![];
    }
    counts.iter().map(|(word, count)| (word.clone(), count / largest)).collect()
}

/// The frequency that is expected of a word that the other captions do not have.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Unseen {
    /// That of their rarest word: new words count most.
    #[default]
    Rarest,
    /// A number. Trap: the released code's default is 100, which no frequency reaches, so that new words count nothing.
    Expect(f64),
}

impl Unseen {
    /// The released code's default.
    pub const RELEASED: Self = Self::Expect(100.0);
}

/// How far words are above what is expected of them, `(o - e)^2 / e` where `o >= e` and else 0, in the order of `observed`.
///
/// Give frequencies of captions of flagged pictures and of those that were not flagged. (The released script for the weighted
/// cloud passes the flagged ones twice by mistake, which leaves every weight 0.)
pub fn chi_square(observed: &[Weighted], expected: &[Weighted], unseen: Unseen) -> Vec<Weighted> {
    let known: HashMap<&str, f64> = expected.iter().map(|(word, frequency)| (word.as_str(), *frequency)).collect();
    let rarest = expected.iter().map(|(_, frequency)| *frequency).filter(|f| *f > 0.0).fold(f64::INFINITY, f64::min);
    let otherwise = match unseen {
        // Nothing to compare with: what comes most weighs most.
        Unseen::Rarest if rarest.is_infinite() => return observed.to_vec(),
        Unseen::Rarest => rarest,
        Unseen::Expect(frequency) => frequency,
    };
    let weight = |word: &str, o: f64| {
        let e = known.get(word).copied().filter(|e| *e > 0.0).unwrap_or(otherwise);
        if o >= e && e > 0.0 { (o - e) * (o - e) / e } else { 0.0 }
    };
    observed.iter().map(|(word, o)| (word.clone(), weight(word, *o))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(text: &str, options: &WordOptions) -> Vec<(String, f64)> {
        count_words(&[text], options)
    }

    #[test]
    fn numbers_and_stop_words_are_left_out() {
        let text = "The 3 cats and a cat's ball: 12 balls, mp3";
        assert_eq!(
            of(text, &WordOptions::default()),
            [("cat", 2.0), ("ball", 2.0), ("mp3", 1.0)].map(|(w, c)| (w.to_owned(), c))
        );
        let numbers =
            WordOptions { numbers: true, fold_plurals: false, stop_words: BTreeSet::new(), ..Default::default() };
        assert_eq!(of(text, &numbers).len(), 10);
    }

    #[test]
    fn pairs_stay_within_a_text() {
        let options = WordOptions { pair_threshold: 1.0, ..Default::default() };
        let together = count_words(&["ice cream", "ice cream", "warm soup"], &options);
        assert!(together.contains(&("ice cream".to_owned(), 2.0)) && !together.iter().any(|(w, _)| w == "cream ice"));
        assert!(!together.iter().any(|(w, _)| w == "ice"));
        let apart = count_words(&["ice cream"], &WordOptions { pairs: false, ..options });
        assert_eq!(apart.len(), 2);
    }

    #[test]
    fn words_that_are_new_weigh_nothing_with_the_released_default() {
        let pairs = |pairs: &[(&str, f64)]| pairs.iter().map(|(w, f)| ((*w).to_owned(), *f)).collect::<Vec<_>>();
        let (observed, expected) = (pairs(&[("cake", 1.0), ("plate", 0.5)]), pairs(&[("plate", 0.25), ("sky", 1.0)]));
        assert_eq!(chi_square(&observed, &expected, Unseen::RELEASED)[0].1, 0.0);
        assert_eq!(chi_square(&observed, &expected, Unseen::Rarest), pairs(&[("cake", 2.25), ("plate", 0.25)]));
        // The same captions on both sides, the mistake of the released script.
        assert!(chi_square(&observed, &observed, Unseen::Rarest).iter().all(|(_, weight)| *weight == 0.0));
        assert_eq!(chi_square(&observed, &[], Unseen::Rarest), observed);
    }

    #[test]
    fn nothing_to_count_is_no_word() {
        assert!(of("the and of 42 ...", &WordOptions::default()).is_empty());
        assert!(frequencies(&[]).is_empty());
        assert_eq!(collocation(2.0, 2.0, 2.0, 2.0), 0.0);
    }
}
