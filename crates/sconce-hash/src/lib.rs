//! Binary codes for pictures: packed codes and their exact search, and the methods that learn them.
//!
//! | method | learns from | paper |
//! | --- | --- | --- |
//! | [`Lsh`] | nothing but a mean | Charikar 2002 |
//! | [`SpectralHashing`] | features | Weiss et al. 2008 |
//! | [`Itq`] | features | Gong and Lazebnik 2011 |
//! | [`GreedyHash`] | features, pictures | Su et al. 2018 |
//! | [`CibHash`] | features, pictures | Qiu et al. 2021, `arXiv:2105.06138` |
//! | [`ViT2Hash`] | pictures, features; our reconstruction, not official | Gong et al. 2022, `arXiv:2201.05541` |
//! | [`Csq`] | features or pictures with labels | Yuan et al. 2020, `arXiv:1908.00347` |
//!
//! All of them are [`Hasher`]s: they fit, encode to [`Codes`], save and load. The learned ones take any backbone of the registry, or
//! features that were computed once.

mod classic;
mod codes;
mod error;
mod file;
mod hasher;
mod index;
mod learned;
mod linalg;
pub mod losses;
mod multi_index;
mod search;
mod stats;
#[cfg(test)]
mod testing;

pub use classic::{
    Itq, ItqConfig, ItqModel, ItqRotation, Lsh, LshConfig, LshModel, SpectralHashing, SpectralHashingConfig,
    SpectralHashingModel, itq_rotation,
};
pub use codes::Codes;
pub use error::{Error, Result};
pub use hasher::{FitOptions, FitReport, Hasher, Inputs, Labels, TrainSet, load_hasher};
pub use index::{Index, IndexOptions, IndexWriter};
pub use learned::{
    Batch, CibHash, CibHashConfig, Corruption, Csq, CsqConfig, Encoder, EncoderConfig, GreedyHash, GreedyHashConfig,
    HashOptimizer, LearnedHasher, Network, Objective, Stages, TrainConfig, ViT2Hash, ViT2HashConfig, hadamard,
    hash_centers, hash_targets,
};
pub use multi_index::MultiIndex;
pub use search::{Neighbor, Search};
pub use stats::CodeStats;
