//! One training.

use std::path::PathBuf;
use std::time::Instant;

use sconce::backbones::Backbone;
use sconce::candle::{DType, Device, Tensor};
use sconce::data::{Generator, LoaderOptions, Size};
use sconce::nn::{Checkpoint, LoadOptions, ParamStore};
use sconce::ops::{count_macs, cross_entropy, cross_entropy_soft};
use sconce::train::schedule::{Constant, Schedule, Warmup};
use sconce::train::{
    AdamW, AdamWConfig, CheckpointFolder, Clip, CsvLog, Ema, EmaConfig, Interrupt, JsonlLog, Optimizer, Outcome,
    ParamGroups, Position, Progress as Bars, Sgd, SgdConfig, StepError, StepOutput, TensorBoardLog, Trainer, vit_layer,
};

use super::data::Data;
use super::evaluate::{Figures, evaluate, loader};
use super::options::{OptimizerName, ScheduleName};
use super::progress::{Progress, Turn};
use super::summary::{Summary, peak_memory};
use super::{Options, model};
use crate::{Error, write_json};

/// Keys of a checkpoint's metadata.
const OPTIONS: &str = "options";
const PROGRESS: &str = "progress";

/// Trains, and writes `model.safetensors` and `summary.json` to the folder of the options beside checkpoints and logs.
///
/// Returns nothing when it was interrupted; running again with `resume` continues.
///
/// # Errors
/// Options that contradict each other, data that cannot be read, a checkpoint of another training, files that cannot be
/// written, and what training can meet: a loss that is not finite.
pub fn train(options: &Options, device: &Device, interrupt: &Interrupt) -> Result<Option<Summary>, StepError> {
    check(options)?;
    let data = Data::open(&options.data)?;
    let classes = data.classes.len();
    let config = model::config(options, classes)?;
    let (height, width) = config.input_size();
    let size = options.image_size.map_or(Size::new(width as u32, height as u32), Size::square);
    let store = ParamStore::new(options.recipe.seed, DType::F32, device);
    let model = config.build(store.vb())?;
    // Before anything is loaded, whether the model takes this size at all.
    let nothing = Tensor::zeros((1, 3, size.height as usize, size.width as usize), DType::F32, device)?;
    let (scores, macs) = count_macs(|| model.forward_t(&nothing, false));
    scores?;
    let normalize = options.augment.statistics(&data.pictures, &data.train)?;
    let idx = data.pictures.is_idx();
    let batch_size = options.recipe.batch_size.min(data.train.len());
    let training = LoaderOptions {
        batch_size,
        shuffle: true,
        drop_last: true,
        workers: options.run.workers,
        seed: options.recipe.seed,
        ..Default::default()
    };
    let watching = LoaderOptions { batch_size, workers: options.run.workers, ..Default::default() };
    let augmented = options.augment.training(size, idx, normalize)?;
    let batches = loader(&data.pictures, &data.train, augmented, training)?;
    let plain = || options.augment.evaluation(size, idx, normalize);
    let validation = loader(&data.pictures, &data.validation, plain(), watching.clone())?;
    let test = loader(&data.test_pictures, &data.test, plain(), watching)?;

    let steps = options.recipe.epochs * batches.batches() as u64;
    let mut session = Session::new(options, store, model, steps, interrupt)?;
    eprintln!(
        "{}: {} parameters; {} pictures to train on, {} for validation, {} for the test; {classes} classes",
        options.model,
        session.store.count(),
        data.train.len(),
        data.validation.len(),
        data.test.len()
    );
    let mut trainer = session.start(device)?;
    let watched = if data.validation.is_empty() { "test" } else { "validation" };
    let look = |model: &dyn Backbone| {
        let loaded = if data.validation.is_empty() {
            evaluate(model, &test, classes, device)
        } else {
            evaluate(model, &validation, classes, device)
        };
        loaded.map(|(figures, _)| figures)
    };
    let mix = options.augment.mix(classes, options.recipe.label_smoothing);
    loop {
        let at = trainer.position();
        if at.batch == 0 && at.epoch > session.progress.finished {
            trainer = session.finish_epoch(trainer, at, watched, look)?;
        }
        if session.progress.ended || at.epoch >= options.recipe.epochs {
            break;
        }
        let started = Instant::now();
        let outcome =
            trainer.epoch(batches.epoch_from(at.epoch, at.batch as usize), |position, (images, labels)| {
                if options.run.stop_after.is_some_and(|stop| position.step + 1 >= stop) {
                    interrupt.request();
                }
                let (images, labels) = (images.to_device(device)?, labels.to_device(device)?);
                let loss = match &mix {
                    Some(mix) => {
                        let (images, targets) = mix.apply(&images, &labels, &Generator::current())?;
                        cross_entropy_soft(&session.model.forward_t(&images, true)?, &targets)?
                    }
                    None => {
                        let scores = session.model.forward_t(&images, true)?; // (B, K)
                        cross_entropy(&scores, &labels, options.recipe.label_smoothing)?
                    }
                };
                Ok(StepOutput::new(loss))
            })?;
        if outcome == Outcome::Interrupted {
            eprintln!("stopped after step {}; run again with --resume to continue", trainer.position().step);
            return Ok(None);
        }
        if at.batch == 0 {
            session.progress.seconds.push(started.elapsed().as_secs_f64());
        }
    }

    let dual = options.recipe.schedule == ScheduleName::Dual;
    if dual {
        session.load_best()?;
    } else if let Some(ema) = trainer.ema_mut() {
        ema.swap()?;
    }
    let Session { store, model, progress, .. } = session;
    let (figures, _) = evaluate(&*model, &test, classes, device)?;
    let validated = match data.validation.is_empty() {
        true => None,
        false => Some(evaluate(&*model, &validation, classes, device)?.0),
    };
    store.save(options.run.out.join("model.safetensors"))?;
    let epochs = trainer.position().epoch;
    let summary = Summary {
        model: options.model.clone(),
        test: figures,
        validation: validated,
        parameters: store.count(),
        macs,
        peak_memory: peak_memory(),
        seconds_per_epoch: progress.seconds_per_epoch(),
        epochs,
        switched: progress.switched,
        kept: progress.best.filter(|_| dual).map_or(epochs, |best| best.epoch),
        curve: progress.curve,
        pictures: data.train.len(),
        classes: data.classes,
        input: [size.height, size.width],
        normalize,
        options: options.clone(),
    };
    write_json(&options.run.out.join("summary.json"), &summary)?;
    Ok(Some(summary))
}

