//! Wukong's variants and towers: all of it trains, padding never counts, a locked tower stays as it is, folders read back.

use std::path::Path;
use std::sync::Arc;

use candle_core::{D, DType, Device, Tensor};
use sconce_backbones::{Backbone, BackboneConfig, resnet, swin};
use sconce_clip::wukong::{
    Bundle, Config, Locked, LockedConfig, Pretrained, ReductionConfig, TemplateClassifier, Variant, VisionConfig,
    Wukong, official_names, to_official_name, weights_digest,
};
use sconce_clip::{
    Bundle as ClipBundle, Clip, Config as ClipConfig, Error, Pairing, Pretrained as ClipPretrained, ResNetConfig,
    TextConfig, Tokenize, TokenizerSpec, TransformerConfig, VitConfig, WEIGHTS_FILE, WordPiece,
};
use sconce_data::Picture;
use sconce_nn::{Checkpoint, Generator, ParamStore, SaveOptions, save_tensors};

type Outcome = Result<(), Box<dyn std::error::Error>>;
const CPU: Device = Device::Cpu;
const TEXTS: [&str; 3] = ["一只猫", "红色的苹果", "OK手势"];

fn tokenizer() -> WordPiece {
    WordPiece::of_corpus(&TEXTS, 12).unwrap()
}

fn blocks(width: usize) -> TransformerConfig {
    TransformerConfig { heads: Some(2), eps: 1e-7, ..TransformerConfig::new(width, 2) }
}

fn text() -> TextConfig {
    let vocab_size = tokenizer().vocab_size();
    TextConfig { context_length: 12, vocab_size, end_token: None, transformer: blocks(32) }
}

fn config(vision: VisionConfig, variant: Variant) -> Config {
    Config { embed_dim: 16, vision, text: text(), variant, ..Config::default() }
}

fn variants() -> [Variant; 3] {
    let reduction = ReductionConfig { tokens: 3, groups: 4, ..ReductionConfig::default() };
    [Variant::Global, Variant::Filip, Variant::Reduced(reduction)]
}

/// A ViT, a residual network with 4 x 4 cells, a Swin.
fn towers() -> [VisionConfig; 3] {
    let vit = VitConfig { image_size: 32, patch_size: 8, transformer: blocks(32) };
    let resnet = resnet::Config { output_stride: 8, ..resnet::Config::test_resnet_basic() };
    let backbone = |config: BackboneConfig| VisionConfig::Backbone(config.with_num_classes(0));
    [VisionConfig::Vit(vit), backbone(resnet.into()), backbone(swin::Config::test_swin().into())]
}

fn store(seed: u64) -> ParamStore {
    ParamStore::new(seed, DType::F32, &CPU)
}

fn images(seed: u64) -> Tensor {
    Generator::new(seed).normal(0.0, 1.0, (3, 3, 32, 32), DType::F32, &CPU).unwrap()
}

fn far(a: &Tensor, b: &Tensor) -> f32 {
    (a - b).unwrap().abs().unwrap().max_all().unwrap().to_scalar().unwrap()
}

fn loss(model: &Wukong, images: &Tensor, train: bool) -> Result<Tensor, Box<dyn std::error::Error>> {
    let ids = tokenizer().tokenize(&TEXTS, &CPU)?;
    let (images, texts) = (model.encode_image(images, train)?, model.encode_text(&ids, train)?);
    Ok(model.similarity(&images, &texts)?.loss(&model.scale()?, &Pairing::Diagonal)?)
}

/// Every parameter of the store has a finite gradient that is not zero.
fn all_train(what: &str, store: &ParamStore, loss: &Tensor) -> Outcome {
    let grads = loss.backward()?;
    for param in store.parameters() {
        let grad = grads.get(param.var.as_tensor()).ok_or_else(|| format!("{what}: {} has no gradient", param.name))?;
        let sum = grad.abs()?.sum_all()?.to_scalar::<f32>()?;
        assert!(sum.is_finite() && sum > 0.0, "{what}: {} has a gradient of {sum}", param.name);
    }
    Ok(())
}

