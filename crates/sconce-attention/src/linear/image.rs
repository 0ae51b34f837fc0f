//! Efficient attention on maps, with convolutions in place of linear layers.

use candle_core::{Result, Tensor};
use sconce_nn::{Conv2d, Module, VarBuilder, conv2d};
use sconce_ops::ConvOptions;

use super::efficient_attention;
use super::projections::checked;
use crate::{TokenLayout, TokenMixer, grid};

const WHAT: &str = "image attention";

/// Sizes of an [`ImageLinearAttention`], named as in lucidrains' code.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ImageLinearConfig {
    /// Channels of the map.
    pub chan: usize,
    /// Channels of the output; `chan` when `None`.
    pub chan_out: Option<usize>,
    /// Side of the convolutions' window.
    pub kernel_size: usize,
    /// Zeros around the map; `kernel_size / 2` keeps its size.
    pub padding: usize,
    /// Channels of a head's queries and keys.
    pub key_dim: usize,
    /// Channels of a head's values.
    pub value_dim: usize,
    /// Number of heads.
    pub heads: usize,
    /// Whether queries pass a softmax over their features.
    pub norm_queries: bool,
}

impl ImageLinearConfig {
    /// 1x1 convolutions, eight heads of 64 channels.
    pub fn new(chan: usize) -> Self {
        Self {
            chan,
            chan_out: None,
            kernel_size: 1,
            padding: 0,
            key_dim: 64,
            value_dim: 64,
            heads: 8,
            norm_queries: true,
        }
    }
}

/// Efficient attention between the places of a map, Shen et al. 2021 (`arXiv:1812.01243`); the mixer of CLTV. Queries, keys,
/// values and the output come from convolutions `to_q`, `to_k`, `to_v`, `to_out`.
///
/// As a [`TokenMixer`] it takes no prefix tokens; without a layout the tokens are a square. Cost in `N = H W` places: linear.
///
/// # Shapes
/// - input `(B, chan, H, W)`, output `(B, chan_out, H, W)`
/// - as a mixer `(B, N, chan)` to `(B, N, chan_out)`
#[derive(Debug, Clone)]
pub struct ImageLinearAttention {
    /// To queries.
    pub to_q: Conv2d,
    /// To keys.
    pub to_k: Conv2d,
    /// To values.
    pub to_v: Conv2d,
    /// To the output.
    pub to_out: Conv2d,
    /// Number of heads.
    pub heads: usize,
    /// Whether queries pass a softmax over their features.
    pub norm_queries: bool,
}

impl ImageLinearAttention {
    /// Started as in PyTorch.
    ///
    /// # Errors
    /// When a size is 0 or `vb` lacks a tensor.
    pub fn new(cfg: &ImageLinearConfig, vb: VarBuilder) -> Result<Self> {
        let ImageLinearConfig { chan, chan_out, kernel_size, padding, key_dim, value_dim, heads, norm_queries } = *cfg;
        let (keys, values) = (checked(chan, heads, key_dim)?, checked(chan, heads, value_dim)?);
        let conv = |from, to, name| conv2d(from, to, kernel_size, ConvOptions::default().padding(padding), vb.pp(name));
        Ok(Self {
            to_q: conv(chan, keys, "to_q")?,
            to_k: conv(chan, keys, "to_k")?,
            to_v: conv(chan, values, "to_v")?,
            to_out: conv(values, chan_out.unwrap_or(chan), "to_out")?,
            heads,
            norm_queries,
        })
    }

    /// Mixes a map; `context` is more to look at, taken as a map of one row.
    ///
    /// # Shapes
    /// - `xs` `(B, chan, H, W)`, `context` `(B, chan, *)`
    /// - output `(B, chan_out, H, W)`
    ///
    /// # Errors
    /// When the inputs do not fit.
    pub fn forward_map(&self, xs: &Tensor, context: Option<&Tensor>) -> Result<Tensor> {
        self.to_out.forward(&self.mix(xs, context)?)
    }