fn check(options: &Options) -> Result<(), Error> {
    let recipe = &options.recipe;
    let wrong = |message: &str| Err(Error::new(message));
    if recipe.schedule == ScheduleName::Dual && options.data.validation == 0.0 {
        return wrong("--schedule dual selects weights on validation pictures: give --validation 0.1");
    }
    if recipe.epochs == 0 || recipe.batch_size == 0 {
        return wrong("--epochs and --batch-size are at least 1");
    }
    if !(0.0..=1.0).contains(&recipe.label_smoothing) {
        return wrong("--label-smoothing is between 0 and 1");
    }
    Ok(())
}

type AnyTrainer = Trainer<Box<dyn Optimizer>>;

/// What stays over the whole training.
struct Session<'a> {
    options: &'a Options,
    store: ParamStore,
    model: Box<dyn Backbone>,
    steps: u64,
    interrupt: &'a Interrupt,
    checkpoints: CheckpointFolder,
    progress: Progress,
}

impl<'a> Session<'a> {
    fn new(
        options: &'a Options,
        store: ParamStore,
        model: Box<dyn Backbone>,
        steps: u64,
        interrupt: &'a Interrupt,
    ) -> Result<Self, StepError> {
        let checkpoints = CheckpointFolder::new(options.run.out.join("checkpoints"), 2)?;
        Ok(Self { options, store, model, steps, interrupt, checkpoints, progress: Progress::default() })
    }