#[test]
fn every_parameter_of_every_variant_trains() -> Outcome {
    for vision in towers() {
        for variant in variants() {
            let what = format!("{vision:?} {variant:?}");
            let store = store(3);
            let model = Wukong::new(&config(vision.clone(), variant), store.vb())?;
            // Away from the start, where the last norm of a residual branch is zero.
            let generator = Generator::new(5);
            for param in store.parameters() {
                let noise = generator.normal(0.0, 0.05, param.var.shape(), DType::F32, &CPU)?;
                param.var.set(&(param.var.as_tensor() + noise)?)?;
            }
            all_train(&what, &store, &loss(&model, &images(1), true)?)?;
        }
    }
    Ok(())
}

#[test]
fn tokens_are_as_many_as_the_variant_says() -> Outcome {
    let ids = tokenizer().tokenize(&TEXTS, &CPU)?;
    for (vision, cells) in towers().into_iter().zip([16, 16, 0]) {
        for (variant, count) in variants().into_iter().zip([1, cells, 3]) {
            let model = Wukong::new(&config(vision.clone(), variant.clone()), store(1).vb())?;
            let tokens = model.encode_image(&images(2), false)?;
            let (batch, found, width) = tokens.dims3()?;
            assert!((batch, width) == (3, 16) && (found == count || count == 0), "{:?}", tokens.dims());
            let lengths = tokens.sqr()?.sum(D::Minus1)?.flatten_all()?.to_vec1::<f32>()?;
            assert!(lengths.iter().all(|length| (length - 1.0).abs() < 1e-5));
            let texts = model.encode_text(&ids, false)?;
            let words = if variant == Variant::Global { 1 } else { 7 };
            assert_eq!(texts.valid.dims(), [3, words]);
        }
    }
    Ok(())
}

#[test]
fn padding_changes_nothing() -> Outcome {
    let [vision, ..] = towers();
    let images = images(4);
    for variant in variants() {
        let model = Wukong::new(&config(vision.clone(), variant), store(2).vb())?;
        let tokens = model.encode_image(&images, false)?;
        let together = model.encode_text(&tokenizer().tokenize(&TEXTS, &CPU)?, false)?;
        let together = model.similarity(&tokens, &together)?;
        for (i, text) in TEXTS.iter().enumerate() {
            // Alone a text has no padding beside it, and with the words after its end set to anything it is the same text.
            let alone = model.encode_text(&tokenizer().tokenize(&[text], &CPU)?, false)?;
            let alone = model.similarity(&tokens, &alone)?;
            for (a, b) in
                [(&alone.image_to_text, &together.image_to_text), (&alone.text_to_image, &together.text_to_image)]
            {
                assert!(far(a, &b.narrow(1, i, 1)?) < 1e-5, "{text}");
            }
        }
    }
    Ok(())
}

fn clip(vit: bool) -> Result<(ClipBundle, ParamStore), Error> {
    let text = TextConfig {
        context_length: 8,
        vocab_size: 534,
        end_token: None,
        transformer: TransformerConfig { heads: Some(1), ..TransformerConfig::new(16, 1) },
    };
    let config = if vit {
        ClipConfig::vit(12, VitConfig { image_size: 32, patch_size: 8, transformer: blocks(32) }, text)
    } else {
        let resnet = ResNetConfig { image_size: 32, depths: [1, 1, 1, 1], width: 4, heads: Some(2) };
        ClipConfig::resnet(12, resnet, text)
    };
    let store = store(9);
    Ok((ClipBundle::new(ClipPretrained::openai(config)?, Path::new(""), &store)?, store))
}

fn locked(tower: &Locked, project: bool, folder: &str, sha256: &str) -> VisionConfig {
    VisionConfig::Locked(LockedConfig {
        folder: folder.into(),
        sha256: sha256.into(),
        image_size: 32,
        width: tower.width,
        stage: tower.stage,
        project,
    })
}

