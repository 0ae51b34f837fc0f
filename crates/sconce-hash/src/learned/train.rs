//! The course of a training: batches, teacher, checkpoints, history.

use candle_core::{DType, Device, Tensor};
use sconce_nn::ParamStore;
use sconce_ops::Generator;
use sconce_train::schedule::{Constant, Cosine, Schedule};
use sconce_train::{
    AdamW, AdamWConfig, CheckpointFolder, CsvLog, Log, Optimizer, Outcome, ParamGroups, Position, Sgd, SgdConfig,
    StepError, StepOutput, Trainer,
};
use serde::{Deserialize, Serialize};

use super::corruption::corrupt;
use super::{Corruption, Network, Objective};
use crate::hasher::all_batches;
use crate::{Error, FitOptions, FitReport, Inputs, Result, TrainSet};

/// The update rule of a training.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum HashOptimizer {
    /// Adam with decoupled weight decay, PyTorch's constants.
    Adam,
    /// Stochastic gradient descent; weight decay enters the gradient.
    Sgd {
        /// Factor of the momentum buffer, in `[0, 1)`.
        momentum: f64,
    },
}

/// How a learned method is trained.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct TrainConfig {
    /// Passes over the training set.
    pub epochs: u64,
    /// Samples in a step. A last batch of a single one is left out: it has nothing to be compared with.
    pub batch_size: usize,
    /// The update rule.
    pub optimizer: HashOptimizer,
    /// Learning rate of the hash head, above 0.
    pub lr: f64,
    /// Learning rate of the encoder. At 0 it is frozen: it runs in evaluation mode and takes no gradient.
    pub encoder_lr: f64,
    /// Weight decay.
    pub weight_decay: f64,
    /// Whether the rates fall to 0 along half a cosine over the steps; else they stay.
    pub cosine: bool,
    /// Decides the first weights, the order of the samples and all corruption.
    pub seed: u64,
}

impl Default for TrainConfig {
    fn default() -> Self {
        Self {
            epochs: 50,
            batch_size: 64,
            optimizer: HashOptimizer::Adam,
            lr: 1e-3,
            encoder_lr: 1e-5,
            weight_decay: 0.0,
            cosine: true,
            seed: 1,
        }
    }
}

impl TrainConfig {
    pub(super) fn validate(&self) -> Result<()> {
        if self.batch_size < 2 {
            return Err(Error::Config(format!("batches of {}: at least 2 are compared", self.batch_size)));
        }
        if !(self.lr.is_finite() && self.lr > 0.0) {
            return Err(Error::Config(format!("lr is {}, not a number above 0", self.lr)));
        }
        for (name, value) in [("encoder_lr", self.encoder_lr), ("weight_decay", self.weight_decay)] {
            if !(value.is_finite() && value >= 0.0) {
                return Err(Error::Config(format!("{name} is {value}, not a number from 0")));
            }
        }
        match self.optimizer {
            HashOptimizer::Sgd { momentum } if !(0.0..1.0).contains(&momentum) => {
                Err(Error::Config(format!("momentum is {momentum}, not in [0, 1)")))
            }
            _ => Ok(()),
        }
    }

    fn optimizer(&self, groups: ParamGroups) -> Result<Box<dyn Optimizer>> {
        let (lr, weight_decay) = (self.lr, self.weight_decay);
        Ok(match self.optimizer {
            HashOptimizer::Adam => {
                Box::new(AdamW::new(groups, AdamWConfig { lr, weight_decay, ..AdamWConfig::default() }))
            }
            HashOptimizer::Sgd { momentum } => {
                Box::new(Sgd::new(groups, SgdConfig { lr, momentum, weight_decay, ..SgdConfig::default() })?)
            }
        })
    }

    /// The batches of an epoch.
    fn batches(&self, n: usize, epoch: u64) -> Vec<Vec<u32>> {
        let mut order: Vec<u32> = (0..n as u32).collect();
        Generator::new(self.seed).fork("order").fork(&epoch.to_string()).shuffle(&mut order);
        order.chunks(self.batch_size).filter(|batch| batch.len() > 1).map(<[u32]>::to_vec).collect()
    }

    /// The rate over all steps; it begins anew after `restart` epochs, where that is not 0.
    fn schedule(&self, n: usize, restart: u64) -> Box<dyn Schedule> {
        let steps = n / self.batch_size + usize::from(n % self.batch_size > 1);
        let (steps, first) = (steps as u64, restart.min(self.epochs));
        let part = |epochs: u64| Cosine { from: self.lr, to: 0.0, length: epochs.saturating_mul(steps) };
        match self.cosine {
            false => Box::new(Constant(self.lr)),
            true => Box::new(Stages { first: part(first), then: part(self.epochs - first) }),
        }
    }
}

