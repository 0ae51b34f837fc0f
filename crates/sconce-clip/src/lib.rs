//! CLIP dual encoders on candle: three checkpoint formats, tokenizer, preprocessing, zero-shot classification.

pub mod clean;
pub mod config;
mod error;
mod loss;
pub mod model;
mod retrieval;
pub mod tokenizer;
pub mod zero_shot;

pub use config::{Config, ResNetConfig, TextConfig, TransformerConfig, VisionConfig, VitConfig};
pub use error::{Error, Result};
pub use loss::{Pairing, contrastive_loss, symmetric_cross_entropy};
pub use model::{Clip, ClipOutput, ImageEncoder, ImageTower, normalize};
pub use retrieval::retrieve;
pub use tokenizer::{ClipTokenizer, JsonTokenizer, SpecialTokens, Tokenize, TokenizerConfig};
pub use zero_shot::{ZeroShotClassifier, class_weights};
