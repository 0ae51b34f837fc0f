//! Runs `classify` as a person would: with a model of any weights, and with EfficientNet-Lite0's where they are.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use sconce::backbones::pretrained;
use sconce::candle::{DType, Device, Tensor};
use sconce::data::Picture;
use sconce::nn::ParamStore;
use sconce::ops::softmax;
use sconce_examples::emoji::assets;
use serde_json::Value;

/// The example's program, which `cargo test` builds beside the tests.
fn program() -> PathBuf {
    let test = std::env::current_exe().unwrap();
    let program = test.parent().and_then(Path::parent).unwrap().join("examples/classify");
    let program = program.with_extension(std::env::consts::EXE_EXTENSION);
    assert!(program.is_file(), "{} is not built", program.display());
    program
}

fn classify(folder: &Path, arguments: &[&str]) -> Output {
    Command::new(program()).current_dir(folder).args(["--device", "cpu"]).args(arguments).output().unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn json(path: &Path) -> Value {
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

fn photo(name: &str) -> String {
    assets().join("photos").join(name).display().to_string()
}

/// Saves a small model of random weights.
fn save(name: &str, classes: usize, path: &Path) {
    let store = ParamStore::new(1, DType::F32, &Device::Cpu);
    pretrained(name).unwrap().config.with_num_classes(classes).build(store.vb()).unwrap();
    store.save(path).unwrap();
}

#[test]
fn any_model_ranks_the_classes_of_every_picture() {
    let folder = tempfile::tempdir().unwrap();
    let here = folder.path();
    save("test_convmixer", 3, &here.join("model.safetensors"));
    std::fs::write(here.join("classes.txt"), "a palace\na daisy\n\nneither\n").unwrap();
    std::fs::create_dir(here.join("more")).unwrap();
    std::fs::copy(photo("palace.jpg"), here.join("more/palace.jpg")).unwrap();
    std::fs::write(here.join("more/broken.png"), b"\x89PNG\r\n\x1a\nthis is no picture").unwrap();
    let daisy = photo("daisy.jpg");
    let output = classify(
        here,
        &[
            "--model",
            "test_convmixer",
            "--weights",
            "model.safetensors",
            "--classes",
            "classes.txt",
            "--top-k",
            "9",
            "--sheet",
            "sheet.png",
            "--json",
            "out.json",
            &daisy,
            "more",
        ],
    );
    assert!(output.status.success(), "{}", text(&output.stderr));
    assert!(text(&output.stderr).contains("broken.png"), "{}", text(&output.stderr));
    let found = json(&here.join("out.json"));
    let rows = found["pictures"].as_array().unwrap();
    assert_eq!(rows.len(), 2);

    let record = pretrained("test_convmixer").unwrap();
    let config = record.config.clone().with_num_classes(3);
    let model = sconce::backbones::Pretrained { config, ..record.clone() };
    let model = model.load(here.join("model.safetensors"), DType::F32, &Device::Cpu).unwrap();
    let pictures = ["daisy.jpg", "palace.jpg"].map(|name| Picture::open(photo(name)).unwrap());
    let xs = record.preprocess.batch(&pictures, &Device::Cpu).unwrap();
    let wanted = softmax(&model.forward_t(&xs, false).unwrap(), 1).unwrap().to_vec2::<f32>().unwrap();
    for (row, wanted) in rows.iter().zip(wanted) {
        let row = row["classes"].as_array().unwrap();
        assert_eq!(row.len(), 3, "{row:?}");
        for class in row {
            let (index, p) = (class["index"].as_u64().unwrap() as usize, class["probability"].as_f64().unwrap());
            assert!((p - f64::from(wanted[index])).abs() < 1e-6, "{class}");
            assert_eq!(class["class"], ["a palace", "a daisy", "neither"][index]);
        }
        assert!(row.windows(2).all(|w| w[0]["probability"].as_f64() >= w[1]["probability"].as_f64()), "{row:?}");
    }
    let sheet = image::open(here.join("sheet.png")).unwrap();
    assert!(sheet.width() > 200 && sheet.height() > 100);
}

#[test]
fn what_cannot_be_done_is_said_plainly() {
    let folder = tempfile::tempdir().unwrap();
    save("test_vit", 10, &folder.path().join("vit.safetensors"));
    std::fs::write(folder.path().join("none.txt"), "\n").unwrap();
    std::fs::write(folder.path().join("broken.png"), "no picture").unwrap();
    let daisy = photo("daisy.jpg");
    let cases: [(&[&str], &str); 8] = [
        (&["--model", "resnet5", &daisy], "resnet50"),
        (&["--model", "test_vit", &daisy], "--weights"),
        (&["--model", "test_vit", "--weights", "no.pth", &daisy], "no.pth"),
        (&["--model", "dino_vits16", "--weights", "vit.safetensors", &daisy], "classifier"),
        (&["--model", "test_convmixer", "--weights", "vit.safetensors", &daisy], "stem.0.weight"),
        (&["--model", "test_vit", "--weights", "vit.safetensors", "--classes", "none.txt", &daisy], "none.txt"),
        (&["--model", "test_vit", "--weights", "vit.safetensors", "nowhere.jpg"], "nowhere.jpg"),
        (&["--model", "test_vit", "--weights", "vit.safetensors", "broken.png"], "no picture"),
    ];
    for (arguments, wanted) in cases {
        let output = classify(folder.path(), arguments);
        let said = text(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{arguments:?}: {said}");
        assert!(said.contains(wanted) && !said.contains("panicked"), "{arguments:?}: {said}");
    }
}

/// Where the script puts the weights, or where the variable says.
fn efficientnet() -> Option<PathBuf> {
    let path = match std::env::var_os("SCONCE_EFFICIENTNET_LITE0") {
        Some(path) => PathBuf::from(path),
        None => assets().join("../weights/efficientnet_lite0.pth"),
    };
    if !path.is_file() {
        println!("skipped: no weights at {}; examples/fetch_efficientnet_lite0.sh fetches them", path.display());
        return None;
    }
    Some(path.canonicalize().unwrap())
}

#[test]
fn a_daisy_and_a_palace_are_recognised_where_the_weights_are() {
    let Some(weights) = efficientnet() else { return };
    let folder = tempfile::tempdir().unwrap();
    let (daisy, palace) = (photo("daisy.jpg"), photo("palace.jpg"));
    let weights = weights.display().to_string();
    let output = classify(folder.path(), &["--weights", &weights, "--json", "out.json", &daisy, &palace]);
    assert!(output.status.success(), "{}", text(&output.stderr));
    let found = json(&folder.path().join("out.json"));
    // Probabilities of a second program, in numpy and Pillow on doubles; JPEG decoders differ by a level here and there.
    for (row, (class, probability)) in [("daisy", 0.2712), ("palace", 0.3647)].into_iter().enumerate() {
        let best = &found["pictures"][row]["classes"][0];
        assert_eq!(best["class"], class, "{found}");
        assert!((best["probability"].as_f64().unwrap() - probability).abs() < 0.01, "{best}");
    }
}

/// The logits of one fixed input, against the same second program.
#[test]
fn the_net_computes_what_its_publishers_do_where_the_weights_are() {
    let Some(weights) = efficientnet() else { return };
    let record = pretrained("tf_efficientnet_lite0").unwrap();
    let model = record.load(weights, DType::F64, &Device::Cpu).unwrap();
    // A ramp over all values, so that no generator has to agree.
    let count = 3 * 224 * 224;
    let ramp: Vec<f64> = (0..count).map(|i| ((i * 7919) % 2001) as f64 / 1000.0 - 1.0).collect();
    let xs = Tensor::from_vec(ramp, (1, 3, 224, 224), &Device::Cpu).unwrap();
    let logits = model.forward_t(&xs, false).unwrap().flatten_all().unwrap().to_vec1::<f64>().unwrap();
    let wanted = [
        (0, -0.401719536),
        (334, -3.094645040),
        (391, -3.079266039),
        (753, 5.871534640),
        (807, 4.138601878),
        (904, 4.970194143),
        (905, 6.456806669),
        (985, 0.530938177),
    ];
    for (index, wanted) in wanted {
        assert!((logits[index] - wanted).abs() < 1e-6, "class {index}: {} instead of {wanted}", logits[index]);
    }
}
