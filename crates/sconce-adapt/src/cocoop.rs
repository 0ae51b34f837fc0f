//! Conditional context optimisation.

use candle_core::{D, Result, Tensor};
use sconce_clip::model::TextTransformer;
use sconce_clip::{Clip, Tokenize, normalize};
use sconce_nn::{Activation, Linear, Module, VarBuilder, linear};

use crate::coop::context;
use crate::prompt::{ClassPosition, PromptConfig, Prompts};

/// Prompts that [`CoCoOp::predict`] has in memory at once, unless the classes alone are more.
const PROMPTS: usize = 512;

/// Zhou et al. 2022, "Conditional Prompt Learning for Vision-Language Models" (`arXiv:2203.05557`): a small network shifts the
/// context by each picture, which carries better to classes that were not trained on.
///
/// Every picture needs a pass of the text tower over all classes: `B * K` prompts. Training keeps what all of them need for
/// their gradients, which is why the paper trains on single pictures; [`predict`](Self::predict) keeps few at a time.
#[derive(Clone, Debug)]
pub struct CoCoOp {
    /// `(n_ctx, C)`.
    pub ctx: Tensor,
    /// The first layer of the small network, to a sixteenth of the width, with ReLU.
    pub linear1: Linear,
    /// Its second layer, to the width of a token.
    pub linear2: Linear,
    /// Everything around the context.
    pub prompts: Prompts,
    /// The frozen text tower.
    pub text: TextTransformer,
    /// Inverse temperature, a scalar.
    pub scale: Tensor,
}

impl CoCoOp {
    /// Prompts for `classes` on a frozen model; `vb` holds `ctx`, `meta_net.linear1` and `meta_net.linear2`.
    ///
    /// # Errors
    /// When the context is to be class-specific or the class name not at the end, neither of which the method has; as
    /// [`CoOp::new`](crate::CoOp::new).
    pub fn new<C: AsRef<str>>(
        cfg: &PromptConfig,
        model: &Clip,
        tokenizer: &dyn Tokenize,
        classes: &[C],
        vb: VarBuilder,
    ) -> crate::Result<Self> {
        if cfg.class_specific || cfg.position != ClassPosition::End {
            return Err(crate::Error::Config("CoCoOp has one context for all classes, before the class name".into()));
        }
        let prompts = Prompts::new(cfg, &model.text, tokenizer, classes)?;
        let (embed, width) = (model.text.text_projection.dim(1)?, prompts.prefix.dim(2)?);
        let hidden = (embed / 16).max(1);
        let meta_net = vb.pp("meta_net");
        Ok(Self {
            ctx: context(cfg, &prompts, &vb)?,
            linear1: linear(embed, hidden, meta_net.pp("linear1"))?.with_activation(Activation::Relu),
            linear2: linear(hidden, width, meta_net.pp("linear2"))?,
            prompts,
            text: model.text.clone(),
            scale: model.scale()?.detach(),
        })
    }

    /// Features of the classes as each picture words them, at unit length.
    ///
    /// # Shapes
    /// - `image_features` `(B, E)`, normalised or not; output `(B, K, E)`
    ///
    /// # Errors
    /// When the width is another.
    pub fn class_features(&self, image_features: &Tensor) -> Result<Tensor> {
        let images = normalize(&image_features.to_dtype(self.linear1.weight.dtype())?)?;
        let shift = self.linear2.forward(&self.linear1.forward(&images)?)?; // (B, C)
        let (batch, classes) = (images.dim(0)?, self.prompts.classes());
        let prompt = |i: usize| self.prompts.assemble(&self.ctx.broadcast_add(&shift.get(i)?)?); // (K, L, C)
        let prompts = (0..batch).map(prompt).collect::<Result<Vec<_>>>()?;
        let ends = self.prompts.ends.repeat(batch);
        let features = self.text.forward_embeddings(&Tensor::cat(&prompts, 0)?, &ends, false)?; // (B * K, E)
        normalize(&features)?.reshape((batch, classes, ()))
    }

    /// Scaled cosine similarities of pictures to the classes.
    ///
    /// # Shapes
    /// - `image_features` `(B, E)`, normalised or not; output `(B, K)`
    ///
    /// # Errors
    /// When the width is another.
    pub fn logits(&self, image_features: &Tensor) -> Result<Tensor> {
        let classes = self.class_features(image_features)?; // (B, K, E)
        let images = normalize(&image_features.to_dtype(classes.dtype())?)?.unsqueeze(1)?; // (B, 1, E)
        classes.broadcast_mul(&images)?.sum(D::Minus1)?.broadcast_mul(&self.scale)
    }

    /// As [`logits`](Self::logits) for any number of pictures: a few at a time, and without what gradients would need.
    ///
    /// # Shapes
    /// - `image_features` `(B, E)`, normalised or not; output `(B, K)`
    ///
    /// # Errors
    /// When the width is another.
    pub fn predict(&self, image_features: &Tensor) -> Result<Tensor> {
        let constant = |layer: &Linear| Linear {
            weight: layer.weight.detach(),
            bias: layer.bias.as_ref().map(Tensor::detach),
            activation: layer.activation,
        };
        let head = Self {
            ctx: self.ctx.detach(),
            linear1: constant(&self.linear1),
            linear2: constant(&self.linear2),
            ..self.clone()
        };
        let (pictures, _) = image_features.dims2()?;
        let at_once = (PROMPTS / self.prompts.classes()).max(1);
        let part = |start: usize| head.logits(&image_features.narrow(0, start, at_once.min(pictures - start))?);
        let parts = (0..pictures).step_by(at_once).map(part).collect::<Result<Vec<_>>>()?;
        Tensor::cat(&parts, 0)
    }
}
