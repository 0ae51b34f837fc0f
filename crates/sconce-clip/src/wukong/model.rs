//! The two towers and their comparison.

use super::{
    Config, ImageTower, LateInteraction, Locked, Similarity, TextTokens, TokenReduction, Variant, image::dense,
    late_interaction,
};
use crate::{model::TextTransformer, normalize};
use candle_core::{DType, Result, Tensor, Var, bail};
use sconce_nn::{Init, ModuleT, VarBuilder, init::param};

/// A Chinese dual encoder (Gu et al. 2022, arXiv:2202.06767) that compares tokens with tokens; [`Variant::Global`] has one on
/// each side.
///
/// Names of tensors are CLIP's, and `token_learner.*`; [`official_names`](super::official_names) reads the published files.
#[derive(Clone, Debug)]
pub struct Wukong {
    /// The image tower.
    pub visual: ImageTower,
    /// Of [`Variant::Reduced`].
    pub token_learner: Option<TokenReduction>,
    /// The text tower.
    pub text: TextTransformer,
    /// Logarithm of the inverse temperature, a scalar.
    pub logit_scale: Tensor,
    /// Sizes.
    pub config: Config,
}

impl Wukong {
    /// A model on the tensors of `vb`: a checkpoint's, or new ones.
    ///
    /// # Errors
    /// A configuration that [`Config::validate`] refuses, or with a locked tower: see [`Self::with_locked`]. What `vb` cannot
    /// provide.
    pub fn new(config: &Config, vb: VarBuilder) -> Result<Self> {
        Self::build(config, None, vb)
    }

    /// A model beside a locked image tower: `vb` provides the text tower, and the projection where there is one.
    ///
    /// # Errors
    /// As [`Self::new`], and when the configuration is not of a locked tower of that width.
    pub fn with_locked(config: &Config, tower: Locked, vb: VarBuilder) -> Result<Self> {
        Self::build(config, Some(tower), vb)
    }

    fn build(config: &Config, locked: Option<Locked>, vb: VarBuilder) -> Result<Self> {
        config.validate()?;
        let visual = ImageTower::new(&config.vision, config.embed_dim, locked, vb.pp("visual"))?;
        let token_learner = match &config.variant {
            Variant::Reduced(cfg) => Some(TokenReduction::new(cfg, visual.width(), vb.pp("token_learner"))?),
            Variant::Global | Variant::Filip => None,
        };
        let text = TextTransformer::new(&config.text, config.embed_dim, vb.clone())?;
        let logit_scale = param(&vb, (), "logit_scale", Init::Const(config.logit_scale_init))?;
        Ok(Self { visual, token_learner, text, logit_scale, config: config.clone() })
    }

    /// Unit-length image tokens.
    ///
    /// # Shapes
    /// `(B, 3, S, S)`, preprocessed, to `(B, N, E)`; `N` is 1 for [`Variant::Global`]
    ///
    /// # Errors
    /// When `S` is not the configured size.
    pub fn encode_image(&self, images: &Tensor, train: bool) -> Result<Tensor> {
        self.embed_tokens(&self.visual.tokens(images, &self.config.variant, train)?, train)
    }

    /// The second half of [`Self::encode_image`], from [`ImageTower::tokens`]: reduction, projection, unit length. What a
    /// locked tower gives can be computed once and kept; this is what is trained on top of it.
    ///
    /// # Shapes
    /// `(B, N, C)` to `(B, N', E)`
    ///
    /// # Errors
    /// When the width is another.
    pub fn embed_tokens(&self, tokens: &Tensor, train: bool) -> Result<Tensor> {
        let tokens = match &self.token_learner {
            Some(reduction) => reduction.forward_t(tokens, train)?,
            None => tokens.clone(),
        };
        normalize(&self.visual.project(&tokens)?)
    }

    /// Unit-length text tokens: all of them, or the end token for [`Variant::Global`]. Rows are as short as the longest text.
    ///
    /// # Shapes
    /// ids `(B, L)`, any integer type, padded with zeros, to `(B, L', E)`
    ///
    /// # Errors
    /// For an id beyond the vocabulary, and for a row of zeros.
    pub fn encode_text(&self, ids: &Tensor, train: bool) -> Result<TextTokens> {
        let ends = self.end_positions(ids)?;
        let used = ends.iter().max().map_or(0, |last| last + 1);
        // The mask is causal: nothing after a text's end changes it.
        let ids = ids.narrow(1, 0, used)?;
        if self.config.variant == Variant::Global {
            let features = self.text.forward_embeddings(&self.text.embed(&ids)?, &ends, train)?.unsqueeze(1)?;
            let valid = Tensor::ones((ends.len(), 1), DType::U8, ids.device())?;
            return Ok(TextTokens { features: normalize(&features)?, valid });
        }
        let features = normalize(&self.text_tokens(&ids, train)?)?;
        let row = |end: &usize| (0..used).map(|place| u8::from(place <= *end)).collect::<Vec<_>>();
        let valid: Vec<u8> = ends.iter().flat_map(row).collect();
        Ok(TextTokens { features, valid: Tensor::from_vec(valid, (ends.len(), used), ids.device())? })
    }

    /// All tokens of texts in the shared space, padding included, not normalised.
    ///
    /// # Shapes
    /// ids `(B, L)` to `(B, L, E)`
    ///
    /// # Errors
    /// For an id beyond the vocabulary, and for more tokens than the context holds.
    pub fn text_tokens(&self, ids: &Tensor, train: bool) -> Result<Tensor> {
        dense(&self.text.forward_features(&self.text.embed(ids)?, train)?, &self.text.text_projection)
    }

    /// Where each row ends: its last id that is not 0.
    ///
    /// # Errors
    /// When ids are not integers of shape `(B, L)`, or a row is all zeros.
    pub fn end_positions(&self, ids: &Tensor) -> Result<Vec<usize>> {
        let end_of = |row: &Vec<u32>| match row.iter().rposition(|id| *id != 0) {
            Some(end) => Ok(end),
            None => bail!("a row of tokens is all padding"),
        };
        ids.to_dtype(DType::U32)?.to_vec2::<u32>()?.iter().map(end_of).collect()
    }

    /// Similarities of unit-length tokens, with padding left out; see [`late_interaction`].
    ///
    /// # Errors
    /// When the widths differ.
    pub fn similarity(&self, images: &Tensor, texts: &TextTokens) -> Result<Similarity> {
        late_interaction(images, texts, &LateInteraction::default())
    }

    /// The inverse temperature, `exp(logit_scale)`.
    ///
    /// # Errors
    /// Those of tensor arithmetic.
    pub fn scale(&self) -> Result<Tensor> {
        self.logit_scale.exp()
    }

    /// Keeps the inverse temperature at 100 or less, to be called after each optimiser step. Does nothing for a model that is
    /// not trained.
    ///
    /// # Errors
    /// Those of tensor arithmetic.
    pub fn clamp_logit_scale(&self) -> Result<()> {
        if !self.logit_scale.is_variable() {
            return Ok(());
        }
        let clamped = self.logit_scale.detach().minimum(100f64.ln())?;
        Var::from_tensor(&self.logit_scale)?.set(&clamped)
    }
}
