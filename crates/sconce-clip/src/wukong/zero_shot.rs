//! Classification by Chinese texts, globally or token by token.

use super::{LateInteraction, TextTokens, Variant, Wukong, late_interaction};
use crate::{Error, Result, Tokenize, class_weights, zero_shot::fill_template};
use candle_core::{D, DType, Tensor};
use sconce_ops::softmax;

/// One template that suits nearly everything: "a photo of {}".
pub const PHOTO_ZH: &[&str] = &["{}的照片。"];

/// Templates for emoji, icons and other drawings.
pub const DRAWINGS_ZH: &[&str] = &["{}", "{}的表情符号", "一个{}", "{}的图画"];

/// Texts encoded at once.
const BATCH: usize = 256;

impl Wukong {
    /// Unit-length tokens of any number of texts, encoded in batches.
    ///
    /// # Errors
    /// For no text, for texts the tokenizer refuses, and as [`Wukong::encode_text`].
    pub fn embed_texts<S: AsRef<str>>(&self, tokenizer: &dyn Tokenize, texts: &[S]) -> Result<TextTokens> {
        let texts: Vec<&str> = texts.iter().map(AsRef::as_ref).collect();
        if texts.is_empty() {
            return Err(Error::Input("there is no text to embed".into()));
        }
        let mut parts = Vec::new();
        for batch in texts.chunks(BATCH) {
            parts.push(self.encode_text(&tokenizer.tokenize(batch, self.logit_scale.device())?, false)?);
        }
        // Each batch is as long as its longest text.
        let longest = parts.iter().map(|part| part.features.dim(1)).collect::<candle_core::Result<Vec<_>>>()?;
        let longest = longest.into_iter().max().unwrap_or(0);
        let pad = |xs: &Tensor| xs.pad_with_zeros(1, 0, longest - xs.dim(1)?);
        let features = parts.iter().map(|part| pad(&part.features)).collect::<candle_core::Result<Vec<_>>>()?;
        let valid = parts.iter().map(|part| pad(&part.valid)).collect::<candle_core::Result<Vec<_>>>()?;
        Ok(TextTokens { features: Tensor::cat(&features, 0)?, valid: Tensor::cat(&valid, 0)? })
    }
}

/// A classifier whose classes are texts in several templates.
///
/// [`Variant::Global`] joins the templates of a class to one unit-length feature, as CLIP does. Tokens cannot be averaged over
/// texts: the other variants classify with each template alone and average the probabilities.
#[derive(Clone, Debug)]
pub struct TemplateClassifier {
    /// For each template, the texts of all classes; a single row of features for [`Variant::Global`].
    pub texts: Vec<TextTokens>,
    /// The classes.
    pub classes: Vec<String>,
    /// Inverse temperature, a scalar.
    pub scale: Tensor,
    /// How tokens are compared.
    pub options: LateInteraction,
}

impl TemplateClassifier {
    /// Encodes every class in every template.
    ///
    /// # Errors
    /// [`Error::Input`] without classes or templates; texts the tokenizer refuses.
    pub fn new<C: AsRef<str>, T: AsRef<str>>(
        model: &Wukong,
        tokenizer: &dyn Tokenize,
        classes: &[C],
        templates: &[T],
    ) -> Result<Self> {
        if classes.is_empty() || templates.is_empty() {
            return Err(Error::Input("a zero-shot classifier needs classes and templates".into()));
        }
        let of_template = |template: &T| {
            let texts: Vec<String> = classes.iter().map(|c| fill_template(template.as_ref(), c.as_ref())).collect();
            model.embed_texts(tokenizer, &texts)
        };
        let texts = templates.iter().map(of_template).collect::<Result<Vec<_>>>()?;
        let classes = classes.iter().map(|class| class.as_ref().to_owned()).collect();
        Self::of_texts(&model.config.variant, texts, classes, model.scale()?.detach())
    }

    /// The same of texts that are encoded already: for each template those of all classes, in the order of `classes`.
    ///
    /// # Errors
    /// [`Error::Input`] when a template has not as many texts as there are classes.
    pub fn of_texts(variant: &Variant, texts: Vec<TextTokens>, classes: Vec<String>, scale: Tensor) -> Result<Self> {
        if texts.is_empty() || classes.is_empty() || texts.iter().any(|t| t.features.dims()[0] != classes.len()) {
            return Err(Error::Input(format!("every template needs a text for each of {} classes", classes.len())));
        }
        let texts = match variant {
            Variant::Global => {
                let features = texts.iter().map(|t| t.features.clone()).collect::<Vec<_>>();
                let features = class_weights(&Tensor::cat(&features, 1)?)?.unsqueeze(1)?; // (K, T, E) to (K, 1, E)
                let valid = Tensor::ones((classes.len(), 1), DType::U8, features.device())?;
                vec![TextTokens { features, valid }]
            }
            Variant::Filip | Variant::Reduced(_) => texts,
        };
        Ok(Self { texts, classes, scale, options: LateInteraction::default() })
    }

    /// Probabilities of the classes.
    ///
    /// # Shapes
    /// unit-length tokens `(B, N, E)` to `(B, K)`
    ///
    /// # Errors
    /// When the width is another.
    pub fn probabilities(&self, images: &Tensor) -> Result<Tensor> {
        let one = |texts: &TextTokens| -> Result<Tensor> {
            let logits = late_interaction(images, texts, &self.options)?.image_to_text.broadcast_mul(&self.scale)?;
            Ok(softmax(&logits, D::Minus1)?)
        };
        let each = self.texts.iter().map(one).collect::<Result<Vec<_>>>()?;
        Ok(Tensor::stack(&each, 0)?.mean(0)?)
    }

    /// The `k` most probable classes of each picture with their probabilities, the best first.
    ///
    /// # Errors
    /// As [`Self::probabilities`].
    pub fn classify(&self, images: &Tensor, k: usize) -> Result<Vec<Vec<(&str, f32)>>> {
        let ranked = crate::retrieval::best(&self.probabilities(images)?, k)?;
        let named = |row: Vec<(usize, f32)>| row.into_iter().map(|(i, p)| (self.classes[i].as_str(), p)).collect();
        Ok(ranked.into_iter().map(named).collect())
    }
}
