use super::*;
use image::RgbImage;
use sconce_clip::{Config, Pretrained, TextConfig, TransformerConfig, VitConfig};
use sconce_nn::{ParamStore, SaveOptions};

/// A small model in a folder.
fn model(folder: &Path, seed: u64) -> Bundle {
    let vit = VitConfig { image_size: 16, patch_size: 8, transformer: TransformerConfig::new(64, 1) };
    let transformer = TransformerConfig::new(64, 1);
    let text = TextConfig { context_length: 8, vocab_size: 512 + 100 + 2, end_token: None, transformer };
    let store = ParamStore::new(seed, DType::F32, &Device::Cpu);
    let pretrained = Pretrained::openai(Config::vit(8, vit, text)).unwrap();
    Bundle::new(pretrained, "".as_ref(), &store).unwrap().save(folder, &store, &SaveOptions::default()).unwrap();
    Bundle::load(folder, DType::F32, &Device::Cpu).unwrap()
}

fn picture(value: u8) -> Picture {
    RgbImage::from_fn(20, 18, |x, y| image::Rgb([value, (x * 12) as u8, (y * 7) as u8])).into()
}

fn cache(folder: &Path, model: Digest) -> FeatureCache {
    FeatureCache::new(folder, model, CacheOptions { batch_size: 2, ..Default::default() }).unwrap()
}

fn values(tensor: &Tensor) -> Vec<Vec<f32>> {
    tensor.to_dtype(DType::F32).unwrap().to_vec2().unwrap()
}

fn digests(range: std::ops::Range<u8>) -> Vec<Digest> {
    range.map(|i| Digest::of(&[&[i]])).collect()
}

/// Rows that tell their inputs, and how many inputs were encoded.
fn counted(cache: &FeatureCache, identity: &str, of: std::ops::Range<u8>) -> (Features, usize) {
    let first = of.start;
    let mut calls = 0;
    let features = cache.rows(identity, &digests(of), |indices| {
        calls += indices.len();
        let rows: Vec<f32> = indices.iter().flat_map(|i| [f32::from(first) + *i as f32, 0.1]).collect();
        Ok(Tensor::from_vec(rows, (indices.len(), 2), &Device::Cpu)?)
    });
    (features.unwrap(), calls)
}

fn only_file(folder: &Path) -> PathBuf {
    let files: Vec<_> = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    assert_eq!(files.len(), 1, "{files:?}");
    files[0].clone()
}

#[test]
fn what_is_known_is_not_computed_again() {
    let folder = tempfile::tempdir().unwrap();
    let cache = cache(folder.path(), Digest::of(&[b"model"]));
    let (first, calls) = counted(&cache, "x", 0..5);
    assert_eq!((first.known, first.computed, calls), (0, 5, 5));
    let (again, calls) = counted(&cache, "x", 0..5);
    assert_eq!((again.known, again.computed, calls), (5, 0, 0));
    assert_eq!(values(&first.rows), values(&again.rows));
    // Some are new: those alone, and all rows in the order asked for.
    let (more, calls) = counted(&cache, "x", 3..8);
    assert_eq!((more.known, calls), (2, 3));
    let column: Vec<f32> = values(&more.rows).iter().map(|row| row[0]).collect();
    assert_eq!(column, [3.0, 4.0, 5.0, 6.0, 7.0]);
    assert_eq!(counted(&cache, "x", 0..8).1, 0);
}

#[test]
fn another_model_view_or_type_is_another_file() {
    let folder = tempfile::tempdir().unwrap();
    let own = cache(folder.path(), Digest::of(&[b"model"]));
    counted(&own, "x", 0..3);
    assert_eq!(counted(&own, "y", 0..3).1, 3);
    assert_eq!(counted(&cache(folder.path(), Digest::of(&[b"other"])), "x", 0..3).1, 3);
    let half = CacheOptions { dtype: DType::F16, ..Default::default() };
    let half = FeatureCache::new(folder.path(), Digest::of(&[b"model"]), half).unwrap();
    let (first, calls) = counted(&half, "x", 0..3);
    assert_eq!((calls, first.rows.dtype()), (3, DType::F16));
    // The first run has the bits of the later ones.
    assert_eq!(values(&first.rows), values(&counted(&half, "x", 0..3).0.rows));
    assert_eq!(values(&first.rows)[0][1], half::f16::from_f32(0.1).to_f32());
    assert_eq!(counted(&own, "x", 0..3).1, 0);
}

