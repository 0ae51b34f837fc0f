//! Token mixers for vision transformers, one trait for all.
//!
//! A mixer is the part of a block that lets tokens see each other. Blocks take theirs behind [`TokenMixer`], so that a
//! model can be given another one without being copied:
//!
//! | mixer | cost in tokens | paper |
//! | --- | --- | --- |
//! | [`BilateralAttention`] | `N (leaf + overlap) + N log N` | Yu et al. 2022 |
//! | [`CrossAttention`] | queries times keys | Vaswani et al. 2017 |
//! | [`CrossShapedAttention`] | `N^1.5` times the stripes' width | Dong et al. 2022 |
//! | [`EfficientAttention`](linear::EfficientAttention) | linear | Shen et al. 2021 |
//! | [`EluAttention`](linear::EluAttention) | linear | Katharopoulos et al. 2020 |
//! | [`GlobalAttention`] | quadratic | Vaswani et al. 2017, Dosovitskiy et al. 2021 |
//! | [`ImageLinearAttention`](linear::ImageLinearAttention) | linear | Shen et al. 2021 |
//! | [`NystromAttention`](linear::NystromAttention) | linear | Xiong et al. 2021 |
//! | [`PerformerAttention`](linear::PerformerAttention) | linear | Choromanski et al. 2021 |
//! | [`WindowAttention`] | linear, `M^2` for each token in windows of side `M` | Liu et al. 2021 |
//!
//! [`broad_attention`] is no mixer but a connection across blocks: it reads the queries, keys and values of a whole stack, of
//! any mixer that hands them out.

mod bilateral;
mod broad;
mod cross;
mod cross_shaped;
mod global;
mod grid;
pub mod linear;
mod mixer;
#[cfg(test)]
mod testing;
mod window;

pub use bilateral::{BilateralAttention, BilateralConfig, ClusterOptions, balanced_clusters};
pub use broad::{BroadConnection, broad_attention, broad_features};
pub use cross::{CrossAttention, CrossAttentionConfig};
pub use cross_shaped::{CrossShapedAttention, CrossShapedConfig, LepeAttention, Stripes};
pub use global::{GlobalAttention, GlobalAttentionConfig, QkvProjection};
pub use mixer::{MixerSpec, Qkv, TokenLayout, TokenMixer};
pub use window::{WindowAttention, WindowAttentionConfig, WindowFit, Windows, bias_table_hook, resample_bias_table};
