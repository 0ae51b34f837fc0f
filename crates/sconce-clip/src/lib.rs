//! CLIP (Radford et al. 2021, arXiv:2103.00020) on candle: two towers that put pictures and texts into one space, trained or
//! to be trained, with the preprocessing and the tokenizer that belong to them.
//!
//! - [`Bundle`] holds a model ready for pictures and texts. It is loaded from a folder or from a checkpoint alone, in OpenAI's,
//!   open_clip's or Hugging Face's format, strictly: a tensor that is missing or left over is an error ([`weights`]).
//! - [`Clip`] is the model: [`model::VisionTransformer`] or [`model::ModifiedResNet`], [`model::TextTransformer`], which takes
//!   token ids or embeddings (prompts that are learned), and the temperature. [`Config`] has the published sizes and allows any.
//! - [`ClipTokenizer`] gives OpenAI's ids for every text, with OpenAI's cleaning ([`clean`]); [`JsonTokenizer`] reads a
//!   `tokenizer.json`. Both are [`Tokenize`].
//! - [`wukong`] is its Chinese kin, which compares tokens with tokens and trains text towers beside locked image towers;
//!   [`WordPiece`] splits its texts.
//! - [`contrastive_loss`] trains it; [`ZeroShotClassifier`] and [`retrieve`] use it.
//!
//! ```
//! use candle_core::{DType, Device};
//! use sconce_clip::{Bundle, Config, Pretrained, TextConfig, TransformerConfig, VitConfig, ZeroShotClassifier, zero_shot};
//! use sconce_data::Picture;
//! use sconce_nn::ParamStore;
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! // A model of one's own; `Bundle::load("folder", DType::F32, &device)` reads a trained one.
//! let vit = VitConfig { image_size: 32, patch_size: 8, transformer: TransformerConfig::new(64, 2) };
//! let merges = 1000; // of OpenAI's vocabulary
//! let text = TextConfig {
//!     context_length: 16,
//!     vocab_size: 512 + merges + 2,
//!     end_token: None,
//!     transformer: TransformerConfig::new(64, 2),
//! };
//! let store = ParamStore::new(0, DType::F32, &Device::Cpu);
//! let pretrained = Pretrained::openai(Config::vit(32, vit, text))?;
//! let bundle = Bundle::new(pretrained, ".".as_ref(), &store)?;
//!
//! let features = bundle.embed_pictures(&[Picture::from(image::RgbImage::new(40, 30))])?; // (1, 32)
//! let classes = ["cat", "dog"];
//! let classifier = ZeroShotClassifier::new(&bundle.model, &*bundle.tokenizer, &classes, zero_shot::PHOTO)?;
//! for (class, probability) in &classifier.classify(&features, 2)?[0] {
//!     println!("{class}: {probability:.2}");
//! }
//! # Ok(())
//! # }
//! ```

mod bundle;
pub mod clean;
pub mod config;
mod error;
mod loss;
pub mod model;
mod record;
mod retrieval;
pub mod tokenizer;
pub mod weights;
pub mod wukong;
pub mod zero_shot;

pub use bundle::{Bundle, WEIGHTS_FILE};
pub use config::{Config, ResNetConfig, TextConfig, TransformerConfig, VisionConfig, VitConfig};
pub use error::{Error, Result};
pub use loss::{Pairing, contrastive_loss, symmetric_cross_entropy, two_way_cross_entropy};
pub use model::{Clip, ClipOutput, ImageEncoder, ImageTower, normalize};
pub use record::{CONFIG_FILE, Pretrained, TokenizerSpec};
pub use retrieval::retrieve;
pub use tokenizer::{ClipTokenizer, JsonTokenizer, SpecialTokens, Tokenize, TokenizerConfig, WordPiece};
pub use weights::{Format, load_options, openai_names};
pub use wukong::Wukong;
pub use zero_shot::{ZeroShotClassifier, class_weights};
