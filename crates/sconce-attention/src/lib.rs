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

mod bilateral;
mod cross_shaped;
mod global;
mod grid;
mod mixer;

pub use bilateral::{BilateralAttention, BilateralConfig, ClusterOptions, balanced_clusters};
pub use cross_shaped::{CrossShapedAttention, CrossShapedConfig, LepeAttention, Stripes};
pub use global::{GlobalAttention, GlobalAttentionConfig, QkvProjection};
pub use mixer::{MixerSpec, Qkv, TokenLayout, TokenMixer};