fn bytes(store: &ParamStore) -> Vec<(String, Vec<u32>)> {
    let bits = |t: &Tensor| t.flatten_all().unwrap().to_vec1::<f32>().unwrap().into_iter().map(f32::to_bits).collect();
    store.iter().map(|p| (p.name.to_string(), bits(&p.var.as_detached_tensor()))).collect()
}

/// A few steps beside a tower whose own tensors are variables: they get no gradient and keep their bits, batch statistics too.
#[test]
fn a_locked_tower_keeps_its_bits() -> Outcome {
    for (vit, stage) in [(true, None), (false, Some(2)), (false, Some(3))] {
        let (bundle, tower_store) = clip(vit)?;
        let before = bytes(&tower_store);
        let grid = Locked::grid(&bundle.model, stage)?;
        for (variant, tower) in variants().into_iter().zip([Locked::embedding(&bundle.model), grid.clone(), grid]) {
            let store = store(4);
            let config = config(locked(&tower, true, "", ""), variant);
            let model = Wukong::with_locked(&config, tower, store.vb())?;
            let first = loss(&model, &images(1), true)?;
            all_train("locked", &store, &first)?;
            for _ in 0..3 {
                let grads = loss(&model, &images(1), true)?.backward()?;
                assert!(tower_store.vars().iter().all(|var| grads.get(var.as_tensor()).is_none()));
                for var in store.vars() {
                    let step = (grads.get(var.as_tensor()).ok_or("no gradient")? * 0.01)?;
                    var.set(&(var.as_tensor() - step)?)?;
                }
            }
            let last = loss(&model, &images(1), true)?.to_scalar::<f32>()?;
            assert!(last < first.to_scalar::<f32>()?, "{last}");
            assert_eq!(bytes(&tower_store), before);
        }
    }
    Ok(())
}

#[test]
fn a_backbone_is_locked_like_a_clip_tower() -> Outcome {
    let [_, VisionConfig::Backbone(backbone), _] = towers() else { return Err("no backbone".into()) };
    let tower_store = store(6);
    let net: Arc<dyn Backbone> = backbone.build(tower_store.vb())?.into();
    let before = bytes(&tower_store);
    for (stage, variant) in [(None, Variant::Global), (None, Variant::Filip), (Some(3), Variant::Filip)] {
        let tower = Locked::backbone(net.clone(), stage)?;
        let store = store(4);
        let model = Wukong::with_locked(&config(locked(&tower, true, "", ""), variant), tower, store.vb())?;
        all_train("backbone", &store, &loss(&model, &images(1), true)?)?;
    }
    assert_eq!(bytes(&tower_store), before);
    assert!(matches!(Locked::backbone(net, Some(99)), Err(Error::Config(_))));
    Ok(())
}

#[test]
fn wrong_options_and_inputs_are_errors() -> Outcome {
    let [vit, ..] = towers();
    let (bundle, _) = clip(true)?;
    let tower = Locked::embedding(&bundle.model);
    let new = |config: &Config| Wukong::new(config, store(1).vb());
    let good = config(vit.clone(), Variant::Filip);
    let model = new(&good)?;
    assert!(new(&Config { embed_dim: 0, ..good.clone() }).is_err());
    assert!(new(&config(locked(&tower, true, "", ""), Variant::Global)).is_err(), "the tower is missing");
    assert!(Wukong::with_locked(&good, tower.clone(), store(1).vb()).is_err(), "the model has a tower");
    let narrow = Locked { width: 11, ..tower.clone() };
    let wanted = config(locked(&tower, true, "", ""), Variant::Global);
    assert!(Wukong::with_locked(&wanted, narrow, store(1).vb()).is_err());
    let unprojected = config(locked(&tower, false, "", ""), Variant::Global);
    assert!(matches!(unprojected.validate(), Err(Error::Config(_))), "12 channels into 16");
    for groups in [0, 5] {
        let reduction = ReductionConfig { groups, ..ReductionConfig::default() };
        assert!(new(&config(vit.clone(), Variant::Reduced(reduction))).is_err());
    }
    assert!(matches!(Locked::grid(&bundle.model, Some(1)), Err(Error::Config(_))));

    assert!(model.encode_image(&images(1).narrow(3, 0, 24)?, false).is_err());
    assert!(model.encode_text(&Tensor::zeros((1, 4), DType::U32, &CPU)?, false).is_err(), "a row of padding");
    assert!(model.encode_text(&Tensor::full(60_000u32, (1, 4), &CPU)?, false).is_err());
    assert!(model.encode_text(&Tensor::ones((1, 13), DType::U32, &CPU)?, false).is_err());
    let none: [&str; 0] = [];
    let tokenizer = tokenizer();
    assert!(matches!(model.embed_texts(&tokenizer, &none), Err(Error::Input(_))));
    assert!(matches!(TemplateClassifier::new(&model, &tokenizer, &none, &["{}"]), Err(Error::Input(_))));
    Ok(())
}

