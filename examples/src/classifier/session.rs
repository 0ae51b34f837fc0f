//! What a training keeps from one epoch to the next: model, optimiser, checkpoints, and what the evaluations decide.

use std::path::PathBuf;

use sconce::backbones::Backbone;
use sconce::candle::Device;
use sconce::data::Generator;
use sconce::nn::{Checkpoint, LoadOptions, ParamStore};
use sconce::train::schedule::{Constant, Schedule, Warmup};
use sconce::train::{
    AdamW, AdamWConfig, CheckpointFolder, Clip, CsvLog, Ema, EmaConfig, Interrupt, JsonlLog, Optimizer, ParamGroups,
    Position, Progress as Bars, Sgd, SgdConfig, StepError, TensorBoardLog, Trainer, vit_layer,
};

use super::Options;
use super::evaluate::Figures;
use super::options::{OptimizerName, ScheduleName};
use super::progress::{Progress, Turn};
use crate::Error;

/// Keys of a checkpoint's metadata.
const OPTIONS: &str = "options";
const PROGRESS: &str = "progress";

pub(super) type AnyTrainer = Trainer<Box<dyn Optimizer>>;

/// What stays over the whole training.
pub(super) struct Session<'a> {
    options: &'a Options,
    pub(super) store: ParamStore,
    pub(super) model: Box<dyn Backbone>,
    /// Of the whole training.
    steps: u64,
    interrupt: &'a Interrupt,
    checkpoints: CheckpointFolder,
    pub(super) progress: Progress,
}

impl<'a> Session<'a> {
    pub(super) fn new(
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
    pub(super) fn start(&mut self, device: &Device) -> Result<AnyTrainer, StepError> {
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
    pub(super) fn finish_epoch(
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

    /// Puts the best weights back.
    pub(super) fn load_best(&self) -> Result<(), StepError> {
        self.store.load(&Checkpoint::open(self.path(BEST))?, &LoadOptions::default())?;
        Ok(())
    }
}

const BEST: &str = "best.safetensors";
const COLUMNS: [&str; 7] = ["loss", "lr", "grad_norm", "validation_top1", "validation_loss", "test_top1", "test_loss"];
