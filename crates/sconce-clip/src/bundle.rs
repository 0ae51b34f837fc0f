//! A model with its preprocessing and its tokenizer, from one record or one folder.

use crate::{
    Clip, ClipTokenizer, Config, Error, JsonTokenizer, Result, SpecialTokens, Tokenize, TokenizerConfig,
    tokenizer::OPENAI_MERGES,
    weights::{Watched, load_options, openai_names},
};
use candle_core::{DType, Device, Tensor};
use sconce_data::{Picture, Preprocess, ResizeMode, Size};
use sconce_nn::{Checkpoint, LoadReport, ParamStore, SaveOptions};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::{
    path::{Component, Path, PathBuf},
    sync::Arc,
};

/// How texts become ids.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum TokenizerSpec {
    /// OpenAI's byte-pair encoding, the whole of it or its beginning.
    ClipBpe(TokenizerConfig),
    /// A `tokenizer.json` beside the weights.
    Json {
        /// The name of the file, in the same folder.
        file: String,
        /// Ids in a row.
        context_length: usize,
    },
}

/// What belongs to a model beside its weights; the `config.json` of a folder that this crate writes.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Pretrained {
    /// Sizes of the model.
    pub model: Config,
    /// From a picture to the input of the image tower.
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

/// The name of the file that [`Bundle::save`] writes a [`Pretrained`] to.
pub const CONFIG_FILE: &str = "config.json";

/// The name of the file that [`Bundle::save`] writes weights to.
pub const WEIGHTS_FILE: &str = "model.safetensors";

impl Pretrained {
    /// The record of a model that is preprocessed and tokenised as OpenAI's: bicubic, centre crop, byte-pair encoding.
    ///
    /// # Errors
    /// [`Error::Config`] when no number of OpenAI's merges gives the vocabulary.
    pub fn openai(model: Config) -> Result<Self> {
        let size = u32::try_from(model.vision.image_size()).map_err(|e| Error::Config(e.to_string()))?;
        let (context_length, vocab_size) = (model.text.context_length, model.text.vocab_size);
        let merges = vocab_size.checked_sub(TokenizerConfig { merges: 0, ..Default::default() }.vocab_size());
        let merges = merges.filter(|merges| *merges <= OPENAI_MERGES).ok_or_else(|| {
            Error::Config(format!("a vocabulary of {vocab_size} is not OpenAI's; the model needs a tokenizer.json"))
        })?;
        let tokenizer = TokenizerConfig { merges, context_length, ..Default::default() };
        Ok(Self {
            model,
            preprocess: Preprocess::clip(size),
            tokenizer: TokenizerSpec::ClipBpe(tokenizer),
            license: String::new(),
            paper: "https://arxiv.org/abs/2103.00020".into(),
            source: String::new(),
        })
    }

    /// Checks that the parts go together.
    ///
    /// # Errors
    /// As [`Config::validate`]; [`Error::Config`] when pictures come out in another size than the model takes.
    pub fn validate(&self) -> Result<()> {
        self.model.validate()?;
        let (side, size) = (self.model.vision.image_size(), self.preprocess.size);
        if (size.width as usize, size.height as usize) != (side, side) {
            let (width, height) = (size.width, size.height);
            return Err(Error::Config(format!(
                "pictures of {width} x {height} for a model that takes {side} x {side}"
            )));
        }
        Ok(())
    }

    /// The same for square pictures of another size.
    ///
    /// # Errors
    /// As [`Self::validate`].
    pub fn with_image_size(mut self, side: u32) -> Result<Self> {
        self.model = self.model.with_image_size(side as usize);
        self.preprocess.size = Size::square(side);
        self.preprocess.resize = match self.preprocess.resize {
            ResizeMode::None => ResizeMode::None,
            ResizeMode::ShorterSide(_) => ResizeMode::ShorterSide(side),
            ResizeMode::Exact(_) => ResizeMode::Exact(Size::square(side)),
            ResizeMode::PadToSquare(_) => ResizeMode::PadToSquare(side),
        };
        self.validate()?;
        Ok(self)
    }

    /// Reads what lies beside the weights in a folder: our `config.json`, Hugging Face's (with `tokenizer.json` and
    /// `preprocessor_config.json` where there are any) or `open_clip_config.json`. Without a configuration, or for a path that
    /// is a file, the sizes are inferred from the checkpoint.
    ///
    /// Pictures are cropped as OpenAI does it whatever the folder's dialect: Hugging Face's image processor rounds the
    /// crop down, which shifts some pictures by a pixel. Its normalisation and size are taken over.
    ///
    /// # Errors
    /// [`Error::Io`], [`Error::Json`], and as [`Config::from_json`] and [`Config::infer`].
    pub fn read(path: impl AsRef<Path>, checkpoint: &Checkpoint) -> Result<Self> {
        let path = path.as_ref();
        for name in [CONFIG_FILE, "open_clip_config.json"] {
            let file = path.join(name);
            if path.is_dir() && file.is_file() {
                return Self::from_folder(path, &read_json(&file)?, &file);
            }
        }
        Self::openai(Config::infer(checkpoint)?)
    }

