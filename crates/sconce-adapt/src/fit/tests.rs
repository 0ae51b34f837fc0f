use std::path::Path;

use candle_core::Device;
use sconce_nn::{Linear, Module, linear};
use sconce_ops::{Generator, cross_entropy};

use super::*;

const CPU: &Device = &Device::Cpu;

/// Of each parameter by its name.
type Bits = Vec<(String, Vec<u32>)>;

/// Features around a centre for each of three classes.
fn pictures(n: usize, seed: u64) -> Result<(Tensor, Tensor)> {
    let labels: Vec<u32> = (0..n as u32).map(|i| i % 3).collect();
    let noise = Generator::new(seed).normal(0.0, 0.5, (n, 4), DType::F32, CPU)?;
    let mut centres = vec![0f32; n * 4];
    for (i, &label) in labels.iter().enumerate() {
        centres[i * 4 + label as usize] = 1.0;
    }
    Ok(((noise + Tensor::from_vec(centres, (n, 4), CPU)?)?, Tensor::new(labels, CPU)?))
}

fn head(dtype: DType) -> Result<(ParamStore, Linear)> {
    let store = ParamStore::new(3, dtype, CPU);
    let head = linear(4, 3, store.vb())?;
    Ok((store, head))
}

fn config() -> FitConfig {
    FitConfig { lr: 0.3, epochs: 6, batch_size: 8, ..FitConfig::default() }
}

/// What a training leaves: the report and the bits of all parameters.
fn train(cfg: &FitConfig, options: &FitOptions, mut before: impl FnMut(u64)) -> Result<(FitReport, Bits)> {
    let (features, labels) = pictures(30, 1)?;
    let (store, head) = head(DType::F32)?;
    let mut calls = 0;
    let report = fit(&store, &features, &labels, cfg, options, |xs| {
        before(calls);
        calls += 1;
        // What the head draws has to come back with a resumed training, too.
        let noise = Generator::current().normal(0.0, 0.05, xs.shape(), DType::F32, CPU)?;
        head.forward(&(xs + noise)?)
    })?;
    Ok((report, bits(&store)?))
}

fn bits(store: &ParamStore) -> Result<Bits> {
    let bits = |param: sconce_nn::Param| {
        let values = param.var.as_tensor().flatten_all()?.to_dtype(DType::F32)?.to_vec1::<f32>()?;
        Ok((param.name.to_string(), values.into_iter().map(f32::to_bits).collect()))
    };
    store.iter().map(bits).collect()
}

fn in_folder(folder: &Path) -> FitOptions {
    FitOptions { out: Some(folder.to_owned()), progress: Progress::Off, ..FitOptions::default() }
}

#[test]
fn a_head_learns_in_any_type() -> Result<()> {
    let (features, labels) = pictures(30, 1)?;
    for dtype in [DType::F32, DType::F64, DType::F16, DType::BF16] {
        let (store, head) = head(dtype)?;
        let features = features.to_dtype(dtype)?;
        let cfg = FitConfig { epochs: 20, ..config() };
        let report = fit(&store, &features, &labels, &cfg, &FitOptions::default(), |xs| head.forward(xs))?;
        assert_eq!((report.history.len(), report.outcome, report.best), (20, Outcome::Completed, None));
        let [first, last] = [&report.history[0], &report.history[19]];
        assert!(last.loss < 0.6 * first.loss, "{dtype:?} {} {}", first.loss, last.loss);
        assert_eq!((first.epoch, last.epoch, first.validation), (1, 20, None));
        assert!(accuracy(&head.forward(&features)?, &labels)? > 0.8, "{dtype:?}");
    }
    Ok(())
}

#[test]
fn the_seed_decides_the_bits() -> Result<()> {
    let run = |seed| train(&FitConfig { seed, ..config() }, &FitOptions::default(), |_| ());
    let (first, again, other) = (run(1)?, run(1)?, run(2)?);
    assert_eq!(first, again);
    assert_ne!(first.1, other.1);
    Ok(())
}

