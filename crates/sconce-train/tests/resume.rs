//! A training that is stopped and resumed equals the uninterrupted one, bit for bit.
//!
//! The network has dropout (a generator), batch normalisation (buffers) and everything that training keeps:
//! moments, an average, schedules, logs.

use std::path::Path;

use candle_core::{DType, Device, Tensor};
use sconce_nn::{BatchNorm, Dropout, Linear, Module, ModuleT, ParamStore, batch_norm, linear};
use sconce_ops::{Generator, cross_entropy, gelu};
use sconce_train::schedule::{Cosine, Schedule, Warmup};
use sconce_train::*;

const EPOCHS: u64 = 3;
const BATCHES: u64 = 8;
const CLASSES: usize = 4;
const WIDTH: usize = 12;

struct Net {
    fc1: Linear,
    norm: BatchNorm,
    dropout: Dropout,
    fc2: Linear,
}

impl Net {
    fn new(store: &ParamStore) -> candle_core::Result<Self> {
        let vb = store.vb();
        Ok(Self {
            fc1: linear(WIDTH, 32, vb.pp("fc1"))?,
            norm: batch_norm(32, vb.pp("norm"))?,
            dropout: Dropout::new(0.3),
            fc2: linear(32, CLASSES, vb.pp("fc2"))?,
        })
    }

    fn forward_t(&self, xs: &Tensor, train: bool) -> candle_core::Result<Tensor> {
        let xs = self.norm.forward_t(&self.fc1.forward(xs)?, train)?;
        self.fc2.forward(&self.dropout.forward_t(&gelu(&xs)?, train)?)
    }
}

type Batch = (Tensor, Tensor);

