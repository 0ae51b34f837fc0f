//! Residual networks: ResNet (He et al. 2016, `arXiv:1512.03385`), ResNeXt (Xie et al. 2017, `arXiv:1611.05431`) and Wide
//! ResNet (Zagoruyko and Komodakis 2016, `arXiv:1605.07146`), under the names that torchvision and timm share.

mod block;
mod config;
mod model;
mod records;

pub use block::Block;
pub use config::{BlockKind, Config, StrideIn};
pub use model::ResNet;
pub(crate) use records::models;