#[test]
fn interrupted_anywhere_and_resumed_it_has_the_same_bits() -> Result<()> {
    let (features, labels) = pictures(9, 5)?;
    let validation = Validation { features, labels, batch_size: 4 };
    let options = FitOptions { validation: Some(validation), ..FitOptions::default() };
    for optimizer in [FitOptimizer::Sgd { momentum: 0.9 }, FitOptimizer::AdamW { eps: 1e-4 }] {
        let cfg = FitConfig { optimizer, lr: 0.05, ..config() };
        let folder = tempfile::tempdir().map_err(candle_core::Error::wrap)?;
        let whole = train(&cfg, &FitOptions { out: Some(folder.path().join("whole")), ..options.clone() }, |_| ())?;
        assert_eq!(whole.0.history.len(), 6);
        // Four training batches and three of validation make an epoch: in the first, in the middle of one, after one, late.
        for stop in [0, 9, 14, 38] {
            let interrupt = Interrupt::new();
            let out = folder.path().join(format!("stopped-{stop}"));
            let stopped = FitOptions { out: Some(out.clone()), interrupt: interrupt.clone(), ..options.clone() };
            let ask = |call| {
                if call == stop {
                    interrupt.request();
                }
            };
            let (report, _) = train(&cfg, &stopped, ask)?;
            assert_eq!((report.outcome, report.best), (Outcome::Interrupted, None));
            assert!(report.history.len() < 6);
            interrupt.clear();
            let resumed = train(&cfg, &FitOptions { resume: true, ..stopped.clone() }, |_| ())?;
            assert_eq!(resumed, whole, "stopped in call {stop}");
            // Once more there is nothing to do, and the result is there.
            assert_eq!(train(&cfg, &FitOptions { resume: true, ..stopped }, |_| panic!("called"))?, whole);
            let log = |out: &Path| std::fs::read_to_string(out.join("log.csv")).map_err(candle_core::Error::wrap);
            assert_eq!(log(&out)?, log(&folder.path().join("whole"))?);
        }
    }
    Ok(())
}

#[test]
fn checkpoints_of_other_trainings_are_refused() -> Result<()> {
    let folder = tempfile::tempdir().map_err(candle_core::Error::wrap)?;
    let short = FitConfig { epochs: 1, ..config() };
    train(&short, &in_folder(folder.path()), |_| ())?;
    let resume = FitOptions { resume: true, ..in_folder(folder.path()) };
    let found = train(&FitConfig { lr: 0.1, ..short.clone() }, &resume, |_| ());
    assert!(
        matches!(&found, Err(Error::Config(why)) if why.contains("lr: 0.3") && why.contains("lr: 0.1")),
        "{found:?}"
    );
    // Without `resume` it begins anew.
    let (report, _) = train(&FitConfig { lr: 0.1, ..short }, &in_folder(folder.path()), |_| ())?;
    assert_eq!(report.history.len(), 1);
    Ok(())
}

#[test]
fn the_best_epoch_on_validation_is_kept() -> Result<()> {
    let (features, labels) = pictures(12, 1)?;
    let (store, head) = head(DType::F32)?;
    let validation = Validation { features: features.clone(), labels: labels.clone(), batch_size: 5 };
    let options = FitOptions { validation: Some(validation), ..FitOptions::default() };
    // A rate that throws the head about.
    let cfg = FitConfig { lr: 40.0, schedule: FitSchedule::Constant, epochs: 9, batch_size: 4, ..FitConfig::default() };
    let report = fit(&store, &features, &labels, &cfg, &options, |xs| head.forward(xs))?;
    let scores: Vec<f64> = report.history.iter().filter_map(|stats| stats.validation).collect();
    assert_eq!(scores.len(), 9);
    let most = scores.iter().copied().fold(0.0, f64::max);
    let first = scores.iter().position(|score| *score == most).map(|index| index as u64 + 1);
    assert_eq!(report.best, first);
    assert_eq!(accuracy(&head.forward(&features)?, &labels)?, most);
    assert!(most > scores[8], "the last epoch shows nothing: {scores:?}");
    Ok(())
}

