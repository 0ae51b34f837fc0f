//! Runs `inspect` as a person would.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use sconce::backbones::{list_models, pretrained};
use sconce::candle::{DType, Device};
use sconce::nn::ParamStore;
use serde_json::Value;

/// The example's program, which `cargo test` builds beside the tests.
fn program() -> PathBuf {
    let test = std::env::current_exe().unwrap();
    let program = test.parent().and_then(Path::parent).unwrap().join("examples/inspect");
    let program = program.with_extension(std::env::consts::EXE_EXTENSION);
    assert!(program.is_file(), "{} is not built", program.display());
    program
}

fn inspect(folder: &Path, arguments: &[&str]) -> Output {
    Command::new(program()).current_dir(folder).args(arguments).output().unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn json(path: &Path) -> Value {
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

fn save(name: &str, path: &Path) {
    let store = ParamStore::new(1, DType::F32, &Device::Cpu);
    pretrained(name).unwrap().config.build(store.vb()).unwrap();
    store.save(path).unwrap();
}

#[test]
fn a_model_is_measured_at_any_size() {
    let folder = tempfile::tempdir().unwrap();
    let output = inspect(folder.path(), &["test_efficientnet_lite", "--size", "64x48", "--json", "out.json"]);
    assert!(output.status.success(), "{}", text(&output.stderr));
    let said = text(&output.stdout);
    assert!(said.contains("_blocks.5") && said.contains("MACs"), "{said}");
    let model = &json(&folder.path().join("out.json"))["model"];
    assert_eq!(model["input"], serde_json::json!([3, 64, 48]));
    assert_eq!(model["maps"][0]["shape"], serde_json::json!([8, 32, 24]));
    assert_eq!(model["output"], serde_json::json!([10]));
    assert!(model["parameters"].as_u64().unwrap() > 1000);
    // The stem alone: 32 x 24 places, 8 filters of 27 taps.
    assert!(model["macs"].as_u64().unwrap() > 32 * 24 * 8 * 27);
}

#[test]
fn the_list_names_every_model() {
    let folder = tempfile::tempdir().unwrap();
    let output = inspect(folder.path(), &["--list", "*", "--json", "out.json"]);
    assert!(output.status.success(), "{}", text(&output.stderr));
    let found = json(&folder.path().join("out.json"));
    let names: Vec<_> = found.as_array().unwrap().iter().map(|row| row["name"].as_str().unwrap()).collect();
    assert_eq!(names, list_models("*"));
    assert_eq!(text(&output.stdout).lines().count(), names.len());
}

#[test]
fn a_file_that_fits_is_told_from_one_that_does_not() {
    let folder = tempfile::tempdir().unwrap();
    let here = folder.path();
    save("test_vit", &here.join("vit.safetensors"));
    let weights = ["--weights", "vit.safetensors", "--json", "out.json"];
    let run = |model: &str, more: &[&str]| inspect(here, &[&[model], &weights[..], more].concat());

    let output = run("test_vit", &["--strict"]);
    assert!(output.status.success(), "{}", text(&output.stderr));
    assert_eq!(json(&here.join("out.json"))["weights"]["clean"], true);

    let output = run("test_deit_distilled", &[]);
    assert!(output.status.success(), "{}", text(&output.stderr));
    let report = &json(&here.join("out.json"))["weights"];
    assert_eq!(report["clean"], false);
    assert!(report["missing"].as_array().unwrap().iter().any(|name| name == "dist_token"), "{report}");
    assert!(text(&output.stdout).contains("dist_token"));

    let output = run("test_deit_distilled", &["--strict"]);
    assert_eq!(output.status.code(), Some(1));
    assert!(text(&output.stderr).contains("dist_token"), "{}", text(&output.stderr));
}

#[test]
fn what_is_not_there_is_said_plainly() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("torn.safetensors"), [255u8; 64]).unwrap();
    let cases: [(&[&str], &str, i32); 6] = [
        (&["vit_tiny"], "vit_tiny_patch16_224", 1),
        (&["--list", "nothing*"], "nothing*", 1),
        (&["test_vit", "--weights", "torn.safetensors"], "torn.safetensors", 1),
        (&["test_vit", "--json", "no/such/folder/out.json"], "no/such/folder", 1),
        (&["test_vit", "--size", "large"], "large", 2),
        (&[], "<MODEL>", 2),
    ];
    for (arguments, wanted, code) in cases {
        let output = inspect(folder.path(), arguments);
        let said = text(&output.stderr);
        assert_eq!(output.status.code(), Some(code), "{arguments:?}: {said}");
        assert!(said.contains(wanted) && !said.contains("panicked"), "{arguments:?}: {said}");
    }
}
