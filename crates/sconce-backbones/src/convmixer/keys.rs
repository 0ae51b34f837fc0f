//! The numbered names of the authors' files.

use sconce_nn::{KeyMap, Source};

/// Where the authors' files hold what [`ConvMixer`](super::ConvMixer) asks for by timm's names: their net is one flat
/// sequence, in which the stem has the numbers 0 and 2, block `i` the number `3 + i`, and the classifier follows pooling
/// and flattening.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LocuslabKeys {
    /// Blocks of the net.
    pub depth: usize,
}

impl LocuslabKeys {
    /// Whether the names of a file are numbers throughout.
    pub fn detect<'a>(names: impl IntoIterator<Item = &'a str>) -> bool {
        let mut names = names.into_iter().peekable();
        names.peek().is_some() && names.all(|name| name.starts_with(|c: char| c.is_ascii_digit()))
    }

    /// The number of the classifier.
    pub fn head(&self) -> usize {
        self.depth + 5
    }
}

impl KeyMap for LocuslabKeys {
    fn source(&self, name: &str) -> Source {
        let numbered = || {
            let (module, rest) = name.split_once('.')?;
            match module {
                "stem" => Some(rest.to_owned()),
                "head" => Some(format!("{}.{rest}", self.head())),
                "blocks" => {
                    let (index, rest) = rest.split_once('.')?;
                    Some(format!("{}.{rest}", 3 + index.parse::<usize>().ok().filter(|i| *i < self.depth)?))
                }
                _ => None,
            }
        };
        numbered().map_or(Source::Missing, Source::Tensor)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_follow_the_depth() {
        let keys = LocuslabKeys { depth: 20 };
        let number = |name: &str| keys.source(name);
        assert_eq!(number("stem.0.weight"), Source::Tensor("0.weight".into()));
        assert_eq!(number("stem.2.running_var"), Source::Tensor("2.running_var".into()));
        assert_eq!(number("blocks.19.0.fn.0.bias"), Source::Tensor("22.0.fn.0.bias".into()));
        assert_eq!(number("head.weight"), Source::Tensor("25.weight".into()));
        assert_eq!(number("blocks.20.1.weight"), Source::Missing);
        assert_eq!(number("norm.weight"), Source::Missing);
        assert!(LocuslabKeys::detect(["0.weight", "25.bias"]));
        assert!(!LocuslabKeys::detect(["stem.0.weight", "0.weight"]) && !LocuslabKeys::detect([]));
    }
}
