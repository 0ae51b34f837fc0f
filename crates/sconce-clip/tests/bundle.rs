//! Models in folders and files: the three formats, our own, and what must be refused.

use candle_core::{DType, Device, Tensor};
use sconce_clip::{
    Bundle, Clip, ClipTokenizer, Config, Error, Pretrained, ResNetConfig, TextConfig, Tokenize, TokenizerSpec,
    TransformerConfig, VitConfig, ZeroShotClassifier, contrastive_loss, retrieve, weights, zero_shot,
};
use sconce_data::{Filter, ResizeMode, Size};
use sconce_nn::{Checkpoint, ParamStore, SaveOptions, save_tensors};
use serde_json::{Value, json};
use std::{fs, path::Path};

type Outcome = Result<(), Box<dyn std::error::Error>>;

const CPU: Device = Device::Cpu;
const TEXTS: [&str; 3] = ["a red cat", "two dogs & a bird", "☃"];

fn text() -> TextConfig {
    let transformer = TransformerConfig::new(64, 2);
    TextConfig { context_length: 24, vocab_size: 512 + 20 + 2, end_token: None, transformer }
}

fn tiny() -> Config {
    Config::vit(16, VitConfig { image_size: 32, patch_size: 8, transformer: TransformerConfig::new(64, 2) }, text())
}

/// A new model and its parameters.
fn model(config: Config, seed: u64) -> Result<(Bundle, ParamStore), Error> {
    let store = ParamStore::new(seed, DType::F32, &CPU);
    Ok((Bundle::new(Pretrained::openai(config)?, Path::new(""), &store)?, store))
}

fn images(side: usize) -> candle_core::Result<Tensor> {
    (Tensor::arange(0f32, (2 * 3 * side * side) as f32, &CPU)? * 0.37)?.sin()?.reshape((2, 3, side, side))
}

/// Features of both towers as plain numbers.
fn features(bundle: &Bundle) -> Result<Vec<Vec<f32>>, Error> {
    let side = bundle.pretrained.model.vision.image_size();
    let mut all = bundle.model.encode_image(&images(side)?)?.to_vec2()?;
    all.extend(bundle.embed_texts(&TEXTS)?.to_vec2::<f32>()?);
    Ok(all)
}

fn tensors(store: &ParamStore) -> Vec<(String, Tensor)> {
    store.iter().map(|p| (p.name.to_string(), p.var.as_tensor().clone())).collect()
}

fn renamed(store: &ParamStore, name: impl Fn(&str) -> String) -> Vec<(String, Tensor)> {
    tensors(store).into_iter().map(|(n, t)| (name(&n), t)).collect()
}

fn write(path: &Path, json: &Value) -> std::io::Result<()> {
    fs::write(path, json.to_string())
}

/// The tensors as Hugging Face stores them: separate q, k, v, transposed projections, its own names.
fn hugging_face(store: &ParamStore) -> candle_core::Result<Vec<(String, Tensor)>> {
    let mut out = vec![];
    for (name, tensor) in tensors(store) {
        let (tower, rest) = match name.strip_prefix("visual.") {
            Some(rest) => ("vision_model", rest.to_owned()),
            None => ("text_model", name.clone()),
        };
        let rest = [
            ("transformer.resblocks.", "encoder.layers."),
            ("attn.out_proj", "self_attn.out_proj"),
            ("ln_1", "layer_norm1"),
            ("ln_2", "layer_norm2"),
            ("mlp.c_fc", "mlp.fc1"),
            ("mlp.c_proj", "mlp.fc2"),
            ("ln_pre", "pre_layrnorm"),
            ("ln_post", "post_layernorm"),
            ("ln_final", "final_layer_norm"),
            ("conv1.", "embeddings.patch_embedding."),
            ("class_embedding", "embeddings.class_embedding"),
            ("positional_embedding", "embeddings.position_embedding.weight"),
            ("token_embedding", "embeddings.token_embedding"),
        ]
        .iter()
        .fold(rest, |rest, (ours, theirs)| rest.replace(ours, theirs));
        match name.as_str() {
            "logit_scale" => out.push((name, tensor)),
            "visual.proj" => out.push(("visual_projection.weight".into(), tensor.t()?.contiguous()?)),
            "text_projection" => out.push(("text_projection.weight".into(), tensor.t()?.contiguous()?)),
            _ if rest.contains("attn.in_proj_") => {
                let third = tensor.dim(0)? / 3;
                for (i, which) in ["q", "k", "v"].iter().enumerate() {
                    let name = rest.replace("attn.in_proj_", &format!("self_attn.{which}_proj."));
                    out.push((format!("{tower}.{name}"), tensor.narrow(0, i * third, third)?.contiguous()?));
                }
            }
            _ => out.push((format!("{tower}.{rest}"), tensor)),
        }
    }
    out.push(("text_model.embeddings.position_ids".into(), Tensor::arange(0u32, 24, &CPU)?.unsqueeze(0)?));
    Ok(out)
}