/// The released code encodes texts in exactly 100 parts and drops what is left over.
#[test]
fn no_text_is_dropped_whatever_their_number() -> Outcome {
    let [vit, ..] = towers();
    for variant in variants() {
        let model = Wukong::new(&config(vit.clone(), variant.clone()), store(1).vb())?;
        let tokenizer = tokenizer();
        let texts: Vec<&str> = (0..257).map(|i| TEXTS[i % 3]).collect();
        let found = model.embed_texts(&tokenizer, &texts)?;
        assert_eq!(found.features.dim(0)?, 257);
        let classes = ["猫", "苹果", "手", "红色", "一只"];
        let classifier = TemplateClassifier::new(&model, &tokenizer, &classes, &["{}", "一只{}", "{}的手"])?;
        let images = model.encode_image(&images(1), false)?;
        let probabilities = classifier.probabilities(&images)?;
        assert_eq!(probabilities.dims(), [3, 5]);
        assert!(far(&probabilities.sum(1)?, &Tensor::ones(3, DType::F32, &CPU)?) < 1e-5);
        let ranked = classifier.classify(&images, 2)?;
        assert!(ranked.iter().all(|row| row.len() == 2 && row[0].1 >= row[1].1));
        let none: [&str; 0] = [];
        assert!(matches!(TemplateClassifier::new(&model, &tokenizer, &classes, &none), Err(Error::Input(_))));
    }
    Ok(())
}

fn picture() -> Picture {
    Picture::from(image::RgbImage::from_fn(40, 30, |x, y| image::Rgb([x as u8, y as u8, 90])))
}

fn record(config: Config) -> Result<Pretrained, Error> {
    Pretrained::new(config)
}

fn answers(bundle: &Bundle) -> Result<Tensor, Error> {
    let images = bundle.embed_pictures(&[picture()])?;
    Ok(bundle.model.similarity(&images, &bundle.embed_texts(&TEXTS)?)?.image_to_text)
}

#[test]
fn folders_read_back_whole_in_half_precision_and_to_train_on() -> Outcome {
    let folder = tempfile::tempdir()?;
    for (i, (vision, variant)) in towers().into_iter().zip(variants()).enumerate() {
        let at = folder.path().join(i.to_string());
        let store = store(3);
        let bundle = Bundle::new(record(config(vision, variant))?, Arc::new(tokenizer()), None, &store)?;
        bundle.save(&at, &store, &SaveOptions::default())?;
        let loaded = Bundle::load(&at, DType::F32, &CPU)?;
        assert_eq!(loaded.pretrained, bundle.pretrained);
        assert_eq!(far(&answers(&loaded)?, &answers(&bundle)?), 0.0);
        let fresh = self::store(99);
        let (trainable, report) = Bundle::load_trainable(&at, &fresh)?;
        assert!(report.is_clean(), "{report}");
        assert_eq!(far(&answers(&trainable)?, &answers(&bundle)?), 0.0);
        bundle.save(&at, &store, &SaveOptions::default().with_dtype(DType::F16))?;
        assert!(far(&answers(&Bundle::load(&at, DType::F32, &CPU)?)?, &answers(&bundle)?) < 1e-2);
    }
    Ok(())
}

