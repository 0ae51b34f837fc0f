//! Methods that train a network: an encoder, a hash head, and an objective of their own.

mod cibhash;
mod corruption;
mod csq;
mod greedy_hash;
mod network;
mod train;
mod vit2hash;

use std::fmt::Debug;
use std::path::Path;

use candle_core::{DType, Device, Tensor};
use sconce_backbones::Pretrained;
use sconce_nn::{Checkpoint, Linear, LoadOptions, LoadReport, ParamStore, VarBuilder};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::hasher::check_bits;
use crate::{Error, FitOptions, FitReport, Hasher, Labels, Result, TrainSet, file};

pub use cibhash::{CibHash, CibHashConfig};
pub use corruption::Corruption;
pub use csq::{Csq, CsqConfig, hadamard, hash_centers, hash_targets};
pub use greedy_hash::{GreedyHash, GreedyHashConfig};
pub use network::{Encoder, EncoderConfig, Network};
pub use train::{Batch, HashOptimizer, TrainConfig};
pub use vit2hash::{Stages, ViT2Hash, ViT2HashConfig};

/// The options of a learned method, and what it minimises. [`LearnedHasher`] does the rest for any of them.
pub trait Objective: Clone + Debug + Send + Serialize + DeserializeOwned + 'static {
    /// The method's name in files.
    const METHOD: &'static str;

    /// Bits of a code.
    fn bits(&self) -> usize;

    /// What is hashed.
    fn encoder(&self) -> &EncoderConfig;

    /// How it is trained.
    fn train(&self) -> &TrainConfig;

    /// That the options can be meant.
    ///
    /// # Errors
    /// [`Error::Config`].
    fn validate(&self) -> Result<()>;

    /// The layers from features of width `dim` to the K outputs; `vb` stands at the model's root.
    ///
    /// # Errors
    /// The builder's.
    fn head(&self, dim: usize, vb: VarBuilder) -> candle_core::Result<Vec<Linear>>;

    /// Whether [`Batch::teacher`] is wanted, given whether the encoder is frozen.
    fn needs_teacher(&self, frozen: bool) -> bool;

    /// What each of the `n` samples is to become, `(N, *)`, for methods that know it before.
    ///
    /// # Errors
    /// Labels that are missing or cannot be used.
    fn targets(&self, labels: Option<&Labels>, n: usize, device: &Device) -> Result<Option<Tensor>> {
        let _ = (labels, n, device);
        Ok(None)
    }

    /// The epoch at which the learning rate begins anew; 0 for none.
    fn restart(&self) -> u64 {
        0
    }

    /// The loss of a batch, a scalar. What is random is drawn from [`Generator::current`](sconce_ops::Generator::current), as
    /// [`Batch::view`] does.
    ///
    /// # Errors
    /// Those of the network and the inputs.
    fn loss(&self, network: &Network, batch: &Batch<'_>) -> Result<Tensor>;
}

/// A network that hashes, trained by an [`Objective`].
///
/// A new one has random weights: give a backbone its official ones by [`load_backbone`](Self::load_backbone) before it is fitted.
/// Clones share the weights.
#[derive(Debug, Clone)]
pub struct LearnedHasher<O> {
    /// Its options.
    pub config: O,
    /// Its weights: `backbone.*` and those of the head.
    pub store: ParamStore,
    /// What computes.
    pub network: Network,
}

impl<O: Objective> LearnedHasher<O> {
    /// Its name in files.
    pub const METHOD: &'static str = O::METHOD;

    /// With weights that the training's seed decides, of this type and on this device.
    ///
    /// # Errors
    /// Options that cannot be meant.
    pub fn new(config: &O, dtype: DType, device: &Device) -> Result<Self> {
        check_bits(config.bits())?;
        config.train().validate()?;
        config.validate()?;
        if !dtype.is_float() {
            return Err(Error::Config(format!("weights of type {dtype:?}")));
        }
        let store = ParamStore::new(config.train().seed, dtype, device);
        let frozen = config.train().encoder_lr == 0.0;
        let encoder = Encoder::new(config.encoder(), if frozen { store.vb_fixed() } else { store.vb() })?;
        let head = config.head(encoder.dim(), store.vb())?;
        Ok(Self { config: config.clone(), store, network: Network { encoder, head, frozen } })
    }

    /// Sets the backbone's weights to those of a file of the registry's model `record`.
    ///
    /// # Errors
    /// When the encoder is no backbone, or the file cannot be read or is of another model; nothing is changed then.
    pub fn load_backbone(&self, path: impl AsRef<Path>, record: &Pretrained) -> Result<LoadReport> {
        let EncoderConfig::Backbone(cfg) = self.config.encoder() else {
            return Err(Error::Config("features have no backbone to load".into()));
        };
        // Files have the backbone's tensors at their root, where resize rules expect them too.
        let own = ParamStore::new(0, self.store.dtype(), self.store.device());
        cfg.build(own.vb())?;
        let report = own.load(&record.open(path)?, &record.load_options())?;
        for param in own.iter() {
            self.store.set(&format!("backbone.{}", param.name), &param.var)?;
        }
        Ok(report)
    }

    /// The features that are hashed.
    ///
    /// # Shapes
    /// - output `(B, d)`
    ///
    /// # Errors
    /// When the input does not fit the encoder.
    pub fn features(&self, xs: &Tensor) -> Result<Tensor> {
        let xs = xs.to_device(self.store.device())?.to_dtype(self.store.dtype())?;
        Ok(self.network.encoder.forward_t(&xs, false)?.detach())
    }
}

/// What a file says of a learned method.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Saved<O> {
    dtype: String,
    options: O,
}

impl<O: Objective> Hasher for LearnedHasher<O> {
    fn method(&self) -> &'static str {
        O::METHOD
    }

    fn bits(&self) -> usize {
        self.config.bits()
    }

    /// Trains the weights as they are now, in place. After an error or an interruption they are those of the last step.
    fn fit(&mut self, data: &TrainSet<'_>, options: &FitOptions) -> Result<FitReport> {
        train::fit(&self.config, &self.network, &self.store, data, options)
    }

    fn project(&self, xs: &Tensor) -> Result<Tensor> {
        Ok(self.network.hash(&self.features(xs)?)?.detach())
    }

    fn save(&self, path: &Path) -> Result<()> {
        let tensors = self.store.iter().map(|p| (p.name.to_string(), p.var.as_detached_tensor())).collect();
        let saved = Saved { dtype: self.store.dtype().as_str().into(), options: self.config.clone() };
        file::write(path, O::METHOD, &saved, tensors)
    }

    fn load(path: &Path, device: &Device) -> Result<Self> {
        let (Saved { dtype, options }, tensors) = file::read::<Saved<O>>(path, O::METHOD, device)?;
        let corrupt = |what: String| Error::Corrupt { path: path.into(), what };
        let dtype = dtype.parse().map_err(|_| corrupt(format!("weights of type {dtype}")))?;
        let hasher = Self::new(&options, dtype, device)?;
        hasher.store.load(&Checkpoint::from_tensors(tensors), &LoadOptions::default())?;
        Ok(hasher)
    }
}