    fn path(&self, name: &str) -> PathBuf {
        self.options.run.out.join(name)
    }

    /// A trainer at the beginning, or where the latest checkpoint was taken.
    fn start(&mut self, device: &Device) -> Result<AnyTrainer, StepError> {
        let latest = if self.options.run.resume { self.checkpoints.load_latest(device)? } else { None };
        let Some(state) = latest else {
            CsvLog::create(self.path("log.csv"), &COLUMNS)?;
            JsonlLog::create(self.path("log.jsonl"))?;
            let mut trainer = self.trainer()?;
            self.remember(&mut trainer)?;
            return Ok(trainer);
        };
        let folder = self.checkpoints.path().display();
        let own = serde_json::to_value(self.options)?;
        // Through the type, so that options which are newer than the checkpoint have their defaults.
        let theirs = state.metadata.get(OPTIONS).cloned().unwrap_or_default();
        let theirs: Options = serde_json::from_value(theirs).map_err(|e| Error::new(format!("{folder}: {e}")))?;
        let theirs = serde_json::to_value(theirs)?;
        if own != theirs {
            let differing = own.as_object().into_iter().flatten().find(|(key, value)| theirs.get(key) != Some(value));
            let what = differing.map_or("options".into(), |(key, value)| {
                format!("{key} {} and not {value}", theirs.get(key).unwrap_or(&serde_json::Value::Null))
            });
            return Err(Error::new(format!("{folder}: the training to resume had {what}")).into());
        }
        let progress = state.metadata.get(PROGRESS).cloned().unwrap_or_default();
        self.progress = serde_json::from_value(progress).map_err(|e| Error::new(format!("{folder}: {e}")))?;
        let mut trainer = self.trainer()?;
        trainer.resume()?;
        let Position { epoch, step, .. } = trainer.position();
        eprintln!("continuing after epoch {epoch}, step {step}");
        Ok(trainer)
    }

    /// A trainer with the optimiser whose turn it is.
    fn trainer(&self) -> Result<AnyTrainer, StepError> {
        let recipe = &self.options.recipe;
        let second = self.progress.switched.is_some();
        let dual = recipe.schedule == ScheduleName::Dual;
        let lr = if second { recipe.sgd_lr } else { recipe.lr };
        let schedule: Box<dyn Schedule> = match recipe.schedule {
            ScheduleName::Cosine => {
                let warmup = recipe.warmup.saturating_mul(self.steps / recipe.epochs).min(self.steps / 2);
                Box::new(Warmup::timm(lr, lr * 0.01, self.steps, warmup, lr * 0.001))
            }
            ScheduleName::Constant | ScheduleName::Dual => Box::new(Constant(lr)),
        };
        let clip = if recipe.clip_grad > 0.0 { Clip::GlobalNorm(recipe.clip_grad) } else { Clip::None };
        let groups = self.groups()?;
        let optimizer: Box<dyn Optimizer> = if second || (!dual && recipe.optimizer == OptimizerName::Sgd) {
            let weight_decay = if second { 0.0 } else { recipe.weight_decay };
            let config = SgdConfig { momentum: recipe.momentum, weight_decay, ..Default::default() };
            Box::new(Sgd::new(groups, config)?.with_clip(clip))
        } else {
            let config = AdamWConfig { weight_decay: recipe.weight_decay, ..Default::default() };
            Box::new(AdamW::new(groups, config).with_clip(clip))
        };
        let generator = Generator::new(recipe.seed).fork(if second { "train/second" } else { "train" });
        let mut trainer = Trainer::new(self.store.clone(), optimizer, generator)
            .with_lr(schedule)
            .with_checkpoints(self.checkpoints.clone(), None)
            .with_log(CsvLog::append(self.path("log.csv"), &COLUMNS)?)
            .with_log(JsonlLog::append(self.path("log.jsonl"))?)
            .with_log(TensorBoardLog::create(self.path("events"))?)
            .with_interrupt(self.interrupt.clone())
            .with_progress(if self.options.run.quiet { Bars::Off } else { Bars::Auto });
        if let Some(decay) = recipe.ema {
            trainer = trainer.with_ema(Ema::new(self.store.iter(), EmaConfig { decay, ..Default::default() })?);
        }
        Ok(trainer)
    }

