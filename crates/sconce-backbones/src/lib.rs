//! Vision backbones on candle that load official weights and train.
//!
//! | module | models | paper |
//! | --- | --- | --- |
//! | [`vit`] | ViT, DeiT, DINO | `arXiv:2010.11929`, `arXiv:2012.12877`, `arXiv:2104.14294` |
//! | [`convmixer`] | ConvMixer | `arXiv:2201.09792` |
//! | [`bvit`] | BViT | `arXiv:2202.06268` |
//! | [`swin`] | Swin | `arXiv:2103.14030` |
//! | [`efficientnet_lite`] | EfficientNet-Lite | `arXiv:1905.11946` |
//! | [`cswin`] | CSWin | `arXiv:2107.00652` |
//! | [`boat`] | BOAT-Swin, BOAT-CSWin | `arXiv:2201.13027` |
//! | [`t2t`] | T2T-ViT | `arXiv:2101.11986` |
//! | [`cxv`] | CLTV, CNV, CPV | `arXiv:2201.10271` |
//! | [`resnet`] | ResNet, ResNeXt, Wide ResNet | `arXiv:1512.03385`, `arXiv:1611.05431`, `arXiv:1605.07146` |
//! | [`uniformer`] | UniFormer: pictures, clips, dense prediction | `arXiv:2201.09450`, `arXiv:2201.04676` |
//!
//! Every model keeps [timm]'s contract, [`Backbone`], and the tensor names of its official checkpoints. [`create`] makes
//! one by name; [`pretrained`] tells all that goes with it: options, preprocessing, key names, licence, source.
//!
//! ```
//! use candle_core::{DType, Device, Tensor};
//! use sconce_backbones::{create, list_models};
//! use sconce_nn::ParamStore;
//!
//! let store = ParamStore::new(0, DType::F32, &Device::Cpu);
//! let model = create("test_vit", store.vb())?;
//! let picture = Tensor::zeros((1, 3, 32, 32), DType::F32, &Device::Cpu)?;
//! assert_eq!(model.forward_t(&picture, false)?.dims(), [1, 10]);
//! assert!(list_models("deit_*").contains(&"deit_tiny_patch16_224"));
//! # Ok::<(), sconce_backbones::Error>(())
//! ```
//!
//! [timm]: https://github.com/huggingface/pytorch-image-models

mod backbone;
pub mod boat;
pub mod bvit;
mod config;
pub mod convmixer;
pub mod cswin;
pub mod cxv;
mod dino_head;
pub mod efficientnet_lite;
mod error;
mod pretrained;
mod record;
mod registry;
pub mod resnet;
mod shapes;
pub mod swin;
pub mod t2t;
pub mod uniformer;
pub mod vit;

pub use backbone::{Backbone, FeatureInfo, Intermediates};
pub use boat::BoatTransformer;
pub use bvit::BViT;
pub use config::BackboneConfig;
pub use convmixer::ConvMixer;
pub use cswin::CSWinTransformer;
pub use cxv::Cxv;
pub use dino_head::{DinoHead, DinoHeadConfig};
pub use efficientnet_lite::EfficientNetLite;
pub use error::{Error, Result};
pub use pretrained::{KeyNames, Pretrained};
pub use registry::{create, list_models, pretrained};
pub use resnet::ResNet;
pub use shapes::ShapeRecorder;
pub use swin::SwinTransformer;
pub use t2t::T2tVit;
pub use uniformer::UniFormer;
pub use vit::VisionTransformer;
