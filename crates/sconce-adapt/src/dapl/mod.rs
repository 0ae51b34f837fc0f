//! Domain adaptation by prompts.

mod config;
mod fit;
mod loss;
#[cfg(test)]
mod tests;

use candle_core::{Result, Tensor, bail};
use sconce_clip::model::TextTransformer;
use sconce_clip::{Clip, Tokenize, ZeroShotClassifier, normalize};
use sconce_metrics::Confusion;
use sconce_nn::{VarBuilder, init};
use sconce_ops::matmul;

pub use config::{DaplConfig, Denominator};
pub use fit::DaplData;
pub use loss::{DaplLoss, PseudoLabels};

use crate::coop::RANDOM;
use crate::prompt::{ClassPosition, PromptConfig, Prompts};

/// Ge et al. 2022, "Domain Adaptation via Prompt Learning" (`arXiv:2202.06687`): labelled pictures of some domains and
/// pictures without labels of others learn one context for all domains and one for each. A picture is classified by the
/// prompts of its own domain.
///
/// The prompt of class `k` in domain `d` reads `[ctx] [domain_vectors d] k , a d image..`, as the released code has it, with
/// the space before the comma and the two full stops. Underscores in class names become spaces; names of domains stand as
/// they are. Zero-shot prompts ([`DaplConfig::naive`]), which are not learned, label what has no label.
///
/// The official code's checkpoints hold `ctx`, `domain_vectors`, and `token_prefix` and `token_suffix`, which follow from the
/// names: [`load_options`](crate::load_options) passes those over.
///
/// ```no_run
/// use candle_core::{DType, Tensor};
/// use sconce_adapt::{Dapl, DaplConfig, DaplData, FitConfig, FitOptions, Result};
/// use sconce_clip::Bundle;
/// use sconce_nn::ParamStore;
///
/// fn adapt(bundle: &Bundle, art: &Tensor, art_labels: &Tensor, photos: &Tensor, photo_labels: &Tensor) -> Result<()> {
///     let store = ParamStore::new(1, DType::F32, art.device());
///     let (classes, domains) = (["alarm clock", "bike"], ["art", "photo"]);
///     let cfg = DaplConfig::office_home();
///     let dapl = Dapl::new(&cfg, &bundle.model, &*bundle.tokenizer, &classes, &domains, store.vb())?;
///     let data = DaplData::new(0, art, art_labels, 1, photos)?;
///     dapl.fit(&store, &data, &FitConfig::dapl(), &FitOptions::default())?;
///     println!("{:.3}", dapl.evaluate(photos, photo_labels, 1)?.mean_class_accuracy().unwrap_or(0.0));
///     store.save("dapl.safetensors")?;
///     Ok(())
/// }
/// ```
#[derive(Clone, Debug)]
pub struct Dapl {
    /// The options it was made with.
    pub config: DaplConfig,
    /// `(n_ctx, C)`, or `(K, n_ctx, C)` when class-specific.
    pub ctx: Tensor,
    /// `(D, n_dmx, C)`.
    pub domain_vectors: Tensor,
    /// Everything around the learned tokens, for each domain.
    pub prompts: Vec<Prompts>,
    /// The zero-shot classifier that gives pseudo labels.
    pub naive: ZeroShotClassifier,
    text: TextTransformer,
    scale: Tensor,
}

impl Dapl {
    /// Prompts for `classes` in `domains` on a frozen model; `vb` holds `ctx` and `domain_vectors`.
    ///
    /// # Errors
    /// For options that make no sense, fewer than two domains, prompts that the text tower does not hold, and when `vb`
    /// holds tensors of other shapes.
    pub fn new<C: AsRef<str>, D: AsRef<str>>(
        cfg: &DaplConfig,
        model: &Clip,
        tokenizer: &dyn Tokenize,
        classes: &[C],
        domains: &[D],
        vb: VarBuilder,
    ) -> crate::Result<Self> {
        cfg.check()?;
        if domains.len() < 2 {
            let reason = format!("DAPL: {} domains; there must be a source and a target", domains.len());
            return Err(crate::Error::Config(reason));
        }
        let learned = PromptConfig {
            n_ctx: cfg.n_ctx + cfg.n_dmx,
            class_specific: cfg.class_specific,
            ctx_init: None,
            position: ClassPosition::End,
        };
        let of_domain = |domain: &D| {
            let ending = format!(" , a {} image..", domain.as_ref());
            Prompts::with_ending(&learned, &model.text, tokenizer, classes, &ending)
        };
        let prompts = domains.iter().map(of_domain).collect::<crate::Result<Vec<_>>>()?;
        let spaced: Vec<String> = classes.iter().map(|class| class.as_ref().replace('_', " ")).collect();
        let mut naive = ZeroShotClassifier::new(model, tokenizer, &spaced, &cfg.naive)?;
        naive.weights = naive.weights.detach();
        let width = model.text.config.transformer.width;
        let shape = match cfg.class_specific {
            true => vec![classes.len(), cfg.n_ctx, width],
            false => vec![cfg.n_ctx, width],
        };
        Ok(Self {
            config: cfg.clone(),
            ctx: init::param(&vb, shape, "ctx", RANDOM)?,
            domain_vectors: init::param(&vb, (domains.len(), cfg.n_dmx, width), "domain_vectors", RANDOM)?,
            prompts,
            naive,
            text: model.text.clone(),
            scale: model.scale()?.detach(),
        })
    }

