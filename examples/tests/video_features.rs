//! Runs the example on frames made from the repository's drawings: whole, interrupted, and on folders that are no video.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use image::imageops;
use sconce::backbones::{UniFormer, uniformer};
use sconce::candle::{DType, Device, Tensor};
use sconce::nn::{Checkpoint, ParamStore, SaveOptions, save_tensors};
use sconce_examples::emoji::{self, TEST_DOMAIN};
use serde_json::Value;

/// The example's program, which `cargo test` builds beside the tests.
fn program() -> PathBuf {
    let test = std::env::current_exe().unwrap();
    let program = test.parent().and_then(Path::parent).unwrap().join("examples/video_features");
    let program = program.with_extension(std::env::consts::EXE_EXTENSION);
    assert!(program.is_file(), "{} is not built", program.display());
    program
}

fn run(folder: &Path, arguments: &[&str]) -> Output {
    let model = ["--device", "cpu", "--model", "test_uniformer_video"];
    Command::new(program()).current_dir(folder).args(model).args(arguments).output().unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// A drawing that grows and turns upside down, frame by frame.
fn film(folder: &Path, frames: u32) {
    std::fs::create_dir(folder).unwrap();
    let (emoji, _) = emoji::load(&emoji::assets().join("emoji"), &[TEST_DOMAIN]).unwrap();
    let drawing = &emoji[0].picture;
    for i in 0..frames {
        let side = 24 + i;
        let mut frame = image::RgbImage::from_pixel(64, 48, image::Rgb([255; 3]));
        let small = imageops::resize(drawing, side, side, imageops::FilterType::Triangle);
        let small = if i % 4 < 2 { small } else { imageops::rotate180(&small) };
        imageops::replace(&mut frame, &small, i.into(), 2);
        frame.save(folder.join(format!("{i:04}.png"))).unwrap();
    }
}

fn features(path: &Path) -> Vec<Vec<f32>> {
    Checkpoint::open(path).unwrap().tensor("features", &Device::Cpu).unwrap().to_vec2().unwrap()
}

/// Weights for pictures of the shape of the test's model.
fn picture_weights(path: &Path) {
    let store = ParamStore::new(7, DType::F32, &Device::Cpu);
    let config = uniformer::Config { frames: None, ..uniformer::Config::test_uniformer_video() };
    UniFormer::new(&config, store.vb()).unwrap();
    store.save(path).unwrap();
}

#[test]
fn a_film_becomes_features_and_an_interrupted_run_goes_on() {
    let folder = tempfile::tempdir().unwrap();
    film(&folder.path().join("film"), 19);
    picture_weights(&folder.path().join("pictures.safetensors"));
    let arguments = ["film", "--weights", "pictures.safetensors", "--step", "6", "--stride", "2", "--batch", "2"];
    let output = run(folder.path(), &arguments);
    assert!(output.status.success(), "{}", text(&output.stderr));
    assert!(text(&output.stdout).contains("inflated"), "{}", text(&output.stdout));
    let path = folder.path().join("features.safetensors");
    let whole = features(&path);
    assert_eq!((whole.len(), whole[0].len()), (3, 24));
    assert!(whole.iter().flatten().all(|v| v.is_finite()) && whole[0] != whole[1]);
    let report: Value = serde_json::from_slice(&std::fs::read(path.with_extension("json")).unwrap()).unwrap();
    assert_eq!(report["clips"][1]["frames"], serde_json::json!([6, 8, 10, 12]));
    assert_eq!(report["files"][18], "0018.png");

    // As if the run had ended after its first batch: that is kept, as its mark shows, and the rest comes anew.
    let file = Checkpoint::open(&path).unwrap();
    let options = SaveOptions { metadata: file.metadata().clone(), ..Default::default() };
    let first = Tensor::full(0.5f32, (2, 24), &Device::Cpu).unwrap();
    drop(file);
    save_tensors(&path, [("features".to_string(), first)], &options).unwrap();
    let output = run(folder.path(), &arguments);
    assert!(text(&output.stdout).contains("2 clips of an earlier run"), "{}", text(&output.stdout));
    let again = features(&path);
    assert_eq!(again[..2], [[0.5; 24], [0.5; 24]]);
    assert_eq!(again[2], whole[2]);

    // Another stride makes other clips, of which there is none yet.
    let output = run(folder.path(), &["film", "--weights", "pictures.safetensors"]);
    assert!(!text(&output.stdout).contains("earlier run"), "{}", text(&output.stdout));
    let report: Value = serde_json::from_slice(&std::fs::read(path.with_extension("json")).unwrap()).unwrap();
    assert_eq!(report["clips"].as_array().unwrap().len(), 5);
    assert_eq!(report["clips"][4]["frames"], serde_json::json!([15, 16, 17, 18]), "the last clip ends with the film");
}

#[test]
fn a_film_of_two_frames_is_one_clip() {
    let folder = tempfile::tempdir().unwrap();
    film(&folder.path().join("film"), 2);
    let output = run(folder.path(), &["film", "--output", "short.safetensors"]);
    assert!(output.status.success(), "{}", text(&output.stderr));
    assert!(text(&output.stderr).contains("untrained"), "{}", text(&output.stderr));
    let path = folder.path().join("short.safetensors");
    assert_eq!(features(&path).len(), 1);
    let report: Value = serde_json::from_slice(&std::fs::read(path.with_extension("json")).unwrap()).unwrap();
    assert_eq!(report["clips"][0]["frames"], serde_json::json!([0, 1, 1, 1]));
}

#[test]
fn what_is_no_video_is_refused_plainly() {
    let folder = tempfile::tempdir().unwrap();
    let root = folder.path();
    std::fs::create_dir(root.join("empty")).unwrap();
    for name in ["broken", "mixed", "film"] {
        film(&root.join(name), 6);
    }
    std::fs::write(root.join("broken/0002.png"), b"\x89PNG\r\n\x1a\nthis is no picture").unwrap();
    image::RgbImage::new(32, 48).save(root.join("mixed/0003.png")).unwrap();
    std::fs::write(root.join("torn.safetensors"), [255u8; 64]).unwrap();
    picture_weights(&root.join("pictures.safetensors"));
    let file = Checkpoint::open(root.join("pictures.safetensors")).unwrap();
    let names: Vec<String> = file.names().map(str::to_owned).filter(|name| !name.starts_with("blocks3.1")).collect();
    let some = names.into_iter().map(|name| (name.clone(), file.tensor(&name, &Device::Cpu).unwrap()));
    save_tensors(root.join("incomplete.safetensors"), some, &SaveOptions::default()).unwrap();
    let cases: [(&[&str], &str); 10] = [
        (&["empty"], "empty"),
        (&["nowhere"], "nowhere"),
        (&["broken"], "0002.png"),
        (&["mixed"], "0003.png: a frame of 32 x 48"),
        (&["film", "--weights", "torn.safetensors"], "torn.safetensors"),
        (&["film", "--weights", "incomplete.safetensors"], "blocks3.1"),
        (&["film", "--weights", "absent.pth"], "absent.pth"),
        (&["film", "--output", "no/such/folder.safetensors"], "no/such"),
        (&["film", "--step", "0"], "--step"),
        (&["film", "--device", "toaster"], "toaster"),
    ];
    for (arguments, wanted) in cases {
        let mut command = Command::new(program());
        if !arguments.contains(&"--device") {
            command.args(["--device", "cpu"]);
        }
        let output =
            command.current_dir(root).args(["--model", "test_uniformer_video"]).args(arguments).output().unwrap();
        let said = text(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{arguments:?}: {said}");
        assert!(said.contains(wanted) && !said.contains("panicked"), "{arguments:?}: {said}");
        assert!(!root.join("features.safetensors").exists(), "{arguments:?}");
    }
    for (model, wanted) in [("uniformer_small", "test_uniformer_video"), ("vit_tiny_patch16_224", "clips"), ("x", "x")]
    {
        let output = Command::new(program()).current_dir(root).args(["film", "--model", model]).output().unwrap();
        let said = text(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{model}: {said}");
        assert!(said.contains(wanted), "{model}: {said}");
    }
}
