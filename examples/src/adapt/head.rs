//! Heads of every method behind one door: made, trained, asked.

use sconce::adapt::{
    ClassPosition, ClipAdapter, ClipAdapterConfig, CoCoOp, CoOp, Dapl, DaplConfig, DaplData, FitOptions, FitReport,
    PromptConfig, Prompts, TipAdapter, fit,
};
use sconce::candle::{DType, Result as TensorResult, Tensor};
use sconce::clip::{Bundle, ZeroShotClassifier};
use sconce::data::Generator;
use sconce::nn::ParamStore;
use sconce::train::StepError;

use super::options::Method;
use super::recipe::Recipe;
use crate::Error;

/// Pictures that are classified at once.
const BATCH: usize = 256;

/// What heads are made on.
#[derive(Debug, Clone, Copy)]
pub struct Frozen<'a> {
    /// The model.
    pub bundle: &'a Bundle,
    /// The classes in words.
    pub classes: &'a [String],
    /// Patterns of their texts.
    pub templates: &'a [String],
    /// The domains in words, source and target.
    pub domains: [&'a str; 2],
}

/// What heads are trained on.
#[derive(Debug, Clone)]
pub struct Few {
    /// Features of the labelled pictures, `(N, E)`, or of several views of each, `(N, V, E)`.
    pub features: Tensor,
    /// Their classes.
    pub labels: Vec<u32>,
    /// Features of pictures of the target, `(M, E)`.
    pub unlabelled: Option<Tensor>,
}

impl Few {
    /// The pictures as they are, `(N, E)`.
    fn own(&self) -> TensorResult<Tensor> {
        match self.features.rank() {
            2 => Ok(self.features.clone()),
            _ => self.features.narrow(1, 0, 1)?.squeeze(1),
        }
    }

    /// The mean over views, `(N, E)`.
    fn mean(&self) -> TensorResult<Tensor> {
        match self.features.rank() {
            2 => Ok(self.features.clone()),
            _ => TipAdapter::mean_of_views(&self.features.transpose(0, 1)?.contiguous()?),
        }
    }

    fn targets(&self) -> TensorResult<Tensor> {
        Tensor::new(self.labels.as_slice(), self.features.device())
    }
}

/// A view of each picture, drawn anew in each step: `(B, E)` as it is, `(B, V, E)` to `(B, E)`.
fn one_view(features: &Tensor) -> TensorResult<Tensor> {
    let &[batch, views, width] = features.dims() else { return Ok(features.clone()) };
    let generator = Generator::current();
    let rows: Vec<u32> = (0..batch).map(|row| (row * views + generator.index(views)) as u32).collect();
    features.reshape((batch * views, width))?.index_select(&Tensor::new(rows, features.device())?, 0)
}

/// A head.
#[derive(Debug, Clone)]
pub enum Head {
    /// Class names alone.
    ZeroShot(ZeroShotClassifier),
    /// Learned words.
    CoOp(CoOp),
    /// Learned words that each picture shifts.
    CoCoOp(CoCoOp),
    /// A network on the features.
    ClipAdapter(ClipAdapter, ZeroShotClassifier),
    /// A cache, with its weight and its sharpness.
    TipAdapter(TipAdapter, ZeroShotClassifier, [f64; 2]),
    /// Words for two domains.
    Dapl(Box<Dapl>),
}

/// Learned prompts that end as the recipe says.
fn prompts(frozen: &Frozen, recipe: &Recipe) -> Result<Prompts, StepError> {
    let Bundle { model, tokenizer, .. } = frozen.bundle;
    Ok(Prompts::with_ending(&recipe.prompt, &model.text, &**tokenizer, frozen.classes, &recipe.ending)?)
}

