//! The course of a training: batches, checkpoints, history.

use candle_core::{DType, Device, Tensor};
use sconce_nn::ParamStore;
use sconce_ops::Generator;
use sconce_train::{
    CheckpointFolder, CsvLog, Log, Optimizer, Outcome, ParamGroups, Position, Section, StepError, StepOutput, Trainer,
    TrainingState,
};

use super::{EpochStats, FitConfig, FitOptions, FitReport};
use crate::{Error, Result};

const HISTORY: &str = "history";
const BEST: &str = "best";
const OPTIONS: &str = "fit";
/// Checkpoints that are kept.
const KEEP: usize = 1;

/// What is kept beside the trainer's state.
#[derive(Default)]
struct Course {
    history: Vec<EpochStats>,
    /// Sums over the pictures of the epoch under way.
    sums: Sums,
    best: Option<Best>,
}

struct Best {
    epoch: u64,
    validation: f64,
    parameters: Vec<(String, Tensor)>,
}

#[derive(Clone, Copy, Default)]
struct Sums {
    pictures: f64,
    loss: f64,
    accuracy: f64,
    /// Pictures whose batch came with an accuracy.
    told: f64,
}

pub(super) fn run(
    store: &ParamStore,
    n: usize,
    cfg: &FitConfig,
    options: &FitOptions,
    mut step: impl FnMut(Position, &[u32]) -> Result<StepOutput>,
    mut validate: Option<&mut dyn FnMut() -> Result<f64>>,
) -> Result<FitReport> {
    cfg.validate()?;
    if n == 0 || u32::try_from(n).is_err() {
        return Err(Error::Data(format!("{n} pictures to train on")));
    }
    let groups = ParamGroups::new(store.parameters())?;
    if groups.is_empty() {
        return Err(Error::Config("the store has no parameter to train".into()));
    }
    let generator = Generator::new(cfg.seed);
    let mut trainer = Trainer::new(store.clone(), cfg.optimizer(groups)?, generator.fork("head"))
        .with_lr(cfg.rate(n))
        .with_interrupt(options.interrupt.clone())
        .with_progress(options.progress);
    trainer.metadata_mut().insert(OPTIONS.into(), identity(cfg, n, options).into());
    let mut course = Course::default();
    let folder = match &options.out {
        Some(out) => {
            let folder = CheckpointFolder::new(out.join("checkpoints"), KEEP)?;
            if options.resume
                && let Some(state) = folder.load_latest(store.device())?
            {
                course = resume(&mut trainer, state)?;
            }
            let columns = ["loss", "accuracy", "lr", "validation"];
            let path = out.join("log.csv");
            let mut log = if trainer.position() == Position::default() {
                CsvLog::create(path, &columns)?
            } else {
                CsvLog::append(path, &columns)?
            };
            log.rewind(trainer.position().step)?;
            trainer = trainer.with_log(log);
            Some(folder)
        }
        None => None,
    };
    let mut outcome = Outcome::Completed;
    while trainer.position().epoch < cfg.epochs {
        let at = trainer.position();
        let sums = &mut course.sums;
        let each = |position: Position, indices: Vec<u32>| {
            let output = step(position, &indices)?;
            sums.add(&output, position.step, indices.len())?;
            Ok(output)
        };
        let rest = batches(cfg, n, at.epoch, &generator).into_iter().skip(at.batch as usize);
        outcome = trainer.epoch(rest.map(Ok::<_, StepError>), each).map_err(inner)?;
        if outcome == Outcome::Completed {
            // What a head draws then is nobody else's, or a resumed training would draw other numbers.
            let own = generator.fork("validation").fork(&at.epoch.to_string());
            let validation = validate.as_mut().map(|validate| own.scope(validate)).transpose()?;
            if let Some(validation) = validation {
                trainer.log(&[("validation", validation)])?;
            }
            course.finish_epoch(store, trainer.optimizer().lr(), validation)?;
        }
        if let Some(folder) = &folder {
            folder.save(&course.save(trainer.state()?)?)?;
        }
        if outcome == Outcome::Interrupted {
            break;
        }
    }
    // An interrupted training leaves what it would go on from.
    let best = course.best.filter(|_| outcome == Outcome::Completed);
    if let Some(best) = &best {
        best.parameters.iter().try_for_each(|(name, value)| store.set(name, value))?;
    }
    Ok(FitReport { history: course.history, outcome, best: best.map(|best| best.epoch) })
}

/// What a checkpoint is of, as text: JSON numbers that were read need not have the bits of those that were written.
fn identity(cfg: &FitConfig, n: usize, options: &FitOptions) -> String {
    let validated = options.validation.as_ref().map_or(0, |validation| validation.labels.elem_count());
    format!("{n} pictures and {validated} for validation, {cfg:?}")
}

/// The batches of an epoch.
fn batches(cfg: &FitConfig, n: usize, epoch: u64, generator: &Generator) -> Vec<Vec<u32>> {
    let mut order: Vec<u32> = (0..n as u32).collect();
    generator.fork("order").fork(&epoch.to_string()).shuffle(&mut order);
    order.chunks(cfg.batch_size).take(cfg.steps_per_epoch(n)).map(<[u32]>::to_vec).collect()
}

