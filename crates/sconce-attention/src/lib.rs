//! Token mixers for vision transformers, one trait for all.
//!
//! A mixer is the part of a block that lets tokens see each other. Blocks take theirs behind [`TokenMixer`], so that a
//! model can be given another one without being copied:
//!
//! | mixer | cost in tokens | paper |
//! | --- | --- | --- |
//! | [`BilateralAttention`] | `N (leaf + overlap) + N log N` | Yu et al. 2022 |
//! | [`CrossShapedAttention`] | `N^1.5` times the stripes' width | Dong et al. 2022 |
//! | [`GlobalAttention`] | quadratic | Vaswani et al. 2017, Dosovitskiy et al. 2021 |
//! | [`WindowAttention`] | linear, `M^2` for each token in windows of side `M` | Liu et al. 2021 |
//!
//! [`broad_attention`] is no mixer but a connection across blocks: it reads the queries, keys and values of a whole stack, of
//! any mixer that hands them out.

mod bilateral;
mod broad;
mod cross_shaped;
mod global;
mod grid;
mod mixer;
mod window;

pub use bilateral::{BilateralAttention, BilateralConfig, ClusterOptions, balanced_clusters};
pub use broad::{BroadConnection, broad_attention, broad_features};
pub use cross_shaped::{CrossShapedAttention, CrossShapedConfig, LepeAttention, Stripes};
pub use global::{GlobalAttention, GlobalAttentionConfig, QkvProjection};
pub use mixer::{MixerSpec, Qkv, TokenLayout, TokenMixer};
pub use window::{WindowAttention, WindowAttentionConfig, WindowFit, Windows, bias_table_hook, resample_bias_table};
