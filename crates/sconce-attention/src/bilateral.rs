//! Attention among tokens that look alike, wherever they stand.

mod cluster;
mod rows;

use candle_core::{Result, Tensor, bail};
use sconce_nn::{Conv2d, Dropout, Init, Linear, Module, ModuleT, VarBuilder, conv2d};
use sconce_ops::{AttentionOptions, ConvOptions, attention};

pub use cluster::{ClusterOptions, balanced_clusters};
use rows::{Groups, Pairing};

use crate::grid::{rows_and_columns, split_heads, square};
use crate::{MixerSpec, Qkv, TokenLayout, TokenMixer};

const WHAT: &str = "bilateral attention";

/// Sizes of a [`BilateralAttention`].
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct BilateralConfig {
    /// Channels of a token, a multiple of `heads`.
    pub dim: usize,
    /// Number of heads.
    pub heads: usize,
    /// How tokens are grouped.
    pub clusters: ClusterOptions,
    /// Keys that each leaf borrows from its sibling; all of them where the leaf is smaller.
    pub overlap: usize,
    /// Factor on the scores; `D^-1/2` when `None`. The released BOAT-CSWin has 1.
    pub scale: Option<f64>,
    /// What the official code does to images that are a single leaf: it takes their neighbours in the batch for siblings, so
    /// that they see each other. Without it they borrow nothing.
    pub compat: bool,
    /// Whether queries, keys and values have a bias.
    pub qkv_bias: bool,
    /// Dropout probability of attention weights.
    pub attn_drop: f64,
    /// Dropout probability of the output.
    pub proj_drop: f64,
    /// How the weights of the projections start; biases start at 0.
    pub init: Init,
}

impl BilateralConfig {
    /// Leaves of 49 tokens, 20 borrowed keys, with bias, without dropout, weights from a normal distribution of standard
    /// deviation 0.02 cut at 2.
    pub fn new(dim: usize, heads: usize) -> Self {
        Self {
            dim,
            heads,
            clusters: ClusterOptions::default(),
            overlap: 20,
            scale: None,
            compat: false,
            qkv_bias: true,
            attn_drop: 0.0,
            proj_drop: 0.0,
            init: Init::TruncNormal { std: 0.02 },
        }
    }
}

impl From<&MixerSpec> for BilateralConfig {
    fn from(spec: &MixerSpec) -> Self {
        Self {
            qkv_bias: spec.qkv_bias,
            attn_drop: spec.attn_drop,
            proj_drop: spec.proj_drop,
            ..Self::new(spec.dim, spec.heads)
        }
    }
}

/// Feature-space local attention, Yu et al. 2022, "BOAT: Bilateral Local Attention Vision Transformer" (`arXiv:2201.13027`).
///
/// Each head groups the tokens of an image into leaves of equal size by its queries ([`balanced_clusters`]); queries look at the
/// keys of their leaf and at some of its sibling's: the first ones where the sibling comes next, the last ones where it came
/// before. A depthwise 3x3 convolution of the values on the map says where tokens stand. Gradients are exact within the groups
/// as they are; none passes through the grouping.
///
/// Cost in the number of tokens N: `N (leaf + overlap)` for the attention, `N log N` for the grouping.
///
/// # Shapes
/// - input and output `(B, H * W, C)`; `H * W` must be a leaf's size times a power of two ([`ClusterOptions::leaves`])
#[derive(Debug, Clone)]
pub struct BilateralAttention {
    /// To queries, keys and values, laid out `which | head | d`.
    pub qkv: Linear,
    /// Output projection.
    pub proj: Linear,
    /// Position encoding: a depthwise convolution of the values.
    pub get_v: Conv2d,
    /// Number of heads.
    pub heads: usize,
    /// How tokens are grouped.
    pub clusters: ClusterOptions,
    /// Keys that each leaf borrows from its sibling.
    pub overlap: usize,
    /// Factor on the scores; `D^-1/2` when `None`.
    pub scale: Option<f64>,
    /// See [`BilateralConfig::compat`].
    pub compat: bool,
    /// Dropout probability of attention weights.
    pub attn_drop: f64,
    /// Dropout of the output.
    pub proj_drop: Dropout,
}