#[test]
fn an_input_that_occurs_twice_is_computed_once() {
    let folder = tempfile::tempdir().unwrap();
    let cache = cache(folder.path(), Digest::of(&[b"model"]));
    let one = digests(7..8)[0];
    let rows =
        cache.rows("x", &[one, one, one], |i| Ok(Tensor::ones((i.len(), 2), DType::F32, &Device::Cpu)?)).unwrap();
    assert_eq!((rows.computed, rows.rows.dims()), (1, &[3, 2][..]));
}

#[test]
fn files_that_cannot_be_trusted_are_told_and_replaced() {
    let folder = tempfile::tempdir().unwrap();
    let cache = cache(folder.path(), Digest::of(&[b"model"]));
    let expected = values(&counted(&cache, "x", 0..4).0.rows);
    let path = only_file(folder.path());
    let good = std::fs::read(&path).unwrap();
    let mut changed = good.clone();
    *changed.last_mut().unwrap() ^= 1;
    let header = good.windows(4).position(|bytes| bytes == b"feat").unwrap();
    let mut renamed = good.clone();
    renamed[header] = b'F';
    let torn = [&good[..good.len() / 2], &good[..good.len() - 1], &good[..4], b"", b"no tensors at all"];
    for bytes in torn.into_iter().chain([&changed[..], &renamed[..]]) {
        std::fs::write(&path, bytes).unwrap();
        let (found, calls) = counted(&cache, "x", 0..4);
        assert!(calls == 4 && found.rejected.is_some(), "{} bytes: {calls} calls", bytes.len());
        assert_eq!(values(&found.rows), expected);
        assert_eq!(counted(&cache, "x", 0..4).1, 0);
    }
    // A file of another cache under this one's name.
    counted(&cache, "y", 0..4);
    let other = std::fs::read_dir(folder.path()).unwrap().map(|e| e.unwrap().path()).find(|p| *p != path).unwrap();
    std::fs::copy(other, &path).unwrap();
    let (found, calls) = counted(&cache, "x", 0..4);
    assert!(calls == 4 && found.rejected.unwrap().contains("not of this model"));
}

#[test]
fn what_was_done_before_a_failure_or_an_interrupt_is_kept() {
    let folder = tempfile::tempdir().unwrap();
    let options = CacheOptions { batch_size: 2, ..Default::default() };
    let interrupt = options.interrupt.clone();
    let cache = FeatureCache::new(folder.path(), Digest::of(&[b"model"]), options).unwrap();
    counted(&cache, "x", 0..3);
    let before = std::fs::read(only_file(folder.path())).unwrap();
    // A failure in the model leaves the old file, and no other one.
    let failed = cache.rows("x", &digests(0..6), |_| Err(Error::Data("broken".into())));
    assert!(failed.is_err());
    assert_eq!(std::fs::read(only_file(folder.path())).unwrap(), before);
    // An interrupt after the first batch keeps that one.
    let stopped = cache.rows("x", &digests(3..9), |indices| {
        interrupt.request();
        Ok(Tensor::ones((indices.len(), 2), DType::F32, &Device::Cpu)?)
    });
    assert!(matches!(stopped, Err(Error::Interrupted)));
    interrupt.clear();
    assert_eq!(counted(&cache, "x", 0..9).1, 4);
}