/// The folder of a locked model holds the text tower; the image tower is read from the folder beside it, and only if it is the
/// one that was trained with.
#[test]
fn a_locked_model_finds_its_tower() -> Outcome {
    let folder = tempfile::tempdir()?;
    let at = |name: &str| folder.path().join(name);
    let (clip, clip_store) = clip(false)?;
    clip.save(at("clip"), &clip_store, &SaveOptions::default())?;
    let tower = Locked::grid(&clip.model, Some(3))?;
    let config = config(locked(&tower, true, "clip", &weights_digest(at("clip"))?), Variant::Filip);
    let store = store(3);
    let bundle = Bundle::new(record(config)?, Arc::new(tokenizer()), Some(tower), &store)?;
    bundle.save(at("text"), &store, &SaveOptions::default())?;
    assert!(Checkpoint::open(at("text"))?.names().all(|name| !name.starts_with("visual.") || name == "visual.proj"));
    let loaded = Bundle::load(at("text"), DType::F32, &CPU)?;
    assert_eq!(far(&answers(&loaded)?, &answers(&bundle)?), 0.0);
    let fresh = self::store(7);
    let (trainable, report) = Bundle::load_trainable(at("text"), &fresh)?;
    assert!(report.is_clean() && fresh.names() == store.names(), "{report}");
    assert_eq!(far(&answers(&trainable)?, &answers(&bundle)?), 0.0);

    // The record's own mistakes, then the tower's.
    let bad = |folder: &str| -> Result<(), Error> {
        let mut bundle = bundle.clone();
        let VisionConfig::Locked(config) = &mut bundle.pretrained.model.vision else { return Ok(()) };
        config.folder = folder.into();
        bundle.save(at("bad"), &store, &SaveOptions::default())?;
        Bundle::load(at("bad"), DType::F32, &CPU).map(|_| ())
    };
    assert!(matches!(bad("../clip"), Err(Error::Config(_))));
    assert!(matches!(bad("nowhere"), Err(Error::Io { .. })));
    let (other, _) = self::clip(false)?;
    let changed = self::store(10);
    Clip::new(&other.pretrained.model, changed.vb())?;
    clip.save(at("clip"), &changed, &SaveOptions::default())?;
    let error = Bundle::load(at("text"), DType::F32, &CPU).map(|_| ()).unwrap_err();
    assert!(matches!(&error, Error::Checkpoint(m) if m.contains("digest")), "{error}");
    Ok(())
}

#[test]
fn published_names_load_strictly_and_tell_the_sizes() -> Outcome {
    let wide = |depth| TransformerConfig { eps: 1e-7, ..TransformerConfig::new(64, depth) };
    let vit = VitConfig { image_size: 32, patch_size: 8, transformer: wide(2) };
    let text = TextConfig { transformer: wide(1), ..text() };
    for variant in variants() {
        let variant = match variant {
            Variant::Reduced(cfg) => Variant::Reduced(ReductionConfig { groups: 8, ..cfg }),
            other => other,
        };
        let vision = VisionConfig::Vit(vit.clone());
        let config = Config { embed_dim: 16, vision, text: text.clone(), variant, ..Config::default() };
        let store = store(3);
        let model = Wukong::new(&config, store.vb())?;
        let official = |prefix: &str| -> Vec<(String, Tensor)> {
            store
                .iter()
                .map(|p| (format!("{prefix}{}", to_official_name(&p.name)), p.var.as_detached_tensor()))
                .collect()
        };
        for prefix in ["", "module.", "state_dict."] {
            let checkpoint = Checkpoint::from_tensors(official(prefix));
            let inferred = Config::infer(&checkpoint, config.variant.clone())?;
            assert_eq!(inferred, config);
            let loaded = Wukong::new(&inferred, official_names(&checkpoint)?.vb(DType::F32, &CPU))?;
            assert_eq!(far(&loaded.encode_image(&images(1), false)?, &model.encode_image(&images(1), false)?), 0.0);
        }
        // Strictly: nothing missing, nothing left over.
        let folder = tempfile::tempdir()?;
        std::fs::write(folder.path().join("vocab.txt"), tokenizer().file().unwrap_or_default())?;
        let load = |tensors: Vec<(String, Tensor)>| {
            let checkpoint = Checkpoint::from_tensors(tensors);
            Bundle::with_record(record(config.clone())?, folder.path(), None, &checkpoint, DType::F32, &CPU)
        };
        assert!(load(official("")).is_ok());
        let mut more = official("");
        more.push(("visual.head".into(), Tensor::zeros(2, DType::F32, &CPU)?));
        assert!(matches!(load(more), Err(Error::Checkpoint(m)) if m.contains("visual.head")));
        let less = official("").into_iter().filter(|(name, _)| name != "transformer.ln_final.bias").collect();
        assert!(load(less).is_err());
    }
    let other = Checkpoint::from_tensors([("x".into(), Tensor::zeros(2, DType::F32, &CPU)?)]);
    assert!(matches!(official_names(&other), Err(Error::Checkpoint(_))));
    Ok(())
}

