//! Classification by the text that describes each class (Radford et al. 2021, section 3.1).

use crate::{Clip, Error, Result, Tokenize, normalize};
use candle_core::{D, Tensor};
use sconce_ops::{matmul, softmax};

/// One template that suits nearly everything.
pub const PHOTO: &[&str] = &["a photo of a {}."];

/// Seven templates that do nearly as well on ImageNet as OpenAI's eighty (OpenAI's CLIP repository, prompt engineering).
pub const BEST_SEVEN: &[&str] = &[
    "itap of a {}.",
    "a bad photo of the {}.",
    "a origami {}.",
    "a photo of the large {}.",
    "a {} in a video game.",
    "art of the {}.",
    "a photo of the small {}.",
];

/// Templates for emoji, icons and other drawings.
pub const DRAWINGS: &[&str] =
    &["{}", "an emoji of {}.", "a drawing of {}.", "an icon of {}.", "a picture of {}.", "clip art of {}."];

/// Puts a class name in the place of `{}`.
pub fn fill_template(template: &str, name: &str) -> String {
    template.replace("{}", name)
}

/// Texts encoded at once.
const BATCH: usize = 256;

impl Clip {
    /// Unit-length features of texts, encoded in batches.
    ///
    /// # Shapes
    /// `(texts, E)`
    ///
    /// # Errors
    /// For no text, for texts the tokenizer refuses, and as [`Clip::encode_text`].
    pub fn embed_texts<S: AsRef<str>>(&self, tokenizer: &dyn Tokenize, texts: &[S]) -> Result<Tensor> {
        if texts.is_empty() {
            return Err(Error::Input("there is no text to embed".into()));
        }
        let device = self.logit_scale.device();
        let batch = |texts: &[S]| -> Result<Tensor> {
            let texts: Vec<&str> = texts.iter().map(AsRef::as_ref).collect();
            Ok(normalize(&self.encode_text(&tokenizer.tokenize(&texts, device)?)?)?)
        };
        let batches = texts.chunks(BATCH).map(batch).collect::<Result<Vec<_>>>()?;
        Ok(Tensor::cat(&batches, 0)?)
    }
}

/// A linear classifier whose weights are texts.
#[derive(Clone, Debug)]
pub struct ZeroShotClassifier {
    /// Unit length, one row for each class: `(K, E)`.
    pub weights: Tensor,
    /// The classes.
    pub classes: Vec<String>,
    /// Inverse temperature, a scalar.
    pub scale: Tensor,
}

impl ZeroShotClassifier {
    /// Encodes every class in every template; a class is the normalised mean of its normalised texts.
    ///
    /// # Errors
    /// [`Error::Input`] without classes or templates; texts the tokenizer refuses.
    pub fn new<C: AsRef<str>, T: AsRef<str>>(
        model: &Clip,
        tokenizer: &dyn Tokenize,
        classes: &[C],
        templates: &[T],
    ) -> Result<Self> {
        if classes.is_empty() || templates.is_empty() {
            return Err(Error::Input("a zero-shot classifier needs classes and templates".into()));
        }
        let texts: Vec<String> = classes
            .iter()
            .flat_map(|class| templates.iter().map(|template| fill_template(template.as_ref(), class.as_ref())))
            .collect();
        let features = model.embed_texts(tokenizer, &texts)?; // (K T, E)
        let weights = class_weights(&features.reshape((classes.len(), templates.len(), ()))?)?;
        let classes = classes.iter().map(|class| class.as_ref().to_owned()).collect();
        Ok(Self { weights, classes, scale: model.scale()?.detach() })
    }

    /// Scaled cosine similarities to the classes.
    ///
    /// # Shapes
    /// features `(B, E)`, normalised or not, to `(B, K)`
    ///
    /// # Errors
    /// When the width is another.
    pub fn logits(&self, image_features: &Tensor) -> Result<Tensor> {
        let cosines = matmul(&normalize(image_features)?, &self.weights.t()?)?;
        Ok(cosines.broadcast_mul(&self.scale)?)
    }

    /// Probabilities of the classes: `(B, E)` to `(B, K)`.
    ///
    /// # Errors
    /// As [`Self::logits`].
    pub fn probabilities(&self, image_features: &Tensor) -> Result<Tensor> {
        Ok(softmax(&self.logits(image_features)?, D::Minus1)?)
    }

    /// The `k` most probable classes of each image with their probabilities, the best first.
    ///
    /// # Errors
    /// As [`Self::logits`].
    pub fn classify(&self, image_features: &Tensor, k: usize) -> Result<Vec<Vec<(&str, f32)>>> {
        let ranked = crate::retrieval::best(&self.probabilities(image_features)?, k)?;
        let named = |row: Vec<(usize, f32)>| row.into_iter().map(|(i, p)| (self.classes[i].as_str(), p)).collect();
        Ok(ranked.into_iter().map(named).collect())
    }
}

/// The normalised mean over templates of unit-length features: `(K, T, E)` to `(K, E)`.
///
/// # Errors
/// Those of tensor arithmetic.
pub fn class_weights(features: &Tensor) -> Result<Tensor> {
    Ok(normalize(&features.mean(1)?)?)
}
