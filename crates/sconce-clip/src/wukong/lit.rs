//! Locked-image tuning (Zhai et al. 2022, arXiv:2111.07991): the image tower of a trained model stays as it is, a text tower is
//! trained to read it.

use super::image::grid_tokens;
use crate::{Clip, Error, ImageEncoder, ImageTower, Result, VisionConfig, WEIGHTS_FILE};
use candle_core::{Tensor, bail};
use sconce_backbones::Backbone;
use sha2::{Digest, Sha256};
use std::{fmt::Write, path::Path, sync::Arc};

/// An image tower that is not trained: it is only ever run as for inference, and no gradient passes through it.
///
/// Its tokens do not change while a text tower is trained, so that they can be computed once and kept.
#[derive(Clone, Debug)]
pub struct Locked {
    /// The tower.
    pub tower: LockedTower,
    /// The stage whose map is the grid of tokens, from 1; the last one's when absent.
    pub stage: Option<usize>,
    /// Channels of the tokens.
    pub width: usize,
}

/// Whose tower is locked.
#[derive(Clone, Debug)]
pub enum LockedTower {
    /// That of a CLIP model.
    Clip(ImageTower),
    /// A backbone of the registry.
    Backbone(Arc<dyn Backbone>),
}

impl Locked {
    /// The embedding of a CLIP model's pictures, one token of the shared space.
    pub fn embedding(clip: &Clip) -> Self {
        Self { tower: LockedTower::Clip(clip.visual.clone()), stage: None, width: clip.config.embed_dim }
    }

    /// The grid of a CLIP model's tower: the patches of a ViT in the shared space, the cells of a ResNet's map before pooling.
    /// `stage`, from 1 to 4, is a ResNet's; a ViT has one grid.
    ///
    /// # Errors
    /// [`Error::Config`] for a stage that the tower does not have, and for towers of other kinds.
    pub fn grid(clip: &Clip, stage: Option<usize>) -> Result<Self> {
        let width = match (&clip.config.vision, stage) {
            (VisionConfig::Vit(_), None) => clip.config.embed_dim,
            (VisionConfig::ResNet(resnet), None) => resnet.width * 32,
            (VisionConfig::ResNet(resnet), Some(stage @ 1..=4)) => (resnet.width * 2) << stage,
            (_, stage) => return Err(Error::Config(format!("the tower has no stage {stage:?} with a map"))),
        };
        if matches!(clip.visual, ImageTower::Other(_)) {
            return Err(Error::Config("the tokens of a tower of another kind are not known".into()));
        }
        Ok(Self { tower: LockedTower::Clip(clip.visual.clone()), stage, width })
    }

    /// A backbone of the registry: its pooled features, or the cells of a map of its
    /// [`feature_info`](Backbone::feature_info), counted from 1.
    ///
    /// # Errors
    /// [`Error::Config`] for a stage that it does not have.
    pub fn backbone(net: Arc<dyn Backbone>, stage: Option<usize>) -> Result<Self> {
        let width = match stage {
            None => net.num_features(),
            Some(stage) => match stage.checked_sub(1).and_then(|i| net.feature_info().into_iter().nth(i)) {
                Some(info) => info.channels,
                None => return Err(Error::Config(format!("the backbone has no stage {stage}"))),
            },
        };
        Ok(Self { tower: LockedTower::Backbone(net), stage, width })
    }

    /// Tokens of pictures: one that stands for the whole, or the grid.
    ///
    /// # Shapes
    /// `(B, 3, S, S)` to `(B, N, C)`
    ///
    /// # Errors
    /// When the pictures have another size.
    pub fn tokens(&self, images: &Tensor, global: bool) -> candle_core::Result<Tensor> {
        let images = images.detach();
        let cells = |map: &Tensor| map.flatten_from(2)?.transpose(1, 2)?.contiguous(); // (B, h w, C)
        let tokens = match (&self.tower, global, self.stage) {
            (LockedTower::Clip(tower), true, _) => tower.encode_image(&images, false)?.unsqueeze(1)?,
            (LockedTower::Clip(ImageTower::Vit(vit)), false, _) => {
                let tokens = vit.forward_dense(&vit.forward_features(&images, false)?)?;
                tokens.narrow(1, 1, tokens.dim(1)? - 1)?
            }
            (LockedTower::Clip(ImageTower::ResNet(resnet)), false, None) => {
                cells(&resnet.forward_features(&images, false)?)?
            }
            (LockedTower::Clip(ImageTower::ResNet(resnet)), false, Some(stage)) => {
                match resnet.forward_intermediates(&images, false)?.get(stage) {
                    Some(map) => cells(map)?,
                    None => bail!("the tower has no stage {stage}"),
                }
            }
            (LockedTower::Clip(ImageTower::Other(_)), false, _) => bail!("a tower of another kind has no known grid"),
            (LockedTower::Backbone(net), true, _) => {
                net.forward_head(&net.forward_features(&images, false)?, true, false)?.unsqueeze(1)?
            }
            (LockedTower::Backbone(net), false, None) => {
                grid_tokens(&net.forward_features(&images, false)?, &images, &**net)?
            }
            (LockedTower::Backbone(net), false, Some(stage)) => {
                let found = net.forward_intermediates(&images, &[stage.saturating_sub(1)], false)?;
                match found.features.first() {
                    Some(map) => cells(map)?,
                    None => bail!("the backbone has no stage {stage}"),
                }
            }
        };
        Ok(tokens.detach())
    }
}

/// SHA-256, in hexadecimal, of the weights file in a model's folder.
///
/// # Errors
/// [`Error::Io`].
pub fn weights_digest(folder: impl AsRef<Path>) -> Result<String> {
    let path = folder.as_ref().join(WEIGHTS_FILE);
    let io = |source| Error::Io { path: path.clone(), source };
    let mut hash = Sha256::new();
    std::io::copy(&mut std::fs::File::open(&path).map_err(io)?, &mut hash).map_err(io)?;
    Ok(hash.finalize().iter().fold(String::with_capacity(64), |mut hex, byte| {
        // Writing to a string does not fail.
        let _ = write!(hex, "{byte:02x}");
        hex
    }))
}
