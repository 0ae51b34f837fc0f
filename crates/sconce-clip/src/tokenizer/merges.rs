//! Byte-pair encoding (Sennrich et al. 2016) over bytes, with an end-of-word mark: the table and the merging.

use crate::{Error, Result};
use std::{
    cmp::Reverse,
    collections::{BinaryHeap, HashMap},
    io::Read,
    sync::{Arc, LazyLock},
};

/// Symbols before the first merge: 256 bytes, and the same 256 at the end of a word.
pub(super) const BASE: usize = 512;

/// Merges of OpenAI's vocabulary: 49152 tokens less the base symbols and the two special tokens.
pub const OPENAI_MERGES: usize = 49152 - 256 - 2;

/// What marks the last symbol of a word in the written form of a token.
const END_OF_WORD: &str = "</w>";

/// An ordered table of merges. Token ids follow from it: 512 byte symbols, then one token for each merge.
#[derive(Debug)]
pub struct Merges {
    /// Pair of ids to the id of the merged token; a lower id merges first.
    pairs: HashMap<(u32, u32), u32>,
    /// The bytes of each token, [`END_OF_WORD`] included.
    tokens: Vec<Box<[u8]>>,
}

impl Merges {
    /// OpenAI's table of 48,894 merges, parsed once.
    ///
    /// # Errors
    /// None in a correct build: the table is part of the crate.
    pub fn openai() -> Result<Arc<Self>> {
        static TABLE: LazyLock<std::result::Result<Arc<Merges>, String>> = LazyLock::new(|| {
            let mut text = String::new();
            flate2::read::GzDecoder::new(&include_bytes!("../../assets/bpe_merges.txt.gz")[..])
                .read_to_string(&mut text)
                .map_err(|e| e.to_string())?;
            Merges::parse(&text).map(Arc::new).map_err(|e| e.to_string())
        });
        TABLE.clone().map_err(Error::Tokenizer)
    }

    /// Parses the text of a `merges.txt`: one pair a line, parts separated by a space, byte symbols in GPT-2's printable
    /// alphabet; a first line that starts with `#version` or `"` is a header.
    ///
    /// # Errors
    /// [`Error::Tokenizer`] names the line of a malformed pair or of a part that no earlier line makes.
    pub fn parse(text: &str) -> Result<Self> {
        let alphabet = alphabet();
        let base = |suffix: &'static str| alphabet.iter().map(move |(_, c)| format!("{c}{suffix}"));
        let mut ids: HashMap<String, u32> = base("").chain(base(END_OF_WORD)).zip(0..).collect();
        let mut tokens: Vec<Box<[u8]>> = alphabet.iter().map(|(b, _)| Box::from([*b])).collect();
        tokens.extend(alphabet.iter().map(|(b, _)| [&[*b], END_OF_WORD.as_bytes()].concat().into_boxed_slice()));
        let mut pairs = HashMap::new();
        for (number, line) in text.lines().enumerate() {
            let header = number == 0 && (line.starts_with("#version") || line.starts_with('"'));
            if header || line.trim().is_empty() {
                continue;
            }
            let bad = |why: &str| Error::Tokenizer(format!("line {} of the merges, {line:?}: {why}", number + 1));
            let mut parts = line.split_whitespace();
            let (Some(left), Some(right), None) = (parts.next(), parts.next(), parts.next()) else {
                return Err(bad("a merge has two parts"));
            };
            let unknown = || bad("a part is not a token made before");
            let pair = (*ids.get(left).ok_or_else(unknown)?, *ids.get(right).ok_or_else(unknown)?);
            let id = tokens.len() as u32;
            tokens.push([&*tokens[pair.0 as usize], &*tokens[pair.1 as usize]].concat().into_boxed_slice());
            if ids.insert(format!("{left}{right}"), id).is_some() || pairs.insert(pair, id).is_some() {
                return Err(bad("the token exists already"));
            }
        }
        Ok(Self { pairs, tokens })
    }

    /// How many merges there are.
    pub fn len(&self) -> usize {
        self.tokens.len() - BASE
    }

    /// Whether the table has no merges, so that every byte is a token.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The bytes of a token, or `None` for an id beyond the table.
    pub(super) fn token(&self, id: u32) -> Option<&[u8]> {
        self.tokens.get(id as usize).map(|t| &**t)
    }

    /// Every merge with the bytes of its two parts, in order of rank.
    pub(super) fn in_order(&self) -> impl Iterator<Item = (u32, [&[u8]; 2])> {
        let mut merges: Vec<_> = self.pairs.iter().collect();
        merges.sort_unstable_by_key(|(_, id)| **id);
        merges.into_iter().map(|((l, r), id)| (*id, [l, r].map(|part| &*self.tokens[*part as usize])))
    }

