//! A Wukong model with its preprocessing and its tokenizer, in a folder.

use super::{
    Config, Locked, LockedConfig, TextTokens, Variant, VisionConfig, Wukong, official_names, weights::unwrap,
    weights_digest,
};
use crate::{
    CONFIG_FILE, Error, Result, Tokenize, TokenizerSpec, WEIGHTS_FILE,
    record::is_plain,
    weights::{Watched, load_options},
};
use candle_core::{DType, Device, Tensor};
use sconce_data::{Picture, Preprocess};
use sconce_nn::{Checkpoint, LoadReport, ParamStore, SaveOptions};
use serde::{Deserialize, Serialize};
use std::{path::Path, sync::Arc};

/// What belongs to a model beside its weights; the `config.json` of its folder.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Pretrained {
    /// Sizes of the model.
    pub model: Config,
    /// From a picture to the input of the image tower.
    ///
    /// The released evaluation normalises before it resizes, on floating-point pixels; here pictures are resized as for CLIP.
    pub preprocess: Preprocess,
    /// From a text to the input of the text tower.
    pub tokenizer: TokenizerSpec,
    /// Licence of the weights, as an SPDX expression.
    #[serde(default)]
    pub license: String,
    /// The paper.
    #[serde(default)]
    pub paper: String,
    /// Where the weights are from, or the command that made them.
    #[serde(default)]
    pub source: String,
}

/// The name of the vocabulary's file.
const VOCAB_FILE: &str = "vocab.txt";

impl Pretrained {
    /// The record of a model whose vocabulary is a `vocab.txt` and whose pictures are prepared as CLIP's.
    ///
    /// # Errors
    /// As [`Config::validate`]; for pictures that are not square.
    pub fn new(model: Config) -> Result<Self> {
        let side = match model.image_size() {
            (height, width) if height == width => u32::try_from(height).map_err(|e| Error::Config(e.to_string()))?,
            (height, width) => return Err(Error::Config(format!("pictures of {height} x {width} are not square"))),
        };
        let context_length = model.text.context_length;
        let record = Self {
            preprocess: Preprocess::clip(side),
            tokenizer: TokenizerSpec::WordPiece { file: VOCAB_FILE.into(), context_length },
            license: String::new(),
            paper: "https://arxiv.org/abs/2202.06767".into(),
            source: String::new(),
            model,
        };
        record.validate()?;
        Ok(record)
    }

    /// Checks that the parts go together.
    ///
    /// # Errors
    /// As [`Config::validate`]; [`Error::Config`] when pictures come out in another size than the model takes.
    pub fn validate(&self) -> Result<()> {
        self.model.validate()?;
        let (size, wanted) = (self.preprocess.size, self.model.image_size());
        if (size.height as usize, size.width as usize) != wanted {
            let (width, height) = (size.width, size.height);
            return Err(Error::Config(format!("pictures of {width} x {height} for a model that takes {wanted:?}")));
        }
        Ok(())
    }

    fn read(folder: &Path) -> Result<Self> {
        let path = folder.join(CONFIG_FILE);
        let bytes = std::fs::read(&path).map_err(|source| Error::Io { path: path.clone(), source })?;
        let record: Self = serde_json::from_slice(&bytes).map_err(|source| Error::Json { path, source })?;
        record.validate()?;
        Ok(record)
    }

    /// The locked tower that the record names, whose folder lies beside `folder`.
    fn locked(&self, folder: &Path, dtype: DType, device: &Device) -> Result<Option<Locked>> {
        let VisionConfig::Locked(config) = &self.model.vision else { return Ok(None) };
        let whole = folder.canonicalize().map_err(|source| Error::Io { path: folder.to_owned(), source })?;
        if !is_plain(&config.folder) {
            return Err(Error::Config(format!("{:?} is not the name of a folder beside the model's", config.folder)));
        }
        let tower = whole.parent().unwrap_or(&whole).join(&config.folder);
        open_locked(config, &self.model.variant, &tower, dtype, device).map(Some)
    }
}

/// Reads the image tower of a CLIP model in a folder and checks that it is the one that was trained with.
fn open_locked(
    config: &LockedConfig,
    variant: &Variant,
    folder: &Path,
    dtype: DType,
    device: &Device,
) -> Result<Locked> {
    let found = weights_digest(folder)?;
    if found != config.sha256 {
        return Err(Error::Checkpoint(format!(
            "{} is not the image tower that the text tower was trained with: its weights have the digest {found}",
            folder.display()
        )));
    }
    let clip = crate::Bundle::load(folder, dtype, device)?.model;
    match variant {
        Variant::Global => Ok(Locked::embedding(&clip)),
        Variant::Filip | Variant::Reduced(_) => Locked::grid(&clip, config.stage),
    }
}

/// A model, its preprocessing and its tokenizer, ready for pictures and texts.
#[derive(Clone, Debug)]
pub struct Bundle {
    /// The two towers.
    pub model: Wukong,
    /// From a text to ids.
    pub tokenizer: Arc<dyn Tokenize>,
    /// The record that they were made from.
    pub pretrained: Pretrained,
}

impl Bundle {
    /// Loads a model for inference from a folder that [`Bundle::save`] wrote. The folder of a locked image tower must lie
    /// beside it.
    ///
    /// # Errors
    /// Every tensor of the model must be in the file with its shape, and the file may hold no others; a locked tower must have
    /// the weights that the text tower was trained with. [`Error::Io`], [`Error::Json`], [`Error::Tokenizer`].
    pub fn load(folder: impl AsRef<Path>, dtype: DType, device: &Device) -> Result<Self> {
        let folder = folder.as_ref();
        let pretrained = Pretrained::read(folder)?;
        let locked = pretrained.locked(folder, dtype, device)?;
        Self::with_record(pretrained, folder, locked, &Checkpoint::open(folder.join(WEIGHTS_FILE))?, dtype, device)
    }