    fn from_folder(folder: &Path, json: &Value, file: &Path) -> Result<Self> {
        if json.get("model").is_some() && json.get("tokenizer").is_some() {
            let record = Self::deserialize(json).map_err(|source| Error::Json { path: file.to_owned(), source })?;
            record.validate()?;
            return Ok(record);
        }
        let model = Config::from_json(json)?;
        let context_length = model.text.context_length;
        let of_hf = json.get("vision_config").is_some();
        let file = "tokenizer.json";
        let mut record = if of_hf && folder.join(file).is_file() {
            // The vocabulary is the file's; `openai` only needs one that it knows.
            let mut stand_in = model.clone();
            stand_in.text.vocab_size = TokenizerConfig::default().vocab_size();
            let tokenizer = TokenizerSpec::Json { file: file.into(), context_length };
            Self { model, tokenizer, ..Self::openai(stand_in)? }
        } else {
            Self::openai(model)?
        };
        if let (false, TokenizerSpec::ClipBpe(tokenizer)) = (of_hf, &mut record.tokenizer) {
            tokenizer.special_tokens = SpecialTokens::OpenClip;
            tokenizer.truncate = true;
        }
        let beside = folder.join("preprocessor_config.json");
        let statistics = match json.get("preprocess_cfg") {
            Some(inline) => Some((inline.clone(), ["mean", "std"])),
            None if beside.is_file() => Some((read_json(&beside)?, ["image_mean", "image_std"])),
            None => None,
        };
        if let Some((json, names)) = statistics {
            let [mean, std] = names.map(|name| json.get(name).and_then(|v| <[f32; 3]>::deserialize(v).ok()));
            let normalize = &mut record.preprocess.normalize;
            normalize.mean = mean.unwrap_or(normalize.mean);
            normalize.std = std.unwrap_or(normalize.std);
        }
        Ok(record)
    }

    /// The tokenizer, whose file is looked for in `folder`.
    ///
    /// # Errors
    /// [`Error::Tokenizer`] for one that cannot be used or has more tokens than the model; [`Error::Io`].
    pub fn tokenizer(&self, folder: &Path) -> Result<Arc<dyn Tokenize>> {
        let tokenizer: Arc<dyn Tokenize> = match &self.tokenizer {
            TokenizerSpec::ClipBpe(config) => Arc::new(ClipTokenizer::new(config)?),
            TokenizerSpec::Json { file, context_length } => {
                let mut parts = Path::new(file).components();
                if !matches!((parts.next(), parts.next()), (Some(Component::Normal(_)), None)) {
                    return Err(Error::Tokenizer(format!("{file:?} is not the name of a file in the same folder")));
                }
                Arc::new(JsonTokenizer::from_file(folder.join(file), *context_length)?)
            }
        };
        let (text, size) = (&self.model.text, tokenizer.vocab_size());
        if size > text.vocab_size || tokenizer.context_length() > text.context_length {
            return Err(Error::Tokenizer(format!(
                "{size} tokens in rows of {} for a model that takes {} in rows of {}",
                tokenizer.context_length(),
                text.vocab_size,
                text.context_length
            )));
        }
        Ok(tokenizer)
    }
}

fn read_json(path: &Path) -> Result<Value> {
    let bytes = std::fs::read(path).map_err(|source| Error::Io { path: path.to_owned(), source })?;
    serde_json::from_slice(&bytes).map_err(|source| Error::Json { path: path.to_owned(), source })
}

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
    /// and [`Error::Nn`] name them. Otherwise as [`Pretrained::read`].
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
    /// [`SaveOptions::with_dtype`] of [`DType::F16`]) and the record. A `tokenizer.json` is the caller's to copy.
    ///
    /// # Errors
    /// [`Error::Io`], [`Error::Nn`].
    pub fn save(&self, folder: impl AsRef<Path>, store: &ParamStore, options: &SaveOptions) -> Result<()> {
        let folder = folder.as_ref();
        std::fs::create_dir_all(folder).map_err(|source| Error::Io { path: folder.to_owned(), source })?;
        store.save_with(folder.join(WEIGHTS_FILE), options)?;
        let path = folder.join(CONFIG_FILE);
        let json = serde_json::to_vec_pretty(&self.pretrained);
        let json = json.map_err(|source| Error::Json { path: path.clone(), source })?;
        sconce_nn::fs::write_atomic(&path, |out| {
            out.write_all(&json)?;
            out.write_all(b"\n")
        })
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
