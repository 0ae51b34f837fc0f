//! How each method is trained.
//!
//! `--schedule official` is the papers' settings with their quirks, made for encoders a hundred times larger. The default is
//! a cosine to 0 and, for the small model of the repository, settings of its own.

use sconce::adapt::{ClassPosition, DaplConfig, Denominator, FitConfig, FitOptimizer, FitSchedule, PromptConfig};

use super::options::{Method, OptimizerName, Place, ScheduleName, TrainingOptions};

/// Everything that a training depends on beside its pictures.
#[derive(Debug, Clone)]
pub struct Recipe {
    /// Steps and rates.
    pub fit: FitConfig,
    /// Learned prompts.
    pub prompt: PromptConfig,
    /// Random views of each labelled picture beside the picture itself.
    pub views: u32,
    /// What follows the class name in CoOp's and CoCoOp's prompts.
    pub ending: String,
    /// What follows the class name in DAPL's prompts, with {} for the domain; the released code's when `None`.
    pub domain_ending: Option<String>,
    /// Share of the adapted features in CLIP-Adapter.
    pub ratio: f64,
    /// Weight of Tip-Adapter's cache.
    pub alpha: f64,
    /// Its sharpness.
    pub beta: f64,
    /// DAPL's options; templates are the caller's.
    pub dapl: DaplConfig,
}

impl Recipe {
    /// Of a method with about so many labelled pictures of each class; `small` for the model of the repository.
    #[must_use]
    pub fn new(method: Method, shots: usize, seed: u64, small: bool, options: &TrainingOptions) -> Self {
        let mut recipe = match options.schedule {
            ScheduleName::Official => Self::published(method, shots),
            ScheduleName::Cosine if small => Self::small(method),
            ScheduleName::Cosine => {
                let mut recipe = Self::published(method, shots);
                let warmup = u64::from(method != Method::TipAdapterF);
                recipe.fit = FitConfig { schedule: FitSchedule::Cosine { warmup }, drop_last: false, ..recipe.fit };
                recipe
            }
        };
        recipe.change(options);
        recipe.fit.seed = seed;
        if method == Method::DaplAllDomains {
            recipe.dapl.denominator = Denominator::AllDomains;
        }
        recipe
    }

    fn published(method: Method, shots: usize) -> Self {
        let words = |n_ctx, ctx_init: Option<&str>| PromptConfig {
            n_ctx,
            ctx_init: ctx_init.map(str::to_owned),
            ..PromptConfig::default()
        };
        let (fit, prompt) = match method {
            Method::Cocoop => (FitConfig::cocoop(), words(4, Some("a photo of a"))),
            Method::ClipAdapter => (FitConfig::clip_adapter(), words(16, None)),
            Method::TipAdapter | Method::TipAdapterF => (FitConfig::tip_adapter_f(), words(16, None)),
            Method::Dapl | Method::DaplAllDomains => (FitConfig::dapl(), words(16, None)),
            Method::Q16 => (FitConfig::q16(), words(16, None)),
            Method::ZeroShot | Method::Coop => (FitConfig::coop(shots), words(16, None)),
        };
        Self {
            fit,
            prompt,
            views: 0,
            ending: ".".into(),
            domain_ending: None,
            ratio: 0.2,
            alpha: 1.17,
            beta: 1.0,
            dapl: DaplConfig::office_home(),
        }
    }

    /// For a model of 3.5 million parameters whose prompts are names and key words, 24 tokens at most. Chosen with `--tune`,
    /// which never looks at the test pictures: see docs/results.md.
    fn small(method: Method) -> Self {
        let adamw = FitOptimizer::AdamW { eps: 1e-8 };
        let cosine = FitSchedule::Cosine { warmup: 1 };
        let fit = FitConfig { optimizer: adamw, schedule: cosine, weight_decay: 0.01, ..FitConfig::default() };
        let fit = match method {
            Method::Cocoop => FitConfig { epochs: 5, batch_size: 8, lr: 2e-3, ..fit },
            Method::TipAdapterF => FitConfig { lr: 3e-3, ..FitConfig::tip_adapter_f() },
            Method::ClipAdapter => FitConfig { epochs: 100, lr: 5e-4, ..fit },
            Method::Q16 => FitConfig { epochs: 100, batch_size: 64, lr: 5e-2, weight_decay: 0.0, ..fit },
            Method::Dapl | Method::DaplAllDomains => FitConfig { epochs: 10, lr: 2e-3, ..fit },
            _ => FitConfig { epochs: 50, lr: 2e-3, ..fit },
        };
        let prompt = PromptConfig { n_ctx: 4, position: ClassPosition::Front, ..PromptConfig::default() };
        // DAPL takes the pictures as they are.
        let trained = !matches!(method, Method::ZeroShot | Method::Dapl | Method::DaplAllDomains | Method::Q16);
        let views = if trained { 8 } else { 0 };
        let dapl = DaplConfig { n_ctx: 4, n_dmx: 2, ..DaplConfig::office_home() };
        let ending = String::new();
        let domain_ending = Some(ending.clone());
        Self { fit, prompt, views, ending, domain_ending, ratio: 0.2, alpha: 3.0, beta: 10.0, dapl }
    }

    fn change(&mut self, options: &TrainingOptions) {
        let TrainingOptions { epochs, batch_size, lr, weight_decay, optimizer, .. } = options;
        let fit = &mut self.fit;
        fit.epochs = epochs.unwrap_or(fit.epochs);
        fit.batch_size = batch_size.unwrap_or(fit.batch_size);
        fit.lr = lr.unwrap_or(fit.lr);
        fit.weight_decay = weight_decay.unwrap_or(fit.weight_decay);
        match optimizer {
            Some(OptimizerName::Sgd) => fit.optimizer = FitOptimizer::Sgd { momentum: 0.9 },
            Some(OptimizerName::Adamw) => fit.optimizer = FitOptimizer::AdamW { eps: 1e-8 },
            None => {}
        }
        if let Some(n_ctx) = options.ctx {
            self.prompt = PromptConfig { n_ctx, ctx_init: None, ..self.prompt.clone() };
            self.dapl.n_ctx = n_ctx;
        }
        if let Some(words) = &options.ctx_init {
            self.prompt.ctx_init = Some(words.clone());
        }
        self.views = options.views.unwrap_or(self.views);
        self.prompt.class_specific |= options.class_specific;
        self.dapl.class_specific |= options.class_specific;
        match options.position {
            Some(Place::End) => self.prompt.position = ClassPosition::End,
            Some(Place::Middle) => self.prompt.position = ClassPosition::Middle,
            Some(Place::Front) => self.prompt.position = ClassPosition::Front,
            None => {}
        }
        self.ending = options.ending.clone().unwrap_or(std::mem::take(&mut self.ending));
        self.domain_ending = options.domain_ending.clone().or(self.domain_ending.take());
        self.ratio = options.ratio.unwrap_or(self.ratio);
        self.alpha = options.alpha.unwrap_or(self.alpha);
        self.beta = options.beta.unwrap_or(self.beta);
        self.dapl.unlabelled_weight = options.unlabelled_weight.unwrap_or(self.dapl.unlabelled_weight);
        self.dapl.threshold = options.pseudo_threshold.unwrap_or(self.dapl.threshold);
    }
}
