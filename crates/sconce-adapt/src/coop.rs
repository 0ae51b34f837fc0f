//! Context optimisation.

use candle_core::{DType, Result, Tensor};
use sconce_clip::model::TextTransformer;
use sconce_clip::{Clip, Tokenize, normalize};
use sconce_nn::{Init, LoadOptions, VarBuilder, init};
use sconce_ops::{argsort, matmul};

use crate::prompt::{PromptConfig, Prompts};

/// How a random context starts.
pub(crate) const RANDOM: Init = Init::Normal { mean: 0.0, std: 0.02 };

/// Zhou et al. 2022, "Learning to Prompt for Vision-Language Models" (`arXiv:2109.01134`): the words around the class name are
/// learned as embeddings, one context for all classes or one for each.
///
/// The official code's checkpoints hold `ctx`, and `token_prefix` and `token_suffix`, which follow from the class names:
/// [`load_options`] passes those over.
#[derive(Clone, Debug)]
pub struct CoOp {
    /// `(n_ctx, C)`, or `(K, n_ctx, C)` when class-specific.
    pub ctx: Tensor,
    /// Everything around the context.
    pub prompts: Prompts,
    text: TextTransformer,
    scale: Tensor,
}

/// Options for loading official checkpoints of [`CoOp`] and [`CoCoOp`](crate::CoCoOp): the embeddings of the class names that
/// they were trained with are not loaded, those of the present classes stay.
pub fn load_options() -> LoadOptions {
    LoadOptions::default().ignore("token_prefix").ignore("token_suffix")
}

/// The context as a parameter: words where there are some, else random.
pub(crate) fn context(cfg: &PromptConfig, prompts: &Prompts, vb: &VarBuilder) -> Result<Tensor> {
    let width = prompts.prefix.dim(2)?;
    let shape = match cfg.class_specific {
        true => vec![prompts.classes(), prompts.n_ctx, width],
        false => vec![prompts.n_ctx, width],
    };
    let ctx = init::param(vb, shape.clone(), "ctx", RANDOM)?;
    // A variable of a store begins as the words; what a checkpoint holds stays.
    if let (Some(words), true) = (&prompts.words, ctx.is_variable()) {
        let words = words.to_dtype(ctx.dtype())?.to_device(ctx.device())?;
        candle_core::Var::from_tensor(&ctx)?.set(&words.broadcast_as(shape)?.contiguous()?)?;
    }
    Ok(ctx)
}

impl CoOp {
    /// Prompts for `classes` on a frozen model; `vb` holds the context under `ctx`.
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
        let cosines = matmul(&normalize(image_features)?, &self.class_features()?.t()?)?;
        cosines.broadcast_mul(&self.scale)
    }
}

/// The tokens whose embeddings are nearest to each learned one, by Euclidean distance, the nearest first: what a context seems
/// to say.
///
/// # Shapes
/// - `ctx` `(n_ctx, C)`
///
/// # Errors
/// When the context has another width or the tokenizer does not know a token of the tower.
pub fn nearest_words(
    ctx: &Tensor,
    text: &TextTransformer,
    tokenizer: &dyn Tokenize,
    k: usize,
) -> crate::Result<Vec<Vec<(String, f32)>>> {
    let (ctx, table) = (ctx.to_dtype(DType::F32)?, text.token_embedding.to_dtype(DType::F32)?);
    let products = matmul(&ctx, &table.t()?)?; // (n_ctx, V)
    let squared = table.sqr()?.sum(1)?.unsqueeze(0)?; // (1, V)
    let own = ctx.sqr()?.sum_keepdim(1)?; // (n_ctx, 1)
    let distances = (products * -2.0)?.broadcast_add(&squared)?.broadcast_add(&own)?.relu()?.sqrt()?;
    let k = k.min(distances.dim(1)?);
    let order = argsort(&distances, false)?.narrow(1, 0, k)?.contiguous()?;
    let nearest = distances.gather(&order, 1)?.to_vec2::<f32>()?;
    let word = |id: &u32| tokenizer.decode(&[*id]);
    let rows = order.to_vec2::<u32>()?.into_iter().zip(nearest).map(|(ids, distances)| {
        let words = ids.iter().map(word).collect::<sconce_clip::Result<Vec<_>>>()?;
        Ok(words.into_iter().zip(distances).collect())
    });
    rows.collect()
}
