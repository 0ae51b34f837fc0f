use candle_core::{DType, Device, Tensor};
use sconce_clip::{Clip, ClipTokenizer, Config, TextConfig, Tokenize, TokenizerConfig, TransformerConfig, VitConfig};
use sconce_nn::ParamStore;
use sconce_ops::{Generator, cross_entropy};

use super::*;
use crate::{FitConfig, FitOptions, fit};

type Result<T = (), E = Box<dyn std::error::Error>> = std::result::Result<T, E>;

const CPU: &Device = &Device::Cpu;

/// Three kinds of pictures, one unlike the other two.
fn pictures(n: usize, dtype: DType) -> Result<(Tensor, Tensor)> {
    let labels: Vec<u32> = (0..n as u32).map(|i| u32::from(i % 3 == 0)).collect();
    let noise = Generator::new(3).normal(0.0, 0.3, (n, 6), DType::F64, CPU)?;
    let centres: Vec<f64> = (0..n).flat_map(|i| (0..6).map(move |e| f64::from(u8::from(e == i % 3)))).collect();
    let features = (noise + Tensor::from_vec(centres, (n, 6), CPU)?)?;
    Ok((features.to_dtype(dtype)?, Tensor::new(labels, CPU)?))
}

fn start(dtype: DType) -> Result<Tensor> {
    Ok(Generator::new(9).normal(0.0, 1.0, (2, 6), dtype, CPU)?)
}

#[test]
fn tuning_finds_the_flagged_kind_and_repeats() -> Result {
    let (features, labels) = pictures(60, DType::F32)?;
    let settings = FitConfig { epochs: 60, ..FitConfig::q16() };
    let run = || -> Result<Tuned> {
        let start = start(DType::F32)?;
        Ok(tune(&Q16Config::default(), &start, &features, &labels, &settings, &FitOptions::default())?)
    };
    let (first, second) = (run()?, run()?);
    assert_eq!(first.store.names(), ["prompts"]);
    assert_eq!(first.head.prompts.to_vec2::<f32>()?, second.head.prompts.to_vec2::<f32>()?);
    let flags = first.head.flags(&features, 1, 0.5)?;
    let right = flags.labels.iter().zip(labels.to_vec1::<u32>()?).filter(|(a, b)| **a == *b).count();
    assert!(right >= 54, "{right} of 60");
    // The baseline, on the same.
    let store = ParamStore::new(1, DType::F32, CPU);
    let probe = LinearProbe::new(6, 2, store.vb())?;
    let settings = FitConfig { epochs: 60, ..FitConfig::q16() };
    let report = fit(&store, &features, &labels, &settings, &FitOptions::default(), |xs| probe.logits(xs))?;
    assert!(report.history[59].loss < report.history[0].loss);
    Ok(())
}

#[test]
fn prompts_begin_as_texts_and_the_tower_stays() -> Result {
    let tokenizer = ClipTokenizer::new(&TokenizerConfig { merges: 60, context_length: 48, ..Default::default() })?;
    let transformer = || TransformerConfig { heads: Some(2), ..TransformerConfig::new(8, 1) };
    let vocab_size = tokenizer.vocab_size();
    let text = TextConfig { context_length: 48, vocab_size, end_token: None, transformer: transformer() };
    let vit = VitConfig { image_size: 8, patch_size: 4, transformer: transformer() };
    let frozen = ParamStore::new(5, DType::F32, CPU);
    let model = Clip::new(&Config::vit(6, vit, text), frozen.vb_fixed())?;
    let bits = || -> Result<Vec<Vec<f32>>> {
        frozen.iter().map(|param| Ok(param.var.flatten_all()?.to_vec1::<f32>()?)).collect()
    };
    let before = bits()?;
    let start = encode_texts(&model, &tokenizer, &POSITIVE_NEGATIVE)?;
    let ids = tokenizer.tokenize(&POSITIVE_NEGATIVE, CPU)?;
    assert_eq!(start.to_vec2::<f32>()?, model.encode_text(&ids)?.to_vec2::<f32>()?);
    let (features, labels) = pictures(20, DType::F32)?;
    let tuned = tune(
        &Q16Config::default(),
        &start,
        &features,
        &labels,
        &FitConfig { epochs: 3, ..FitConfig::q16() },
        &FitOptions::default(),
    )?;
    assert_ne!(tuned.head.prompts.to_vec2::<f32>()?, start.to_vec2::<f32>()?);
    assert_eq!(bits()?, before);
    Ok(())
}

