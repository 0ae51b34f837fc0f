//! One training.

use std::time::Instant;

use sconce::backbones::Backbone;
use sconce::candle::{DType, Device, Tensor};
use sconce::data::{Generator, LoaderOptions, Size};
use sconce::nn::ParamStore;
use sconce::ops::{count_macs, cross_entropy, cross_entropy_soft};
use sconce::train::{Interrupt, Outcome, StepError, StepOutput};

use super::data::Data;
use super::evaluate::{evaluate, loader};
use super::options::ScheduleName;
use super::session::Session;
use super::summary::Summary;
use super::{Options, confusion, model};
use crate::numbers::peak_memory;
use crate::{Error, write_json, write_text};

/// Classes that a picture of the confusions has room for.
const MOST_CLASSES: usize = 100;

/// Trains, and writes `model.safetensors`, `summary.json` and `confusion.svg` to the folder of the options beside checkpoints
/// and logs.
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
    let (figures, taken_for) = evaluate(&*model, &test, classes, device)?;
    let validated = match data.validation.is_empty() {
        true => None,
        false => Some(evaluate(&*model, &validation, classes, device)?.0),
    };
    store.save(options.run.out.join("model.safetensors"))?;
    if classes <= MOST_CLASSES {
        write_text(&options.run.out.join("confusion.svg"), &confusion::svg(&taken_for, &data.classes))?;
    }
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