    /// Number of classes.
    pub fn classes(&self) -> usize {
        self.naive.classes.len()
    }

    /// Number of domains.
    pub fn domains(&self) -> usize {
        self.prompts.len()
    }

    /// The embedded prompts of one domain.
    ///
    /// # Shapes
    /// - output `(K, L, C)`
    ///
    /// # Errors
    /// For a domain that does not exist.
    pub fn assemble(&self, domain: usize) -> Result<Tensor> {
        let Some(prompts) = self.prompts.get(domain) else { bail!("DAPL: domain {domain} of {}", self.domains()) };
        let vectors = self.domain_vectors.get(domain)?; // (n_dmx, C)
        let learned = match *self.ctx.dims() {
            [classes, _, _] => {
                let (n, c) = vectors.dims2()?;
                Tensor::cat(&[&self.ctx, &vectors.broadcast_as((classes, n, c))?], 1)?
            }
            _ => Tensor::cat(&[&self.ctx, &vectors], 0)?,
        };
        prompts.assemble(&learned)
    }

    fn encode(&self, domains: std::ops::Range<usize>) -> Result<Tensor> {
        let rows = domains.clone().map(|domain| self.assemble(domain)).collect::<Result<Vec<_>>>()?;
        let ends: Vec<usize> = self.prompts[domains].iter().flat_map(|prompts| prompts.ends.iter().copied()).collect();
        normalize(&self.text.forward_embeddings(&Tensor::cat(&rows, 0)?, &ends, false)?)
    }

    /// Features of the classes as one domain words them, at unit length.
    ///
    /// # Shapes
    /// - output `(K, E)`
    ///
    /// # Errors
    /// For a domain that does not exist.
    pub fn class_features(&self, domain: usize) -> Result<Tensor> {
        if domain >= self.domains() {
            bail!("DAPL: domain {domain} of {}", self.domains());
        }
        self.encode(domain..domain + 1)
    }

    /// Features of all prompts at unit length: of every domain, then the zero-shot ones.
    ///
    /// # Shapes
    /// - output `((D + 1) * K, E)`
    ///
    /// # Errors
    /// Those of the text tower.
    pub fn text_features(&self) -> Result<Tensor> {
        let learned = self.encode(0..self.domains())?; // (D * K, E)
        Tensor::cat(&[&learned, &self.naive.weights.to_dtype(learned.dtype())?], 0)
    }

    /// Scaled cosine similarities of pictures to the prompts of every domain, then to the zero-shot ones.
    ///
    /// # Shapes
    /// - `image_features` `(B, E)`, normalised or not; output `(B, D + 1, K)`
    ///
    /// # Errors
    /// When the width is another.
    pub fn logits(&self, image_features: &Tensor) -> Result<Tensor> {
        let cosines = matmul(&normalize(image_features)?, &self.text_features()?.t()?)?; // (B, (D + 1) * K)
        let logits = cosines.broadcast_mul(&self.scale)?;
        logits.reshape((image_features.dim(0)?, self.domains() + 1, self.classes()))
    }

    /// Scaled cosine similarities to the prompts of one domain: what classifies pictures of that domain.
    ///
    /// # Shapes
    /// - `image_features` `(B, E)`, normalised or not; output `(B, K)`
    ///
    /// # Errors
    /// For another width and for a domain that does not exist.
    pub fn predict(&self, image_features: &Tensor, domain: usize) -> Result<Tensor> {
        let cosines = matmul(&normalize(image_features)?, &self.class_features(domain)?.t()?)?;
        cosines.broadcast_mul(&self.scale)
    }

    /// What pictures of one domain are taken for: accuracy, and the mean over classes that VisDA-2017 is measured by.
    ///
    /// # Shapes
    /// - `image_features` `(N, E)`, `labels` `(N)`, integers
    ///
    /// # Errors
    /// As [`predict`](Self::predict), and for a label that is no class.
    pub fn evaluate(&self, image_features: &Tensor, labels: &Tensor, domain: usize) -> crate::Result<Confusion> {
        let mut confusion = Confusion::new(self.classes());
        let logits = self.predict(image_features, domain)?.detach();
        confusion.update(&logits, labels).map_err(|error| crate::Error::Data(format!("DAPL: {error}")))?;
        Ok(confusion)
    }
}