#[test]
fn weights_of_classes_make_a_weighted_mean() -> Result<()> {
    let logits = Tensor::new(&[[1f64, 0.5, -1.0], [0.2, 0.1, 0.0], [3.0, -1.0, 0.3]], CPU)?;
    let labels = Labels::new(&logits, &Tensor::new(&[0u32, 2, 1], CPU)?)?;
    let weights = [0.5f32, 2.0, 3.0];
    let mut sum = 0.0;
    for (row, &(label, weight)) in logits.to_vec2::<f64>()?.iter().zip(&[(0, 0.5), (2, 3.0), (1, 2.0)]) {
        let total: f64 = row.iter().map(|x| x.exp()).sum();
        sum += weight * (total.ln() - row[label]);
    }
    let found = labels.loss(&logits, &[0, 1, 2], Some(&weights))?.to_scalar::<f64>()?;
    assert!((found - sum / 5.5).abs() < 1e-12, "{found} {}", sum / 5.5);
    let equal = labels.loss(&logits, &[0, 1, 2], Some(&[2.0; 3]))?.to_scalar::<f64>()?;
    let plain = labels.loss(&logits, &[0, 1, 2], None)?.to_scalar::<f64>()?;
    assert!((equal - plain).abs() < 1e-12);
    let half = labels.loss(&logits.to_dtype(DType::F16)?, &[0, 1, 2], Some(&weights))?;
    assert!((f64::from(half.to_scalar::<f32>()?) - found).abs() < 1e-2);
    Ok(())
}

#[test]
fn batches_and_rates() -> Result<()> {
    let steps = |n, drop_last| FitConfig { batch_size: 8, drop_last, ..config() }.steps_per_epoch(n);
    // Dassl drops what is left over only where there is a whole batch.
    assert_eq!([steps(30, true), steps(8, true), steps(7, true), steps(30, false)], [3, 1, 1, 4]);
    let (store, head) = head(DType::F32)?;
    let (features, _) = pictures(30, 1)?;
    let mut seen: Vec<Vec<u32>> = vec![];
    let cfg = FitConfig { drop_last: true, schedule: FitSchedule::Official, epochs: 2, ..config() };
    let mut step = |position: Position, indices: &[u32]| {
        assert_eq!(position.step as usize, seen.len());
        seen.push(indices.to_vec());
        let rows = features.index_select(&Tensor::new(indices, CPU)?, 0)?;
        Ok(StepOutput::new(head.forward(&rows)?.sqr()?.mean_all()?))
    };
    let report = fit_batches(&store, 30, &cfg, &FitOptions::default(), &mut step)?;
    let rates: Vec<f64> = report.history.iter().map(|stats| stats.lr).collect();
    assert_eq!((rates, report.history[0].accuracy), (vec![1e-5, 0.3], None));
    assert_eq!(seen.iter().map(Vec::len).collect::<Vec<_>>(), [8; 6]);
    let mut epoch = seen[..3].concat();
    assert_ne!(epoch, seen[3..].concat(), "the order is that of the first epoch");
    epoch.sort_unstable();
    epoch.dedup();
    assert_eq!(epoch.len(), 24, "a picture came twice");

    let rate = |cfg: &FitConfig, n, step| cfg.rate(n).at(step);
    let wave = FitConfig { schedule: FitSchedule::OfficialSteps, lr: 0.003, epochs: 25, ..config() };
    assert_eq!([0, 1, 51].map(|step| rate(&wave, 64, step)), [1e-5, 0.003, 0.003]);
    assert!(rate(&wave, 64, 26) < 1e-12);
    // 10 epochs of 4 steps, one of which is the warm-up.
    let cosine = FitConfig { lr: 0.4, epochs: 10, schedule: FitSchedule::Cosine { warmup: 1 }, ..config() };
    let rates: Vec<f64> = (0..=40).map(|step| rate(&cosine, 30, step)).collect();
    assert!((rates[0] - 0.1).abs() < 1e-12 && (rates[22] - 0.2).abs() < 1e-12, "{rates:?}");
    assert_eq!((rates[4], rates[40]), (0.4, 0.0));
    assert!(rates[4..].windows(2).all(|pair| pair[0] > pair[1]));
    Ok(())
}