#[test]
fn a_write_that_fails_leaves_the_old_file() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("rows.safetensors");
    let key = Digest::of(&[b"key"]);
    let row = |value: f32| Tensor::new(&[[value]], &Device::Cpu).unwrap();
    let mut rows = Rows::default();
    rows.add(digests(0..1), row(1.0)).unwrap();
    rows.write(&path, &key, "x").unwrap();
    // A width that does not fit is refused before anything is written.
    assert!(rows.add(digests(1..2), Tensor::ones((1, 2), DType::F32, &Device::Cpu).unwrap()).is_err());
    assert!(rows.write(&folder.path().join("no/such/folder.safetensors"), &key, "x").is_err());
    assert_eq!(only_file(folder.path()), path);
    // What a killed process leaves of a write is not looked at.
    let whole = std::fs::read(&path).unwrap();
    std::fs::write(folder.path().join(".rows.safetensors.1-0.tmp"), &whole[..whole.len() / 2]).unwrap();
    let mut read = Rows::read(&path, &key, DType::F32).unwrap();
    assert_eq!(values(&read.select(&digests(0..1)).unwrap()), [[1.0]]);
}

#[test]
fn features_that_are_not_finite_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let half = CacheOptions { dtype: DType::F16, ..Default::default() };
    let half = FeatureCache::new(folder.path(), Digest::of(&[b"model"]), half).unwrap();
    // Larger than a half can be.
    let large = half.rows("x", &digests(0..1), |_| Ok(Tensor::new(&[[1e6f32, 0.0]], &Device::Cpu)?));
    assert!(large.unwrap_err().to_string().contains("not finite"));
    assert!(half.rows("x", &[], |_| Err(Error::Interrupted)).is_err());
    let integers = CacheOptions { dtype: DType::U8, ..Default::default() };
    assert!(FeatureCache::new(folder.path(), Digest::of(&[]), integers).is_err());
}

#[test]
fn pictures_are_known_by_their_bytes_and_their_pixels() {
    let folder = tempfile::tempdir().unwrap();
    let bundle = model(&folder.path().join("model"), 1);
    let model_digest = Digest::of_model(&bundle, folder.path().join("model")).unwrap();
    let cache = cache(&folder.path().join("cache"), model_digest);
    let files: Vec<PathBuf> = (0..3u8)
        .map(|i| {
            let path = folder.path().join(format!("{i}.png"));
            picture(i * 50).to_rgb().save(&path).unwrap();
            path
        })
        .collect();
    let sources =
        |files: &[PathBuf]| cache.pictures(&bundle, &files.iter().map(|f| Source::File(f)).collect::<Vec<_>>());
    let first = sources(&files).unwrap();
    assert_eq!((first.computed, first.rows.dims()), (3, &[3, 8][..]));
    // As the bundle embeds them, up to the normalisation.
    let pictures: Vec<Picture> = files.iter().map(|file| Picture::open(file).unwrap()).collect();
    let direct = bundle.embed_pictures(&pictures).unwrap();
    let difference = (sconce_clip::normalize(&first.rows).unwrap() - direct).unwrap().abs().unwrap().max_all().unwrap();
    assert!(difference.to_scalar::<f32>().unwrap() < 1e-6);
    // Moved files are known, changed ones are not.
    let moved = folder.path().join("moved.png");
    std::fs::rename(&files[0], &moved).unwrap();
    picture(9).to_rgb().save(&files[1]).unwrap();
    let second = sources(&[moved, files[1].clone(), files[2].clone()]).unwrap();
    assert_eq!((second.known, second.computed), (2, 1), "{:?}", second.rejected);
    assert_eq!(values(&second.rows)[0], values(&first.rows)[0]);
    assert_ne!(values(&second.rows)[1], values(&first.rows)[1]);
    // Pictures in memory.
    let memory = |values: &[u8]| {
        let pictures: Vec<Picture> = values.iter().map(|v| picture(*v)).collect();
        cache.pictures(&bundle, &pictures.iter().map(Source::Picture).collect::<Vec<_>>()).unwrap().computed
    };
    assert_eq!([memory(&[1, 2]), memory(&[1, 2]), memory(&[1, 3])], [2, 0, 1]);
    // Another preprocessing.
    let mut other = bundle.clone();
    other.pretrained.preprocess.normalize.mean[0] += 0.01;
    let found = cache.pictures(&other, &[Source::File(&files[2])]).unwrap();
    assert_eq!(found.computed, 1);
    let missing = cache.pictures(&bundle, &[Source::File(&files[0])]).unwrap_err();
    assert!(missing.to_string().contains("0.png"), "{missing}");
    std::fs::write(&files[0], b"no picture").unwrap();
    let broken = cache.pictures(&bundle, &[Source::File(&files[0])]).unwrap_err();
    assert!(broken.to_string().contains("0.png"), "{broken}");
}

