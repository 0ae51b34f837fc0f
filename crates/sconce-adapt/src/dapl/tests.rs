use candle_core::{DType, Device, Tensor, Var};
use sconce_clip::{Clip, ClipTokenizer, Config, TextConfig, TokenizerConfig, TransformerConfig, VitConfig};
use sconce_nn::{Checkpoint, ParamStore};
use sconce_ops::Generator;

use super::*;
use crate::{FitConfig, FitOptions, load_options};

type Result<T = (), E = Box<dyn std::error::Error>> = std::result::Result<T, E>;

const CLASSES: [&str; 3] = ["alarm_clock", "bike", "lamp"];
const DOMAINS: [&str; 3] = ["art", "clip_art", "photo"];
const CPU: &Device = &Device::Cpu;

fn clip(dtype: DType) -> Result<(Clip, ClipTokenizer, ParamStore)> {
    let tokenizer = ClipTokenizer::new(&TokenizerConfig { merges: 60, context_length: 48, ..Default::default() })?;
    let transformer = || TransformerConfig { heads: Some(2), ..TransformerConfig::new(8, 1) };
    let text = TextConfig {
        context_length: 48,
        vocab_size: tokenizer.vocab_size(),
        end_token: None,
        transformer: transformer(),
    };
    let vit = VitConfig { image_size: 8, patch_size: 4, transformer: transformer() };
    let store = ParamStore::new(5, dtype, CPU);
    let model = Clip::new(&Config::vit(6, vit, text), store.vb_fixed())?;
    Ok((model, tokenizer, store))
}

fn config() -> DaplConfig {
    DaplConfig { n_ctx: 2, n_dmx: 1, threshold: 0.0, ..DaplConfig::office_home() }
}

fn head(cfg: &DaplConfig, dtype: DType, domains: &[&str]) -> Result<(Dapl, ParamStore)> {
    let (model, tokenizer, _) = clip(dtype)?;
    let store = ParamStore::new(2, dtype, CPU);
    Ok((Dapl::new(cfg, &model, &tokenizer, &CLASSES, domains, store.vb())?, store))
}

fn features(n: usize, dtype: DType, seed: u64) -> Result<Tensor> {
    Ok(Generator::new(seed).normal(0.0, 1.0, (n, 6), dtype, CPU)?)
}

/// Three labelled pictures of two domains, four without labels of the third.
fn loss(dapl: &Dapl, dtype: DType) -> Result<DaplLoss> {
    let numbers = |numbers: &[u32]| Tensor::new(numbers, CPU);
    let (labels, domains) = (numbers(&[0, 2, 1])?, numbers(&[0, 1, 0])?);
    let target = numbers(&[dapl.domains() as u32 - 1; 4])?;
    let with = features(3, dtype, 1)?;
    Ok(dapl.loss((&with, &labels, &domains), (&features(4, dtype, 2)?, &target))?)
}

fn scalar(xs: &Tensor) -> Result<f64> {
    Ok(xs.to_dtype(DType::F64)?.to_scalar()?)
}

#[test]
fn gradients_are_those_of_central_differences() -> Result {
    for (class_specific, denominator) in
        [(false, Denominator::OwnDomain), (true, Denominator::OwnDomain), (false, Denominator::AllDomains)]
    {
        let cfg = DaplConfig { class_specific, denominator, ..config() };
        let (dapl, store) = head(&cfg, DType::F64, &DOMAINS)?;
        let grads = loss(&dapl, DType::F64)?.total.backward()?;
        for name in ["ctx", "domain_vectors"] {
            let var = store.get(name).ok_or(name)?;
            let found = grads.get(var.as_tensor()).ok_or(name)?.flatten_all()?.to_vec1::<f64>()?;
            let start = var.as_detached_tensor().copy()?;
            let values = start.flatten_all()?.to_vec1::<f64>()?;
            let at = |i: usize, step: f64| -> Result<f64> {
                let mut values = values.clone();
                values[i] += step;
                var.set(&Tensor::from_vec(values, start.shape(), CPU)?)?;
                scalar(&loss(&dapl, DType::F64)?.total)
            };
            let largest = found.iter().fold(0f64, |a, b| a.max(b.abs()));
            assert!(largest > 0.0, "{name}");
            for i in (0..found.len()).step_by(3) {
                let difference = (at(i, 1e-5)? - at(i, -1e-5)?) / 2e-5;
                assert!((difference - found[i]).abs() <= 1e-6 * largest, "{name} {i}: {difference} {}", found[i]);
            }
            var.set(&start)?;
        }
    }
    Ok(())
}