/// One cosine after the other.
#[derive(Debug)]
struct Stages {
    first: Cosine,
    then: Cosine,
}

impl Schedule for Stages {
    fn at(&self, position: u64) -> f64 {
        match position.checked_sub(self.first.length) {
            None => self.first.at(position),
            Some(position) => self.then.at(position),
        }
    }
}

/// The samples of a step, for an [`Objective`].
pub struct Batch<'a> {
    inputs: &'a dyn Inputs,
    /// Their numbers in the training set.
    pub indices: &'a [u32],
    /// Features of the encoder as it was before training, `(B, d)`, where [`Objective::needs_teacher`] asked for them or the
    /// encoder is frozen.
    pub teacher: Option<Tensor>,
    /// Their rows of [`Objective::targets`], `(B, *)`.
    pub targets: Option<Tensor>,
    /// Epochs finished.
    pub epoch: u64,
    dtype: DType,
    device: &'a Device,
}

impl Batch<'_> {
    fn place(&self, xs: Tensor) -> Result<Tensor> {
        Ok(xs.to_device(self.device)?.to_dtype(self.dtype)?)
    }

    /// The samples as they are.
    ///
    /// # Errors
    /// Those of [`Inputs::batch`].
    pub fn clean(&self) -> Result<Tensor> {
        self.place(self.inputs.batch(self.indices)?)
    }

    /// A random view of the samples: [`Inputs::view`], then these corruptions.
    ///
    /// # Errors
    /// Those of [`Inputs::view`] and [`Corruption::apply`].
    pub fn view(&self, corruptions: &[Corruption]) -> Result<Tensor> {
        let generator = Generator::current();
        Ok(corrupt(&self.place(self.inputs.view(self.indices, &generator)?)?, corruptions, &generator)?)
    }

    /// What the frozen or first encoder makes of them.
    ///
    /// # Errors
    /// When there is no teacher.
    pub fn teacher(&self) -> Result<&Tensor> {
        self.teacher.as_ref().ok_or_else(|| Error::Config("the method asked for no teacher".into()))
    }

    /// Features of the samples as they are, by the network that trains; a frozen one's are computed once.
    ///
    /// # Errors
    /// Those of the inputs and the network.
    pub fn features(&self, network: &Network) -> Result<Tensor> {
        match &self.teacher {
            Some(teacher) if network.frozen => Ok(teacher.clone()),
            _ => Ok(network.features(&self.clean()?)?),
        }
    }
}

/// Checkpoints that are kept.
const KEEP: usize = 1;
/// Keys in the metadata of checkpoints.
const IDENTITY: &str = "fit";
const LOSSES: &str = "losses";