    /// As [`forward_map`](Self::forward_map) without the last convolution: `(B, heads value_dim, H, W)`.
    ///
    /// # Errors
    /// When the inputs do not fit.
    pub fn mix(&self, xs: &Tensor, context: Option<&Tensor>) -> Result<Tensor> {
        let queries = self.to_q.forward(xs)?;
        let (_, _, h, w) = queries.dims4()?;
        let tokens = |map: &Tensor| {
            let (b, c, h, w) = map.dims4()?;
            map.reshape((b, self.heads, c / self.heads, h * w))?.transpose(2, 3) // (B, heads, N, D)
        };
        let (mut k, mut v) = (tokens(&self.to_k.forward(xs)?)?, tokens(&self.to_v.forward(xs)?)?);
        if let Some(context) = context {
            let row = context.flatten_from(2)?.unsqueeze(2)?; // (B, chan, 1, M)
            k = Tensor::cat(&[&k, &tokens(&self.to_k.forward(&row)?)?], 2)?;
            v = Tensor::cat(&[&v, &tokens(&self.to_v.forward(&row)?)?], 2)?;
        }
        let mixed = efficient_attention(&tokens(&queries)?, &k, &v, self.norm_queries)?; // (B, heads, N, E)
        let (b, heads, _, e) = mixed.dims4()?;
        mixed.transpose(2, 3)?.reshape((b, heads * e, h, w))
    }
}

impl TokenMixer for ImageLinearAttention {
    fn forward_t(&self, xs: &Tensor, train: bool) -> Result<Tensor> {
        self.forward_layout(xs, grid::square(WHAT, xs)?, train)
    }

    fn forward_layout(&self, xs: &Tensor, layout: TokenLayout, _train: bool) -> Result<Tensor> {
        let (b, _, c) = xs.dims3()?;
        let (height, width) = grid::rows_and_columns(WHAT, xs, layout)?;
        let map = xs.transpose(1, 2)?.reshape((b, c, height, width))?; // (B, C, H, W)
        self.forward_map(&map, None)?.flatten_from(2)?.transpose(1, 2) // (B, N, C)
    }
}

#[cfg(test)]
mod tests {
    use candle_core::{DType, Device};
    use sconce_nn::{Generator, ParamStore};

    use super::*;
    use crate::testing::{assert_close, distance};

    fn draw(seed: u64, shape: &[usize]) -> Tensor {
        Generator::new(seed).normal(0.0, 1.0, shape, DType::F64, &Device::Cpu).unwrap()
    }

    fn mixer(cfg: ImageLinearConfig) -> ImageLinearAttention {
        ImageLinearAttention::new(&cfg, ParamStore::new(1, DType::F64, &Device::Cpu).vb()).unwrap()
    }

    const SMALL: ImageLinearConfig = ImageLinearConfig {
        chan: 6,
        chan_out: None,
        kernel_size: 3,
        padding: 1,
        key_dim: 4,
        value_dim: 5,
        heads: 2,
        norm_queries: true,
    };

    #[test]
    fn tokens_and_map_are_the_same_thing() {
        let mixer = mixer(SMALL);
        let map = draw(1, &[2, 6, 4, 3]);
        let tokens = map.flatten_from(2).unwrap().transpose(1, 2).unwrap();
        let layout = TokenLayout { prefix: 0, height: 4, width: 3 };
        let found = mixer.forward_layout(&tokens, layout, false).unwrap();
        let want = mixer.forward_map(&map, None).unwrap();
        assert_close(&found.transpose(1, 2).unwrap().reshape((2, 6, 4, 3)).unwrap(), &want, 1e-14);
        assert!(mixer.forward_t(&tokens, false).is_err());
        assert!(mixer.forward_layout(&tokens, TokenLayout { prefix: 1, ..layout }, false).is_err());
        assert!(mixer.forward_layout(&tokens, TokenLayout { width: 4, ..layout }, false).is_err());
    }

    #[test]
    fn a_context_is_seen_and_sizes_may_change() {
        let xs = draw(1, &[2, 6, 4, 3]);
        let same = mixer(SMALL);
        let found = same.forward_map(&xs, Some(&draw(2, &[2, 6, 2, 5]))).unwrap();
        assert_eq!(found.dims(), [2, 6, 4, 3]);
        assert!(distance(&found, &same.forward_map(&xs, None).unwrap()) > 1e-4);
        let smaller = mixer(ImageLinearConfig { padding: 0, chan_out: Some(7), ..SMALL });
        assert_eq!(smaller.forward_map(&draw(3, &[1, 6, 7, 6]), None).unwrap().dims(), [1, 7, 3, 2]);
        assert!(smaller.forward_map(&draw(3, &[1, 6, 2, 6]), None).is_err());
    }

    #[test]
    fn sizes_that_make_no_sense_are_refused() {
        let vb = || ParamStore::new(1, DType::F32, &Device::Cpu).vb();
        for bad in [
            ImageLinearConfig { heads: 0, ..SMALL },
            ImageLinearConfig { key_dim: 0, ..SMALL },
            ImageLinearConfig { value_dim: 0, ..SMALL },
            ImageLinearConfig { chan: 0, ..SMALL },
        ] {
            assert!(ImageLinearAttention::new(&bad, vb()).is_err(), "{bad:?}");
        }
    }
}
