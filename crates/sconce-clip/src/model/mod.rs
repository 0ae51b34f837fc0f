//! The two towers and what joins them.

mod resnet;
mod text;
mod transformer;
mod vit;

pub use resnet::{AttentionPool, Bottleneck, ConvNorm, ModifiedResNet};
pub use text::TextTransformer;
pub use transformer::{Attention, Block, Dense, Transformer};
pub use vit::VisionTransformer;

use crate::config::{Config, VisionConfig};
use candle_core::{Result, Tensor, Var};
use sconce_nn::{Init, VarBuilder, init::param};
use sconce_ops::{l2_normalize, matmul};
use std::{fmt::Debug, sync::Arc};

/// The largest inverse temperature that training may reach.
const MAX_SCALE: f64 = 100.0;

/// Any image tower: what [`ImageTower::Other`] takes in place of the two of the paper.
pub trait ImageEncoder: Debug + Send + Sync {
    /// `(B, 3, S, S)` to features `(B, E)`, not normalised.
    ///
    /// # Errors
    /// The tower's own.
    fn encode_image(&self, images: &Tensor, train: bool) -> Result<Tensor>;
}

/// The image tower of a [`Clip`].
#[derive(Clone, Debug)]
pub enum ImageTower {
    /// A vision transformer.
    Vit(VisionTransformer),
    /// The modified ResNet with attention pooling.
    ResNet(Box<ModifiedResNet>),
    /// Another one.
    Other(Arc<dyn ImageEncoder>),
}

impl ImageEncoder for ImageTower {
    fn encode_image(&self, images: &Tensor, train: bool) -> Result<Tensor> {
        match self {
            Self::Vit(vit) => vit.forward_head(&vit.forward_features(images, train)?),
            Self::ResNet(resnet) => resnet.forward_head(&resnet.forward_features(images, train)?),
            Self::Other(other) => other.encode_image(images, train),
        }
    }
}

/// What [`Clip::forward_t`] gives: enough for logits and for every loss.
#[derive(Clone, Debug)]
pub struct ClipOutput {
    /// Unit length, `(B, E)`.
    pub image_features: Tensor,
    /// Unit length, `(B', E)`.
    pub text_features: Tensor,
    /// Inverse temperature, a scalar.
    pub scale: Tensor,
}

impl ClipOutput {
    /// Scaled cosine similarities, a row for each image: `(B, B')`. Transposed, a row for each text.
    ///
    /// # Errors
    /// When the widths differ.
    pub fn logits_per_image(&self) -> Result<Tensor> {
        let cosines = matmul(&self.image_features, &self.text_features.t()?)?;
        cosines.broadcast_mul(&self.scale)
    }
}

/// Contrastive language-image pre-training (Radford et al. 2021, arXiv:2103.00020): two towers into one space, in which an
/// image is near the texts that describe it.
///
/// Names of tensors are OpenAI's: `visual.*`, `transformer.resblocks.*`, `token_embedding.weight`, `logit_scale`, ...
#[derive(Clone, Debug)]
pub struct Clip {
    /// The image tower.
    pub visual: ImageTower,
    /// The text tower.
    pub text: TextTransformer,
    /// Logarithm of the inverse temperature, a scalar.
    pub logit_scale: Tensor,
    /// Sizes.
    pub config: Config,
}

impl Clip {
    /// A model on the tensors of `vb`: a checkpoint's, or new ones drawn as OpenAI starts them.
    ///
    /// # Errors
    /// A configuration that [`Config::validate`] refuses; what `vb` cannot provide.
    pub fn new(config: &Config, vb: VarBuilder) -> Result<Self> {
        config.validate()?;
        let (visual, embed_dim) = (vb.pp("visual"), config.embed_dim);
        let visual = match &config.vision {
            VisionConfig::Vit(vit) => ImageTower::Vit(VisionTransformer::new(vit, embed_dim, visual)?),
            VisionConfig::ResNet(resnet) => {
                ImageTower::ResNet(Box::new(ModifiedResNet::new(resnet, embed_dim, visual)?))
            }
        };
        let text = TextTransformer::new(&config.text, embed_dim, vb.clone())?;
        let logit_scale = param(&vb, (), "logit_scale", Init::Const(config.logit_scale_init))?;
        Ok(Self { visual, text, logit_scale, config: config.clone() })
    }

