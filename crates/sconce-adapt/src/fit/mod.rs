//! Training of a head on features that do not change.

mod config;
mod course;
mod loss;
#[cfg(test)]
mod tests;

use std::cell::RefCell;
use std::path::PathBuf;

use candle_core::{D, DType, Tensor};
use sconce_nn::ParamStore;
use sconce_train::{Interrupt, Outcome, Position, Progress, StepOutput};

use crate::{Error, Result};
pub use config::{FitConfig, FitOptimizer, FitSchedule};
use loss::Labels;

/// What a training has around it: none of it changes the result, but [`validation`](Self::validation), which picks the epoch.
#[derive(Clone, Debug, Default)]
pub struct FitOptions {
    /// Whether progress bars are drawn, one for each epoch.
    pub progress: Progress,
    /// Asks to stop after the step that is under way; [`Interrupt::on_ctrl_c`] is Ctrl-C.
    pub interrupt: Interrupt,
    /// Folder for `log.csv` and `checkpoints`, one after each epoch and one when interrupted; made if there is none. Nothing is
    /// written without.
    pub out: Option<PathBuf>,
    /// Goes on from the latest checkpoint in [`out`](Self::out), where there is one, to the same bits as without interruption.
    /// Otherwise a training begins anew and writes over what is there.
    pub resume: bool,
    /// Pictures that are classified after each epoch; the parameters of the epoch that does best on them are kept in the end,
    /// the first of several equal ones. Without, those of the last epoch. For [`fit`] alone.
    pub validation: Option<Validation>,
}

/// Labelled pictures that are not trained on.
#[derive(Clone, Debug)]
pub struct Validation {
    /// Features as the head takes them, `(N, E)`.
    pub features: Tensor,
    /// Classes, `(N)` u32.
    pub labels: Tensor,
    /// Pictures to classify at once.
    pub batch_size: usize,
}

/// An epoch of a training.
#[derive(Clone, Debug, PartialEq)]
pub struct EpochStats {
    /// Counted from 1.
    pub epoch: u64,
    /// Learning rate of its last step.
    pub lr: f64,
    /// Mean loss of its pictures.
    pub loss: f64,
    /// Fraction of its pictures that were told right as they were trained on; for [`fit_batches`] the mean of the values named
    /// `accuracy`, where there are some.
    pub accuracy: Option<f64>,
    /// Fraction of the validation pictures that are told right after it.
    pub validation: Option<f64>,
}

/// What a training did.
#[derive(Clone, Debug, PartialEq)]
pub struct FitReport {
    /// The epochs that are done, also those before it was resumed.
    pub history: Vec<EpochStats>,
    /// Whether it came to its end.
    pub outcome: Outcome,
    /// The epoch, counted from 1, whose parameters the store holds, where validation pictures chose one in the end.
    pub best: Option<u64>,
}

/// Trains the parameters of `store` to classify features with the cross entropy of what `logits` makes of them.
///
/// Pictures come in an order that [`FitConfig::seed`] and the epoch decide. The same seed gives the same bits. The papers crop
/// and mirror pictures anew in each epoch, for which features that do not change leave no room: give those of several views of
/// each picture, with its label for each, for something near it.
///
/// # Shapes
/// - `features` `(N, E)` (what follows `N` is up to `logits`), `labels` `(N)` u32
/// - `logits` takes `(B, E)` and gives `(B, K)`
///
/// # Errors
/// Before anything is trained: options that cannot be meant, shapes that do not agree, [`Error::Label`] for a label that is no
/// class. Later [`Error::NonFiniteLoss`], errors of `logits`, and those of [`Trainer`](sconce_train::Trainer).
pub fn fit(
    store: &ParamStore,
    features: &Tensor,
    labels: &Tensor,
    cfg: &FitConfig,
    options: &FitOptions,
    logits: impl FnMut(&Tensor) -> candle_core::Result<Tensor>,
) -> Result<FitReport> {
    let (features, labels) = (prepared(features)?, Labels::new(features, labels)?);
    let validation = match &options.validation {
        Some(v) if v.batch_size == 0 => return Err(Error::Config("validation in batches of no pictures".into())),
        Some(v) => Some((prepared(&v.features)?, Labels::new(&v.features, &v.labels)?, v.batch_size)),
        None => None,
    };
    let logits = RefCell::new(logits);
    let call = |features: &Tensor| (*logits.borrow_mut())(features);
    let mut checked = false;
    let step = |_: Position, indices: &[u32]| {
        let ids = Tensor::new(indices, features.device())?;
        let scores = call(&features.index_select(&ids, 0)?)?; // (B, K)
        if !checked {
            let (_, classes) = scores.dims2()?;
            labels.check(classes)?;
            if let Some((_, labels, _)) = &validation {
                labels.check(classes)?;
            }
            loss::check_weights(cfg.class_weights.as_deref(), classes)?;
            checked = true;
        }
        let right = labels.right(&scores, indices)?;
        let loss = labels.loss(&scores, indices, cfg.class_weights.as_deref())?;
        Ok(StepOutput::new(loss).with("accuracy", right as f64 / indices.len() as f64))
    };
    let validate = validation.as_ref().map(|(features, labels, batch)| {
        let call = &call;
        move || {
            let mut right = 0;
            for indices in labels.all().chunks(*batch) {
                let part = features.narrow(0, indices[0] as usize, indices.len())?;
                right += labels.right(&call(&part)?, indices)?;
            }
            Ok(right as f64 / labels.len() as f64)
        }
    });
    match validate {
        Some(mut validate) => course::run(store, labels.len(), cfg, options, step, Some(&mut validate)),
        None => course::run(store, labels.len(), cfg, options, step, None),
    }
}

/// Trains the parameters of `store` with a loss of the caller's on batches of the numbers below `n`.
///
/// `step` is given where training stands and the numbers of a batch; draw what else is random from
/// [`Generator::current`](sconce_ops::Generator::current), which is resumed too. Values it gives beside the loss are averaged;
/// the one named `accuracy` is in the report and in `log.csv`. [`FitConfig::class_weights`] are up to `step`.
///
/// # Errors
/// As [`fit`], and for [`FitOptions::validation`], which there is no use for.
pub fn fit_batches(
    store: &ParamStore,
    n: usize,
    cfg: &FitConfig,
    options: &FitOptions,
    step: impl FnMut(Position, &[u32]) -> Result<StepOutput>,
) -> Result<FitReport> {
    if options.validation.is_some() {
        return Err(Error::Config("validation pictures are for heads that `fit` trains".into()));
    }
    course::run(store, n, cfg, options, step, None)
}

/// Features that no gradient goes to and rows can be taken from.
fn prepared(features: &Tensor) -> Result<Tensor> {
    Ok(features.detach().contiguous()?)
}

/// Fraction of right answers among scores.
///
/// # Shapes
/// - `logits` `(B, K)`, `labels` `(B)` u32
///
/// # Errors
/// When shapes or types do not agree, or there is no row.
pub fn accuracy(logits: &Tensor, labels: &Tensor) -> Result<f64> {
    let labels = Labels::new(logits, labels)?;
    Ok(labels.right(logits, &labels.all())? as f64 / labels.len() as f64)
}

/// Class of the highest score of each row.
fn answers(logits: &Tensor) -> Result<Vec<u32>> {
    Ok(logits.detach().to_dtype(DType::F64)?.argmax(D::Minus1)?.to_vec1()?)
}
