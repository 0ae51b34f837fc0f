//! Runs the adaptation of a dual encoder as a person would: every method on the repository's drawings, folders and split files of
//! one's own, and what is wrong.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use sconce::nn::Checkpoint;
use sconce_examples::emoji::{self, TEST_DOMAIN};
use serde_json::{Value, json};

/// The example's program, which `cargo test` builds beside the tests.
fn program() -> PathBuf {
    let test = std::env::current_exe().unwrap();
    let program = test.parent().and_then(Path::parent).unwrap().join("examples/adapt");
    let program = program.with_extension(std::env::consts::EXE_EXTENSION);
    assert!(program.is_file(), "{} is not built", program.display());
    program
}

fn adapt(folder: &Path, arguments: &[&str]) -> Output {
    let fixed = ["--device", "cpu", "--out", "out"];
    Command::new(program()).current_dir(folder).args(fixed).args(arguments).output().unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// Runs to the end and gives the figures.
fn figures(folder: &Path, arguments: &[&str]) -> Value {
    let output = adapt(folder, arguments);
    assert!(output.status.success(), "{arguments:?}: {}", text(&output.stderr));
    serde_json::from_slice(&std::fs::read(folder.join("out/figures.json")).unwrap()).unwrap()
}

fn accuracy(figures: &Value, method: &str) -> f64 {
    let entries = figures["entries"].as_array().unwrap();
    let entry = entries.iter().find(|entry| entry["method"] == method);
    entry.unwrap_or_else(|| panic!("no {method} in {figures}"))["accuracy"]["mean"].as_f64().unwrap()
}

/// Drawings in a folder for each of two kinds, of so many pictures each.
fn class_folders(root: &Path, count: usize) {
    let (emoji, _) = emoji::load(&emoji::assets().join("emoji"), &[TEST_DOMAIN]).unwrap();
    for (class, subcategory) in [("clock_face", "time"), ("animal", "animal-mammal")] {
        std::fs::create_dir_all(root.join(class)).unwrap();
        let own = emoji.iter().filter(|one| one.caption.subcategory == subcategory).take(count);
        for one in own {
            one.picture.save(root.join(class).join(format!("{}.png", one.caption.codepoint))).unwrap();
        }
    }
}

const SMALL: [&str; 2] = ["--least", "24"];

#[test]
fn every_method_is_trained_kept_and_told() {
    let folder = tempfile::tempdir().unwrap();
    let methods = "zero-shot,coop,cocoop,clip-adapter,tip-adapter,tip-adapter-f";
    let arguments = ["--method", methods, "--shots", "1,2", "--epochs", "1", SMALL[0], SMALL[1]];
    let found = figures(folder.path(), &arguments);
    assert_eq!(found["entries"].as_array().unwrap().len(), 11);
    assert!(accuracy(&found, "zero-shot") > 2.0 * found["chance"].as_f64().unwrap(), "{found}");
    let out = folder.path().join("out");
    for (method, keys) in [
        ("coop", &["ctx"][..]),
        (
            "cocoop",
            &[
                "ctx",
                "meta_net.linear1.bias",
                "meta_net.linear1.weight",
                "meta_net.linear2.bias",
                "meta_net.linear2.weight",
            ],
        ),
        ("clip-adapter", &["fc.0.weight", "fc.2.weight"]),
        ("tip-adapter-f", &["weight"]),
    ] {
        let cell = out.join(format!("cells/{method}-2-shots-seed-1"));
        let head = Checkpoint::open(cell.join("head.safetensors")).unwrap();
        assert_eq!(head.names().collect::<Vec<_>>(), keys, "{method}");
        assert_eq!(cell.join("curves.svg").is_file(), cfg!(feature = "plot"), "{method}");
        assert_eq!(cell.join("confusion.svg").is_file(), cfg!(feature = "plot"), "{method}");
    }
    let table = std::fs::read_to_string(out.join("table.md")).unwrap();
    assert!(table.contains("| 1 shot | 2 shots |") && table.contains("| CLIP-Adapter |"), "{table}");
    assert_eq!(out.join("shots.svg").is_file(), cfg!(feature = "plot"));

    // What is there is not done again: neither heads nor features.
    let head = out.join("cells/coop-1-shots-seed-1/head.safetensors");
    let written = || std::fs::metadata(&head).unwrap().modified().unwrap();
    let (before, bytes) = (written(), std::fs::read(&head).unwrap());
    let output = adapt(folder.path(), &arguments);
    assert!(output.status.success() && !text(&output.stderr).contains("computed"), "{}", text(&output.stderr));
    assert_eq!(written(), before);
    // Anew, it comes to the same bits.
    let fresh = [&arguments[..], &["--fresh", "--method", "coop"]].concat();
    let fresh: Vec<&str> = fresh.into_iter().skip(2).collect();
    figures(folder.path(), &fresh);
    assert!(written() > before && std::fs::read(&head).unwrap() == bytes);
    // Another option is another head.
    let other: Vec<&str> =
        fresh.iter().copied().filter(|argument| *argument != "--fresh").chain(["--lr", "0.1"]).collect();
    figures(folder.path(), &other);
    assert_ne!(std::fs::read(&head).unwrap(), bytes);
}

#[test]
fn labelled_pictures_of_ones_own_are_learned_from() {
    let folder = tempfile::tempdir().unwrap();
    class_folders(&folder.path().join("pictures"), 12);
    let arguments = [
        "--images",
        "pictures",
        "--method",
        "zero-shot,tip-adapter-f",
        "--shots",
        "4",
        "--seeds",
        "1,2",
        "--views",
        "1",
    ];
    let found = figures(folder.path(), &arguments);
    assert_eq!((&found["classes"], &found["tested"]), (&json!(2), &json!(12)));
    assert!(accuracy(&found, "tip-adapter-f") >= 0.8, "{found}");
    assert_eq!(found["entries"][1]["accuracy"]["values"].as_array().unwrap().len(), 2);
}

#[test]
fn split_files_and_given_lists_are_followed() {
    let folder = tempfile::tempdir().unwrap();
    class_folders(&folder.path().join("pictures"), 6);
    let root = folder.path().join("pictures");
    let item = |class: &str, index: usize| {
        let mut files: Vec<_> =
            std::fs::read_dir(root.join(class)).unwrap().map(|file| file.unwrap().file_name()).collect();
        files.sort();
        let label = usize::from(class == "animal");
        json!([format!("{class}/{}", files[index].to_string_lossy()), label, class])
    };
    let items = |range: std::ops::Range<usize>| {
        range.flat_map(|i| [item("clock_face", i), item("animal", i)]).collect::<Vec<_>>()
    };
    let split = json!({ "train": items(0..3), "val": [], "test": items(3..6) });
    std::fs::write(folder.path().join("split.json"), split.to_string()).unwrap();
    std::fs::write(folder.path().join("indices.json"), json!({ "train": [0, 1, 5] }).to_string()).unwrap();
    let arguments = ["--split", "split.json", "--root", "pictures", "--method", "tip-adapter"];
    let found = figures(folder.path(), &arguments);
    assert_eq!((&found["tested"], &found["entries"][0]["shots_per_class"]), (&json!(6), &json!(3.0)));
    let found = figures(folder.path(), &[&arguments[..], &["--indices", "indices.json"]].concat());
    assert_eq!(found["entries"][0]["shots_per_class"], json!(1.5));
    std::fs::remove_file(root.join(split["test"][0][0].as_str().unwrap())).unwrap();
    let output = adapt(folder.path(), &arguments);
    assert!(text(&output.stderr).contains(split["test"][0][0].as_str().unwrap()), "{}", text(&output.stderr));
}

#[test]
fn another_data_set_with_some_of_the_classes_is_tested_on() {
    let folder = tempfile::tempdir().unwrap();
    class_folders(&folder.path().join("pictures"), 8);
    class_folders(&folder.path().join("others"), 10);
    // Only the second class by name, which is the first there.
    std::fs::remove_dir_all(folder.path().join("others/animal")).unwrap();
    let arguments = ["--images", "pictures", "--target", "others", "--method", "zero-shot,tip-adapter", "--shots", "4"];
    let found = figures(folder.path(), &arguments);
    assert_eq!((&found["classes"], &found["tested"]), (&json!(1), &json!(5)));
    assert_eq!(accuracy(&found, "tip-adapter"), 1.0);
    std::fs::rename(folder.path().join("others/clock_face"), folder.path().join("others/watch")).unwrap();
    let said = text(&adapt(folder.path(), &arguments).stderr);
    assert!(said.contains("watch"), "{said}");
}

#[test]
fn base_classes_are_trained_and_new_ones_asked() {
    let folder = tempfile::tempdir().unwrap();
    let arguments = ["--method", "zero-shot,coop,clip-adapter", "--shots", "1", "--epochs", "1", "--base-to-new"];
    let found = figures(folder.path(), &[&arguments[..], &SMALL].concat());
    for entry in found["entries"].as_array().unwrap() {
        let [base, new, mean] = ["accuracy", "new", "harmonic_mean"].map(|name| entry[name]["mean"].as_f64().unwrap());
        assert!((mean - 2.0 * base * new / (base + new)).abs() < 1e-12, "{entry}");
    }
    let table = std::fs::read_to_string(folder.path().join("out/table.md")).unwrap();
    assert!(table.contains("| harmonic mean |"), "{table}");
}

#[test]
fn domains_are_adapted_without_labels_of_the_target() {
    let folder = tempfile::tempdir().unwrap();
    let arguments = ["--source", "fluent-3d", "--target", "noto-v1", "--shots", "2", "--epochs", "1"];
    let methods = ["--method", "zero-shot,coop,dapl,dapl-all-domains"];
    let found = figures(folder.path(), &[&arguments[..], &methods, &SMALL].concat());
    assert_eq!(found["domains"], json!(["fluent-3d", "noto-v1"]));
    let heads = ["dapl", "dapl-all-domains"].map(|method| {
        let head = folder.path().join(format!("out/cells/{method}-2-shots-seed-1/head.safetensors"));
        assert_eq!(Checkpoint::open(&head).unwrap().names().collect::<Vec<_>>(), ["ctx", "domain_vectors"]);
        std::fs::read(head).unwrap()
    });
    assert_ne!(heads[0], heads[1]);
}

#[test]
fn a_data_set_is_documented() {
    let folder = tempfile::tempdir().unwrap();
    let found = figures(folder.path(), &["--method", "q16", "--shots", "all", "--epochs", "50"]);
    let number = |name: &str| found[name].as_f64().unwrap();
    assert!(number("tuned") > 0.75 && number("flagged") > 0.0, "{found}");
    let documentation = folder.path().join("out/documentation");
    let report = std::fs::read_to_string(documentation.join("report.csv")).unwrap();
    assert_eq!(report.lines().count() as f64, number("flagged") + 1.0);
    for file in ["summary.json", "words.svg", "words.png", "words_weighted.svg", "words_weighted.png"] {
        assert!(documentation.join(file).is_file(), "{file}");
    }
}

#[test]
fn what_is_wrong_is_said_plainly() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::create_dir_all(folder.path().join("one/empty")).unwrap();
    std::fs::write(folder.path().join("broken.json"), "{").unwrap();
    let cases: [(&[&str], &str); 12] = [
        (&["--images", "nowhere"], "nowhere"),
        (&["--images", "one"], "empty"),
        (&["--source", "cubism"], "cubism"),
        (&["--model", "no-such-model"], "no-such-model"),
        (&["--split", "broken.json", "--root", "one"], "broken.json"),
        (&["--least", "10000"], "10000"),
        (&["--test-share", "1.5"], "1.5"),
        (&["--template", "a photo"], "a photo"),
        (&["--method", "dapl"], "--target"),
        (&["--method", "tip-adapter", "--base-to-new"], "--base-to-new"),
        (&["--ctx", "40", "--epochs", "1"], "tokens"),
        (&["--method", "q16", "--look-for", "nothing"], "nothing"),
    ];
    for (arguments, wanted) in cases {
        let output = adapt(folder.path(), arguments);
        let said = text(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{arguments:?}: {said}");
        assert!(said.contains(wanted) && !said.contains("panicked"), "{arguments:?}: {said}");
    }
    let output = adapt(folder.path(), &["--shots", "0"]);
    assert!(output.status.code() == Some(2) && text(&output.stderr).contains("neither a number"));
}