#[test]
fn the_same_weights_in_every_format_give_the_same_features() -> Outcome {
    let folder = tempfile::tempdir()?;
    let (bundle, store) = model(tiny(), 11)?;
    let expected = features(&bundle)?;
    let plain = SaveOptions::default();
    let at = |name: &str| folder.path().join(name);

    // OpenAI's names: alone, inside a training script's dictionary, with the scalars of OpenAI's archives.
    save_tensors(at("plain.safetensors"), tensors(&store), &plain)?;
    save_tensors(at("wrapped.safetensors"), renamed(&store, |n| format!("state_dict.module.{n}")), &plain)?;
    let mut archive = tensors(&store);
    for name in ["input_resolution", "context_length", "vocab_size"] {
        archive.push((name.into(), Tensor::new(7u32, &CPU)?));
    }
    save_tensors(at("archive.safetensors"), archive, &plain)?;
    for name in ["plain", "wrapped", "archive"] {
        let loaded = Bundle::load(at(&format!("{name}.safetensors")), DType::F32, &CPU)?;
        assert_eq!(features(&loaded)?, expected, "{name}");
        assert_eq!(loaded.pretrained.model.text.vocab_size, 534);
    }

    // open_clip's folder, both with the text tower at the root and below `text.`.
    let open_clip = json!({"model_cfg": {"embed_dim": 16, "quick_gelu": true,
        "vision_cfg": {"image_size": 32, "layers": 2, "width": 64, "patch_size": 8},
        "text_cfg": {"context_length": 24, "vocab_size": 534, "width": 64, "heads": 1, "layers": 2}},
        "preprocess_cfg": {"mean": [0.5, 0.5, 0.5], "std": [0.25, 0.25, 0.25], "interpolation": "bilinear",
            "resize_mode": "squash"}});
    let custom = |n: &str| if n.starts_with("visual.") || n == "logit_scale" { n.into() } else { format!("text.{n}") };
    for (name, tensors) in [("open_clip", tensors(&store)), ("custom_text", renamed(&store, custom))] {
        fs::create_dir(at(name))?;
        write(&at(name).join("open_clip_config.json"), &open_clip)?;
        save_tensors(at(name).join("open_clip_model.safetensors"), tensors, &plain)?;
        let loaded = Bundle::load(at(name), DType::F32, &CPU)?;
        assert_eq!(features(&loaded)?, expected, "{name}");
        assert_eq!(loaded.pretrained.preprocess.normalize.std, [0.25; 3]);
        assert_eq!(loaded.pretrained.preprocess.filter, Filter::Bilinear);
        assert_eq!(loaded.pretrained.preprocess.resize, ResizeMode::Exact(Size::square(32)));
        assert!(loaded.tokenizer.truncates());
    }

    // Hugging Face's folder, with its tokenizer.
    let hf = at("hf");
    fs::create_dir(&hf)?;
    let tower = |more: Value| {
        let mut tower =
            json!({"hidden_size": 64, "intermediate_size": 256, "num_hidden_layers": 2, "num_attention_heads": 1});
        tower.as_object_mut().into_iter().zip(more.as_object()).for_each(|(t, m)| t.extend(m.clone()));
        tower
    };
    let config = json!({"model_type": "clip", "projection_dim": 16,
        "vision_config": tower(json!({"image_size": 32, "patch_size": 8})),
        "text_config": tower(json!({"vocab_size": 534, "max_position_embeddings": 24, "eos_token_id": 533}))});
    write(&hf.join("config.json"), &config)?;
    write(&hf.join("preprocessor_config.json"), &json!({"image_mean": [0.1, 0.2, 0.3], "crop_size": 32}))?;
    let TokenizerSpec::ClipBpe(bpe) = &bundle.pretrained.tokenizer else { return Err("no BPE".into()) };
    write(&hf.join("tokenizer.json"), &ClipTokenizer::new(bpe)?.to_tokenizer_json())?;
    save_tensors(hf.join("model.safetensors"), hugging_face(&store)?, &plain)?;
    let loaded = Bundle::load(&hf, DType::F32, &CPU)?;
    assert_eq!(features(&loaded)?, expected);
    assert_eq!(loaded.pretrained.preprocess.normalize.mean, [0.1, 0.2, 0.3]);
    assert_eq!(loaded.pretrained.model.text.end_token, Some(533));
    assert!(matches!(loaded.pretrained.tokenizer, TokenizerSpec::Json { .. }));

    // Our own folder, whole and in half precision; and into a store to train on.
    bundle.save(at("ours"), &store, &plain)?;
    assert_eq!(features(&Bundle::load(at("ours"), DType::F32, &CPU)?)?, expected);
    bundle.save(at("half"), &store, &plain.with_dtype(DType::F16))?;
    let half = features(&Bundle::load(at("half"), DType::F32, &CPU)?)?;
    let far = half.iter().flatten().zip(expected.iter().flatten()).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
    assert!(far > 0.0 && far < 1e-2, "{far}");
    for name in ["wrapped.safetensors", "hf", "ours"] {
        let fresh = ParamStore::new(99, DType::F32, &CPU);
        let (loaded, report) = Bundle::load_trainable(at(name), &fresh)?;
        assert!(report.is_clean(), "{report}");
        assert_eq!(features(&loaded)?, expected, "{name}");
    }
    Ok(())
}

