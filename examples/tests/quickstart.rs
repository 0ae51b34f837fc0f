//! Runs the quickstart as a person would: on the repository's drawings, on folders of pictures good and bad, with models that
//! are not there.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use sconce_examples::emoji::{self, TEST_DOMAIN};
use serde_json::Value;

/// The example's program, which `cargo test` builds beside the tests.
fn program() -> PathBuf {
    let test = std::env::current_exe().unwrap();
    let program = test.parent().and_then(Path::parent).unwrap().join("examples/quickstart");
    let program = program.with_extension(std::env::consts::EXE_EXTENSION);
    assert!(program.is_file(), "{} is not built", program.display());
    program
}

fn quickstart(folder: &Path, arguments: &[&str]) -> Output {
    Command::new(program()).current_dir(folder).args(["--device", "cpu"]).args(arguments).output().unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn json(path: &Path) -> Value {
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

#[test]
fn an_unseen_drawing_style_is_recognised() {
    let folder = tempfile::tempdir().unwrap();
    let output = quickstart(folder.path(), &["--json", "figures.json"]);
    assert!(output.status.success(), "{}", text(&output.stderr));
    let figures = json(&folder.path().join("figures.json"));
    let zero_shot = |name: &str| figures["zero_shot"][name].as_f64().unwrap();
    assert!(zero_shot("image_to_text_r1") >= 100.0 * zero_shot("r1_chance"), "{figures}");
    assert!(zero_shot("text_to_image_r1") >= 100.0 * zero_shot("r1_chance"), "{figures}");
    assert!(zero_shot("top1") >= 5.0 * zero_shot("top1_chance"), "{figures}");
    let few = |name: &str| figures["few_shot"][name].as_f64().unwrap();
    assert!(few("zero_shot") >= 10.0 * few("chance"), "{figures}");
    assert!(few("tip_adapter").min(few("tip_adapter_f")) > few("zero_shot"), "{figures}");
    let sheet = image::open(folder.path().join("quickstart.png")).unwrap();
    assert!(sheet.width() > 600 && sheet.height() > 200);
}

#[test]
fn a_folder_of_ones_own_is_classified_and_searched() {
    let folder = tempfile::tempdir().unwrap();
    let pictures = folder.path().join("pictures");
    std::fs::create_dir(&pictures).unwrap();
    let (emoji, _) = emoji::load(&emoji::assets().join("emoji"), &[TEST_DOMAIN]).unwrap();
    for one in emoji.iter().step_by(100) {
        one.picture.save(pictures.join(format!("{}.png", one.caption.codepoint))).unwrap();
    }
    std::fs::write(pictures.join("broken.png"), b"\x89PNG\r\n\x1a\nthis is no picture").unwrap();

    let arguments =
        ["--images", "pictures", "--classes", "animal, food,flag", "--query", "a dog", "--json", "out.json"];
    let output = quickstart(folder.path(), &arguments);
    assert!(output.status.success(), "{}", text(&output.stderr));
    assert!(text(&output.stderr).contains("broken.png"), "{}", text(&output.stderr));
    let figures = json(&folder.path().join("out.json"));
    let classified = figures["classified"].as_array().unwrap();
    assert_eq!(classified.len(), emoji.iter().step_by(100).count());
    for row in classified {
        let sum: f64 = row["classes"].as_array().unwrap().iter().map(|c| c["probability"].as_f64().unwrap()).sum();
        assert!((sum - 1.0).abs() < 1e-4, "{row}");
    }
    assert!(!figures["query"]["best"].as_array().unwrap().is_empty());
    assert!(folder.path().join("quickstart.png").is_file());
}

#[test]
fn what_is_not_there_is_said_plainly() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::create_dir(folder.path().join("empty")).unwrap();
    std::fs::write(folder.path().join("torn.safetensors"), [255u8; 64]).unwrap();
    let cases: [(&[&str], &str); 7] = [
        (&["--images", "nowhere", "--query", "a dog"], "nowhere"),
        (&["--images", "empty", "--query", "a dog"], "empty"),
        (&["--images", "empty"], "--classes"),
        (&["--model", "no-such-model"], "no-such-model"),
        (&["--model", "torn.safetensors"], "torn.safetensors"),
        (&["--device", "toaster"], "toaster"),
        (&["--sheet", "no/such/folder/sheet.png"], "no/such/folder"),
    ];
    for (arguments, wanted) in cases {
        let arguments: Vec<&str> = arguments.to_vec();
        let output = Command::new(program()).current_dir(folder.path()).args(&arguments).output().unwrap();
        let said = text(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{arguments:?}: {said}");
        assert!(said.contains(wanted) && !said.contains("panicked"), "{arguments:?}: {said}");
    }
}