    /// As [`Bundle::load`] with a record, a locked tower and a checkpoint of one's own, a published `.pkl` say; `folder` is where
    /// the vocabulary is looked for.
    ///
    /// # Errors
    /// As [`Bundle::load`].
    pub fn with_record(
        pretrained: Pretrained,
        folder: &Path,
        locked: Option<Locked>,
        checkpoint: &Checkpoint,
        dtype: DType,
        device: &Device,
    ) -> Result<Self> {
        let tokenizer = tokenizer(&pretrained, folder)?;
        let ((plain, map), options) = (unwrap(checkpoint)?, load_options());
        let watched = Watched::of(plain, map);
        let vb = watched.checkpoint().vb_with(dtype, device, &options);
        let model = build(&pretrained, locked, vb)?;
        watched.check_leftovers(&options)?;
        Ok(Self { model, tokenizer, pretrained })
    }

    /// As [`Bundle::load`], with the parameters in `store`, to train on. A locked tower stays outside of it.
    ///
    /// # Errors
    /// As [`Bundle::load`].
    pub fn load_trainable(folder: impl AsRef<Path>, store: &ParamStore) -> Result<(Self, LoadReport)> {
        let folder = folder.as_ref();
        let pretrained = Pretrained::read(folder)?;
        let locked = pretrained.locked(folder, store.dtype(), store.device())?;
        let tokenizer = tokenizer(&pretrained, folder)?;
        let bundle = Self::new(pretrained, tokenizer, locked, store)?;
        let checkpoint = official_names(&Checkpoint::open(folder.join(WEIGHTS_FILE))?)?;
        let report = store.load(&checkpoint, &load_options())?;
        Ok((bundle, report))
    }

    /// A new model to be trained, with its parameters in `store`.
    ///
    /// # Errors
    /// As [`Wukong::new`]; [`Error::Tokenizer`] for one that has more tokens than the model.
    pub fn new(
        pretrained: Pretrained,
        tokenizer: Arc<dyn Tokenize>,
        locked: Option<Locked>,
        store: &ParamStore,
    ) -> Result<Self> {
        pretrained.validate()?;
        check(&pretrained, &*tokenizer)?;
        let model = build(&pretrained, locked, store.vb())?;
        Ok(Self { model, tokenizer, pretrained })
    }

    /// Writes a folder that [`Bundle::load`] reads: the parameters of `store`, the record, the vocabulary. A locked tower is not
    /// written.
    ///
    /// # Errors
    /// [`Error::Io`], [`Error::Nn`].
    pub fn save(&self, folder: impl AsRef<Path>, store: &ParamStore, options: &SaveOptions) -> Result<()> {
        let folder = folder.as_ref();
        std::fs::create_dir_all(folder).map_err(|source| Error::Io { path: folder.to_owned(), source })?;
        let path = folder.join(CONFIG_FILE);
        let json = serde_json::to_string_pretty(&self.pretrained);
        let json = json.map_err(|source| Error::Json { path: path.clone(), source })? + "\n";
        self.pretrained.tokenizer.write(&*self.tokenizer, folder)?;
        store.save_with(folder.join(WEIGHTS_FILE), options)?;
        sconce_nn::fs::write_atomic(&path, |out| out.write_all(json.as_bytes()))
            .map_err(|source| Error::Io { path, source })
    }

    /// Pictures as the image tower takes them: `(B, 3, S, S)`.
    ///
    /// # Errors
    /// Without pictures; for a picture that cannot be resized.
    pub fn preprocess(&self, pictures: &[Picture]) -> Result<Tensor> {
        let scale = &self.model.logit_scale;
        Ok(self.pretrained.preprocess.batch(pictures, scale.device())?.to_dtype(scale.dtype())?)
    }

    /// Unit-length tokens of pictures: `(B, N, E)`.
    ///
    /// # Errors
    /// As [`Bundle::preprocess`].
    pub fn embed_pictures(&self, pictures: &[Picture]) -> Result<Tensor> {
        Ok(self.model.encode_image(&self.preprocess(pictures)?, false)?.detach())
    }

    /// Unit-length tokens of texts.
    ///
    /// # Errors
    /// As [`Wukong::embed_texts`].
    pub fn embed_texts<S: AsRef<str>>(&self, texts: &[S]) -> Result<TextTokens> {
        let TextTokens { features, valid } = self.model.embed_texts(&*self.tokenizer, texts)?;
        Ok(TextTokens { features: features.detach(), valid })
    }
}

fn build(pretrained: &Pretrained, locked: Option<Locked>, vb: sconce_nn::VarBuilder) -> Result<Wukong> {
    Ok(match locked {
        Some(locked) => Wukong::with_locked(&pretrained.model, locked, vb)?,
        None => Wukong::new(&pretrained.model, vb)?,
    })
}

fn tokenizer(pretrained: &Pretrained, folder: &Path) -> Result<Arc<dyn Tokenize>> {
    let tokenizer = pretrained.tokenizer.open(folder)?;
    check(pretrained, &*tokenizer)?;
    Ok(tokenizer)
}

fn check(pretrained: &Pretrained, tokenizer: &dyn Tokenize) -> Result<()> {
    let text = &pretrained.model.text;
    let (size, length) = (tokenizer.vocab_size(), tokenizer.context_length());
    if size > text.vocab_size || length > text.context_length {
        return Err(Error::Tokenizer(format!(
            "{size} tokens in rows of {length} for a model that takes {} in rows of {}",
            text.vocab_size, text.context_length
        )));
    }
    Ok(())
}
