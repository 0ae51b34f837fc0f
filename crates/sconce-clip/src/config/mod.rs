//! Sizes and options of a CLIP model.

mod foreign;
mod infer;
mod presets;

pub use presets::{PRESETS, Preset};

use crate::{Error, Result};
use sconce_ops::Activation;
use serde::{Deserialize, Serialize};

/// A CLIP model: two towers into one embedding space.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Width of the shared space, E.
    pub embed_dim: usize,
    /// The image tower.
    pub vision: VisionConfig,
    /// The text tower.
    pub text: TextConfig,
    /// Logarithm of the initial inverse temperature; ln(1 / 0.07) in the paper.
    #[serde(default = "default_logit_scale")]
    pub logit_scale_init: f64,
}

fn default_logit_scale() -> f64 {
    (1.0f64 / 0.07).ln()
}

/// The image tower.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum VisionConfig {
    /// A vision transformer.
    Vit(VitConfig),
    /// The modified ResNet with attention pooling.
    ResNet(ResNetConfig),
}

impl VisionConfig {
    /// Side of the square input in pixels.
    pub fn image_size(&self) -> usize {
        match self {
            Self::Vit(vit) => vit.image_size,
            Self::ResNet(resnet) => resnet.image_size,
        }
    }
}

/// A stack of pre-norm transformer blocks.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TransformerConfig {
    /// Width of a token, C.
    pub width: usize,
    /// Blocks.
    pub depth: usize,
    /// Attention heads; `width / 64` when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub heads: Option<usize>,
    /// Width of the hidden layer of an MLP over `width`.
    #[serde(default = "default_mlp_ratio")]
    pub mlp_ratio: f64,
    /// Of the MLPs. All weights published by OpenAI want `gelu_quick`, many of open_clip's `gelu`.
    #[serde(default = "default_activation")]
    pub activation: Activation,
    /// Of the layer norms.
    #[serde(default = "default_eps")]
    pub eps: f64,
    /// Probability of dropping a number at the end of each branch in training; 0 in the paper.
    #[serde(default)]
    pub dropout: f64,
    /// Probability of dropping the last block's branches for a sample in training (stochastic depth, linear from 0 at the first
    /// block); 0 in the paper.
    #[serde(default)]
    pub drop_path: f64,
}

fn default_mlp_ratio() -> f64 {
    4.0
}

fn default_activation() -> Activation {
    Activation::GeluQuick
}

fn default_eps() -> f64 {
    1e-5
}

impl TransformerConfig {
    /// OpenAI's shape: heads of 64, hidden width 4 C, quick GELU.
    pub fn new(width: usize, depth: usize) -> Self {
        Self {
            width,
            depth,
            heads: None,
            mlp_ratio: default_mlp_ratio(),
            activation: default_activation(),
            eps: default_eps(),
            dropout: 0.0,
            drop_path: 0.0,
        }
    }

    /// Attention heads.
    pub fn heads(&self) -> usize {
        self.heads.unwrap_or(self.width / 64)
    }

    /// Hidden width of an MLP.
    pub fn mlp_width(&self) -> usize {
        // A ratio that was computed as hidden / width may come out a hair below.
        (self.width as f64 * self.mlp_ratio + 1e-6) as usize
    }

    fn validate(&self, tower: &str) -> Result<()> {
        let (width, heads) = (self.width, self.heads());
        limits(tower, &[("width", width), ("depth", self.depth), ("MLP width", self.mlp_width())])?;
        if heads == 0 || width % heads != 0 {
            return Err(Error::Config(format!("{tower}: a width of {width} does not split into {heads} heads")));
        }
        for (name, p) in [("dropout", self.dropout), ("drop_path", self.drop_path)] {
            if !(0.0..1.0).contains(&p) {
                return Err(Error::Config(format!("{tower}: {name} is {p}, a probability below 1 is needed")));
            }
        }
        Ok(())
    }
}

/// Sizes of a vision transformer tower.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VitConfig {
    /// Side of the square input in pixels.
    pub image_size: usize,
    /// Side of a patch in pixels.
    pub patch_size: usize,
    /// The blocks.
    pub transformer: TransformerConfig,
}

impl VitConfig {
    /// Patches along one side.
    pub fn grid(&self) -> usize {
        self.image_size / self.patch_size.max(1)
    }
}

/// Sizes of a modified ResNet tower.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ResNetConfig {
    /// Side of the square input in pixels, a multiple of 32.
    pub image_size: usize,
    /// Bottlenecks in each of the four stages.
    pub depths: [usize; 4],
    /// Channels after the stem; the last stage has 32 times as many.
    pub width: usize,
    /// Heads of the attention pooling; `width / 2` (64 channels each) when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub heads: Option<usize>,
}

