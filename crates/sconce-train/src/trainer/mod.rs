//! The training loop, as far as it is the same for everyone.

mod resume;

use candle_core::backprop::GradStore;
use candle_core::{DType, Tensor};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use sconce_nn::ParamStore;
use sconce_ops::Generator;

use crate::checkpoint::Position;
use crate::schedule::Schedule;
use crate::{CheckpointFolder, Ema, Error, GradAccumulator, Interrupt, Log, Optimizer, Result, StepError, StepReport};

/// How a part of training ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// All batches were used.
    Completed,
    /// Training was asked to stop: the step was finished and, with a folder for them, a checkpoint saved.
    Interrupted,
}

/// What a step of the caller's gives: the loss, and values to log beside it.
#[derive(Clone, Debug)]
pub struct StepOutput {
    /// A scalar to minimise.
    pub loss: Tensor,
    /// More values for the log.
    pub values: Vec<(String, f64)>,
}

impl StepOutput {
    /// A loss alone.
    pub fn new(loss: Tensor) -> Self {
        Self { loss, values: Vec::new() }
    }

    /// Adds a value for the log.
    #[must_use]
    pub fn with(mut self, name: impl Into<String>, value: f64) -> Self {
        self.values.push((name.into(), value));
        self
    }
}

impl From<Tensor> for StepOutput {
    fn from(loss: Tensor) -> Self {
        Self::new(loss)
    }
}

/// Whether progress bars are drawn.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Progress {
    /// On standard error, when it is a terminal.
    #[default]
    Auto,
    /// Never.
    Off,
}

/// Model, optimiser and everything around them that makes a training resumable, bit for bit.
///
/// The caller keeps the loop over epochs, the batches and the forward pass:
///
/// ```no_run
/// # use candle_core::{DType, Device, Tensor};
/// # use sconce_nn::{Module, ParamStore, linear};
/// # use sconce_ops::{Generator, cross_entropy};
/// # use sconce_train::{schedule::Warmup, *};
/// # fn batches(epoch: u64, first: u64) -> Vec<Result<(Tensor, Tensor)>> { Vec::new() }
/// # fn main() -> Result<()> {
/// let store = ParamStore::new(1, DType::F32, &Device::Cpu);
/// let model = linear(784, 10, store.vb())?;
/// let groups = ParamGroups::builder(store.parameters()).exclude_1d().build()?;
/// let optimizer = AdamW::new(groups, AdamWConfig::default()).with_clip(Clip::GlobalNorm(1.));
/// let mut trainer = Trainer::new(store, optimizer, Generator::new(1))
///     .with_lr(Warmup::timm(1e-3, 1e-5, 1000, 50, 0.))
///     .with_checkpoints(CheckpointFolder::new("run", 3)?, Some(200))
///     .with_log(CsvLog::append("run/log.csv", &["loss", "lr", "grad_norm"])?)
///     .with_interrupt(Interrupt::on_ctrl_c()?);
/// trainer.resume()?;
/// while trainer.position().epoch < 10 {
///     // The rest of the epoch: a resumed training may be in the middle of it.
///     let Position { epoch, batch, .. } = trainer.position();
///     let outcome = trainer.epoch(batches(epoch, batch), |_, (images, labels)| {
///         Ok(cross_entropy(&model.forward(&images)?, &labels, 0.)?.into())
///     })?;
///     if outcome == Outcome::Interrupted {
///         break;
///     }
/// }
/// # Ok(()) }
/// ```
pub struct Trainer<O> {
    store: ParamStore,
    optimizer: O,
    generator: Generator,
    position: Position,
    lr: Option<Box<dyn Schedule>>,
    weight_decay: Option<Box<dyn Schedule>>,
    ema: Option<(Ema, Option<Box<dyn Schedule>>)>,
    accumulator: GradAccumulator,
    checkpoints: Option<(CheckpointFolder, Option<u64>)>,
    logs: Vec<Box<dyn Log>>,
    log_every: u64,
    interrupt: Interrupt,
    progress: Progress,
    metadata: serde_json::Map<String, serde_json::Value>,
}

impl<O: Optimizer> Trainer<O> {
    /// A training at its beginning. Layers draw their randomness from `generator`.
    pub fn new(store: ParamStore, optimizer: O, generator: Generator) -> Self {
        Self {
            store,
            optimizer,
            generator,
            position: Position::default(),
            lr: None,
            weight_decay: None,
            ema: None,
            accumulator: GradAccumulator::default(),
            checkpoints: None,
            logs: Vec::new(),
            log_every: 1,
            interrupt: Interrupt::new(),
            progress: Progress::default(),
            metadata: serde_json::Map::new(),
        }
    }