    fn groups(&self) -> Result<ParamGroups, StepError> {
        let builder = ParamGroups::builder(self.store.parameters()).exclude_vit();
        let Some(decay) = self.options.recipe.layer_decay else {
            return Ok(builder.build()?);
        };
        let names = self.store.names();
        let block = |name: &String| name.strip_prefix("blocks.")?.split('.').next()?.parse::<usize>().ok();
        let Some(last) = names.iter().filter_map(block).max() else {
            let message = format!("--layer-decay is for models with `blocks.N`, which {} has not", self.options.model);
            return Err(Error::new(message).into());
        };
        let depth = last + 1;
        Ok(builder.layer_decay(decay, depth + 1, |name| vit_layer(name, depth)).build()?)
    }

    /// Evaluates after an epoch where it is time to, keeps the best weights, and changes the optimiser where that is due.
    fn finish_epoch(
        &mut self,
        mut trainer: AnyTrainer,
        at: Position,
        watched: &str,
        look: impl Fn(&dyn Backbone) -> Result<Figures, StepError>,
    ) -> Result<AnyTrainer, StepError> {
        let recipe = &self.options.recipe;
        let dual = recipe.schedule == ScheduleName::Dual;
        let last = at.epoch >= recipe.epochs;
        let due = at.epoch.is_multiple_of(self.options.run.evaluate_every.max(1));
        self.progress.finished = at.epoch;
        let mut turn = Turn::Stay;
        if dual || last || due {
            let mut look = || {
                let figures = look(&*self.model)?;
                // Saved while the parameters hold the average, if one is kept.
                if self.progress.note(at.epoch, figures.hits()) && dual {
                    self.store.save(self.options.run.out.join(BEST))?;
                }
                Ok::<_, StepError>(figures)
            };
            let figures = match trainer.ema_mut() {
                Some(ema) => ema.with_average(look)?,
                None => look()?,
            };
            self.progress.curve.push((at.epoch, figures.top1));
            trainer.log(&[(&format!("{watched}_top1"), figures.top1), (&format!("{watched}_loss"), figures.loss)])?;
            eprintln!("epoch {}: {watched} top-1 {:.2} %, loss {:.4}", at.epoch, 100.0 * figures.top1, figures.loss);
            turn = if dual { self.progress.turn(at.epoch, recipe.patience) } else { Turn::Stay };
        }
        match turn {
            Turn::Stay => {}
            Turn::End => self.progress.ended = true,
            Turn::Switch if last => {}
            Turn::Switch => {
                eprintln!("no new best in {} epochs: on with SGD from the best weights", recipe.patience);
                self.progress.switched = Some(at.epoch);
                self.load_best()?;
                trainer = self.trainer()?.with_position(at);
            }
        }
        self.remember(&mut trainer)?;
        trainer.save()?;
        Ok(trainer)
    }

    /// Hands the trainer what a checkpoint is to keep.
    fn remember(&self, trainer: &mut AnyTrainer) -> Result<(), StepError> {
        let metadata = trainer.metadata_mut();
        metadata.insert(OPTIONS.into(), serde_json::to_value(self.options)?);
        metadata.insert(PROGRESS.into(), serde_json::to_value(&self.progress)?);
        Ok(())
    }

    fn load_best(&self) -> Result<(), StepError> {
        self.store.load(&Checkpoint::open(self.path(BEST))?, &LoadOptions::default())?;
        Ok(())
    }
}

const BEST: &str = "best.safetensors";
const COLUMNS: [&str; 7] = ["loss", "lr", "grad_norm", "validation_top1", "validation_loss", "test_top1", "test_loss"];
