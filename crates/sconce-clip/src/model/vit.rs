//! The vision transformer tower of CLIP (Radford et al. 2021; Dosovitskiy et al. 2021).

use super::transformer::{BlockInit, Transformer};
use crate::config::VitConfig;
use candle_core::{D, Result, Tensor};
use sconce_nn::{Init, LayerNorm, Module, VarBuilder, init::param, layer_norm};
use sconce_ops::{ConvOptions, Mask, conv2d, matmul};

/// Patches, a class token, learned positions, a norm before and after the blocks, and a projection of the class token.
#[derive(Clone, Debug)]
pub struct VisionTransformer {
    /// Patch embedding `(C, 3, patch, patch)`, without bias.
    pub conv1: Tensor,
    /// `(C)`.
    pub class_embedding: Tensor,
    /// `(1 + grid^2, C)`, class token first.
    pub positional_embedding: Tensor,
    /// Before the blocks.
    pub ln_pre: LayerNorm,
    /// The blocks.
    pub transformer: Transformer,
    /// After the blocks, on the class token.
    pub ln_post: LayerNorm,
    /// `(C, E)`.
    pub proj: Tensor,
    /// Sizes.
    pub config: VitConfig,
}

impl VisionTransformer {
    /// A tower whose names start at `vb`: `conv1.weight`, `class_embedding`, ...
    ///
    /// # Errors
    /// What `vb` cannot provide.
    pub fn new(config: &VitConfig, embed_dim: usize, vb: VarBuilder) -> Result<Self> {
        let (width, patch) = (config.transformer.width, config.patch_size);
        let start = Init::Normal { mean: 0.0, std: (width as f64).powf(-0.5) };
        let tokens = 1 + config.grid() * config.grid();
        Ok(Self {
            conv1: param(&vb.pp("conv1"), (width, 3, patch, patch), "weight", Init::TorchLinear)?,
            class_embedding: param(&vb, width, "class_embedding", start)?,
            positional_embedding: param(&vb, (tokens, width), "positional_embedding", start)?,
            ln_pre: layer_norm(width, config.transformer.eps, vb.pp("ln_pre"))?,
            transformer: Transformer::new(&config.transformer, BlockInit::Torch, vb.pp("transformer"))?,
            ln_post: layer_norm(width, config.transformer.eps, vb.pp("ln_post"))?,
            proj: param(&vb, (width, embed_dim), "proj", start)?,
            config: config.clone(),
        })
    }

    /// Patches with class token and positions, normalised: what the first block gets.
    ///
    /// # Shapes
    /// `(B, 3, S, S)` to `(B, 1 + grid^2, C)`
    ///
    /// # Errors
    /// When `S` is not the configured size.
    pub fn embed(&self, images: &Tensor) -> Result<Tensor> {
        let options = ConvOptions::<2>::default().stride(self.config.patch_size);
        let patches = conv2d(images, &self.conv1, None, &options)?.flatten_from(2)?.transpose(1, 2)?; // (B, grid^2, C)
        let (batch, _, width) = patches.dims3()?;
        let class = self.class_embedding.reshape((1, 1, width))?.broadcast_as((batch, 1, width))?;
        let tokens = Tensor::cat(&[class, patches], 1)?; // (B, 1 + grid^2, C)
        self.ln_pre.forward(&tokens.broadcast_add(&self.positional_embedding)?)
    }

    /// All tokens after the last block, before the final norm.
    ///
    /// # Shapes
    /// `(B, 3, S, S)` to `(B, 1 + grid^2, C)`
    ///
    /// # Errors
    /// As [`Self::embed`].
    pub fn forward_features(&self, images: &Tensor, train: bool) -> Result<Tensor> {
        self.transformer.forward_t(&self.embed(images)?, &Mask::None, train)
    }

    /// The embedding of the class token.
    ///
    /// # Shapes
    /// `(B, N, C)` to `(B, E)`
    ///
    /// # Errors
    /// When the width is another.
    pub fn forward_head(&self, features: &Tensor) -> Result<Tensor> {
        let class = features.narrow(1, 0, 1)?.squeeze(1)?; // (B, C)
        matmul(&self.ln_post.forward(&class)?, &self.proj)
    }

    /// The embeddings of all tokens, class token first: dense features in the shared space.
    ///
    /// # Shapes
    /// `(B, N, C)` to `(B, N, E)`
    ///
    /// # Errors
    /// When the width is another.
    pub fn forward_dense(&self, features: &Tensor) -> Result<Tensor> {
        let (batch, tokens, _) = features.dims3()?;
        let flat = self.ln_post.forward(features)?.flatten_to(1)?; // (B N, C)
        matmul(&flat, &self.proj)?.reshape((batch, tokens, self.proj.dim(D::Minus1)?))
    }
}