#[test]
fn a_changed_weight_is_another_model() {
    let folder = tempfile::tempdir().unwrap();
    let paths = ["a", "b", "c"].map(|name| folder.path().join(name));
    let bundles = [model(&paths[0], 1), model(&paths[1], 1), model(&paths[2], 2)];
    let digest = |i: usize| Digest::of_model(&bundles[i], &paths[i]).unwrap();
    assert_eq!(digest(0), digest(1));
    assert_ne!(digest(0), digest(2));
    let half = Bundle::load(&paths[0], DType::F16, &Device::Cpu).unwrap();
    assert_ne!(Digest::of_model(&half, &paths[0]).unwrap(), digest(0));
}

#[test]
fn views_depend_on_seed_number_and_picture_alone() {
    let folder = tempfile::tempdir().unwrap();
    let bundle = model(&folder.path().join("model"), 1);
    let pictures = [picture(1), picture(2)];
    let [a, b] = [Source::Picture(&pictures[0]), Source::Picture(&pictures[1])];
    let seeded = |name: &str, sources: &[Source], seed| {
        let cache = cache(&folder.path().join(name), Digest::of(&[b"model"]));
        cache.views(&bundle, sources, &Views::coop(16, seed), 2).unwrap()
    };
    let first = seeded("1", &[a, b], 7);
    assert_eq!((first.rows.dims(), first.computed), (&[2, 2, 8][..], 4));
    assert_eq!(seeded("1", &[a, b], 7).computed, 0);
    assert_eq!(seeded("1", &[a, b], 8).computed, 4);
    // In another cache and another order the same views.
    let swapped = seeded("2", &[b, a], 7);
    let row = |features: &Features, view, i| features.rows.get(view).unwrap().get(i).unwrap().to_vec1::<f32>().unwrap();
    assert_eq!(row(&first, 0, 0), row(&swapped, 0, 1));
    assert_eq!(row(&first, 1, 1), row(&swapped, 1, 0));
    assert_ne!(row(&first, 0, 0), row(&first, 1, 0));
    let cache = cache(&folder.path().join("3"), Digest::of(&[b"model"]));
    assert!(cache.view(&bundle, &[a], &Views::tip_adapter(16, 1), 0).is_err());
    assert!(cache.views(&bundle, &[a], &Views::tip_adapter(16, 1), 0).is_err());
}

#[test]
fn texts_are_known_by_their_tokens() {
    let folder = tempfile::tempdir().unwrap();
    let bundle = model(&folder.path().join("model"), 1);
    let cache = cache(&folder.path().join("cache"), Digest::of(&[b"model"]));
    let first = cache.texts(&bundle, &["a cat", "a dog", "a bird"]).unwrap();
    assert_eq!((first.computed, first.rows.dims()), (3, &[3, 8][..]));
    let second = cache.texts(&bundle, &["a  DOG ", "a fish"]).unwrap();
    assert_eq!((second.known, second.computed), (1, 1));
    assert_eq!(values(&second.rows)[0], values(&first.rows)[1]);
    let nothing: [&str; 0] = [];
    assert!(cache.texts(&bundle, &nothing).is_err());
}
