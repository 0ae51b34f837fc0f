//! One layer: convolution, norm, attention, feed-forward.

use std::sync::Arc;

use candle_core::{Result, Tensor, bail};
use sconce_attention::linear::{
    ImageLinearAttention, ImageLinearConfig, LinearAttentionConfig, NystromAttention, NystromConfig, NystromOptions,
    PerformerAttention, PerformerConfig, PerformerOptions, Stabilizer,
};
use sconce_attention::{MixerSpec, TokenLayout, TokenMixer};
use sconce_nn::init::{self, Init};
use sconce_nn::{Conv2d, Dropout, Module, ModuleT, VarBuilder, conv2d};
use sconce_ops::{ConvOptions, gelu};

use super::{Config, Mixer};

/// Norm over the channels of each place, with 1e-5 added to the standard deviation and not to the variance.
///
/// # Shapes
/// - input and output `(B, C, H, W)`
#[derive(Debug, Clone)]
pub struct ChannelNorm {
    /// Factor, `(1, C, 1, 1)`.
    pub g: Tensor,
    /// Summand, `(1, C, 1, 1)`.
    pub b: Tensor,
    /// Added to the standard deviation.
    pub eps: f64,
}

impl ChannelNorm {
    fn new(dim: usize, vb: VarBuilder) -> Result<Self> {
        let part = |name, init| init::param(&vb, (1, dim, 1, 1), name, init);
        Ok(Self { g: part("g", Init::Ones)?, b: part("b", Init::Zeros)?, eps: 1e-5 })
    }
}

impl Module for ChannelNorm {
    fn forward(&self, xs: &Tensor) -> Result<Tensor> {
        // Sums over hundreds of channels are taken in f32; the smallest number keeps the root's slope finite.
        let dtype = if xs.dtype() == candle_core::DType::F64 { xs.dtype() } else { candle_core::DType::F32 };
        let wide = xs.to_dtype(dtype)?;
        let centred = wide.broadcast_sub(&wide.mean_keepdim(1)?)?;
        let variance = centred.sqr()?.mean_keepdim(1)?.maximum(f64::from(f32::MIN_POSITIVE))?;
        let normal = centred.broadcast_div(&(variance.sqrt()? + self.eps)?)?.to_dtype(xs.dtype())?;
        normal.broadcast_mul(&self.g)?.broadcast_add(&self.b)
    }
}

/// Two 1x1 convolutions with GELU between them, dropout after each.
///
/// # Shapes
/// - input and output `(B, C, H, W)`
#[derive(Debug, Clone)]
pub struct FeedForward {
    /// To the hidden channels: `net.0`.
    pub expand: Conv2d,
    /// Back: `net.3`.
    pub reduce: Conv2d,
    /// After the activation and after the second convolution.
    pub dropout: Dropout,
}

impl FeedForward {
    fn new(cfg: &Config, vb: VarBuilder) -> Result<Self> {
        let Some(hidden) = cfg.emb_dim.checked_mul(cfg.mlp_mult).filter(|hidden| *hidden > 0) else {
            bail!("cxv: no feed-forward net of {} times {} channels", cfg.mlp_mult, cfg.emb_dim)
        };
        let conv = |from, to, name: &str| conv2d(from, to, 1, ConvOptions::default(), vb.pp("net").pp(name));
        Ok(Self {
            expand: conv(cfg.emb_dim, hidden, "0")?,
            reduce: conv(hidden, cfg.emb_dim, "3")?,
            dropout: Dropout::new(cfg.dropout),
        })
    }
}

impl ModuleT for FeedForward {
    fn forward_t(&self, xs: &Tensor, train: bool) -> Result<Tensor> {
        let hidden = self.dropout.forward_t(&gelu(&self.expand.forward(xs)?)?, train)?;
        self.dropout.forward_t(&self.reduce.forward(&hidden)?, train)
    }
}

