//! The classifier: a learned point in the space of the features for each class.

use std::path::Path;

use candle_core::{D, DType, Device, Result, Tensor, Var};
use sconce_clip::{Clip, Tokenize, normalize};
use sconce_nn::{Checkpoint, Init, Linear, Module, ParamStore, VarBuilder, init, linear};
use sconce_ops::{matmul, softmax};
use serde::{Deserialize, Serialize};

use crate::{Error, FitConfig, FitOptions, FitReport, fit};

/// The released texts that the two classes begin as; the second class is the one to flag.
pub const POSITIVE_NEGATIVE: [&str; 2] =
    ["This image is about something positive", "This image is about something negative"];

/// The same the other way round, as the released code has them for labels of harm, where 1 is the good side.
pub const NEGATIVE_POSITIVE: [&str; 2] = [POSITIVE_NEGATIVE[1], POSITIVE_NEGATIVE[0]];

/// How features and prompts are compared.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Scoring {
    /// Scaled cosines: training, and all inference on pictures.
    #[default]
    Cosine,
    /// Products with the prompts as they are, as the released script for embeddings has it. Trap: prompts of other lengths
    /// lean towards the longer one, so that the answers are not those of [`Cosine`](Self::Cosine).
    RawProduct,
}

/// Options of a [`Q16`].
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Q16Config {
    /// What cosines are multiplied by; fixed, not the model's own inverse temperature.
    pub scale: f64,
    /// How features and prompts are compared.
    pub scoring: Scoring,
}

impl Default for Q16Config {
    /// The released classifier's.
    fn default() -> Self {
        Self { scale: 100.0, scoring: Scoring::Cosine }
    }
}

/// Schramowski et al. 2022 (`arXiv:2202.06675`): prompts tuned in the space of the features, one for each class.
#[derive(Clone, Debug)]
pub struct Q16 {
    /// The options it was made with.
    pub config: Q16Config,
    /// Of the classes, not normalised: `(C, E)`.
    pub prompts: Tensor,
}

/// Features of texts as the tower gives them, not normalised: what prompts begin as.
///
/// # Shapes
/// - output `(texts, E)`
///
/// # Errors
/// Without texts, and for texts that the tokenizer refuses.
pub fn encode_texts<S: AsRef<str>>(model: &Clip, tokenizer: &dyn Tokenize, texts: &[S]) -> crate::Result<Tensor> {
    if texts.is_empty() {
        return Err(Error::NoClasses);
    }
    let texts: Vec<&str> = texts.iter().map(AsRef::as_ref).collect();
    let ids = tokenizer.tokenize(&texts, model.logit_scale.device())?;
    Ok(model.encode_text(&ids)?.detach())
}

/// Tuned prompts from a file: the published `prompts.p` (a pickled NumPy array), or the tensor `prompts` of a checkpoint.
///
/// # Shapes
/// - output `(C, E)`, in the file's type
///
/// # Errors
/// For a file that cannot be read or holds no such matrix.
pub fn read_prompts(path: impl AsRef<Path>, device: &Device) -> crate::Result<Tensor> {
    let file = Checkpoint::open(path)?;
    let only = match file.len() {
        1 => file.names().next().unwrap_or_default().to_owned(),
        _ => "prompts".to_owned(),
    };
    let prompts = file.tensor(&only, device)?;
    match *prompts.dims() {
        [classes, width] if classes >= 2 && width > 0 => Ok(prompts),
        _ => {
            let expected = "(C, E), at least two classes".into();
            Err(Error::Shape { what: "prompts", expected, found: prompts.dims().to_vec() })
        }
    }
}

impl Q16 {
    /// A classifier whose parameter `prompts` begins as `start`: as texts ([`encode_texts`]) or tuned ones ([`read_prompts`]).
    /// Where `vb` is a checkpoint, its prompts count.
    ///
    /// # Shapes
    /// - `start` `(C, E)`, at least two classes
    ///
    /// # Errors
    /// For another shape, a scale that is no positive number, and when `vb` holds prompts of another shape.
    pub fn new(cfg: &Q16Config, start: &Tensor, vb: VarBuilder) -> crate::Result<Self> {
        let (classes, width) = start.dims2()?;
        if classes < 2 || width == 0 {
            let expected = "(C, E), at least two classes".into();
            return Err(Error::Shape { what: "prompts", expected, found: vec![classes, width] });
        }
        if !(cfg.scale.is_finite() && cfg.scale > 0.0) {
            return Err(Error::Config(format!("Q16: the scale is {}, not a positive number", cfg.scale)));
        }
        let prompts = init::param(&vb, (classes, width), "prompts", Init::Zeros)?;
        if prompts.is_variable() {
            let start = start.to_dtype(prompts.dtype())?.to_device(prompts.device())?;
            Var::from_tensor(&prompts)?.set(&start.detach().contiguous()?)?;
        }
        Ok(Self { config: *cfg, prompts })
    }

    /// Number of classes.
    pub fn classes(&self) -> usize {
        self.prompts.dims().first().copied().unwrap_or(0)
    }

