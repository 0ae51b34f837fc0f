//! The trait of all mixers, and what a mixer may know about its place.

use std::fmt::Debug;

use candle_core::{Result, Tensor};

/// Maps tokens to tokens, letting them see each other; blocks are written against this trait.
///
/// ```
/// use candle_core::{Result, Tensor};
/// use sconce_attention::TokenMixer;
///
/// /// Every token becomes the mean of all.
/// #[derive(Debug)]
/// struct Mean;
///
/// impl TokenMixer for Mean {
///     fn forward_t(&self, xs: &Tensor, _train: bool) -> Result<Tensor> {
///         xs.mean_keepdim(1)?.broadcast_as(xs.shape())
///     }
/// }
/// ```
pub trait TokenMixer: Debug + Send + Sync {
    /// Mixes a batch of token sequences; `train` turns dropout on.
    ///
    /// # Shapes
    /// - input and output `(B, N, C)`
    ///
    /// # Errors
    /// When the input does not fit the mixer.
    fn forward_t(&self, xs: &Tensor, train: bool) -> Result<Tensor>;

    /// As [`forward_t`](Self::forward_t) for mixers that need to know where the tokens stand in the picture.
    ///
    /// # Errors
    /// When the input fits neither the mixer nor the layout.
    fn forward_layout(&self, xs: &Tensor, layout: TokenLayout, train: bool) -> Result<Tensor> {
        let _ = layout;
        self.forward_t(xs, train)
    }

    /// As [`forward_layout`](Self::forward_layout), together with the queries, keys and values that it used; `None` for
    /// mixers that have no such thing. A connection across blocks ([BViT](https://arxiv.org/abs/2202.06268)) reads them.
    ///
    /// # Errors
    /// When the input fits neither the mixer nor the layout.
    fn forward_qkv(&self, xs: &Tensor, layout: TokenLayout, train: bool) -> Result<(Tensor, Option<Qkv>)> {
        Ok((self.forward_layout(xs, layout, train)?, None))
    }

    /// How much each token looks at each other one, `(B, heads, N, N)`, rows summing to one; `None` for mixers that
    /// have no such thing.
    ///
    /// # Errors
    /// When the input does not fit the mixer.
    fn attention_weights(&self, xs: &Tensor) -> Result<Option<Tensor>> {
        let _ = xs;
        Ok(None)
    }
}

/// Queries, keys and values of one mixer, each `(B, heads, N, D)`; queries before any scaling.
#[derive(Debug, Clone)]
pub struct Qkv {
    /// Queries.
    pub q: Tensor,
    /// Keys.
    pub k: Tensor,
    /// Values.
    pub v: Tensor,
}

/// How a sequence of tokens maps to the picture: `prefix` tokens without a place, then the grid row by row.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TokenLayout {
    /// Class, distillation and register tokens at the start.
    pub prefix: usize,
    /// Rows of patches.
    pub height: usize,
    /// Columns of patches.
    pub width: usize,
}

impl TokenLayout {
    /// Number of tokens.
    pub fn len(&self) -> usize {
        self.prefix + self.height * self.width
    }

    /// True when there is no token at all.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// What a block tells whoever makes its mixer.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct MixerSpec {
    /// Number of the block, from 0.
    pub block: usize,
    /// Number of blocks in the model.
    pub depth: usize,
    /// Stage that the block stands in, from 0; 0 in models without stages.
    pub stage: usize,
    /// Number of the block within its stage, from 0.
    pub stage_block: usize,
    /// Channels of a token.
    pub dim: usize,
    /// Heads that the configuration asks for.
    pub heads: usize,
    /// Whether the projection to queries, keys and values has a bias.
    pub qkv_bias: bool,
    /// Dropout probability of attention weights.
    pub attn_drop: f64,
    /// Dropout probability of the output.
    pub proj_drop: f64,
    /// Layout of the tokens at the size that the model is configured for; other sizes may come at run time.
    pub layout: TokenLayout,
}