#[test]
fn a_resnet_is_inferred_from_its_checkpoint() -> Outcome {
    let resnet = ResNetConfig { image_size: 64, depths: [1, 2, 1, 1], width: 4, heads: None };
    let (bundle, store) = model(Config::resnet(24, resnet, text()), 5)?;
    let folder = tempfile::tempdir()?;
    let file = folder.path().join("rn.safetensors");
    let mut all = tensors(&store);
    all.push(("visual.bn1.num_batches_tracked".into(), Tensor::new(3u32, &CPU)?));
    save_tensors(&file, all, &SaveOptions::default())?;
    let loaded = Bundle::load(&file, DType::F32, &CPU)?;
    assert_eq!(loaded.pretrained.model, bundle.pretrained.model);
    assert_eq!(features(&loaded)?, features(&bundle)?);
    Ok(())
}

#[test]
fn heads_of_any_width_survive_saving() -> Outcome {
    let transformer = TransformerConfig { heads: Some(4), ..TransformerConfig::new(32, 1) };
    let vit = VitConfig { image_size: 16, patch_size: 8, transformer: transformer.clone() };
    let config = Config::vit(8, vit, TextConfig { transformer, ..text() });
    let (bundle, store) = model(config, 8)?;
    let folder = tempfile::tempdir()?;
    bundle.save(folder.path(), &store, &SaveOptions::default())?;
    for path in [folder.path().to_owned(), folder.path().join(sconce_clip::WEIGHTS_FILE)] {
        let loaded = Bundle::load(path, DType::F32, &CPU)?;
        assert_eq!(loaded.pretrained, bundle.pretrained);
        assert_eq!(features(&loaded)?, features(&bundle)?);
    }
    // Without the record, heads cannot be told.
    let plain = folder.path().join("plain.safetensors");
    save_tensors(&plain, tensors(&store), &SaveOptions::default())?;
    assert!(matches!(Bundle::load(&plain, DType::F32, &CPU), Err(Error::Config(_))));
    Ok(())
}

