//! CLIP dual encoders on candle: three checkpoint formats, tokenizer, preprocessing, zero-shot classification.

mod bundle;
pub mod clean;
pub mod config;
mod error;
mod loss;
pub mod model;
mod retrieval;
pub mod tokenizer;
pub mod weights;
pub mod zero_shot;

pub use bundle::{Bundle, CONFIG_FILE, Pretrained, TokenizerSpec, WEIGHTS_FILE};
pub use config::{Config, ResNetConfig, TextConfig, TransformerConfig, VisionConfig, VitConfig};
pub use error::{Error, Result};
pub use loss::{Pairing, contrastive_loss, symmetric_cross_entropy};
pub use model::{Clip, ClipOutput, ImageEncoder, ImageTower, normalize};
pub use retrieval::retrieve;
pub use tokenizer::{ClipTokenizer, JsonTokenizer, SpecialTokens, Tokenize, TokenizerConfig};
pub use weights::{Format, load_options, openai_names};
pub use zero_shot::{ZeroShotClassifier, class_weights};