impl ResNetConfig {
    /// Heads of the attention pooling.
    pub fn heads(&self) -> usize {
        self.heads.unwrap_or(self.width * 32 / 64)
    }

    /// Side of the last feature map.
    pub fn grid(&self) -> usize {
        self.image_size / 32
    }
}

/// Sizes of a text tower.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TextConfig {
    /// Tokens in a row, start and end included.
    pub context_length: usize,
    /// Rows of the embedding table.
    pub vocab_size: usize,
    /// Where a row ends: the first place of this id. When absent, the first place of the row's largest id, which is OpenAI's
    /// rule and needs the end token to be the last of the vocabulary.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub end_token: Option<u32>,
    /// The blocks.
    pub transformer: TransformerConfig,
}

impl Config {
    /// Checks that the sizes go together and are sizes a model can have.
    ///
    /// # Errors
    /// [`Error::Config`] says what does not.
    pub fn validate(&self) -> Result<()> {
        limits("model", &[("embed_dim", self.embed_dim)])?;
        match &self.vision {
            VisionConfig::Vit(vit) => {
                vit.transformer.validate("vision")?;
                limits(
                    "vision",
                    &[("patch_size", vit.patch_size), ("image_size", vit.image_size), ("grid", vit.grid())],
                )?;
            }
            VisionConfig::ResNet(resnet) => {
                let heads = resnet.heads();
                limits(
                    "vision",
                    &[("width", resnet.width), ("image_size", resnet.image_size), ("grid", resnet.grid())],
                )?;
                limits("vision", &resnet.depths.map(|d| ("depth", d)))?;
                if resnet.image_size % 32 != 0 {
                    return Err(Error::Config(format!(
                        "vision: {} pixels are not a multiple of 32",
                        resnet.image_size
                    )));
                }
                if resnet.width % 2 != 0 || heads == 0 || resnet.width * 32 % heads != 0 {
                    let why = format!("vision: a width of {} does not go with {heads} heads", resnet.width);
                    return Err(Error::Config(why));
                }
            }
        }
        let text = &self.text;
        text.transformer.validate("text")?;
        limits("text", &[("context_length", text.context_length), ("vocab_size", text.vocab_size / 64 + 1)])?;
        if text.vocab_size == 0 || text.end_token.is_some_and(|id| id as usize >= text.vocab_size) {
            return Err(Error::Config(format!("text: no end token in a vocabulary of {}", text.vocab_size)));
        }
        let (parameters, limit) = (self.parameters(), MAX_PARAMETERS);
        if parameters > limit {
            return Err(Error::Config(format!("{parameters:.1e} parameters, more than {limit:.1e}")));
        }
        Ok(())
    }

    /// About how many parameters the model has.
    fn parameters(&self) -> f64 {
        let blocks = |t: &TransformerConfig| {
            let width = t.width as f64;
            t.depth as f64 * width * (4.0 * width + 2.0 * t.mlp_width() as f64)
        };
        let vision = match &self.vision {
            VisionConfig::Vit(vit) => {
                let tokens =
                    3.0 * (vit.patch_size as f64).powi(2) + (vit.grid() as f64).powi(2) + self.embed_dim as f64;
                blocks(&vit.transformer) + vit.transformer.width as f64 * tokens
            }
            VisionConfig::ResNet(resnet) => {
                let stage =
                    |(i, depth): (i32, &usize)| *depth as f64 * (resnet.width as f64 * 2f64.powi(i)).powi(2) * 17.0;
                let wide = 32.0 * resnet.width as f64;
                let pool = 3.0 * wide + self.embed_dim as f64 + (resnet.grid() as f64).powi(2);
                (0..).zip(&resnet.depths).map(stage).sum::<f64>() + wide * pool
            }
        };
        let rows = self.text.vocab_size + self.text.context_length + self.embed_dim;
        vision + blocks(&self.text.transformer) + rows as f64 * self.text.transformer.width as f64
    }
}

/// The largest published model has 2.5 billion; what is far beyond is a damaged file.
const MAX_PARAMETERS: f64 = 1e10;

/// Refuses zero, and sizes so far beyond any model that allocating them would end the program.
fn limits(part: &str, sizes: &[(&str, usize)]) -> Result<()> {
    const MAX: usize = 1 << 16;
    match sizes.iter().find(|(_, size)| !(1..=MAX).contains(size)) {
        Some((name, size)) => Err(Error::Config(format!("{part}: {name} is {size}, not between 1 and {MAX}"))),
        None => Ok(()),
    }
}
