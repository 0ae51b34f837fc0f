//! EfficientNet-Lite: EfficientNet (Tan and Le 2019, `arXiv:1905.11946`) made to be quantised, with ReLU6 in place of SiLU,
//! without squeeze and excitation, its stem and head of fixed width.

mod block;
mod config;
mod keys;
mod model;
mod records;

pub use block::{ConvBn, InvertedResidual};
pub use config::{Config, Padding, Stage};
pub use keys::TimmKeys;
pub use model::EfficientNetLite;
pub(crate) use records::models;
