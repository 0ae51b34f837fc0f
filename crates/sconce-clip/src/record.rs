//! The record of a model: what belongs to it beside its weights.

use crate::{
    ClipTokenizer, Config, Error, JsonTokenizer, Result, SpecialTokens, Tokenize, TokenizerConfig, WordPiece,
    tokenizer::OPENAI_MERGES,
};
use sconce_data::{Filter, Preprocess, ResizeMode, Size};
use sconce_nn::Checkpoint;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::{
    path::{Component, Path},
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
    /// BERT's WordPiece with a `vocab.txt` beside the weights. Texts that are too long are cut.
    WordPiece {
        /// The name of the file, in the same folder.
        file: String,
        /// Ids in a row.
        context_length: usize,
    },
}

impl TokenizerSpec {
    /// The tokenizer, whose file is looked for in `folder`.
    ///
    /// # Errors
    /// [`Error::Tokenizer`] for one that cannot be used; [`Error::Io`].
    pub fn open(&self, folder: &Path) -> Result<Arc<dyn Tokenize>> {
        Ok(match self {
            Self::ClipBpe(config) => Arc::new(ClipTokenizer::new(config)?),
            Self::Json { file, context_length } => {
                Arc::new(JsonTokenizer::from_file(folder.join(beside(file)?), *context_length)?)
            }
            Self::WordPiece { file, context_length } => {
                Arc::new(WordPiece::from_file(folder.join(beside(file)?), *context_length)?)
            }
        })
    }

    /// Writes the file of the tokenizer, where it has one that it can write.
    pub(crate) fn write(&self, tokenizer: &dyn Tokenize, folder: &Path) -> Result<()> {
        let (Self::WordPiece { file, .. }, Some(text)) = (self, tokenizer.file()) else { return Ok(()) };
        let path = folder.join(beside(file)?);
        sconce_nn::fs::write_atomic(&path, |out| out.write_all(text.as_bytes()))
            .map_err(|source| Error::Io { path, source })
    }
}

/// The file of a tokenizer, which may not lie elsewhere.
fn beside(file: &str) -> Result<&str> {
    match is_plain(file) {
        true => Ok(file),
        false => Err(Error::Tokenizer(format!("{file:?} is not the name of a file in the same folder"))),
    }
}

/// Whether a path is a name alone, of a file or folder in the same place.
pub(crate) fn is_plain(name: &str) -> bool {
    let mut parts = Path::new(name).components();
    matches!((parts.next(), parts.next()), (Some(Component::Normal(_)), None))
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

/// The name of the file that [`Bundle::save`](crate::Bundle::save) writes a [`Pretrained`] to.
pub const CONFIG_FILE: &str = "config.json";

/// The key of a [`Pretrained`] in the metadata of a weights file.
pub(crate) const METADATA_KEY: &str = "sconce_clip";

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
    /// `preprocessor_config.json` where there are any) or `open_clip_config.json`. For a path that is a file, the record in its
    /// metadata. Without any, the sizes are inferred from the checkpoint, which must then have OpenAI's heads of 64.
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
        if let Some(text) = checkpoint.metadata().get(METADATA_KEY) {
            let of_file = |source| Error::Json { path: path.to_owned(), source };
            let record: Self = serde_json::from_str(text).map_err(of_file)?;
            record.validate()?;
            return Ok(record);
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
        match json.get("preprocess_cfg") {
            Some(inline) => foreign_preprocess(&mut record.preprocess, inline)?,
            None if beside.is_file() => foreign_preprocess(&mut record.preprocess, &read_json(&beside)?)?,
            None => {}
        }
        Ok(record)
    }

    /// The tokenizer, whose file is looked for in `folder`.
    ///
    /// # Errors
    /// [`Error::Tokenizer`] for one that cannot be used or has more tokens than the model; [`Error::Io`].
    pub fn tokenizer(&self, folder: &Path) -> Result<Arc<dyn Tokenize>> {
        let tokenizer = self.tokenizer.open(folder)?;
        let (text, size) = (&self.model.text, tokenizer.vocab_size());
        if size > text.vocab_size || tokenizer.context_length() > text.context_length {
            return Err(Error::Tokenizer(format!(
                "{size} tokens in rows of {} for a model that takes {} in rows of {}",
                tokenizer.context_length(),
                text.vocab_size,
                text.context_length
            )));
        }
        if text.end_token.is_some_and(|end| end != tokenizer.end_token()) {
            let (end, wanted) = (tokenizer.end_token(), text.end_token);
            return Err(Error::Tokenizer(format!("texts end in {end}, the model looks for {wanted:?}")));
        }
        Ok(tokenizer)
    }
}

/// Takes over what open_clip's and Hugging Face's preprocessing files say of filter, resize and statistics; their size is the
/// model's.
fn foreign_preprocess(preprocess: &mut Preprocess, json: &Value) -> Result<()> {
    let statistic = |names: [&str; 2]| names.iter().find_map(|name| <[f32; 3]>::deserialize(json.get(name)?).ok());
    let normalize = &mut preprocess.normalize;
    normalize.mean = statistic(["mean", "image_mean"]).unwrap_or(normalize.mean);
    normalize.std = statistic(["std", "image_std"]).unwrap_or(normalize.std);
    let unknown = |what: &str, value: &dyn std::fmt::Display| Error::Config(format!("preprocessing: {what} {value}"));
    let word = |name: &str| json.get(name).and_then(Value::as_str);
    preprocess.filter = match (word("interpolation"), json.get("resample").and_then(Value::as_u64)) {
        (None, None) => preprocess.filter,
        // Numbers are Pillow's.
        (Some("bicubic"), _) | (None, Some(3)) => Filter::Bicubic,
        (Some("bilinear"), _) | (None, Some(2)) => Filter::Bilinear,
        (Some(other), _) => return Err(unknown("interpolation", &other)),
        (None, Some(other)) => return Err(unknown("resample", &other)),
    };
    preprocess.resize = match word("resize_mode") {
        None | Some("shortest") => preprocess.resize,
        Some("squash") => ResizeMode::Exact(preprocess.size),
        Some(other) => return Err(unknown("resize_mode", &other)),
    };
    Ok(())
}

fn read_json(path: &Path) -> Result<Value> {
    let bytes = std::fs::read(path).map_err(|source| Error::Io { path: path.to_owned(), source })?;
    serde_json::from_slice(&bytes).map_err(|source| Error::Json { path: path.to_owned(), source })
}
