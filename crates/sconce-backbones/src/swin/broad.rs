//! BViT's broad connection in a Swin transformer.

use candle_core::{Result, Tensor};
use sconce_attention::{BroadConnection, Qkv, TokenLayout, WindowFit, Windows, broad_attention};
use serde::{Deserialize, Serialize};

/// A broad connection (Li et al. 2022, `arXiv:2202.06268`) over the blocks of a stage, added to what its last block gives.
///
/// This is a definition of our own: the paper names Swin among the models that gain by it, and nothing of that is published.
/// Queries, keys and values of shifted blocks are rolled back to the picture, so that all blocks of the stage are cut into the
/// same windows, those without shift; one softmax for each window and head then runs over the sum of the blocks' scores,
/// without relative position bias. Padding takes part as zeros.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Broad {
    /// The connection.
    pub connection: BroadConnection,
    /// The stages that have it.
    pub stages: BroadStages,
}

/// The stages with a broad connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum BroadStages {
    /// The last, where a window holds the whole map of a picture of the configured size.
    #[default]
    Last,
    /// Every stage.
    All,
}

/// The broad connection of one stage.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct StageBroad {
    /// The connection.
    pub connection: BroadConnection,
    /// Rows and columns of a window.
    pub window: [usize; 2],
    /// What becomes of the window on small maps.
    pub fit: WindowFit,
}

impl StageBroad {
    /// `xs + gamma *` the broad attention of all blocks within windows.
    ///
    /// # Shapes
    /// - `xs` and output `(B, H W, C)`
    /// - `layers` each `(B, heads, H W, D)`, in the order of the map
    ///
    /// # Errors
    /// When the tokens do not fit each other.
    pub fn forward(&self, xs: &Tensor, layers: &[Qkv], layout: TokenLayout) -> Result<Tensor> {
        let (_, _, c) = xs.dims3()?;
        let (size, _) = self.fit.apply(self.window, [0; 2], [layout.height, layout.width]);
        let windows = Windows::new(layout, size, [0; 2], xs.device())?;
        let cut = |tokens: &Tensor| {
            let (_, heads, _, d) = tokens.dims4()?;
            let tokens = windows.partition(&tokens.transpose(1, 2)?.flatten_from(2)?)?; // (B windows, area, heads D)
            let (count, area, _) = tokens.dims3()?;
            tokens.reshape((count, area, heads, d))?.transpose(1, 2) // (B windows, heads, area, D)
        };
        let layer = |Qkv { q, k, v }: &Qkv| Ok(Qkv { q: cut(q)?, k: cut(k)?, v: cut(v)? });
        let layers = layers.iter().map(layer).collect::<Result<Vec<_>>>()?;
        let broad = windows.merge(&broad_attention(&layers, c)?)?; // (B, H W, C)
        xs + (broad * self.connection.gamma)?
    }
}
