//! Pictures and texts that find each other, with a CLIP model or a Chinese one.

use std::path::Path;

use sconce::adapt::features::{CacheOptions, Digest, FeatureCache};
use sconce::candle::{DType, Device, Tensor};
use sconce::clip::wukong::{
    self, LateInteraction, Recalls, Similarity, TextTokens, VisionConfig, late_interaction, weights_digest,
};
use sconce::clip::{Bundle, CONFIG_FILE};
use sconce::data::Picture;
use sconce::train::StepError;
use serde_json::Value;

/// Pictures that go through a tower at once.
const BATCH: usize = 64;

/// A model with its kind of comparison. Pictures and texts are tokens; of a CLIP model each has one.
#[derive(Debug, Clone)]
pub enum Model {
    /// CLIP, in any format.
    Clip(Box<Bundle>),
    /// Wukong, written by `pretrain_chinese`.
    Chinese(Box<wukong::Bundle>),
}

impl Model {
    /// Loads a model from a folder, or a CLIP model from a file.
    ///
    /// # Errors
    /// What is not a model.
    pub fn load(path: &Path, device: &Device) -> Result<Self, StepError> {
        let record = std::fs::read(path.join(CONFIG_FILE)).ok();
        let record = record.and_then(|bytes| serde_json::from_slice::<Value>(&bytes).ok()).unwrap_or_default();
        Ok(match record.pointer("/model/variant") {
            Some(_) => Self::Chinese(Box::new(wukong::Bundle::load(path, DType::F32, device)?)),
            None => Self::Clip(Box::new(Bundle::load(path, DType::F32, device)?)),
        })
    }

    /// Unit-length tokens of pictures: `(pictures, N, E)`. With `cache`, a folder, pictures that were seen before do not go
    /// through the model again.
    ///
    /// # Errors
    /// Pictures that cannot be encoded, a cache that cannot be written.
    pub fn pictures(&self, path: &Path, pictures: &[Picture], cache: Option<&Path>) -> Result<Tensor, StepError> {
        let encode = |pictures: &[Picture]| -> Result<Tensor, StepError> {
            Ok(match self {
                Self::Clip(bundle) => bundle.embed_pictures(pictures)?.unsqueeze(1)?,
                Self::Chinese(bundle) => bundle.embed_pictures(pictures)?,
            })
        };
        let Some(folder) = cache else {
            return Ok(Tensor::cat(&pictures.chunks(BATCH).map(encode).collect::<Result<Vec<_>, _>>()?, 0)?);
        };
        let cache = FeatureCache::new(folder, self.digest(path)?, CacheOptions::default())?;
        let digests: Vec<Digest> = pictures.iter().map(Digest::of_picture).collect();
        let found = cache.rows("unit-length tokens", &digests, |indices| {
            let batch: Vec<Picture> = indices.iter().map(|&i| pictures[i].clone()).collect();
            let tokens = encode(&batch).map_err(|error| sconce::adapt::Error::Data(error.to_string()))?;
            Ok(tokens.flatten_from(1)?) // (B, N E)
        })?;
        Ok(found.rows.reshape((pictures.len(), (), self.width()))?)
    }

    /// Unit-length tokens of texts.
    ///
    /// # Errors
    /// Texts that the tokenizer refuses.
    pub fn texts<S: AsRef<str>>(&self, texts: &[S]) -> Result<TextTokens, StepError> {
        Ok(match self {
            Self::Clip(bundle) => whole(&bundle.embed_texts(texts)?.unsqueeze(1)?)?,
            Self::Chinese(bundle) => bundle.embed_texts(texts)?,
        })
    }

    /// Whether it reads Chinese.
    #[must_use]
    pub fn is_chinese(&self) -> bool {
        matches!(self, Self::Chinese(_))
    }

    fn width(&self) -> usize {
        match self {
            Self::Clip(bundle) => bundle.model.config.embed_dim,
            Self::Chinese(bundle) => bundle.model.config.embed_dim,
        }
    }

    /// What features depend on beside the pictures: the weights and the record.
    fn digest(&self, path: &Path) -> Result<Digest, StepError> {
        match self {
            Self::Clip(bundle) => Ok(Digest::of_model(bundle, path)?),
            Self::Chinese(bundle) => {
                let record = serde_json::to_vec(&bundle.pretrained)?;
                Ok(Digest::of(&[weights_digest(path)?.as_bytes(), &record]))
            }
        }
    }

    /// Whose image tower it has, in words.
    #[must_use]
    pub fn describe(&self) -> String {
        match self {
            Self::Clip(_) => "CLIP".into(),
            Self::Chinese(bundle) => {
                let config = &bundle.model.config;
                let tower = match &config.vision {
                    VisionConfig::Locked(locked) => format!("the locked image tower of {}", locked.folder),
                    VisionConfig::Vit(_) | VisionConfig::Backbone(_) => "an image tower of its own".into(),
                };
                format!("Chinese, {:?}, {tower}", config.variant)
            }
        }
    }
}

/// Pictures as queries: all their tokens count.
///
/// # Errors
/// Those of tensor arithmetic.
pub fn whole(tokens: &Tensor) -> Result<TextTokens, StepError> {
    let (count, length, _) = tokens.dims3()?;
    let valid = Tensor::ones((count, length), DType::U8, tokens.device())?;
    Ok(TextTokens { features: tokens.clone(), valid })
}

/// Both directions' similarities.
///
/// # Errors
/// When the widths differ.
pub fn compare(images: &Tensor, queries: &TextTokens) -> Result<Similarity, StepError> {
    Ok(late_interaction(images, queries, &LateInteraction::default())?)
}

/// The `k` best pictures for each query, with their similarity.
///
/// # Errors
/// When the widths differ.
pub fn search(images: &Tensor, queries: &TextTokens, k: usize) -> Result<Vec<Vec<(usize, f32)>>, StepError> {
    let scores = compare(images, queries)?.text_to_image.t()?.to_dtype(DType::F32)?.to_vec2::<f32>()?;
    let best = |row: Vec<f32>| {
        let mut places: Vec<(usize, f32)> = row.into_iter().enumerate().collect();
        places.sort_by(|a, b| b.1.total_cmp(&a.1)); // stable: ties by place
        places.truncate(k);
        places
    };
    Ok(scores.into_iter().map(best).collect())
}

/// Recalls of captions and pictures, and what guessing gives. `image_of_caption` names each caption's picture.
///
/// # Errors
/// A picture without a caption.
pub fn evaluate(
    model: &Model,
    images: &Tensor,
    captions: &[String],
    image_of_caption: &[usize],
) -> Result<(Recalls, Recalls), StepError> {
    let similarity = compare(images, &model.texts(captions)?)?;
    let found = Recalls::new(&similarity, image_of_caption)?;
    Ok((found, Recalls::chance(images.dim(0)?, image_of_caption)?))
}