#[test]
fn without_a_confident_picture_the_loss_is_that_of_the_labels() -> Result {
    for denominator in [Denominator::OwnDomain, Denominator::AllDomains] {
        let cfg = DaplConfig { threshold: 1.1, denominator, ..config() };
        let (dapl, store) = head(&cfg, DType::F32, &DOMAINS)?;
        let loss = loss(&dapl, DType::F32)?;
        assert!(loss.pseudo.confident.is_empty());
        assert_eq!(scalar(&loss.unlabelled)?, 0.0);
        assert_eq!(scalar(&loss.total)?, scalar(&loss.labelled)?);
        let grads = loss.total.backward()?;
        for var in store.vars() {
            let grad = grads.get(var.as_tensor()).ok_or("no gradient")?.abs()?.sum_all()?.to_scalar::<f32>()?;
            assert!(grad.is_finite() && grad > 0.0);
        }
    }
    Ok(())
}

#[test]
fn all_domains_cost_more_than_the_own_one() -> Result {
    let (own, _) = head(&config(), DType::F32, &DOMAINS)?;
    let (all, _) = head(&DaplConfig { denominator: Denominator::AllDomains, ..config() }, DType::F32, &DOMAINS)?;
    let (own, all) = (loss(&own, DType::F32)?, loss(&all, DType::F32)?);
    // A sum of more terms; near log of the domains at the start, where they differ little.
    assert!(scalar(&all.labelled)? > scalar(&own.labelled)? + 0.5);
    assert!(scalar(&all.unlabelled)? > scalar(&own.unlabelled)? + 0.5);
    Ok(())
}

#[test]
fn a_prediction_is_the_slice_of_its_domain() -> Result {
    for class_specific in [false, true] {
        let (dapl, _) = head(&DaplConfig { class_specific, ..config() }, DType::F32, &DOMAINS)?;
        let features = features(5, DType::F32, 4)?;
        let logits = dapl.logits(&features)?;
        assert_eq!(logits.dims(), [5, 4, 3]);
        for domain in 0..3 {
            let own = logits.narrow(1, domain, 1)?.squeeze(1)?;
            let difference = (dapl.predict(&features, domain)? - own)?.abs()?.max_all()?.to_scalar::<f32>()?;
            assert!(difference < 1e-4, "{difference}");
        }
        let naive = dapl.naive.logits(&features)?;
        let difference = (logits.narrow(1, 3, 1)?.squeeze(1)? - naive)?.abs()?.max_all()?.to_scalar::<f32>()?;
        assert!(difference < 1e-4, "{difference}");
    }
    Ok(())
}

#[test]
fn names_of_domains_stand_as_they_are() -> Result {
    let (model, tokenizer, _) = clip(DType::F32)?;
    let store = ParamStore::new(2, DType::F32, CPU);
    let dapl = Dapl::new(&config(), &model, &tokenizer, &CLASSES, &DOMAINS, store.vb())?;
    let row = dapl.prompts[1].ids.get(0)?.to_vec1::<u32>()?;
    let mut expected = vec![tokenizer.start_token()];
    expected.extend(tokenizer.encode("X X X alarm clock , a clip_art image..")?);
    expected.push(tokenizer.end_token());
    assert_eq!(row[..expected.len()], expected);
    assert!(row[expected.len()..].iter().all(|id| *id == 0));
    Ok(())
}

/// Pictures around the zero-shot features of their classes, those of the target domain shifted.
fn data(dapl: &Dapl) -> Result<(DaplData, Tensor)> {
    let labels: Vec<u32> = (0..24).map(|i| i % 3).collect();
    let labels = Tensor::new(labels, CPU)?;
    let centres = dapl.naive.weights.index_select(&labels, 0)?;
    let noise = |seed| Generator::new(seed).normal(0.0, 0.1, (24, 6), DType::F32, CPU);
    let target = ((&centres + noise(1)?)? + 0.2)?;
    Ok((DaplData::new(0, &(centres + noise(2)?)?, &labels, 1, &target)?, labels))
}

#[test]
fn training_moves_the_head_alone_and_is_seeded() -> Result {
    let mut ends = vec![];
    for _ in 0..2 {
        let (model, tokenizer, frozen) = clip(DType::F32)?;
        let store = ParamStore::new(2, DType::F32, CPU);
        let cfg = DaplConfig { threshold: 0.4, ..config() };
        let dapl = Dapl::new(&cfg, &model, &tokenizer, &CLASSES, &DOMAINS[..2], store.vb())?;
        assert_eq!(store.names(), ["ctx", "domain_vectors"]);
        let bits = |store: &ParamStore| -> Result<Vec<Vec<u32>>> {
            let bits = |var: &Var| -> Result<Vec<u32>> {
                Ok(var.flatten_all()?.to_vec1::<f32>()?.into_iter().map(f32::to_bits).collect())
            };
            store.iter().map(|param| bits(&param.var)).collect()
        };
        let (before, tower) = (bits(&store)?, bits(&frozen)?);
        let (data, labels) = data(&dapl)?;
        let fit = FitConfig { epochs: 12, batch_size: 8, lr: 0.05, ..FitConfig::dapl() };
        let report = dapl.fit(&store, &data, &fit, &FitOptions::default())?;
        let (first, last) = (&report.history[0], &report.history[11]);
        assert!(last.loss < first.loss, "{} to {}", first.loss, last.loss);
        assert_eq!(bits(&frozen)?, tower);
        let after = bits(&store)?;
        assert!(before.iter().zip(&after).all(|(before, after)| before != after));
        assert_eq!(dapl.evaluate(&data.unlabelled, &labels, 1)?.total(), 24);
        ends.push(after);
    }
    assert_eq!(ends[0], ends[1]);
    Ok(())
}