#[test]
fn gradients_are_those_of_central_differences() -> Result {
    let (features, labels) = pictures(7, DType::F64)?;
    for scoring in [Scoring::Cosine, Scoring::RawProduct] {
        let store = ParamStore::new(1, DType::F64, CPU);
        let head = Q16::new(&Q16Config { scale: 5.0, scoring }, &start(DType::F64)?, store.vb())?;
        let loss = || -> Result<Tensor> { Ok(cross_entropy(&head.logits(&features)?, &labels, 0.0)?) };
        let var = store.get("prompts").ok_or("no prompts")?;
        let grads = loss()?.backward()?;
        let found = grads.get(var.as_tensor()).ok_or("no gradient")?.flatten_all()?.to_vec1::<f64>()?;
        let values = var.as_detached_tensor().copy()?.flatten_all()?.to_vec1::<f64>()?;
        for i in 0..values.len() {
            let at = |step: f64| -> Result<f64> {
                let mut values = values.clone();
                values[i] += step;
                var.set(&Tensor::from_vec(values, (2, 6), CPU)?)?;
                Ok(loss()?.to_scalar()?)
            };
            let difference = (at(1e-5)? - at(-1e-5)?) / 2e-5;
            assert!((difference - found[i]).abs() < 1e-7, "{i}: {difference} {}", found[i]);
        }
    }
    Ok(())
}

#[test]
fn any_number_of_classes_and_any_type() -> Result {
    for dtype in [DType::F16, DType::BF16, DType::F32, DType::F64] {
        let (features, _) = pictures(5, dtype)?;
        let start = Generator::new(1).normal(0.0, 1.0, (4, 6), DType::F32, CPU)?;
        let head = Q16::new(&Q16Config::default(), &start, ParamStore::new(1, DType::F32, CPU).vb())?;
        assert_eq!((head.classes(), head.logits(&features)?.dtype()), (4, dtype));
        let flags = head.flags(&features, 3, 0.0)?;
        let three = flags.labels.iter().map(|label| *label == 3).collect::<Vec<_>>();
        assert_eq!((flags.flagged, flags.labels.len()), (three, 5));
        let tuned = tune(
            &Q16Config::default(),
            &start,
            &features,
            &Tensor::new(&[0u32, 1, 2, 3, 3], CPU)?,
            &FitConfig { epochs: 2, ..FitConfig::q16() },
            &FitOptions::default(),
        )?;
        assert_eq!(tuned.report.history.len(), 2);
    }
    Ok(())
}

#[test]
fn weights_of_classes_are_the_share_of_the_other() {
    assert_eq!(class_weights(&[0, 0, 0, 1], 2), [0.25, 0.75]);
    assert_eq!(class_weights(&[0, 1, 1, 3], 4), [0.4, 0.2, 1.0, 0.4]);
    assert_eq!(class_weights(&[], 2), [1.0, 1.0]);
}

#[test]
fn tuned_prompts_are_read_from_both_kinds_of_file() -> Result {
    let folder = tempfile::tempdir()?;
    let path = folder.path().join("prompts.safetensors");
    let store = ParamStore::new(1, DType::F32, CPU);
    let start = start(DType::F32)?;
    Q16::new(&Q16Config::default(), &start, store.vb())?;
    store.save(&path)?;
    assert_eq!(read_prompts(&path, CPU)?.to_vec2::<f32>()?, start.to_vec2::<f32>()?);
    // The published form: a bare array in half precision.
    let pickled = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../sconce-nn/tests/fixtures/prompts.p");
    let pickled = read_prompts(pickled, CPU)?;
    assert_eq!((pickled.dims(), pickled.dtype()), (&[2, 8][..], DType::F16));
    let store = ParamStore::new(1, DType::F32, CPU);
    Q16::new(&Q16Config::default(), &pickled, store.vb())?;
    assert!(read_prompts(folder.path().join("none.p"), CPU).is_err());
    for shape in [vec![6], vec![1, 6], vec![2, 0], vec![2, 3, 4]] {
        let wrong = Tensor::zeros(shape, DType::F32, CPU)?;
        let path = folder.path().join("wrong.safetensors");
        sconce_nn::save_tensors(&path, vec![("prompts".to_owned(), wrong)], &Default::default())?;
        assert!(read_prompts(&path, CPU).is_err());
    }
    Ok(())
}

