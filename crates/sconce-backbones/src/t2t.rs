//! T2T-ViT: tokens made of neighbouring tokens in three soft splits, then a narrow and deep vision transformer, Yuan et al.
//! 2021 (`arXiv:2101.11986`).

mod config;
mod model;
mod pos;
mod records;
mod tokens;

pub use config::{Config, QkScale, TokensType};
pub use model::T2tVit;
pub use pos::sinusoid;
pub(crate) use records::models;
pub use tokens::{TokenAttention, TokenModule, TokenPerformer, TokenTransformer, TokensToToken};