impl Head {
    /// A head whose parameters are in `store`, those that it holds already included; `few` fills caches.
    fn new(
        method: Method,
        frozen: &Frozen,
        recipe: &Recipe,
        store: &ParamStore,
        few: Option<&Few>,
    ) -> Result<Self, StepError> {
        let Frozen { bundle, classes, templates, domains } = *frozen;
        let (model, tokenizer, vb) = (&bundle.model, &*bundle.tokenizer, store.vb());
        let texts = || -> Result<ZeroShotClassifier, StepError> {
            let texts = ZeroShotClassifier::new(model, tokenizer, classes, templates)?;
            Ok(ZeroShotClassifier { weights: texts.weights.detach(), ..texts })
        };
        Ok(match method {
            Method::ZeroShot => Self::ZeroShot(texts()?),
            Method::Coop => {
                let head = CoOp::new(&recipe.prompt, model, tokenizer, classes, vb)?;
                Self::CoOp(CoOp { prompts: prompts(frozen, recipe)?, ..head })
            }
            Method::Cocoop => {
                // The paper has the class name at the end; any other place is the prompts' own business.
                let end = PromptConfig { position: ClassPosition::End, ..recipe.prompt.clone() };
                let head = CoCoOp::new(&end, model, tokenizer, classes, vb)?;
                Self::CoCoOp(CoCoOp { prompts: prompts(frozen, recipe)?, ..head })
            }
            Method::ClipAdapter => {
                let dim = model.config.embed_dim;
                let config = ClipAdapterConfig { dim, visual_ratio: Some(recipe.ratio), ..Default::default() };
                Self::ClipAdapter(ClipAdapter::new(&config, vb)?, texts()?)
            }
            Method::TipAdapter | Method::TipAdapterF => {
                let Some(few) = few else {
                    let message = "a cache has the classes of its pictures: --base-to-new is not for Tip-Adapter";
                    return Err(Error::new(message).into());
                };
                let cache = TipAdapter::new(&few.mean()?, &few.labels, classes.len())?;
                let cache = if method == Method::TipAdapterF { cache.trainable(vb)? } else { cache };
                Self::TipAdapter(cache, texts()?, [recipe.alpha, recipe.beta])
            }
            Method::Dapl | Method::DaplAllDomains => {
                let config = DaplConfig { naive: templates.to_vec(), ..recipe.dapl.clone() };
                let mut head = Dapl::new(&config, model, tokenizer, classes, &domains, vb)?;
                if let Some(ending) = &recipe.domain_ending {
                    let n_ctx = config.n_ctx + config.n_dmx;
                    let words = PromptConfig { n_ctx, ctx_init: None, ..recipe.prompt.clone() };
                    for (prompts, domain) in head.prompts.iter_mut().zip(domains) {
                        let ending = ending.replace("{}", domain);
                        *prompts = Prompts::with_ending(&words, &model.text, tokenizer, classes, &ending)?;
                    }
                }
                Self::Dapl(Box::new(head))
            }
            Method::Q16 => return Err(Error::new("q16 tells two classes apart and has a task of its own").into()),
        })
    }

    /// Scores of the classes, `(B, E)` to `(B, K)`; DAPL's by the words of the target.
    ///
    /// # Errors
    /// Those of tensor arithmetic.
    pub fn logits(&self, features: &Tensor) -> TensorResult<Tensor> {
        match self {
            Self::ZeroShot(texts) => Ok(texts.logits(features)?),
            Self::CoOp(head) => head.logits(features),
            Self::CoCoOp(head) => head.logits(features),
            Self::ClipAdapter(head, texts) => head.logits(features, &texts.weights, &texts.scale),
            Self::TipAdapter(head, texts, [alpha, beta]) => {
                head.logits(&texts.logits(features)?, features, *alpha, *beta)
            }
            Self::Dapl(head) => head.predict(features, 1),
        }
    }

    /// Scores of any number of pictures, without gradients.
    ///
    /// # Errors
    /// As [`Self::logits`].
    pub fn predict(&self, features: &Tensor) -> TensorResult<Tensor> {
        if let Self::CoCoOp(head) = self {
            return head.predict(features);
        }
        let pictures = features.dim(0)?;
        let part = |start: usize| {
            let part = features.narrow(0, start, BATCH.min(pictures - start))?;
            Ok(self.logits(&part)?.detach())
        };
        let parts = (0..pictures).step_by(BATCH).map(part).collect::<TensorResult<Vec<_>>>()?;
        Tensor::cat(&parts, 0)
    }
}

/// A trained head with what it takes to make it for other classes.
#[derive(Debug)]
pub struct Trained {
    /// The head.
    pub head: Head,
    /// Its parameters under their official names.
    pub store: ParamStore,
    /// How training went; none where there is nothing to train.
    pub report: Option<FitReport>,
    method: Method,
    recipe: Recipe,
}

impl Trained {
    /// Makes a head and trains it.
    ///
    /// # Errors
    /// Prompts longer than the text tower's context; a target that is missing; those of training.
    pub fn new(
        method: Method,
        frozen: &Frozen,
        few: &Few,
        recipe: Recipe,
        options: &FitOptions,
    ) -> Result<Self, StepError> {
        let store = ParamStore::new(recipe.fit.seed, DType::F32, few.features.device());
        let head = Head::new(method, frozen, &recipe, &store, Some(few))?;
        let report = match (&head, method) {
            (_, Method::ZeroShot | Method::TipAdapter) => None,
            (Head::Dapl(dapl), _) => {
                let Some(unlabelled) = &few.unlabelled else {
                    return Err(Error::new("DAPL learns from two domains: say which with --source and --target").into());
                };
                let data = DaplData::new(0, &few.own()?, &few.targets()?, 1, unlabelled)?;
                Some(dapl.fit(&store, &data, &recipe.fit, options)?)
            }
            _ => {
                let logits = |features: &Tensor| head.logits(&one_view(features)?);
                Some(fit(&store, &few.features, &few.targets()?, &recipe.fit, options, logits)?)
            }
        };
        Ok(Self { head, store, report, method, recipe })
    }

    /// The same parameters with other classes.
    ///
    /// # Errors
    /// For a head that is bound to its classes.
    pub fn with_classes(&self, frozen: &Frozen) -> Result<Head, StepError> {
        if self.recipe.prompt.class_specific && self.method == Method::Coop {
            return Err(Error::new("--class-specific binds the learned words to their classes").into());
        }
        Head::new(self.method, frozen, &self.recipe, &self.store, None)
    }
}
