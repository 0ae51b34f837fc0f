//! The small models: sizes, vocabulary, locked tower.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use clap::ValueEnum;
use sconce::backbones::resnet;
use sconce::candle::{DType, Device};
use sconce::clip::wukong::{Bundle, Config, Locked, LockedConfig, Pretrained, Variant, VisionConfig, weights_digest};
use sconce::clip::{Bundle as ClipBundle, Result, TextConfig, Tokenize, TransformerConfig, WordPiece};
use sconce::nn::ParamStore;

use super::{Loss, Tower};
use crate::contrastive::SIDE;
use crate::emoji::Emoji;

/// Ids in a row: the longest name has 14 characters.
const CONTEXT: usize = 24;
/// Width of the text tower.
const WIDTH: usize = 128;
/// Width of the shared space.
const EMBED_DIM: usize = 128;
/// The stage of the locked tower whose map is the grid of tokens: 4 x 4 cells, where the last stage has 2 x 2.
const LOCKED_STAGE: usize = 3;

/// What decides the kind of a model.
#[derive(Debug, Clone)]
pub struct Kind {
    /// What is contrasted.
    pub loss: Loss,
    /// Where the image tower is from.
    pub tower: Tower,
    /// Whether a projection of the locked tower's tokens is trained.
    pub project: bool,
    /// Folder of the model whose image tower is locked.
    pub locked: PathBuf,
}

/// A tokenizer that knows all characters of the captions.
///
/// # Errors
/// None with captions.
pub fn tokenizer(emoji: &[Emoji]) -> Result<WordPiece> {
    let texts = emoji.iter().flat_map(|e| std::iter::once(&e.caption.name_zh).chain(&e.caption.keywords_zh));
    WordPiece::of_corpus(&texts.collect::<Vec<_>>(), CONTEXT)
}

/// A residual network of basic blocks with 4 x 4 cells in its last map, for pictures of 64 x 64. Both losses get the same.
fn trunk() -> resnet::Config {
    let side = SIDE as usize;
    resnet::Config {
        img_size: [side, side],
        num_classes: 0,
        channels: [24, 48, 96, 160],
        stem: 24,
        output_stride: 16,
        ..resnet::Config::resnet18()
    }
}

/// The record of a model and its locked tower, if it has one.
///
/// # Errors
/// A locked model that cannot be loaded.
pub fn record(kind: &Kind, tokenizer: &WordPiece, device: &Device) -> Result<(Pretrained, Option<Locked>)> {
    let (vision, locked) = match kind.tower {
        Tower::Scratch => (VisionConfig::Backbone(trunk().into()), None),
        Tower::Locked => {
            let clip = ClipBundle::load(&kind.locked, DType::F32, device)?.model;
            let (tower, stage) = match kind.loss {
                Loss::Infonce => (Locked::embedding(&clip), None),
                Loss::Filip => (Locked::grid(&clip, Some(LOCKED_STAGE))?, Some(LOCKED_STAGE)),
            };
            let config = LockedConfig {
                folder: name(&kind.locked),
                sha256: weights_digest(&kind.locked)?,
                image_size: clip.config.vision.image_size(),
                width: tower.width,
                stage,
                project: kind.project,
            };
            (VisionConfig::Locked(config), Some(tower))
        }
    };
    let transformer = TransformerConfig { eps: 1e-7, ..TransformerConfig::new(WIDTH, 2) };
    let text = TextConfig {
        context_length: CONTEXT,
        vocab_size: tokenizer.vocab_size(),
        end_token: Some(tokenizer.end_token()),
        transformer,
    };
    let variant = match kind.loss {
        Loss::Infonce => Variant::Global,
        Loss::Filip => Variant::Filip,
    };
    let mut record = Pretrained::new(Config { embed_dim: EMBED_DIM, vision, text, variant, ..Config::default() })?;
    record.license = "Apache-2.0".into();
    let words =
        |of: &dyn Fn() -> Option<clap::builder::PossibleValue>| of().map_or(String::new(), |v| v.get_name().into());
    let (loss, tower) = (words(&|| kind.loss.to_possible_value()), words(&|| kind.tower.to_possible_value()));
    record.source = format!("cargo run --release --example pretrain_chinese -- --loss {loss} --tower {tower}");
    Ok((record, locked))
}

fn name(folder: &Path) -> String {
    let whole = folder.canonicalize().unwrap_or_else(|_| folder.to_owned());
    whole.file_name().map_or_else(String::new, |name| name.to_string_lossy().into_owned())
}

/// A new model of this kind, with its parameters in `store`.
///
/// # Errors
/// As [`record`].
pub fn bundle(kind: &Kind, emoji: &[Emoji], store: &ParamStore) -> Result<Bundle> {
    let tokenizer = tokenizer(emoji)?;
    let (record, locked) = record(kind, &tokenizer, store.device())?;
    Bundle::new(record, Arc::new(tokenizer), locked, store)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::emoji::{self, TEST_DOMAIN, TRAIN_DOMAINS};

    #[test]
    fn the_vocabulary_of_the_training_captions_covers_the_test() {
        let folder = emoji::assets().join("emoji");
        let (train, _) = emoji::load(&folder, &TRAIN_DOMAINS).unwrap();
        let (test, _) = emoji::load(&folder, &[TEST_DOMAIN]).unwrap();
        let tokenizer = tokenizer(&train).unwrap();
        let unknown = tokenizer.vocabulary().unknown();
        for one in &test {
            let row = tokenizer.encode(&one.caption.name_zh).unwrap();
            assert!(!row.contains(&unknown) && row.len() + 2 <= CONTEXT, "{}", one.caption.name_zh);
        }
        assert!(tokenizer.vocab_size() < 3000, "{}", tokenizer.vocab_size());
    }
}