#[test]
fn what_cannot_be_meant_is_told_before_training() -> Result<()> {
    let (features, labels) = pictures(30, 1)?;
    let (store, head) = head(DType::F32)?;
    let before = bits(&store)?;
    let run = |cfg: &FitConfig, labels: &Tensor| {
        fit(&store, &features, labels, cfg, &FitOptions::default(), |xs| head.forward(xs)).map(|_| ())
    };
    let mut wrong = labels.to_vec1::<u32>()?;
    wrong[29] = 3;
    let found = run(&config(), &Tensor::new(wrong, CPU)?);
    assert!(matches!(found, Err(Error::Label { index: 29, label: 3, classes: 3 })), "{found:?}");
    assert!(matches!(run(&config(), &labels.narrow(0, 0, 29)?), Err(Error::Shape { what: "labels", .. })));
    assert!(matches!(run(&config(), &labels.to_dtype(DType::I64)?), Err(Error::Config(_))));
    for cfg in [
        FitConfig { batch_size: 0, ..config() },
        FitConfig { lr: f64::NAN, ..config() },
        FitConfig { lr: -0.1, ..config() },
        FitConfig { weight_decay: f64::INFINITY, ..config() },
        FitConfig { optimizer: FitOptimizer::Sgd { momentum: 1.0 }, ..config() },
        FitConfig { optimizer: FitOptimizer::AdamW { eps: -1.0 }, ..config() },
        FitConfig { class_weights: Some(vec![1.0; 2]), ..config() },
        FitConfig { class_weights: Some(vec![1.0, 0.0, 1.0]), ..config() },
    ] {
        assert!(matches!(run(&cfg, &labels), Err(Error::Config(_))), "{cfg:?}");
    }
    let nothing = ParamStore::new(1, DType::F32, CPU);
    let found = fit(&nothing, &features, &labels, &config(), &FitOptions::default(), |xs| head.forward(xs));
    assert!(matches!(found, Err(Error::Config(_))));
    assert_eq!(bits(&store)?, before);
    Ok(())
}

#[test]
fn a_loss_that_is_no_number_stops_it() -> Result<()> {
    let (features, labels) = pictures(30, 1)?;
    let (store, head) = head(DType::F32)?;
    let mut before = vec![];
    let mut calls = 0;
    let found = fit(&store, &features, &labels, &config(), &FitOptions::default(), |xs| {
        calls += 1;
        if calls == 6 {
            before = bits(&store)?;
            return head.forward(&(xs * f64::NAN)?);
        }
        head.forward(xs)
    });
    assert!(matches!(found, Err(Error::NonFiniteLoss { step: 5, .. })), "{found:?}");
    assert_eq!(bits(&store)?, before);
    Ok(())
}

#[test]
fn a_loss_of_ones_own_and_its_errors() -> Result<()> {
    let (features, labels) = pictures(30, 1)?;
    let (store, head) = head(DType::F32)?;
    let report = fit_batches(&store, 30, &config(), &FitOptions::default(), |_, indices| {
        let ids = Tensor::new(indices, CPU)?;
        let scores = head.forward(&features.index_select(&ids, 0)?)?;
        let labels = labels.index_select(&ids, 0)?;
        let output = StepOutput::new(cross_entropy(&scores, &labels, 0.0)?);
        Ok(output.with("accuracy", accuracy(&scores, &labels)?))
    })?;
    assert!(report.history[5].accuracy > report.history[0].accuracy, "{report:?}");
    let refused = |_: Position, _: &[u32]| Err(Error::Data("no such picture".into()));
    let found = fit_batches(&store, 30, &config(), &FitOptions::default(), refused);
    assert!(matches!(found, Err(Error::Data(why)) if why == "no such picture"));
    assert!(fit_batches(&store, 0, &config(), &FitOptions::default(), refused).is_err());
    let empty = Validation { features: features.clone(), labels, batch_size: 8 };
    let options = FitOptions { validation: Some(empty), ..FitOptions::default() };
    assert!(matches!(fit_batches(&store, 30, &config(), &options, refused), Err(Error::Config(_))));
    Ok(())
}

#[test]
fn presets_are_those_of_the_papers() {
    assert_eq!([1, 2, 4, 8, 16].map(|shots| FitConfig::coop(shots).epochs), [50, 100, 100, 200, 200]);
    let coop = FitConfig::coop(16);
    assert_eq!((coop.lr, coop.weight_decay, coop.batch_size, coop.drop_last), (0.002, 5e-4, 32, true));
    assert_eq!((FitConfig::cocoop().epochs, FitConfig::cocoop().batch_size), (10, 1));
    let tip = FitConfig::tip_adapter_f();
    assert_eq!((tip.optimizer, tip.lr, tip.epochs), (FitOptimizer::AdamW { eps: 1e-4 }, 1e-3, 20));
    assert_eq!(FitConfig::dapl().rate(64).at(51), 0.003);
    let json = serde_json::to_string(&FitConfig::q16()).unwrap();
    assert_eq!(serde_json::from_str::<FitConfig>(&json).unwrap(), FitConfig::q16());
    assert!(serde_json::from_str::<FitConfig>(r#"{"epoch": 3}"#).unwrap_err().to_string().contains("epoch"));
}
