//! Wukong (Gu et al. 2022, arXiv:2202.06767): Chinese dual encoders, compared picture by text or token by token (FILIP, Yao et
//! al. 2021, arXiv:2111.07783), with learned reduction of the image's tokens and with locked image towers (LiT, Zhai et al.
//! 2022, arXiv:2111.07991).
//!
//! - [`Wukong`] is the model: [`ImageTower`] is CLIP's ViT, any backbone of the registry or a [`Locked`] tower; the text tower is
//!   CLIP's causal one over Chinese [`WordPiece`](crate::WordPiece) ids. [`Variant`] says what is compared with what.
//! - [`late_interaction`] is the comparison, [`Similarity::loss`] trains it.
//! - [`Bundle`] is a model with preprocessing and tokenizer in a folder; [`official_names`] reads the published `.pkl` files.
//! - [`TemplateClassifier`] classifies by Chinese texts, [`Recalls`] measures retrieval.
//!
//! ```
//! use candle_core::{DType, Device, Tensor};
//! use sconce_clip::wukong::{Config, Variant, VisionConfig, Wukong};
//! use sconce_clip::{Pairing, TextConfig, Tokenize, TransformerConfig, VitConfig, WordPiece};
//! use sconce_nn::ParamStore;
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let texts = ["一只猫", "红色的苹果"];
//! let tokenizer = WordPiece::of_corpus(&texts, 16)?;
//! let block = |width| TransformerConfig { eps: 1e-7, ..TransformerConfig::new(width, 1) };
//! let vit = VitConfig { image_size: 32, patch_size: 8, transformer: block(64) };
//! let text = TextConfig {
//!     context_length: 16,
//!     vocab_size: tokenizer.vocab_size(),
//!     end_token: Some(tokenizer.end_token()),
//!     transformer: block(64),
//! };
//! let config =
//!     Config { embed_dim: 24, vision: VisionConfig::Vit(vit), text, variant: Variant::Filip, ..Config::default() };
//! let store = ParamStore::new(1, DType::F32, &Device::Cpu);
//! let model = Wukong::new(&config, store.vb())?;
//!
//! let pictures = Tensor::zeros((2, 3, 32, 32), DType::F32, &Device::Cpu)?;
//! let images = model.encode_image(&pictures, true)?; // (2, 16, 24)
//! let texts = model.encode_text(&tokenizer.tokenize(&texts, &Device::Cpu)?, true)?;
//! let loss = model.similarity(&images, &texts)?.loss(&model.scale()?, &Pairing::Diagonal)?;
//! assert!(loss.backward()?.get_ids().count() > 0);
//! # Ok(())
//! # }
//! ```

mod bundle;
mod config;
mod image;
mod late;
mod lit;
mod model;
mod reduction;
mod retrieval;
mod weights;
mod zero_shot;

pub use bundle::{Bundle, Pretrained};
pub use config::{Config, LockedConfig, Variant, VisionConfig};
pub use image::ImageTower;
pub use late::{LateInteraction, Padding, Similarity, TextTokens, late_interaction};
pub use lit::{Locked, weights_digest};
pub use model::Wukong;
pub use reduction::{ReductionConfig, TokenReduction};
pub use retrieval::Recalls;
pub use weights::{official_names, to_official_name};
pub use zero_shot::{DRAWINGS_ZH, PHOTO_ZH, TemplateClassifier};