    /// # Shapes
    /// - `features` `(B, E)`, output `(B, C)`
    ///
    /// # Errors
    /// When the width is another.
    pub fn logits(&self, features: &Tensor) -> Result<Tensor> {
        let prompts = self.prompts.to_dtype(features.dtype())?;
        match self.config.scoring {
            Scoring::Cosine => matmul(&normalize(features)?, &normalize(&prompts)?.t()?)? * self.config.scale,
            Scoring::RawProduct => matmul(features, &prompts.t()?),
        }
    }

    /// What the classifier says about pictures: the most probable class, and whether that is `class` with at least this
    /// probability.
    ///
    /// # Shapes
    /// - `features` `(N, E)`
    ///
    /// # Errors
    /// For another width and a class that does not exist.
    pub fn flags(&self, features: &Tensor, class: u32, threshold: f64) -> crate::Result<Flags> {
        Flags::new(&self.logits(features)?, class, threshold)
    }
}

/// What a classifier says about pictures.
#[derive(Clone, Debug, PartialEq)]
pub struct Flags {
    /// The most probable class of each picture, the first of several.
    pub labels: Vec<u32>,
    /// Its probability.
    pub scores: Vec<f32>,
    /// Whether it is [`class`](Self::class), and probable enough.
    pub flagged: Vec<bool>,
    /// The class that is looked for.
    pub class: u32,
    /// The probability that it takes.
    pub threshold: f64,
}

impl Flags {
    /// From the logits of any classifier.
    ///
    /// # Shapes
    /// - `logits` `(N, C)`
    ///
    /// # Errors
    /// For another shape and a class that does not exist.
    pub fn new(logits: &Tensor, class: u32, threshold: f64) -> crate::Result<Self> {
        let (_, classes) = logits.dims2()?;
        if class as usize >= classes || threshold.is_nan() {
            return Err(Error::Config(format!("flags of class {class} of {classes} at a probability of {threshold}")));
        }
        let probabilities = softmax(&logits.detach().to_dtype(DType::F32)?, D::Minus1)?;
        let labels = probabilities.argmax(D::Minus1)?.to_vec1::<u32>()?;
        let scores = probabilities.max(D::Minus1)?.to_vec1::<f32>()?;
        let reached = |(label, score): (&u32, &f32)| *label == class && *score >= threshold as f32;
        let flagged = labels.iter().zip(&scores).map(reached).collect();
        Ok(Self { labels, scores, flagged, class, threshold })
    }

    /// Number of flagged pictures.
    pub fn count(&self) -> usize {
        self.flagged.iter().filter(|flagged| **flagged).count()
    }
}

/// Weights of the classes that make up for their sizes, and sum to 1: `(1 / n_c) / sum_j (1 / n_j)`. For two classes this is
/// the other's share, as in the released code. A class without pictures is left out and has the weight 1.
pub fn class_weights(labels: &[u32], classes: usize) -> Vec<f32> {
    let mut counts = vec![0f64; classes];
    for label in labels {
        if let Some(count) = counts.get_mut(*label as usize) {
            *count += 1.0;
        }
    }
    let sum: f64 = counts.iter().filter(|count| **count > 0.0).map(|count| 1.0 / count).sum();
    counts.iter().map(|&count| if count > 0.0 { (1.0 / count / sum) as f32 } else { 1.0 }).collect()
}

/// A classifier that [`tune`] trained.
#[derive(Clone, Debug)]
pub struct Tuned {
    /// The classifier.
    pub head: Q16,
    /// Its parameter `prompts`, to be saved.
    pub store: ParamStore,
    /// The course of the training.
    pub report: FitReport,
}

/// Tunes prompts on labelled pictures.
///
/// [`FitConfig::q16`] has the released settings; [`class_weights`] of the labels are used where `fit` names none. Prompts are in
/// f32 whatever the type of the features (the released code trains them in f16).
///
/// # Shapes
/// - `start` `(C, E)`, `features` `(N, E)`, `labels` `(N)` u32, below `C`
///
/// # Errors
/// As [`Q16::new`] and [`fit`].
pub fn tune(
    cfg: &Q16Config,
    start: &Tensor,
    features: &Tensor,
    labels: &Tensor,
    settings: &FitConfig,
    options: &FitOptions,
) -> crate::Result<Tuned> {
    let wide = if features.dtype() == DType::F64 { DType::F64 } else { DType::F32 };
    let store = ParamStore::new(settings.seed, wide, features.device());
    let head = Q16::new(cfg, start, store.vb())?;
    let mut settings = settings.clone();
    if settings.class_weights.is_none() {
        settings.class_weights = Some(class_weights(&labels.to_vec1::<u32>()?, head.classes()));
    }
    let report = fit(&store, &features.to_dtype(wide)?, labels, &settings, options, |xs| head.logits(xs))?;
    Ok(Tuned { head, store, report })
}

/// The baseline: a linear layer on the features as they are.
#[derive(Clone, Debug)]
pub struct LinearProbe(pub Linear);

impl LinearProbe {
    /// Parameters `weight` and `bias`, drawn as a linear layer's.
    ///
    /// # Errors
    /// When `vb` lacks them.
    pub fn new(width: usize, classes: usize, vb: VarBuilder) -> Result<Self> {
        Ok(Self(linear(width, classes, vb)?))
    }

    /// # Shapes
    /// - `features` `(B, E)`, output `(B, C)`
    ///
    /// # Errors
    /// When the width is another.
    pub fn logits(&self, features: &Tensor) -> Result<Tensor> {
        self.0.forward(features)
    }
}