impl BilateralAttention {
    /// Under the official names `qkv`, `proj` and `get_v`.
    ///
    /// # Errors
    /// When `heads` does not divide `dim`, leaves have no tokens, or `vb` lacks a tensor.
    pub fn new(cfg: &BilateralConfig, vb: VarBuilder) -> Result<Self> {
        let BilateralConfig { dim, heads, .. } = *cfg;
        if heads == 0 || !dim.is_multiple_of(heads) {
            bail!("{WHAT}: {dim} channels do not divide into {heads} heads")
        }
        if cfg.clusters.leaf == 0 {
            bail!("{WHAT}: leaves without tokens")
        }
        let get_v = ConvOptions::default().padding(1).groups(dim);
        Ok(Self {
            qkv: Linear::with_init(dim, 3 * dim, cfg.qkv_bias, cfg.init, vb.pp("qkv"))?,
            proj: Linear::with_init(dim, dim, true, cfg.init, vb.pp("proj"))?,
            get_v: conv2d(dim, dim, 3, get_v, vb.pp("get_v"))?,
            heads,
            clusters: cfg.clusters,
            overlap: cfg.overlap,
            scale: cfg.scale,
            compat: cfg.compat,
            attn_drop: cfg.attn_drop,
            proj_drop: Dropout::new(cfg.proj_drop),
        })
    }

    /// The order in which each head groups the tokens, see [`balanced_clusters`].
    ///
    /// # Shapes
    /// - `xs` `(B, N, C)`, output `(B, heads, N)`
    ///
    /// # Errors
    /// When the number of tokens does not halve evenly.
    pub fn order(&self, xs: &Tensor) -> Result<Tensor> {
        balanced_clusters(&split_heads(&self.qkv.forward(&xs.detach())?, self.heads)?.q, &self.clusters)
    }

    /// Values as a map, which [`get_v`](Self::get_v) convolves.
    ///
    /// # Shapes
    /// - `qkv` `(B, H * W, 3C)`, output `(B, C, H, W)`
    ///
    /// # Errors
    /// When the map has another size.
    pub fn values(&self, qkv: &Tensor, (height, width): (usize, usize)) -> Result<Tensor> {
        let (b, _, c3) = qkv.dims3()?;
        let v = qkv.narrow(2, c3 / 3 * 2, c3 / 3)?; // (B, N, C)
        v.transpose(1, 2)?.reshape((b, c3 / 3, height, width))
    }

    /// Everything between the two projections.
    ///
    /// # Shapes
    /// - `qkv` `(B, H * W, 3C)`, output `(B, H * W, C)`
    ///
    /// # Errors
    /// When the number of tokens does not halve evenly, or under [`compat`](Self::compat) when single leaves have no pairs.
    pub fn mix(&self, qkv: &Tensor, map: (usize, usize), train: bool) -> Result<Tensor> {
        let (b, n, c3) = qkv.dims3()?;
        let (c, d) = (c3 / 3, c3 / 3 / self.heads);
        let order = balanced_clusters(&split_heads(qkv, self.heads)?.q, &self.clusters)?;
        let leaves = self.clusters.leaves(n)?;
        let pairing = Pairing::new(b, leaves, self.compat)?;
        let groups = Groups::new(&order, leaves, self.overlap, pairing)?;

        let rows = qkv.reshape((b * n * 3 * self.heads, d))?;
        let take = |indices: &Tensor, size: usize| {
            rows.index_select(indices, 0)?.reshape((b, self.heads * leaves, size, d)) // (B, heads * leaves, size, D)
        };
        let (q, k) = (take(&groups.queries, groups.leaf)?, take(&groups.keys, groups.leaf + groups.borrowed)?);
        let v = take(&groups.values, groups.leaf + groups.borrowed)?;
        let dropout = if train { self.attn_drop } else { 0.0 };
        let options = AttentionOptions { scale: self.scale, dropout, ..Default::default() };
        let mixed = attention(&q, &k, &v, &options)?.reshape((b * self.heads * n, d))?;
        let mixed = mixed.index_select(&groups.places, 0)?.reshape((b, n, c))?; // (B, N, C)

        let lepe = self.get_v.forward(&self.values(qkv, map)?)?; // (B, C, H, W)
        mixed + lepe.flatten_from(2)?.transpose(1, 2)?
    }
}

impl TokenMixer for BilateralAttention {
    /// Takes the map for a square one.
    fn forward_t(&self, xs: &Tensor, train: bool) -> Result<Tensor> {
        self.forward_layout(xs, square(WHAT, xs)?, train)
    }

    fn forward_layout(&self, xs: &Tensor, layout: TokenLayout, train: bool) -> Result<Tensor> {
        Ok(self.forward_qkv(xs, layout, train)?.0)
    }

    fn forward_qkv(&self, xs: &Tensor, layout: TokenLayout, train: bool) -> Result<(Tensor, Option<Qkv>)> {
        let map = rows_and_columns(WHAT, xs, layout)?;
        let qkv = self.qkv.forward(xs)?; // (B, N, 3C)
        let mixed = self.proj.forward(&self.mix(&qkv, map, train)?)?;
        Ok((self.proj_drop.forward_t(&mixed, train)?, Some(split_heads(&qkv, self.heads)?)))
    }
}

#[cfg(test)]
mod tests;