/// CLIP's own towers read Chinese as well: a folder with a `vocab.txt` comes back with its tokenizer.
#[test]
fn a_clip_folder_keeps_its_vocabulary() -> Outcome {
    let tokenizer = tokenizer();
    let (clip, _) = clip(true)?;
    let mut record = clip.pretrained;
    record.model.text.vocab_size = tokenizer.vocab_size();
    record.model.text.context_length = 12;
    record.model.text.end_token = Some(tokenizer.end_token());
    record.tokenizer = TokenizerSpec::WordPiece { file: "vocab.txt".into(), context_length: 12 };
    let folder = tempfile::tempdir()?;
    std::fs::write(folder.path().join("vocab.txt"), tokenizer.file().unwrap_or_default())?;
    let store = store(1);
    let bundle = ClipBundle::new(record.clone(), folder.path(), &store)?;
    let out = folder.path().join("saved");
    bundle.save(&out, &store, &SaveOptions::default())?;
    let loaded = ClipBundle::load(&out, DType::F32, &CPU)?;
    assert_eq!(far(&loaded.embed_texts(&TEXTS)?, &bundle.embed_texts(&TEXTS)?), 0.0);
    for file in ["../vocab.txt", "", "a/vocab.txt", "none.txt"] {
        let tokenizer = TokenizerSpec::WordPiece { file: file.into(), context_length: 12 };
        let record = ClipPretrained { tokenizer, ..record.clone() };
        assert!(matches!(record.tokenizer(&out), Err(Error::Tokenizer(_) | Error::Io { .. })), "{file}");
    }
    std::fs::write(out.join("vocab.txt"), "猫\n狗\n")?;
    assert!(matches!(ClipBundle::load(&out, DType::F32, &CPU), Err(Error::Tokenizer(_))));
    Ok(())
}

/// The record of any preset is written and read.
#[test]
fn presets_are_records() -> Outcome {
    for config in [
        Config::wukong_vit_b_32(),
        Config::wukong_vit_b_32_f(),
        Config::wukong_vit_b_32_g(),
        Config::wukong_vit_l_14(),
        Config::wukong_vit_l_14_f(),
        Config::wukong_vit_l_14_g(),
        Config::wukong_swin_l(),
        Config::wukong_swin_l_g(),
    ] {
        let record = record(config)?;
        let again: Pretrained = serde_json::from_str(&serde_json::to_string(&record)?)?;
        assert_eq!(again, record);
    }
    let tensors = [("a".to_owned(), Tensor::zeros(2, DType::F32, &CPU)?)];
    let folder = tempfile::tempdir()?;
    save_tensors(folder.path().join(WEIGHTS_FILE), tensors, &SaveOptions::default())?;
    assert!(matches!(Bundle::load(folder.path(), DType::F32, &CPU), Err(Error::Io { .. })), "no record");
    std::fs::write(folder.path().join("config.json"), "{\"model\": {}}")?;
    assert!(matches!(Bundle::load(folder.path(), DType::F32, &CPU), Err(Error::Json { .. })));
    Ok(())
}