    /// Image features, not normalised.
    ///
    /// # Shapes
    /// `(B, 3, S, S)`, preprocessed, to `(B, E)`
    ///
    /// # Errors
    /// When `S` is not the configured size.
    pub fn encode_image(&self, images: &Tensor) -> Result<Tensor> {
        self.visual.encode_image(images, false)
    }

    /// Text features, not normalised.
    ///
    /// # Shapes
    /// ids `(B, L)`, any integer type, to `(B, E)`
    ///
    /// # Errors
    /// For an id beyond the vocabulary, and for a row without an end token.
    pub fn encode_text(&self, ids: &Tensor) -> Result<Tensor> {
        self.text.forward_ids(ids, false)
    }

    /// Both towers. Images and texts need not be equally many.
    ///
    /// # Shapes
    /// images `(B, 3, S, S)`, ids `(B', L)`
    ///
    /// # Errors
    /// As [`Self::encode_image`] and [`Self::encode_text`].
    pub fn forward_t(&self, images: &Tensor, ids: &Tensor, train: bool) -> Result<ClipOutput> {
        Ok(ClipOutput {
            image_features: normalize(&self.visual.encode_image(images, train)?)?,
            text_features: normalize(&self.text.forward_ids(ids, train)?)?,
            scale: self.scale()?,
        })
    }

    /// Scaled cosine similarities of features, normalised or not: `(B, E)` and `(B', E)` to `(B, B')`.
    ///
    /// # Errors
    /// When the widths differ.
    pub fn logits(&self, image_features: &Tensor, text_features: &Tensor) -> Result<Tensor> {
        let [image_features, text_features] = [normalize(image_features)?, normalize(text_features)?];
        ClipOutput { image_features, text_features, scale: self.scale()? }.logits_per_image()
    }

    /// The inverse temperature, `exp(logit_scale)`.
    ///
    /// # Errors
    /// Those of tensor arithmetic.
    pub fn scale(&self) -> Result<Tensor> {
        self.logit_scale.exp()
    }

    /// Keeps the inverse temperature at 100 or less, to be called after each optimiser step (section 2.5 of the paper). Does
    /// nothing for a model that is not trained.
    ///
    /// # Errors
    /// Those of tensor arithmetic.
    pub fn clamp_logit_scale(&self) -> Result<()> {
        if !self.logit_scale.is_variable() {
            return Ok(());
        }
        let clamped = self.logit_scale.detach().minimum(MAX_SCALE.ln())?;
        Var::from_tensor(&self.logit_scale)?.set(&clamped)
    }
}