/// Clusters around a point for each class, in an order that depends on the epoch alone.
fn batches(epoch: u64, first: u64) -> impl Iterator<Item = candle_core::Result<Batch>> {
    let centres = Generator::new(7).normal(0., 1., (CLASSES, WIDTH), DType::F32, &Device::Cpu).unwrap();
    (first..BATCHES).map(move |batch| {
        let generator = Generator::new(7).fork(&format!("{epoch}/{batch}"));
        let labels: Vec<u32> = (0..16).map(|_| generator.index(CLASSES) as u32).collect();
        let labels = Tensor::new(labels, &Device::Cpu)?;
        let noise = generator.normal(0., 0.8, (16, WIDTH), DType::F32, &Device::Cpu)?;
        Ok(((centres.index_select(&labels, 0)? + noise)?, labels))
    })
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Kind {
    AdamW,
    Sgd,
    Lars,
}

/// A trainer with parameters of this seed: resuming must not depend on them.
fn trainer(folder: &Path, kind: Kind, seed: u64) -> Result<(Trainer<Box<dyn Optimizer>>, Net)> {
    let store = ParamStore::new(seed, DType::F32, &Device::Cpu);
    let net = Net::new(&store)?;
    let groups = ParamGroups::builder(store.parameters()).exclude_1d().lr_scale("fc1.*", 0.5).build()?;
    let optimizer: Box<dyn Optimizer> = match kind {
        Kind::AdamW => Box::new(AdamW::new(groups, AdamWConfig::default()).with_clip(Clip::PerTensor(0.3))),
        Kind::Sgd => {
            let config = SgdConfig { momentum: 0.9, nesterov: true, ..SgdConfig::default() };
            Box::new(Sgd::new(groups, config)?.with_clip(Clip::GlobalNorm(1.)))
        }
        Kind::Lars => Box::new(Lars::new(groups, LarsConfig { weight_decay: 1e-3, ..LarsConfig::default() })),
    };
    let ema =
        Ema::new(store.iter(), EmaConfig { decay: 0.9, warmup: Some(EmaWarmup::default()), ..Default::default() })?;
    let columns = ["loss", "lr", "grad_norm", "weight_decay", "accuracy"];
    let mut trainer = Trainer::new(store, optimizer, Generator::new(seed))
        .with_lr(Warmup::dino(0.02, 1e-4, EPOCHS * BATCHES, 4, 0.))
        .with_weight_decay(Cosine { from: 0.04, to: 0.4, length: EPOCHS * BATCHES })
        .with_ema(ema)
        .with_checkpoints(CheckpointFolder::new(folder.join("checkpoints"), 2)?, Some(3))
        .with_log(CsvLog::append(folder.join("log.csv"), &columns)?)
        .with_log(JsonlLog::append(folder.join("log.jsonl"))?)
        .with_progress(Progress::Off);
    if kind == Kind::Sgd {
        trainer = trainer.with_accumulation(3)?; // leaves two batches at the end of an epoch
    }
    Ok((trainer, net))
}

enum Stop {
    Never,
    /// Ctrl-C while this batch is worked on.
    Interrupt(u64),
    /// The process dies in this batch.
    Die(u64),
}

fn train(folder: &Path, kind: Kind, seed: u64, stop: &Stop) -> Result<Outcome> {
    let (trainer, net) = trainer(folder, kind, seed)?;
    let interrupt = Interrupt::new();
    let mut trainer = trainer.with_interrupt(interrupt.clone());
    trainer.resume()?;
    while trainer.position().epoch < EPOCHS {
        let Position { epoch, batch, .. } = trainer.position();
        let outcome = trainer.epoch(batches(epoch, batch), |at, (xs, labels)| {
            let batch = at.epoch * BATCHES + at.batch;
            match stop {
                Stop::Interrupt(when) if batch == *when => interrupt.request(),
                Stop::Die(when) if batch == *when => return Err("the power went out".into()),
                _ => {}
            }
            let logits = net.forward_t(&xs, true)?;
            let hits = logits.argmax(1)?.eq(&labels)?.to_dtype(DType::F32)?;
            let accuracy = f64::from(hits.mean_all()?.to_scalar::<f32>()?);
            Ok(StepOutput::new(cross_entropy(&logits, &labels, 0.1)?).with("accuracy", accuracy))
        })?;
        if outcome == Outcome::Interrupted {
            return Ok(outcome);
        }
    }
    Ok(Outcome::Completed)
}

/// Every byte that the training left: the last checkpoint and the logs.
fn remains(folder: &Path) -> Vec<Vec<u8>> {
    let checkpoints = CheckpointFolder::new(folder.join("checkpoints"), 2).unwrap();
    let files = [checkpoints.latest().unwrap().unwrap(), folder.join("log.csv"), folder.join("log.jsonl")];
    files.iter().map(|path| std::fs::read(path).unwrap()).collect()
}

#[test]
fn interrupted_and_resumed_equals_uninterrupted() -> Result<()> {
    for kind in [Kind::AdamW, Kind::Sgd, Kind::Lars] {
        let whole = tempfile::tempdir().unwrap();
        assert_eq!(train(whole.path(), kind, 1, &Stop::Never)?, Outcome::Completed);
        let expected = remains(whole.path());
        for stop in [0, 4, 7, 8, 14] {
            let parts = tempfile::tempdir().unwrap();
            assert_eq!(train(parts.path(), kind, 1, &Stop::Interrupt(stop))?, Outcome::Interrupted);
            // Another seed stands for another process: whatever it initialises has to be replaced.
            assert_eq!(train(parts.path(), kind, 2, &Stop::Interrupt(stop + 5))?, Outcome::Interrupted);
            assert_eq!(train(parts.path(), kind, 3, &Stop::Never)?, Outcome::Completed);
            assert!(remains(parts.path()) == expected, "{kind:?} stopped in batch {stop}");
        }
    }
    Ok(())
}

#[test]
fn killed_and_resumed_equals_uninterrupted() -> Result<()> {
    for kind in [Kind::AdamW, Kind::Sgd] {
        let whole = tempfile::tempdir().unwrap();
        train(whole.path(), kind, 1, &Stop::Never)?;
        let parts = tempfile::tempdir().unwrap();
        let died = train(parts.path(), kind, 1, &Stop::Die(11));
        assert!(matches!(&died, Err(Error::Step { source, .. }) if source.to_string() == "the power went out"));
        // The log is ahead of the checkpoint, and its last row is half written.
        let log = parts.path().join("log.csv");
        std::fs::write(&log, format!("{}99,0.", std::fs::read_to_string(&log).unwrap())).unwrap();
        assert_eq!(train(parts.path(), kind, 9, &Stop::Never)?, Outcome::Completed);
        assert!(remains(parts.path()) == remains(whole.path()), "{kind:?}");
    }
    Ok(())
}

#[test]
fn a_training_can_begin_at_a_position() -> Result<()> {
    let folder = tempfile::tempdir().unwrap();
    let (trainer, net) = trainer(folder.path(), Kind::AdamW, 1)?;
    let mut trainer = trainer.with_position(Position { step: 9, epoch: 1, batch: 0 });
    trainer.epoch(batches(1, 0), |at, (xs, labels)| {
        assert_eq!((at.epoch, at.step), (1, 9 + at.batch));
        Ok(cross_entropy(&net.forward_t(&xs, true)?, &labels, 0.)?.into())
    })?;
    assert_eq!(trainer.position(), Position { step: 9 + BATCHES, epoch: 2, batch: 0 });
    assert_eq!(trainer.optimizer().lr(), Warmup::dino(0.02, 1e-4, EPOCHS * BATCHES, 4, 0.).at(8 + BATCHES));
    Ok(())
}

#[test]
fn it_learns() -> Result<()> {
    let folder = tempfile::tempdir().unwrap();
    let (mut trainer, net) = trainer(folder.path(), Kind::AdamW, 1)?;
    for epoch in 0..EPOCHS {
        let outcome = trainer.epoch(batches(epoch, 0), |_, (xs, labels)| {
            Ok(cross_entropy(&net.forward_t(&xs, true)?, &labels, 0.)?.into())
        })?;
        assert_eq!(outcome, Outcome::Completed);
    }
    let accuracy = || -> Result<f32> {
        let (xs, labels) = batches(77, 0).next().unwrap()?;
        let hits = net.forward_t(&xs, false)?.argmax(1)?.eq(&labels)?.to_dtype(DType::F32)?;
        Ok(hits.mean_all()?.to_scalar()?)
    };
    assert!(accuracy()? > 0.8);
    let averaged = trainer.ema_mut().unwrap().with_average(accuracy)?;
    assert!(averaged > 0.8);
    Ok(())
}

#[test]
fn a_checkpoint_of_another_training_is_refused_and_harmless() -> Result<()> {
    let folder = tempfile::tempdir().unwrap();
    train(folder.path(), Kind::AdamW, 1, &Stop::Interrupt(2))?;
    let (mut other, _net) = trainer(folder.path(), Kind::Lars, 5)?;
    let before = other.state()?;
    assert!(matches!(other.resume(), Err(Error::WrongOptimizer { .. })));

    let (mut same, _net) = trainer(folder.path(), Kind::AdamW, 5)?;
    let checkpoints = CheckpointFolder::new(folder.path().join("checkpoints"), 2)?;
    let good = checkpoints.load_latest(&Device::Cpu)?.unwrap();
    let mut altered = good.clone();
    altered.sections.get_mut("model").unwrap().tensors[0].0 = "fc0.weight".to_owned();
    assert!(matches!(same.restore(&altered), Err(Error::MissingTensor { name, .. }) if name == "fc1.weight"));
    let mut altered = good.clone();
    altered.sections.get_mut("model").unwrap().tensors.push(("x".to_owned(), Tensor::new(1f32, &Device::Cpu)?));
    assert!(matches!(same.restore(&altered), Err(Error::UnexpectedTensor { name, .. }) if name == "x"));
    let mut altered = good.clone();
    altered.sections.remove("ema");
    assert!(matches!(same.restore(&altered), Err(Error::MissingTensor { .. })));
    let mut altered = good.clone();
    altered.sections.insert("teacher".to_owned(), Section::default());
    assert!(matches!(same.restore(&altered), Err(Error::UnexpectedTensor { .. })));
    let mut altered = good.clone();
    altered.generators.clear();
    assert!(matches!(same.restore(&altered), Err(Error::MissingTensor { .. })));
    let mut altered = good.clone();
    altered.sections.get_mut("ema").unwrap().tensors.pop();
    assert!(matches!(same.restore(&altered), Err(Error::MissingTensor { .. })));

    let bytes = |state: &TrainingState| {
        let path = folder.path().join("x");
        state.write(&path).unwrap();
        std::fs::read(path).unwrap()
    };
    let (fresh, _net) = trainer(folder.path(), Kind::AdamW, 5)?;
    assert!(bytes(&same.state()?) == bytes(&fresh.state()?));
    assert!(bytes(&other.state()?) == bytes(&before));
    same.restore(&good)?;
    assert!(bytes(&same.state()?) == bytes(&good));
    Ok(())
}
