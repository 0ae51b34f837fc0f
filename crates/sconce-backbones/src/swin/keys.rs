//! Swin transformers in timm's files.

use sconce_nn::{KeyMap, Source};

/// Where timm's files hold what [`SwinTransformer`](super::SwinTransformer) asks for: there a stage starts with the
/// merging that ends the one before it in official files, and the classifier is called `head.fc`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TimmKeys;

impl TimmKeys {
    /// Tells timm's files from official ones by their names.
    pub fn detect<'a>(names: impl IntoIterator<Item = &'a str>) -> Option<Self> {
        let (mut official, mut timm) = (false, false);
        for name in names {
            // The first stage has a merging in official files only; what follows tells files without classifier.
            official |= name.starts_with("layers.0.downsample.") || name == "head.weight";
            timm |= name.starts_with("head.fc.") || name.starts_with("layers.1.downsample.");
        }
        (timm && !official).then_some(Self)
    }
}

impl KeyMap for TimmKeys {
    fn source(&self, name: &str) -> Source {
        if let Some(kind) = name.strip_prefix("head.") {
            return Source::Tensor(format!("head.fc.{kind}"));
        }
        let merging = |name: &str| {
            let (stage, kind) = name.strip_prefix("layers.")?.split_once(".downsample.")?;
            Some(format!("layers.{}.downsample.{kind}", stage.parse::<usize>().ok()? + 1))
        };
        Source::Tensor(merging(name).unwrap_or_else(|| name.into()))
    }
}