#[test]
fn official_checkpoints_load_without_their_class_names() -> Result {
    let (dapl, store) = head(&config(), DType::F32, &DOMAINS)?;
    let ones = |shape: &Tensor| shape.ones_like();
    let file = [
        ("ctx".to_owned(), ones(&dapl.ctx)?),
        ("domain_vectors".to_owned(), ones(&dapl.domain_vectors)?),
        ("token_prefix".to_owned(), Tensor::zeros((12, 1, 8), DType::F32, CPU)?),
        ("token_suffix".to_owned(), Tensor::zeros((12, 44, 8), DType::F32, CPU)?),
    ];
    let report = store.load(&Checkpoint::from_tensors(file), &load_options())?;
    assert_eq!(report.loaded, ["ctx", "domain_vectors"]);
    assert_eq!(dapl.ctx.sum_all()?.to_scalar::<f32>()?, 16.0);
    Ok(())
}

#[test]
fn half_precision_flows() -> Result {
    for dtype in [DType::F16, DType::BF16] {
        let (dapl, store) = head(&config(), dtype, &DOMAINS)?;
        let loss = loss(&dapl, dtype)?;
        assert_eq!(loss.total.dtype(), dtype);
        let grads = loss.total.backward()?;
        for var in store.vars() {
            assert!(scalar(&grads.get(var.as_tensor()).ok_or("no gradient")?.sum_all()?)?.is_finite());
        }
    }
    Ok(())
}

#[test]
fn wrong_options_and_inputs_are_errors() -> Result {
    for (wrong, word) in [
        (DaplConfig { n_ctx: 0, ..config() }, "n_ctx"),
        (DaplConfig { n_dmx: 0, ..config() }, "n_dmx"),
        (DaplConfig { n_ctx: usize::MAX, ..config() }, "tokens"),
        (DaplConfig { n_ctx: 60, ..config() }, "tokens"),
        (DaplConfig { temperature: 0.0, ..config() }, "temperature"),
        (DaplConfig { threshold: f64::NAN, ..config() }, "threshold"),
        (DaplConfig { unlabelled_weight: f64::INFINITY, ..config() }, "weight"),
        (DaplConfig { naive: vec![], ..config() }, "templates"),
    ] {
        let error = head(&wrong, DType::F32, &DOMAINS).err().ok_or(word)?.to_string();
        assert!(error.contains(word), "{error}");
    }
    assert!(head(&config(), DType::F32, &["art"]).is_err());
    assert!(
        serde_json::from_str::<DaplConfig>(r#"{"n_ctx": 4, "n_dmy": 3}"#)
            .is_err_and(|e| e.to_string().contains("n_dmy"))
    );

    let (dapl, store) = head(&config(), DType::F32, &DOMAINS)?;
    assert!(dapl.predict(&features(2, DType::F32, 1)?, 3).is_err());
    assert!(dapl.logits(&Tensor::zeros((2, 5), DType::F32, CPU)?).is_err());
    let logits = dapl.logits(&features(2, DType::F32, 1)?)?;
    let numbers = |numbers: &[u32]| Tensor::new(numbers, CPU);
    for (labels, domains) in [([0, 3], &[0, 0][..]), ([0, 1], &[0, 3]), ([0, 1], &[0])] {
        for denominator in [Denominator::OwnDomain, Denominator::AllDomains] {
            let (dapl, _) = head(&DaplConfig { denominator, ..config() }, DType::F32, &DOMAINS)?;
            assert!(dapl.cross_entropy(&logits, &numbers(&labels)?, &numbers(domains)?).is_err());
        }
    }
    let (some, none) = (features(4, DType::F32, 1)?, Tensor::zeros((0, 6), DType::F32, CPU)?);
    let labels = numbers(&[0, 1, 2, 0])?;
    assert!(DaplData::new(0, &some, &labels, 1, &none).is_err());
    assert!(DaplData::new(0, &some, &numbers(&[0])?, 1, &some).is_err());
    let weights = FitConfig { class_weights: Some(vec![1.0; 3]), ..FitConfig::dapl() };
    let data = DaplData::new(0, &some, &labels, 1, &some)?;
    assert!(dapl.fit(&store, &data, &weights, &FitOptions::default()).is_err());
    Ok(())
}
