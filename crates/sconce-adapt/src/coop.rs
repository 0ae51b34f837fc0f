//! Context optimisation.

use candle_core::{Result, Tensor, Var};
use sconce_clip::model::TextTransformer;
use sconce_clip::{Clip, Tokenize, normalize};
use sconce_nn::{Init, VarBuilder, init};
use sconce_ops::matmul;

use crate::prompt::{PromptConfig, Prompts};

/// How a random context starts.
pub(crate) const RANDOM: Init = Init::Normal { mean: 0.0, std: 0.02 };

/// Zhou et al. 2022, "Learning to Prompt for Vision-Language Models" (`arXiv:2109.01134`): the words around the class name are
/// learned as embeddings, one context for all classes or one for each.
///
/// The context may be of another type than the frozen towers: f32 beside half-precision towers is what the official code calls
/// `amp`; its default, `fp16`, has both in half precision.
#[derive(Clone, Debug)]
pub struct CoOp {
    /// `(n_ctx, C)`, or `(K, n_ctx, C)` when class-specific.
    pub ctx: Tensor,
    /// Everything around the context.
    pub prompts: Prompts,
    /// The frozen text tower.
    pub text: TextTransformer,
    /// Inverse temperature, a scalar.
    pub scale: Tensor,
}

/// The context as a parameter: what `vb` holds already, else the words to begin with, else random.
pub(crate) fn context(cfg: &PromptConfig, prompts: &Prompts, vb: &VarBuilder) -> Result<Tensor> {
    let width = prompts.prefix.dim(2)?;
    let shape = match cfg.class_specific {
        true => vec![prompts.classes(), prompts.n_ctx, width],
        false => vec![prompts.n_ctx, width],
    };
    // A store may hold a trained context, for the sake of other classes.
    let is_new = !vb.contains_tensor("ctx");
    let ctx = init::param(vb, shape.clone(), "ctx", RANDOM)?;
    if let (Some(words), true, true) = (&prompts.words, is_new, ctx.is_variable()) {
        let words = words.to_dtype(ctx.dtype())?.to_device(ctx.device())?;
        Var::from_tensor(&ctx)?.set(&words.broadcast_as(shape)?.contiguous()?)?;
    }
    Ok(ctx)
}

impl CoOp {
    /// Prompts for `classes` on a frozen model; `vb` holds the context under `ctx`. A context that it holds already stays as it
    /// is: so one that was trained goes on to other classes.
    ///
    /// # Errors
    /// As [`Prompts::new`]; when `vb` holds a context of another shape, as those of other classes when class-specific.
    pub fn new<C: AsRef<str>>(
        cfg: &PromptConfig,
        model: &Clip,
        tokenizer: &dyn Tokenize,
        classes: &[C],
        vb: VarBuilder,
    ) -> crate::Result<Self> {
        let prompts = Prompts::new(cfg, &model.text, tokenizer, classes)?;
        let ctx = context(cfg, &prompts, &vb)?;
        Ok(Self { ctx, prompts, text: model.text.clone(), scale: model.scale()?.detach() })
    }

    /// Features of the classes, at unit length.
    ///
    /// # Shapes
    /// - output `(K, E)`
    ///
    /// # Errors
    /// Those of the text tower.
    pub fn class_features(&self) -> Result<Tensor> {
        normalize(&self.text_features()?)
    }

    /// Features of the classes as the text tower gives them.
    ///
    /// # Shapes
    /// - output `(K, E)`
    ///
    /// # Errors
    /// Those of the text tower.
    pub fn text_features(&self) -> Result<Tensor> {
        self.text.forward_embeddings(&self.prompts.assemble(&self.ctx)?, &self.prompts.ends, false)
    }

    /// Scaled cosine similarities of pictures to the classes.
    ///
    /// # Shapes
    /// - `image_features` `(B, E)`, normalised or not; output `(B, K)`
    ///
    /// # Errors
    /// When the width is another.
    pub fn logits(&self, image_features: &Tensor) -> Result<Tensor> {
        let classes = self.class_features()?; // (K, E)
        let images = normalize(&image_features.to_dtype(classes.dtype())?)?;
        matmul(&images, &classes.t()?)?.broadcast_mul(&self.scale)
    }
}
