//! Image towers that give tokens.

use super::{Locked, Variant, VisionConfig};
use crate::{config::VitConfig, model::VisionTransformer};
use candle_core::{Result, Tensor, bail};
use sconce_backbones::Backbone;
use sconce_nn::{Init, VarBuilder, init::param};
use sconce_ops::matmul;
use std::sync::Arc;

/// From pictures to tokens of the tower's own width, and from there into the shared space.
#[derive(Clone, Debug)]
pub enum ImageTower {
    /// CLIP's vision transformer; its final norm belongs to the projection.
    Vit(VisionTransformer),
    /// A backbone of the registry.
    Backbone {
        /// The net, without classifier.
        net: Arc<dyn Backbone>,
        /// `(C, E)`.
        proj: Tensor,
    },
    /// A tower that is not trained.
    Locked {
        /// The tower.
        tower: Locked,
        /// `(C, E)`; without it tokens are taken as they are.
        proj: Option<Tensor>,
    },
}

impl ImageTower {
    /// A tower whose names start at `vb`: a ViT's as in CLIP, a backbone's its own, and `proj`. `locked` is the tower of a
    /// [`VisionConfig::Locked`], whose tensors are not among those of `vb`.
    ///
    /// # Errors
    /// When a locked tower is missing or has another width; what `vb` cannot provide.
    pub fn new(config: &VisionConfig, embed_dim: usize, locked: Option<Locked>, vb: VarBuilder) -> Result<Self> {
        let proj = |width: usize| {
            let start = Init::Normal { mean: 0.0, std: (width as f64).powf(-0.5) };
            param(&vb, (width, embed_dim), "proj", start)
        };
        match (config, locked) {
            (VisionConfig::Vit(vit), None) => Ok(Self::Vit(VisionTransformer::new(vit, embed_dim, vb)?)),
            (VisionConfig::Backbone(backbone), None) => {
                let net: Arc<dyn Backbone> = backbone.clone().with_num_classes(0).build(vb.clone())?.into();
                let proj = proj(net.num_features())?;
                Ok(Self::Backbone { net, proj })
            }
            (VisionConfig::Locked(config), Some(tower)) => {
                if tower.width != config.width {
                    bail!("the locked image tower gives {} channels instead of {}", tower.width, config.width)
                }
                let proj = config.project.then(|| proj(config.width)).transpose()?;
                Ok(Self::Locked { tower, proj })
            }
            (VisionConfig::Locked(config), None) => {
                bail!("the locked image tower of {:?} is not given", config.folder)
            }
            (_, Some(_)) => bail!("a locked image tower is given for a model that has its own"),
        }
    }

    /// Tokens before the projection; of [`Variant::Global`] one.
    ///
    /// # Shapes
    /// `(B, 3, S, S)` to `(B, N, C)`
    ///
    /// # Errors
    /// When the pictures have another size.
    pub fn tokens(&self, images: &Tensor, variant: &Variant, train: bool) -> Result<Tensor> {
        let global = *variant == Variant::Global;
        match self {
            Self::Vit(vit) => {
                let tokens = vit.forward_features(images, train)?; // (B, 1 + grid^2, C)
                if global { tokens.narrow(1, 0, 1) } else { tokens.narrow(1, 1, grid(&vit.config)) }
            }
            Self::Backbone { net, .. } => {
                let features = net.forward_features(images, train)?;
                match global {
                    true => net.forward_head(&features, true, train)?.unsqueeze(1),
                    false => grid_tokens(&features, images, &**net),
                }
            }
            Self::Locked { tower, .. } => tower.tokens(images, global),
        }
    }

    /// Channels of the tokens.
    pub fn width(&self) -> usize {
        match self {
            Self::Vit(vit) => vit.config.transformer.width,
            Self::Backbone { net, .. } => net.num_features(),
            Self::Locked { tower, .. } => tower.width,
        }
    }

    /// Tokens into the shared space, not normalised.
    ///
    /// # Shapes
    /// `(B, N, C)` to `(B, N, E)`
    ///
    /// # Errors
    /// When the width is another.
    pub fn project(&self, tokens: &Tensor) -> Result<Tensor> {
        match self {
            Self::Vit(vit) => vit.forward_dense(tokens),
            Self::Backbone { proj, .. } | Self::Locked { proj: Some(proj), .. } => dense(tokens, proj),
            Self::Locked { proj: None, .. } => Ok(tokens.clone()),
        }
    }
}

fn grid(vit: &VitConfig) -> usize {
    vit.grid() * vit.grid()
}

/// `(B, N, C)` by `(C, E)`.
pub(super) fn dense(tokens: &Tensor, weight: &Tensor) -> Result<Tensor> {
    let (batch, count, _) = tokens.dims3()?;
    matmul(&tokens.flatten_to(1)?, weight)?.reshape((batch, count, ())) // (B N, E)
}

/// The cells of the last map as tokens: `(B, C, h, w)`, or `(B, N, C)` with class tokens in front, to `(B, h w, C)`.
pub(super) fn grid_tokens(features: &Tensor, images: &Tensor, net: &dyn Backbone) -> Result<Tensor> {
    match features.rank() {
        4 => features.flatten_from(2)?.transpose(1, 2),
        3 => {
            let (_, _, height, width) = images.dims4()?;
            let reduction = net.feature_info().last().map_or(1, |info| info.reduction.max(1));
            let (cells, count) = ((height / reduction) * (width / reduction), features.dim(1)?);
            if cells == 0 || cells > count {
                bail!("{count} tokens for a grid of {cells}")
            }
            features.narrow(1, count - cells, cells)
        }
        _ => bail!("an image tower wants the features of pictures, found {:?}", features.dims()),
    }
}