/// Values that training does not change any more.
fn copies(store: &ParamStore) -> Result<Vec<(String, Tensor)>> {
    let copy = |param: sconce_nn::Param| Ok((param.name.to_string(), param.var.as_detached_tensor().copy()?));
    store.iter().map(copy).collect()
}

/// Goes on from a checkpoint.
fn resume<O: Optimizer>(trainer: &mut Trainer<O>, mut state: TrainingState) -> Result<Course> {
    let text = |value: Option<&serde_json::Value>| value.and_then(|v| v.as_str()).unwrap_or("nothing known").to_owned();
    let (found, expected) = (text(state.metadata.get(OPTIONS)), text(trainer.metadata_mut().get(OPTIONS)));
    if found != expected {
        return Err(Error::Config(format!("the checkpoint is of {found}; this training is of {expected}")));
    }
    let history = state.sections.remove(HISTORY);
    let best = state.sections.remove(BEST);
    let course = Course::load(history, best)?;
    trainer.restore(&state)?;
    Ok(course)
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

impl Sums {
    fn add(&mut self, output: &StepOutput, step: u64, pictures: usize) -> Result<()> {
        let loss = output.loss.to_dtype(DType::F64)?.to_scalar::<f64>()?;
        if !loss.is_finite() {
            return Err(Error::NonFiniteLoss { step, loss });
        }
        let pictures = pictures as f64;
        self.pictures += pictures;
        self.loss += loss * pictures;
        if let Some((_, accuracy)) = output.values.iter().find(|(name, _)| name == "accuracy") {
            self.accuracy += accuracy * pictures;
            self.told += pictures;
        }
        Ok(())
    }
}

impl Course {
    fn finish_epoch(&mut self, store: &ParamStore, lr: f64, validation: Option<f64>) -> Result<()> {
        let sums = std::mem::take(&mut self.sums);
        let epoch = self.history.len() as u64 + 1;
        let accuracy = (sums.told > 0.0).then(|| sums.accuracy / sums.told);
        self.history.push(EpochStats { epoch, lr, loss: sums.loss / sums.pictures, accuracy, validation });
        if let Some(validation) = validation
            && self.best.as_ref().is_none_or(|best| validation > best.validation)
        {
            self.best = Some(Best { epoch, validation, parameters: copies(store)? });
        }
        Ok(())
    }

    /// Adds the course to a state. Numbers go into a tensor, which keeps their bits; `NaN` is what there is none of.
    fn save(&self, mut state: TrainingState) -> Result<TrainingState> {
        let Sums { pictures, loss, accuracy, told } = self.sums;
        let mut rows = vec![pictures, loss, accuracy, told];
        for stats in &self.history {
            let or_nan = |value: Option<f64>| value.unwrap_or(f64::NAN);
            rows.extend([stats.lr, stats.loss, or_nan(stats.accuracy), or_nan(stats.validation)]);
        }
        let rows = Tensor::from_vec(rows, (self.history.len() + 1, 4), &Device::Cpu)?;
        let section = |tensors| Section { kind: None, tensors };
        state.sections.insert(HISTORY.into(), section(vec![("rows".into(), rows)]));
        if let Some(best) = &self.best {
            state.sections.insert(BEST.into(), section(best.parameters.clone()));
        }
        Ok(state)
    }

    fn load(history: Option<Section>, best: Option<Section>) -> Result<Self> {
        let damaged = || Error::Data("the checkpoint lacks the history of its training".into());
        let rows = history.and_then(|mut section| section.tensors.pop()).ok_or_else(damaged)?.1;
        let rows = rows.to_dtype(DType::F64)?.to_vec2::<f64>()?;
        let Some(([pictures, loss, accuracy, told], rows)) =
            rows.split_first().and_then(|(first, rest)| Some((<[f64; 4]>::try_from(first.as_slice()).ok()?, rest)))
        else {
            return Err(damaged());
        };
        let mut course = Self { sums: Sums { pictures, loss, accuracy, told }, ..Self::default() };
        let some = |value: f64| (!value.is_nan()).then_some(value);
        for (row, epoch) in rows.iter().zip(1..) {
            let &[lr, loss, accuracy, validation] = row.as_slice() else { return Err(damaged()) };
            let (accuracy, validation) = (some(accuracy), some(validation));
            course.history.push(EpochStats { epoch, lr, loss, accuracy, validation });
        }
        if let Some(section) = best {
            // The first of several equal ones.
            let first = course
                .history
                .iter()
                .filter_map(|stats| Some((stats.epoch, stats.validation?)))
                .reduce(|best, next| if next.1 > best.1 { next } else { best });
            let (epoch, validation) = first.ok_or_else(damaged)?;
            course.best = Some(Best { epoch, validation, parameters: section.tensors });
        }
        Ok(course)
    }
}