    /// Sets the learning rate before each step by a schedule over optimiser steps.
    #[must_use]
    pub fn with_lr(mut self, schedule: impl Schedule + 'static) -> Self {
        self.lr = Some(Box::new(schedule));
        self
    }

    /// Sets the weight decay before each step by a schedule over optimiser steps.
    #[must_use]
    pub fn with_weight_decay(mut self, schedule: impl Schedule + 'static) -> Self {
        self.weight_decay = Some(Box::new(schedule));
        self
    }

    /// Keeps a moving average, updated after each step by its own decay.
    #[must_use]
    pub fn with_ema(mut self, ema: Ema) -> Self {
        self.ema = Some((ema, None));
        self
    }

    /// Keeps a moving average with a decay from a schedule over optimiser steps.
    #[must_use]
    pub fn with_scheduled_ema(mut self, ema: Ema, decay: impl Schedule + 'static) -> Self {
        self.ema = Some((ema, Some(Box::new(decay))));
        self
    }

    /// Takes one step for every `batches` batches, with the mean of their gradients. The batches left at
    /// the end of an epoch make a step too.
    ///
    /// # Errors
    /// `batches` is zero.
    pub fn with_accumulation(mut self, batches: usize) -> Result<Self> {
        self.accumulator = GradAccumulator::new(batches)?;
        Ok(self)
    }

    /// Saves checkpoints: after every `every` steps if given, at the end of each epoch, and when
    /// interrupted.
    #[must_use]
    pub fn with_checkpoints(mut self, folder: CheckpointFolder, every: Option<u64>) -> Self {
        self.checkpoints = Some((folder, every));
        self
    }

    /// Writes loss, learning rate and gradient norm (`loss`, `lr`, `grad_norm`; `weight_decay` where it is
    /// scheduled; `skipped` where a step was; and the caller's values) to a log.
    #[must_use]
    pub fn with_log(mut self, log: impl Log + 'static) -> Self {
        self.logs.push(Box::new(log));
        self
    }

    /// Logs every so many steps; 0 counts as 1, the default.
    #[must_use]
    pub fn with_log_every(mut self, steps: u64) -> Self {
        self.log_every = steps.max(1);
        self
    }

    /// Stops after the step in which this is requested.
    #[must_use]
    pub fn with_interrupt(mut self, interrupt: Interrupt) -> Self {
        self.interrupt = interrupt;
        self
    }

    /// Whether to draw progress bars.
    #[must_use]
    pub fn with_progress(mut self, progress: Progress) -> Self {
        self.progress = progress;
        self
    }

    /// Begins at a position instead of at 0, where a training goes on with another optimiser.
    #[must_use]
    pub fn with_position(mut self, position: Position) -> Self {
        self.position = position;
        self
    }

    /// Where training stands.
    pub fn position(&self) -> Position {
        self.position
    }

    /// The parameters.
    pub fn store(&self) -> &ParamStore {
        &self.store
    }

    /// The optimiser.
    pub fn optimizer(&self) -> &O {
        &self.optimizer
    }

    /// The optimiser, for changing its groups.
    pub fn optimizer_mut(&mut self) -> &mut O {
        &mut self.optimizer
    }

    /// The generator that layers draw from during steps.
    pub fn generator(&self) -> &Generator {
        &self.generator
    }

    /// The moving average, if one is kept.
    pub fn ema_mut(&mut self) -> Option<&mut Ema> {
        self.ema.as_mut().map(|(ema, _)| ema)
    }

    /// What is saved with each checkpoint for the caller.
    pub fn metadata_mut(&mut self) -> &mut serde_json::Map<String, serde_json::Value> {
        &mut self.metadata
    }

    /// Writes values to the logs at the current step: results of an evaluation, say.
    ///
    /// # Errors
    /// A log cannot be written.
    pub fn log(&mut self, values: &[(&str, f64)]) -> Result<()> {
        let step = self.position.step;
        self.logs.iter_mut().try_for_each(|log| log.write(step, values))
    }