pub(super) fn fit<O: Objective>(
    objective: &O,
    network: &Network,
    store: &ParamStore,
    data: &TrainSet<'_>,
    options: &FitOptions,
) -> Result<FitReport> {
    let (cfg, n) = (objective.train(), data.inputs.len());
    if n < 2 || u32::try_from(n).is_err() {
        return Err(Error::Input(format!("{n} samples to train on: at least 2 are needed")));
    }
    let targets = objective.targets(data.labels, n, store.device())?;
    if let Some(targets) = targets.as_ref().filter(|targets| targets.dims().first() != Some(&n)) {
        return Err(Error::Input(format!("{n} samples and targets of shape {:?}", targets.dims())));
    }
    let place = |xs: Tensor| -> Result<Tensor> { Ok(xs.to_device(store.device())?.to_dtype(store.dtype())?) };
    let teacher = if objective.needs_teacher(network.frozen) {
        let one = |indices: Vec<u32>| -> Result<Tensor> {
            Ok(network.encoder.forward_t(&place(data.inputs.batch(&indices)?)?, false)?.detach())
        };
        let parts = all_batches(data.inputs, cfg.batch_size)?.into_iter().map(one).collect::<Result<Vec<_>>>()?;
        Some(Tensor::cat(&parts, 0)?) // (N, d)
    } else {
        None
    };
    let mut groups = ParamGroups::builder(store.parameters());
    if cfg.encoder_lr > 0.0 {
        groups = groups.lr_scale("backbone.*", cfg.encoder_lr / cfg.lr);
    }
    let mut trainer =
        Trainer::new(store.clone(), cfg.optimizer(groups.build()?)?, Generator::new(cfg.seed).fork("train"))
            .with_lr(cfg.schedule(n, objective.restart()))
            .with_interrupt(options.interrupt.clone())
            .with_progress(options.progress);
    trainer.metadata_mut().insert(IDENTITY.into(), format!("{} of {n} samples, {objective:?}", O::METHOD).into());
    let mut losses = Losses::default();
    let folder = match &options.out {
        Some(out) => {
            let folder = CheckpointFolder::new(out.join("checkpoints"), KEEP)?;
            if options.resume
                && let Some(state) = folder.load_latest(store.device())?
            {
                let of = |value: Option<&serde_json::Value>| value.and_then(|v| v.as_str()).unwrap_or("?").to_owned();
                let (found, wanted) = (of(state.metadata.get(IDENTITY)), of(trainer.metadata_mut().get(IDENTITY)));
                if found != wanted {
                    return Err(Error::Config(format!("the checkpoint is of {found}; this training is of {wanted}")));
                }
                losses = Losses::load(state.metadata.get(LOSSES))?;
                trainer.restore(&state)?;
            }
            let (path, at) = (out.join("log.csv"), trainer.position());
            let columns = ["loss", "lr"];
            let mut log = match at.step {
                0 => CsvLog::create(path, &columns)?,
                _ => CsvLog::append(path, &columns)?,
            };
            log.rewind(at.step)?;
            trainer = trainer.with_log(log);
            Some(folder)
        }
        None => None,
    };
    let mut outcome = Outcome::Completed;
    while trainer.position().epoch < cfg.epochs && outcome == Outcome::Completed {
        let Position { epoch, batch, .. } = trainer.position();
        let rest = cfg.batches(n, epoch).into_iter().skip(batch as usize);
        let step = |position: Position, indices: Vec<u32>| -> std::result::Result<StepOutput, StepError> {
            let ids = Tensor::new(indices.as_slice(), store.device())?;
            let rows = |of: &Option<Tensor>| of.as_ref().map(|of| of.contiguous()?.index_select(&ids, 0)).transpose();
            let batch = Batch {
                inputs: data.inputs,
                indices: &indices,
                teacher: rows(&teacher)?,
                targets: rows(&targets)?,
                epoch: position.epoch,
                dtype: store.dtype(),
                device: store.device(),
            };
            let loss = objective.loss(network, &batch)?;
            let value = loss.to_dtype(DType::F64)?.to_scalar::<f64>()?;
            if !value.is_finite() {
                return Err(Error::NonFiniteLoss { step: position.step, loss: value }.into());
            }
            losses.sum += value * indices.len() as f64;
            losses.count += indices.len() as u64;
            Ok(loss.into())
        };
        outcome = trainer.epoch(rest.map(Ok::<_, StepError>), step).map_err(inner)?;
        if outcome == Outcome::Completed {
            losses.finish();
        }
        if let Some(folder) = &folder {
            trainer.metadata_mut().insert(LOSSES.into(), losses.save());
            folder.save(&trainer.state()?)?;
        }
    }
    Ok(FitReport { losses: losses.epochs, outcome })
}

/// The error of a step as it was.
fn inner(error: sconce_train::Error) -> Error {
    match error {
        sconce_train::Error::Step { step, source } => match source.downcast::<Error>() {
            Ok(error) => *error,
            Err(source) => sconce_train::Error::Step { step, source }.into(),
        },
        other => other.into(),
    }
}

/// Mean losses of the epochs, and the sum of the one under way.
#[derive(Default)]
struct Losses {
    epochs: Vec<f64>,
    sum: f64,
    count: u64,
}

impl Losses {
    fn finish(&mut self) {
        self.epochs.push(self.sum / self.count.max(1) as f64);
        (self.sum, self.count) = (0.0, 0);
    }

    /// Bits as integers: JSON may round floating-point numbers.
    fn save(&self) -> serde_json::Value {
        let bits = self.epochs.iter().chain([&self.sum]).map(|loss| loss.to_bits());
        bits.chain([self.count]).collect::<Vec<u64>>().into()
    }

    fn load(value: Option<&serde_json::Value>) -> Result<Self> {
        let numbers: Option<Vec<u64>> =
            value.and_then(|v| v.as_array()).and_then(|v| v.iter().map(serde_json::Value::as_u64).collect());
        match numbers.as_deref() {
            Some([epochs @ .., sum, count]) => {
                let epochs = epochs.iter().copied().map(f64::from_bits).collect();
                Ok(Self { epochs, sum: f64::from_bits(*sum), count: *count })
            }
            _ => Err(Error::Input("the checkpoint lacks the losses of its training".into())),
        }
    }
}
