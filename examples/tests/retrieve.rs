//! Runs `retrieve` as a person would: in both languages, by text and by picture, on a folder with captions, with what is not
//! there.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use sconce_examples::emoji::{self, TEST_DOMAIN};
use serde_json::{Value, json};

/// The example's program, which `cargo test` builds beside the tests.
fn program() -> PathBuf {
    let test = std::env::current_exe().unwrap();
    let program = test.parent().and_then(Path::parent).unwrap().join("examples/retrieve");
    let program = program.with_extension(std::env::consts::EXE_EXTENSION);
    assert!(program.is_file(), "{} is not built", program.display());
    program
}

fn retrieve(folder: &Path, arguments: &[&str]) -> Output {
    Command::new(program()).current_dir(folder).args(["--device", "cpu"]).args(arguments).output().unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn report(folder: &Path, arguments: &[&str]) -> Value {
    let output = retrieve(folder, &[arguments, &["--json", "out.json"]].concat());
    assert!(output.status.success(), "{}", text(&output.stderr));
    serde_json::from_slice(&std::fs::read(folder.join("out.json")).unwrap()).unwrap()
}

#[test]
fn names_find_an_unseen_drawing_style_in_both_languages() {
    let folder = tempfile::tempdir().unwrap();
    for (language, query, least) in [("en", "red heart", 100.0), ("zh", "红心", 100.0)] {
        let arguments = ["--language", language, "--query", query, "--evaluate", "--top", "3", "--cache", "features"];
        let first = report(folder.path(), &arguments);
        let recall = |direction: &str| {
            let at_1 = |what: &str| first["evaluation"][what][direction][0].as_f64().unwrap();
            at_1("found") / at_1("chance")
        };
        assert!(recall("image_to_text") > least && recall("text_to_image") > least, "{language}: {first}");
        assert_eq!(first["queries"][0]["best"].as_array().unwrap().len(), 3);
        assert!(folder.path().join("retrieve.png").is_file());
        // The second run reads the features of the first.
        assert_eq!(report(folder.path(), &arguments), first);
    }
}

#[test]
fn a_folder_is_searched_by_picture_and_measured_by_its_captions() {
    let folder = tempfile::tempdir().unwrap();
    let pictures = folder.path().join("pictures");
    std::fs::create_dir(&pictures).unwrap();
    let (emoji, _) = emoji::load(&emoji::assets().join("emoji"), &[TEST_DOMAIN]).unwrap();
    let mut captions = serde_json::Map::new();
    for one in emoji.iter().step_by(90) {
        let name = format!("{}.png", one.caption.codepoint);
        one.picture.save(pictures.join(&name)).unwrap();
        let both = [vec![one.caption.name_zh.clone()], one.caption.keywords_zh.clone()].concat();
        captions.insert(name, json!(both));
    }
    std::fs::write(folder.path().join("captions.json"), Value::from(captions.clone()).to_string()).unwrap();
    let (name, _) = captions.iter().next_back().unwrap();
    let asked = format!("pictures/{name}");
    let arguments = [
        "--language",
        "zh",
        "--images",
        "pictures",
        "--captions",
        "captions.json",
        "--evaluate",
        "--picture",
        &asked,
        "--query",
        "动物",
    ];
    let found = report(folder.path(), &arguments);
    let queries = found["queries"].as_array().unwrap();
    assert_eq!(queries.len(), 2);
    // A picture is most like itself.
    assert_eq!(queries[1]["best"][0]["picture"], name.as_str(), "{found}");
    assert!((queries[1]["best"][0]["similarity"].as_f64().unwrap() - 1.0).abs() < 1e-4);
    let texts: usize = captions.values().map(|own| own.as_array().unwrap().len()).sum();
    assert_eq!(found["evaluation"]["captions"], texts);
    assert!(found["evaluation"]["found"]["mean"].as_f64() > found["evaluation"]["chance"]["mean"].as_f64());
}

#[test]
fn what_is_not_there_is_said_plainly() {
    let folder = tempfile::tempdir().unwrap();
    let here = folder.path();
    std::fs::create_dir(here.join("pictures")).unwrap();
    std::fs::create_dir(here.join("lonely")).unwrap();
    image::RgbImage::new(8, 8).save(here.join("pictures/a.png")).unwrap();
    std::fs::write(here.join("captions.json"), "{\"b.png\": [\"b\"]}").unwrap();
    // A text tower without the folder of its image tower beside it.
    for file in ["config.json", "model.safetensors", "vocab.txt"] {
        std::fs::copy(emoji::assets().join("weights/emoji-lit-zh").join(file), here.join("lonely").join(file)).unwrap();
    }
    let cases: [(&[&str], &str); 6] = [
        (&["--images", "nowhere"], "nowhere"),
        (&["--model", "no-such-model"], "no-such-model"),
        (&["--model", "lonely"], "emoji-clip"),
        (&["--images", "pictures", "--evaluate"], "--captions"),
        (&["--images", "pictures", "--captions", "captions.json", "--evaluate"], "a.png"),
        (&["--picture", "missing.png"], "missing.png"),
    ];
    for (arguments, wanted) in cases {
        let output = retrieve(here, arguments);
        let said = text(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{arguments:?}: {said}");
        assert!(said.contains(wanted) && !said.contains("panicked"), "{arguments:?}: {said}");
    }
}