    /// Trains on the rest of an epoch: on `batches`, each turned into a loss by `step`.
    ///
    /// `step` and the batches are run with the trainer's generator as the current one. For a training
    /// that can be resumed, `batches` begins at [`Position::batch`] of [`Position::epoch`] and depends on
    /// nothing else.
    ///
    /// # Errors
    /// An error of a batch or of `step`, as [`Error::Step`]; those of [`Optimizer::step`], of checkpoints
    /// and logs.
    pub fn epoch<B, E: Into<StepError>>(
        &mut self,
        batches: impl IntoIterator<Item = std::result::Result<B, E>>,
        mut step: impl FnMut(Position, B) -> std::result::Result<StepOutput, StepError>,
    ) -> Result<Outcome> {
        let generator = self.generator.clone();
        let mut batches = batches.into_iter();
        let bar = self.progress_bar(batches.size_hint().1);
        // Outputs of the batches that the next step is made of.
        let mut outputs = Vec::new();
        loop {
            if outputs.is_empty() && self.interrupt.is_requested() {
                self.save()?;
                bar.abandon();
                return Ok(Outcome::Interrupted);
            }
            let position = self.position;
            let fail = |source: StepError| Error::Step { step: position.step, source };
            let output = generator.scope(|| match batches.next() {
                Some(Ok(batch)) => step(position, batch).map(Some).map_err(fail),
                Some(Err(error)) => Err(fail(error.into())),
                None => Ok(None),
            })?;
            let Some(output) = output else { break };
            let grads = generator.scope(|| output.loss.backward())?;
            outputs.push(StepOutput { loss: output.loss.detach(), ..output });
            self.position.batch += 1;
            bar.inc(1);
            if let Some(grads) = self.accumulator.add(grads, self.optimizer.groups())? {
                self.update(&grads, &std::mem::take(&mut outputs), &bar)?;
            }
        }
        if let Some(grads) = self.accumulator.take(self.optimizer.groups())? {
            self.update(&grads, &outputs, &bar)?;
        }
        bar.finish();
        self.position = Position { epoch: self.position.epoch + 1, batch: 0, ..self.position };
        self.save()?;
        Ok(Outcome::Completed)
    }

    fn update(&mut self, grads: &GradStore, outputs: &[StepOutput], bar: &ProgressBar) -> Result<()> {
        let step = self.position.step;
        if let Some(schedule) = &self.lr {
            self.optimizer.set_lr(schedule.at(step));
        }
        if let Some(schedule) = &self.weight_decay {
            self.optimizer.set_weight_decay(schedule.at(step));
        }
        let report = self.optimizer.step(grads)?;
        if let Some(name) = &report.skipped {
            tracing::warn!("step {step} was skipped: the gradient of {name} is not finite");
        } else if let Some((ema, decay)) = &mut self.ema {
            match decay {
                Some(decay) => ema.update_with(decay.at(step))?,
                None => ema.update()?,
            }
        }
        self.position.step += 1;
        if self.position.step.is_multiple_of(self.log_every) {
            self.log_step(&report, outputs, bar)?;
        }
        match &self.checkpoints {
            Some((_, Some(every))) if self.position.step.is_multiple_of((*every).max(1)) => self.save(),
            _ => Ok(()),
        }
    }

    fn log_step(&mut self, report: &StepReport, outputs: &[StepOutput], bar: &ProgressBar) -> Result<()> {
        if self.logs.is_empty() && bar.is_hidden() {
            return Ok(());
        }
        // Means over the batches of the step.
        let weight = 1. / outputs.len().max(1) as f64;
        let mut values: Vec<(&str, f64)> = vec![("loss", 0.)];
        for output in outputs {
            values[0].1 += weight * output.loss.to_dtype(DType::F64)?.mean_all()?.to_scalar::<f64>()?;
            for (name, value) in &output.values {
                match values.iter_mut().find(|(known, _)| known == name) {
                    Some((_, mean)) => *mean += weight * value,
                    None => values.push((name, weight * value)),
                }
            }
        }
        bar.set_message(format!("step {}, loss {:.4}", self.position.step, values[0].1));
        values.push(("lr", self.optimizer.lr()));
        values.extend(report.grad_norm.map(|norm| ("grad_norm", norm)));
        values.extend(self.weight_decay.as_ref().map(|_| ("weight_decay", self.optimizer.weight_decay())));
        values.extend(report.skipped.as_ref().map(|_| ("skipped", 1.)));
        self.log(&values)
    }

    fn progress_bar(&self, rest: Option<usize>) -> ProgressBar {
        let target = match self.progress {
            Progress::Auto => ProgressDrawTarget::stderr(), // hidden unless it is a terminal
            Progress::Off => ProgressDrawTarget::hidden(),
        };
        let done = self.position.batch;
        let bar = ProgressBar::with_draw_target(rest.map(|rest| done + rest as u64), target);
        let template = "{prefix} {wide_bar} {pos}/{len} {per_sec} {eta} {msg}";
        if let Ok(style) = ProgressStyle::with_template(template) {
            bar.set_style(style);
        }
        bar.set_prefix(format!("epoch {}", self.position.epoch + 1));
        bar.with_position(done)
    }
}