    /// Splits one word into tokens, using merges whose token id is below `limit`.
    ///
    /// The lowest-ranked pair is merged at all its places from left to right, then the next. A heap of places makes this
    /// `O(n log n)`, so that a hostile "word" of a million letters is no trouble.
    pub(super) fn split(&self, word: &str, limit: u32) -> Vec<u32> {
        let bytes = word.as_bytes();
        let mut symbols: Vec<u32> = bytes.iter().map(|b| byte_id(*b)).collect();
        let Some(last) = symbols.last_mut() else { return symbols };
        // The mark sits on the last byte, even within a character.
        *last += 256;
        const GONE: u32 = u32::MAX;
        let n = symbols.len();
        let mut next: Vec<usize> = (1..=n).collect();
        let mut previous: Vec<usize> = (0..n).map(|i| i.wrapping_sub(1)).collect();
        let merged = |symbols: &[u32], next: &[usize], i: usize| -> Option<u32> {
            let pair = (*symbols.get(i)?, *symbols.get(*next.get(i)?)?);
            self.pairs.get(&pair).copied().filter(|id| *id < limit)
        };
        let mut heap: BinaryHeap<Reverse<(u32, usize)>> =
            (0..n).filter_map(|i| Some(Reverse((merged(&symbols, &next, i)?, i)))).collect();
        let mut changed = Vec::new();
        while let Some(Reverse((id, _))) = heap.peek().copied() {
            while let Some(Reverse((_, i))) = heap.peek().copied().filter(|Reverse((other, _))| *other == id) {
                heap.pop();
                if symbols[i] == GONE || merged(&symbols, &next, i) != Some(id) {
                    continue;
                }
                let taken = next[i];
                symbols[i] = id;
                symbols[taken] = GONE;
                next[i] = next[taken];
                if next[i] < n {
                    previous[next[i]] = i;
                }
                changed.push(i);
            }
            for i in changed.drain(..) {
                let neighbours = [i, previous[i]].into_iter().filter(|j| *j < n && symbols[*j] != GONE);
                heap.extend(neighbours.filter_map(|j| Some(Reverse((merged(&symbols, &next, j)?, j)))));
            }
        }
        symbols.retain(|s| *s != GONE);
        symbols
    }
}

/// The id of a byte inside a word: printable bytes first, then the rest in order.
fn byte_id(byte: u8) -> u32 {
    static IDS: LazyLock<[u32; 256]> = LazyLock::new(|| {
        let mut ids = [0; 256];
        for (id, (byte, _)) in (0..).zip(alphabet()) {
            ids[usize::from(byte)] = id;
        }
        ids
    });
    IDS[usize::from(byte)]
}

/// GPT-2's alphabet: each byte and the printable character that stands for it, in id order.
fn alphabet() -> Vec<(u8, char)> {
    let printable = |b: &u8| matches!(b, b'!'..=b'~' | 0xa1..=0xac | 0xae..=0xff);
    let plain = (0..=255u8).filter(printable).map(|b| (b, char::from(b)));
    let rest = (0..=255u8).filter(|b| !printable(b)).zip('\u{100}'..);
    plain.chain(rest).collect()
}

/// A token in GPT-2's alphabet.
pub(super) fn written(token: &[u8]) -> String {
    static ALPHABET: LazyLock<HashMap<u8, char>> = LazyLock::new(|| alphabet().into_iter().collect());
    token.iter().filter_map(|b| ALPHABET.get(b)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The definition, word for word: find the best pair, merge it everywhere from the left, repeat.
    fn split_slowly(merges: &Merges, word: &str) -> Vec<u32> {
        let mut symbols: Vec<u32> = word.bytes().map(byte_id).collect();
        if let Some(last) = symbols.last_mut() {
            *last += 256;
        }
        loop {
            let best = symbols.windows(2).filter_map(|p| merges.pairs.get(&(p[0], p[1]))).min().copied();
            let Some(best) = best else { return symbols };
            let (mut out, mut i) = (Vec::new(), 0);
            while i < symbols.len() {
                if i + 1 < symbols.len() && merges.pairs.get(&(symbols[i], symbols[i + 1])) == Some(&best) {
                    out.push(best);
                    i += 2;
                } else {
                    out.push(symbols[i]);
                    i += 1;
                }
            }
            symbols = out;
        }
    }

    #[test]
    fn heap_merges_as_the_definition_does() -> Result<()> {
        let merges = Merges::openai()?;
        assert_eq!(merges.len(), OPENAI_MERGES);
        let words = [
            "hello",
            "a",
            "aaaaaaaaaaaaaaaa",
            "supercalifragilisticexpialidocious",
            "ééé漢字😀",
            "mississippi",
            "!!!???!!",
        ];
        for word in words
            .map(str::to_owned)
            .into_iter()
            .chain((0..200).map(|i| format!("{:x}th{}ing", i * 7919, "ana".repeat(i % 9))))
        {
            assert_eq!(merges.split(&word, u32::MAX), split_slowly(&merges, &word), "{word}");
        }
        assert!(merges.split("", u32::MAX).is_empty());
        Ok(())
    }

    #[test]
    fn a_million_letters_are_no_trouble() -> Result<()> {
        let merges = Merges::openai()?;
        assert!(merges.split(&"ab".repeat(500_000), u32::MAX).len() < 1_000_000);
        Ok(())
    }

    #[test]
    fn malformed_tables_are_refused() {
        for (text, word) in
            [("a", "two parts"), ("a b c", "two parts"), ("ab c", "not a token"), ("a b\na b", "exists")]
        {
            let error = Merges::parse(text).map(|_| ()).unwrap_err().to_string();
            assert!(error.contains(word) && error.contains("line"), "{error}");
        }
    }
}
