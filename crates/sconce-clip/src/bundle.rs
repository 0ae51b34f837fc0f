//! A model with its preprocessing and its tokenizer, from one record or one folder.

use crate::{
    CONFIG_FILE, Clip, Error, Pretrained, Result, Tokenize,
    record::METADATA_KEY,
    weights::{Watched, load_options, openai_names},
};
use candle_core::{DType, Device, Tensor};
use sconce_data::Picture;
use sconce_nn::{Checkpoint, LoadReport, ParamStore, SaveOptions};
use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

/// The name of the file that [`Bundle::save`] writes weights to.
pub const WEIGHTS_FILE: &str = "model.safetensors";

/// A model, its preprocessing and its tokenizer, ready for pictures and texts.
#[derive(Clone, Debug)]
pub struct Bundle {
    /// The two towers.
    pub model: Clip,
    /// From a text to ids.
    pub tokenizer: Arc<dyn Tokenize>,
    /// The record that they were made from.
    pub pretrained: Pretrained,
}

impl Bundle {
    /// Loads a model for inference from a folder (weights, configuration, tokenizer) or from a checkpoint alone, in any of the
    /// three formats: OpenAI's or open_clip's state dict, OpenAI's TorchScript archive, Hugging Face's `CLIPModel`. Weights are
    /// converted to `dtype`, whatever they are stored in.
    ///
    /// # Errors
    /// Every tensor of the model must be in the file with its shape, and the file may hold no others: [`Error::Checkpoint`]
    /// and [`Error::Candle`] name them. Otherwise as [`Pretrained::read`].
    pub fn load(path: impl AsRef<Path>, dtype: DType, device: &Device) -> Result<Self> {
        let path = path.as_ref();
        let checkpoint = Checkpoint::open(path)?;
        let pretrained = Pretrained::read(path, &checkpoint)?;
        Self::with_record(pretrained, path, &checkpoint, dtype, device)
    }

    /// As [`Bundle::load`] with a record of one's own, for instance for another image size; `path` is where a `tokenizer.json`
    /// is looked for.
    ///
    /// # Errors
    /// As [`Bundle::load`].
    pub fn with_record(
        pretrained: Pretrained,
        path: &Path,
        checkpoint: &Checkpoint,
        dtype: DType,
        device: &Device,
    ) -> Result<Self> {
        pretrained.validate()?;
        let tokenizer = pretrained.tokenizer(&folder_of(path))?;
        let (watched, options) = (Watched::new(checkpoint)?, load_options());
        let model = Clip::new(&pretrained.model, watched.checkpoint().vb_with(dtype, device, &options))?;
        watched.check_leftovers(&options)?;
        Ok(Self { model, tokenizer, pretrained })
    }

    /// As [`Bundle::load`], with the parameters in `store`, to train on.
    ///
    /// # Errors
    /// As [`Bundle::load`].
    pub fn load_trainable(path: impl AsRef<Path>, store: &ParamStore) -> Result<(Self, LoadReport)> {
        let path = path.as_ref();
        let checkpoint = Checkpoint::open(path)?;
        let pretrained = Pretrained::read(path, &checkpoint)?;
        let bundle = Self::new(pretrained, path, store)?;
        let report = store.load(&openai_names(&checkpoint)?, &load_options())?;
        Ok((bundle, report))
    }

    /// A new model to be trained, with its parameters in `store`.
    ///
    /// # Errors
    /// As [`Clip::new`] and [`Pretrained::tokenizer`].
    pub fn new(pretrained: Pretrained, path: &Path, store: &ParamStore) -> Result<Self> {
        pretrained.validate()?;
        let tokenizer = pretrained.tokenizer(&folder_of(path))?;
        let model = Clip::new(&pretrained.model, store.vb())?;
        Ok(Self { model, tokenizer, pretrained })
    }

    /// Writes a folder that [`Bundle::load`] reads: the parameters of `store` (in half the space with
    /// [`SaveOptions::with_dtype`] of [`DType::F16`]) and the record, with the `vocab.txt` of a WordPiece tokenizer. A
    /// `tokenizer.json` is the caller's to copy.
    ///
    /// # Errors
    /// [`Error::Io`], [`Error::Nn`].
    pub fn save(&self, folder: impl AsRef<Path>, store: &ParamStore, options: &SaveOptions) -> Result<()> {
        let folder = folder.as_ref();
        std::fs::create_dir_all(folder).map_err(|source| Error::Io { path: folder.to_owned(), source })?;
        let path = folder.join(CONFIG_FILE);
        let json = |json: serde_json::Result<String>| json.map_err(|source| Error::Json { path: path.clone(), source });
        let pretty = json(serde_json::to_string_pretty(&self.pretrained))? + "\n";
        let record = json(serde_json::to_string(&self.pretrained))?;
        self.pretrained.tokenizer.write(&*self.tokenizer, folder)?;
        // The weights file alone says all, too: heads cannot be told from shapes.
        store.save_with(folder.join(WEIGHTS_FILE), &options.clone().with_metadata(METADATA_KEY, record))?;
        sconce_nn::fs::write_atomic(&path, |out| out.write_all(pretty.as_bytes()))
            .map_err(|source| Error::Io { path, source })
    }

    /// Unit-length features of pictures: `(B, E)`.
    ///
    /// # Errors
    /// Without pictures; for a picture that cannot be resized.
    pub fn embed_pictures(&self, pictures: &[Picture]) -> Result<Tensor> {
        let scale = &self.model.logit_scale;
        let images = self.pretrained.preprocess.batch(pictures, scale.device())?.to_dtype(scale.dtype())?;
        Ok(crate::normalize(&self.model.encode_image(&images)?)?)
    }

    /// Unit-length features of texts: `(B, E)`.
    ///
    /// # Errors
    /// As [`Clip::embed_texts`].
    pub fn embed_texts<S: AsRef<str>>(&self, texts: &[S]) -> Result<Tensor> {
        self.model.embed_texts(&*self.tokenizer, texts)
    }
}

fn folder_of(path: &Path) -> PathBuf {
    if path.is_dir() { path.to_owned() } else { path.parent().unwrap_or(Path::new("")).to_owned() }
}