#[test]
fn documentation_lists_what_was_flagged() -> Result {
    let folder = tempfile::tempdir()?;
    let out = folder.path().join("a/b");
    let captions = ["a cake on a plate", "a plate of rice", "a red balloon", "the red bicycle", "a red plate"];
    let items: Vec<Item> = (0..)
        .zip(captions)
        .map(|(i, caption)| Item { filename: format!("{i}, x.png"), captions: vec![caption.into()] })
        .collect();
    let flags = Flags {
        labels: vec![1, 1, 0, 0, 1],
        scores: vec![0.95, 0.99, 0.8, 0.9, 0.6],
        flagged: vec![true, true, false, false, false],
        class: 1,
        threshold: 0.9,
    };
    let options = DocumentOptions { classes: vec!["other".into(), "food".into()], ..Default::default() };
    let summary = document(&out, &items, &flags, &options)?;
    assert_eq!((summary.items, summary.flagged, summary.class.as_str()), (5, 2, "food"));
    assert_eq!(summary.by_class, [("other".into(), 2), ("food".into(), 3)]);
    assert!(summary.words.iter().any(|word| word.word == "cake" && word.expected.is_none()));
    assert!(summary.words.iter().all(|word| word.word != "balloon"));
    let read = |name: &str| std::fs::read_to_string(out.join(name));
    assert_eq!(read("report.csv")?, "label,idx,score,filename\n1,0,0.95,\"0, x.png\"\n1,1,0.99,\"1, x.png\"\n");
    assert_eq!(serde_json::from_str::<Summary>(&read("summary.json")?)?, summary);
    assert!(read("words_weighted.svg")?.contains(">cake</text>") && read("words.svg")?.contains(">plate</text>"));
    for name in ["words.png", "words_weighted.png"] {
        assert_eq!(image::load_from_memory(&std::fs::read(out.join(name))?)?.to_rgb8().dimensions(), (400, 300));
    }
    // Again: every file has the same bytes.
    let bytes = std::fs::read(out.join("words.png"))?;
    let all = DocumentOptions { all: true, ..options };
    document(&out, &items, &flags, &all)?;
    assert_eq!(std::fs::read(out.join("words.png"))?, bytes);
    assert_eq!(read("report.csv")?.lines().count(), 6);
    assert!(document(&out, &items[1..], &flags, &all).is_err());
    Ok(())
}

#[test]
fn wrong_options_and_inputs_are_errors() -> Result {
    let vb = || ParamStore::new(1, DType::F32, CPU).vb();
    let start = start(DType::F32)?;
    for scale in [0.0, -1.0, f64::NAN, f64::INFINITY] {
        assert!(Q16::new(&Q16Config { scale, ..Default::default() }, &start, vb()).is_err());
    }
    assert!(Q16::new(&Q16Config::default(), &start.narrow(0, 0, 1)?, vb()).is_err());
    let head = Q16::new(&Q16Config::default(), &start, vb())?;
    assert!(head.logits(&Tensor::zeros((3, 5), DType::F32, CPU)?).is_err());
    assert!(head.flags(&pictures(3, DType::F32)?.0, 2, 0.5).is_err());
    assert!(head.flags(&pictures(3, DType::F32)?.0, 1, f64::NAN).is_err());
    assert!(serde_json::from_str::<Q16Config>(r#"{"scales": 1}"#).is_err());
    Ok(())
}