/// Features at unit length: `(*, E)` to `(*, E)`.
///
/// # Errors
/// Those of tensor arithmetic.
pub fn normalize(features: &Tensor) -> Result<Tensor> {
    l2_normalize(features, candle_core::D::Minus1, 1e-12)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Pairing, ResNetConfig, TextConfig, TransformerConfig, VitConfig, contrastive_loss};
    use candle_core::{DType, Device};
    use sconce_nn::ParamStore;
    use sconce_ops::Generator;

    fn text() -> TextConfig {
        let transformer = TransformerConfig { heads: Some(2), ..TransformerConfig::new(32, 2) };
        TextConfig { context_length: 8, vocab_size: 40, end_token: None, transformer }
    }

    fn tiny() -> [Config; 2] {
        let transformer =
            TransformerConfig { heads: Some(4), dropout: 0.1, drop_path: 0.1, ..TransformerConfig::new(32, 2) };
        let vit = VitConfig { image_size: 32, patch_size: 8, transformer };
        let resnet = ResNetConfig { image_size: 64, depths: [1, 2, 1, 1], width: 4, heads: Some(2) };
        [Config::vit(16, vit, text()), Config::resnet(16, resnet, text())]
    }

    fn batch(config: &Config, generator: &Generator) -> Result<(Tensor, Tensor)> {
        let side = config.vision.image_size();
        let images = generator.normal(0.0, 1.0, (3, 3, side, side), DType::F32, &Device::Cpu)?;
        let ids = [[38u32, 3, 1, 39, 0, 0, 0, 0], [38, 7, 7, 2, 5, 39, 0, 0], [38, 39, 0, 0, 0, 0, 0, 0]];
        Ok((images, Tensor::new(&ids, &Device::Cpu)?))
    }

    #[test]
    fn every_parameter_has_a_finite_gradient() -> Result<()> {
        for config in tiny() {
            let store = ParamStore::new(7, DType::F32, &Device::Cpu);
            let model = Clip::new(&config, store.vb())?;
            let generator = Generator::new(3);
            // Away from the start, where the last norm of each bottleneck is zero and stops the gradient of its branch.
            for param in store.parameters() {
                let noise = generator.normal(0.0, 0.05, param.var.shape(), DType::F32, &Device::Cpu)?;
                param.var.set(&(param.var.as_tensor() + noise)?)?;
            }
            let (images, ids) = batch(&config, &generator)?;
            let output = generator.scope(|| model.forward_t(&images, &ids, true))?;
            let grads = contrastive_loss(&output, &Pairing::Diagonal)?.backward()?;
            for param in store.parameters() {
                let grad =
                    grads.get(param.var.as_tensor()).map(|g| g.abs()?.sum_all()?.to_scalar::<f32>()).transpose()?;
                assert!(grad.is_some_and(f32::is_finite), "{} {grad:?}", param.name);
                // Keys' biases shift all scores of a row alike: their gradient is zero.
                assert!(grad > Some(0.0), "{} has no gradient", param.name);
            }
        }
        Ok(())
    }

    #[test]
    fn ids_and_their_embeddings_give_the_same_features() -> Result<()> {
        let [config, _] = tiny();
        let model = Clip::new(&config, ParamStore::new(1, DType::F32, &Device::Cpu).vb())?;
        let (_, ids) = batch(&config, &Generator::new(5))?;
        let features = model.encode_text(&ids)?.to_vec2::<f32>()?;
        let embeddings = model.text.embed(&ids)?; // (B, L, C)
        let ends = model.text.end_positions(&ids)?;
        assert_eq!(ends, [3, 5, 1]);
        assert_eq!(model.text.forward_embeddings(&embeddings, &ends, false)?.to_vec2::<f32>()?, features);
        // And as the row of all tokens has it.
        let all = model.text.forward_features(&embeddings, false)?;
        let picked = Tensor::stack(&[all.get(0)?.get(3)?, all.get(1)?.get(5)?, all.get(2)?.get(1)?], 0)?;
        let slow = matmul(&picked, &model.text.text_projection)?.to_vec2::<f32>()?;
        let difference =
            slow.iter().flatten().zip(features.iter().flatten()).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
        assert!(difference < 1e-5, "{difference}");
        Ok(())
    }

    #[test]
    fn wrong_inputs_are_errors() -> Result<()> {
        let [config, _] = tiny();
        let model = Clip::new(&config, ParamStore::new(1, DType::F32, &Device::Cpu).vb())?;
        let cpu = &Device::Cpu;
        assert!(model.encode_text(&Tensor::new(&[[40u32, 1]], cpu)?).is_err());
        assert!(model.encode_text(&Tensor::zeros((1, 9), DType::U32, cpu)?).is_ok());
        assert!(model.text.forward_embeddings(&Tensor::zeros((1, 9, 32), DType::F32, cpu)?, &[8], false).is_err());
        assert!(model.text.forward_embeddings(&Tensor::zeros((1, 4, 32), DType::F32, cpu)?, &[4], false).is_err());
        assert!(model.encode_image(&Tensor::zeros((1, 3, 24, 24), DType::F32, cpu)?).is_err());
        let mut with_end = config;
        with_end.text.end_token = Some(39);
        let model = Clip::new(&with_end, ParamStore::new(1, DType::F32, cpu).vb())?;
        assert!(model.encode_text(&Tensor::new(&[[38u32, 1]], cpu)?).is_err());
        Ok(())
    }

    #[test]
    fn the_scale_is_held_at_a_hundred() -> Result<()> {
        let [config, _] = tiny();
        let store = ParamStore::new(1, DType::F32, &Device::Cpu);
        let model = Clip::new(&config, store.vb())?;
        model.clamp_logit_scale()?;
        assert!((model.scale()?.to_scalar::<f32>()? - 1.0 / 0.07).abs() < 1e-3);
        Var::from_tensor(&model.logit_scale)?.set(&Tensor::new(9f32, &Device::Cpu)?)?;
        model.clamp_logit_scale()?;
        assert!((model.scale()?.to_scalar::<f32>()? - 100.0).abs() < 1e-3);
        Ok(())
    }
}