/// `x = norm(conv(x))`, then `x += mixer(x)` and `x += feed_forward(x)`: nothing else is normalised, and the convolution has
/// no residual.
///
/// # Shapes
/// - input `(B, C or C / 2, H, W)`, output `(B, C, H / stride, W / stride)`
#[derive(Debug, Clone)]
pub struct Layer {
    /// The convolution that tells places apart.
    pub conv: Conv2d,
    /// After the convolution.
    pub norm: ChannelNorm,
    /// Lets places see each other.
    pub mixer: Arc<dyn TokenMixer>,
    /// Mixes the channels of each place.
    pub feed_forward: FeedForward,
}

impl Layer {
    /// A layer under the authors' names, around the given mixer; `vb` stands at `layers.<i>`.
    ///
    /// # Errors
    /// When a size is 0 or `vb` lacks a tensor.
    pub fn new(cfg: &Config, input: usize, mixer: Arc<dyn TokenMixer>, vb: VarBuilder) -> Result<Self> {
        let options = ConvOptions::default().stride(cfg.emb_stride).padding(cfg.emb_kernel / 2);
        Ok(Self {
            conv: conv2d(input, cfg.emb_dim, cfg.emb_kernel, options, vb.pp(0))?,
            norm: ChannelNorm::new(cfg.emb_dim, vb.pp(1))?,
            mixer,
            feed_forward: FeedForward::new(cfg, vb.pp("2.layers.0.1"))?,
        })
    }

    /// The mixer alone, on a map.
    ///
    /// # Shapes
    /// - `xs` and output `(B, C, H, W)`
    ///
    /// # Errors
    /// When the mixer fails.
    pub fn mix(&self, xs: &Tensor, train: bool) -> Result<Tensor> {
        let (_, _, height, width) = xs.dims4()?;
        let tokens = xs.flatten_from(2)?.transpose(1, 2)?; // (B, N, C)
        let layout = TokenLayout { prefix: 0, height, width };
        self.mixer.forward_layout(&tokens, layout, train)?.transpose(1, 2)?.reshape(xs.shape())
    }
}

impl ModuleT for Layer {
    fn forward_t(&self, xs: &Tensor, train: bool) -> Result<Tensor> {
        let xs = self.norm.forward(&self.conv.forward(xs)?)?;
        let xs = (&xs + self.mix(&xs, train)?)?;
        &xs + self.feed_forward.forward_t(&xs, train)?
    }
}

impl Config {
    /// The authors' mixer of these options.
    pub(super) fn mixer(&self, spec: &MixerSpec, vb: VarBuilder) -> Result<Arc<dyn TokenMixer>> {
        let (dim, heads, dim_head) = (spec.dim, spec.heads, self.dim_head);
        Ok(match self.mixer {
            Mixer::Linear => {
                let convs = ImageLinearConfig { kernel_size: 3, padding: 1, ..ImageLinearConfig::new(dim) };
                let cfg = ImageLinearConfig { key_dim: dim_head, value_dim: dim_head, heads, ..convs };
                Arc::new(ImageLinearAttention::new(&cfg, vb)?)
            }
            Mixer::Nystrom => {
                let options =
                    NystromOptions { landmarks: self.num_landmarks, compat: self.compat, ..Default::default() };
                let cfg =
                    NystromConfig { dim_head, options, dropout: spec.proj_drop, ..NystromConfig::new(dim, heads) };
                Arc::new(NystromAttention::new(&cfg, vb)?)
            }
            Mixer::Performer => {
                let layers = LinearAttentionConfig {
                    dim_head,
                    qkv_bias: spec.qkv_bias,
                    dropout: spec.proj_drop,
                    ..LinearAttentionConfig::new(dim, heads)
                };
                let stabilizer = if self.compat { Stabilizer::Batch } else { Stabilizer::PerHead };
                let options = PerformerOptions { stabilizer, ..Default::default() };
                let cfg = PerformerConfig { layers, options, ..PerformerConfig::new(dim, heads) };
                Arc::new(PerformerAttention::new(&cfg, vb)?)
            }
        })
    }
}