#[test]
fn loading_is_strict() -> Outcome {
    let (_, store) = model(tiny(), 1)?;
    let folder = tempfile::tempdir()?;
    let file = folder.path().join("model.safetensors");
    let load = |tensors: Vec<(String, Tensor)>| -> Result<Bundle, Error> {
        save_tensors(&file, tensors, &SaveOptions::default())?;
        Bundle::load(&file, DType::F32, &CPU)
    };
    let mut more = tensors(&store);
    more.push(("visual.head.weight".into(), Tensor::zeros(2, DType::F32, &CPU)?));
    let error = load(more).map(|_| ()).unwrap_err();
    assert!(matches!(&error, Error::Checkpoint(m) if m.contains("visual.head.weight")), "{error}");
    let without = |name: &str| tensors(&store).into_iter().filter(|(n, _)| n != name).collect();
    for name in ["visual.ln_post.bias", "transformer.resblocks.1.mlp.c_fc.weight", "logit_scale", "text_projection"] {
        let error = load(without(name)).map(|_| ()).unwrap_err().to_string();
        assert!(error.contains(name), "{error}");
    }
    let other = renamed(&store, |n| format!("x{n}"));
    assert!(matches!(load(other), Err(Error::Checkpoint(_))));
    assert!(Bundle::load(folder.path().join("none"), DType::F32, &CPU).is_err());
    Ok(())
}

#[test]
fn positions_are_resampled_for_another_size() -> Outcome {
    let (bundle, store) = model(tiny(), 1)?;
    let checkpoint = Checkpoint::from_tensors(tensors(&store));
    let mut record = bundle.pretrained.clone();
    record.model = record.model.with_image_size(48);
    assert!(matches!(record.validate(), Err(Error::Config(_))));
    let mut record = bundle.pretrained.clone().with_image_size(48)?;
    record.model.text.context_length = 30;
    let larger = Bundle::with_record(record, Path::new(""), &checkpoint, DType::F32, &CPU)?;
    assert_eq!(larger.model.encode_image(&images(48)?)?.dims(), [2, 16]);
    let positions = store.get("visual.positional_embedding").ok_or("no positions")?;
    let grown = weights::resize_grid_positions(positions.as_tensor(), 6)?;
    assert_eq!(grown.dims(), [37, 64]);
    assert_eq!(grown.get(0)?.to_vec1::<f32>()?, positions.get(0)?.to_vec1::<f32>()?);
    let same = weights::resize_grid_positions(positions.as_tensor(), 4)?;
    let moved = (same - positions.as_tensor())?.abs()?.max_all()?.to_scalar::<f32>()?;
    assert!(moved < 1e-6, "{moved}");
    assert!(weights::resize_grid_positions(&positions.narrow(0, 0, 16)?, 6).is_err());
    Ok(())
}

#[test]
fn zero_shot_and_retrieval() -> Outcome {
    let (bundle, _) = model(tiny(), 3)?;
    let (model, tokenizer) = (&bundle.model, &*bundle.tokenizer);
    let classes = ["cat", "dog", "bird"];
    let classifier = ZeroShotClassifier::new(model, tokenizer, &classes, zero_shot::BEST_SEVEN)?;
    // Against the definition, class by class.
    for (k, class) in classes.iter().enumerate() {
        let texts: Vec<String> = zero_shot::BEST_SEVEN.iter().map(|t| zero_shot::fill_template(t, class)).collect();
        let mean = bundle.embed_texts(&texts)?.mean(0)?;
        let length = mean.sqr()?.sum_all()?.sqrt()?.to_scalar::<f32>()?;
        let expected = (mean / f64::from(length))?;
        let far = (expected - classifier.weights.get(k)?)?.abs()?.max_all()?.to_scalar::<f32>()?;
        assert!(far < 1e-6, "{class}: {far}");
    }
    let features = model.encode_image(&images(32)?)?;
    let ranked = classifier.classify(&features, 2)?;
    let logits = classifier.logits(&features)?.to_vec2::<f32>()?;
    for (row, logits) in ranked.iter().zip(logits) {
        let best = (0..3).max_by(|a, b| logits[*a].total_cmp(&logits[*b])).ok_or("no class")?;
        assert!(row.len() == 2 && row[0].0 == classes[best] && row[0].1 >= row[1].1);
    }
    let gallery = bundle.embed_texts(&TEXTS)?;
    let found = retrieve(&gallery, &gallery, 1)?;
    assert_eq!(found.iter().map(|row| row[0].0).collect::<Vec<_>>(), [0, 1, 2]);
    let none: [&str; 0] = [];
    assert!(matches!(ZeroShotClassifier::new(model, tokenizer, &none, zero_shot::PHOTO), Err(Error::Input(_))));
    assert!(bundle.embed_texts(&none).is_err());
    assert!(matches!(bundle.embed_texts(&["cat ".repeat(30)]), Err(Error::TextTooLong { .. })));
    Ok(())
}

