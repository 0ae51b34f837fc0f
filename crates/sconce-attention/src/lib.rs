//! Token mixers for vision transformers, one trait for all.
//!
//! A mixer is the part of a block that lets tokens see each other. Blocks take theirs behind [`TokenMixer`], so that a
//! model can be given another one without being copied:
//!
//! | mixer | cost in tokens | paper |
//! | --- | --- | --- |
//! | [`GlobalAttention`] | quadratic | Vaswani et al. 2017, Dosovitskiy et al. 2021 |

mod global;
mod mixer;

pub use global::{GlobalAttention, GlobalAttentionConfig, QkvProjection};
pub use mixer::{MixerSpec, Qkv, TokenLayout, TokenMixer};