/// A few steps on two pairs: the loss falls and the pairs find each other.
#[test]
fn a_tiny_model_learns_pairs() -> Outcome {
    let (bundle, store) = model(tiny(), 2)?;
    let ids = bundle.tokenizer.tokenize(&TEXTS[..2], &CPU)?;
    let images = images(32)?;
    let (mut first, mut last) = (None, f32::NAN);
    for _ in 0..30 {
        let output = bundle.model.forward_t(&images, &ids, true)?;
        let loss = contrastive_loss(&output, &Default::default())?;
        last = loss.to_scalar()?;
        first.get_or_insert(last);
        let grads = loss.backward()?;
        for var in store.vars() {
            if let Some(grad) = grads.get(var.as_tensor()) {
                var.set(&(var.as_tensor() - (grad * 0.02)?)?)?;
            }
        }
        bundle.model.clamp_logit_scale()?;
    }
    assert!(first.is_some_and(|first| last < 0.5 * first), "{first:?} to {last}");
    Ok(())
}

#[test]
fn hostile_folders_are_refused() -> Outcome {
    let folder = tempfile::tempdir()?;
    let (bundle, store) = model(tiny(), 1)?;
    bundle.save(folder.path(), &store, &SaveOptions::default())?;
    let config = folder.path().join("config.json");
    let good = fs::read(&config)?;
    let checkpoint = Checkpoint::open(folder.path())?;
    let read = |bytes: &[u8]| -> Result<Pretrained, Error> {
        fs::write(&config, bytes).map_err(|source| Error::Io { path: config.clone(), source })?;
        Pretrained::read(folder.path(), &checkpoint)
    };
    assert_eq!(read(&good)?, bundle.pretrained);
    for i in 0..300usize {
        let mut bad = good.clone();
        let at = i * 7919 % bad.len();
        if i % 3 == 0 {
            bad.truncate(at)
        } else {
            bad[at] ^= 1 << (i % 7)
        }
        // A flip inside a number may still be a sound configuration; then it must be usable or refused in turn.
        if let Ok(record) = read(&bad) {
            let _ = record.tokenizer(folder.path());
            let _ = Clip::new(&record.model, checkpoint.vb(DType::F32, &CPU));
        }
    }
    for file in ["../tokenizer.json", "/etc/passwd", "", "a/b.json"] {
        let spec = TokenizerSpec::Json { file: file.into(), context_length: 24 };
        let record = Pretrained { tokenizer: spec, ..bundle.pretrained.clone() };
        assert!(matches!(record.tokenizer(folder.path()), Err(Error::Tokenizer(_))), "{file}");
    }
    let spec = TokenizerSpec::Json { file: "missing.json".into(), context_length: 24 };
    let record = Pretrained { tokenizer: spec, ..bundle.pretrained.clone() };
    assert!(matches!(record.tokenizer(folder.path()), Err(Error::Io { .. })));
    // An end token that the model does not look for.
    let mut record = bundle.pretrained.clone();
    record.model.text.end_token = Some(7);
    assert!(matches!(record.tokenizer(folder.path()), Err(Error::Tokenizer(_))));
    // More tokens than the model has rows.
    let mut record = bundle.pretrained.clone();
    record.model.text.vocab_size = 100;
    assert!(matches!(record.tokenizer(folder.path()), Err(Error::Tokenizer(_))));
    Ok(())
}

#[test]
fn a_bundle_is_shared_between_threads() {
    fn shared<T: Send + Sync + Clone>() {}
    shared::<Bundle>();
    shared::<ClipTokenizer>();
    shared::<std::sync::Arc<dyn Tokenize>>();
}
