//! The rules of the house that no compiler checks: floors, forbidden parts of candle, where `unsafe` may stand.

use std::fs;
use std::path::{Path, PathBuf};

/// Crates by floor: a crate uses only crates on lower floors.
const FLOORS: &[(&str, u32)] = &[
    ("sconce-ops", 1),
    ("sconce-metrics", 1),
    ("sconce-nn", 2),
    ("sconce-data", 2),
    ("sconce-attention", 3),
    ("sconce-train", 3),
    ("sconce-backbones", 4),
    ("sconce-clip", 5),
    ("sconce-hash", 5),
    ("sconce-adapt", 6),
    ("sconce-ssl", 7),
    ("sconce-seq2seq", 7),
    ("sconce-synthesis", 7),
    ("sconce-pose", 7),
    ("sconce-lesion", 7),
    ("sconce", 100),
    ("sconce-bench", 100),
];

/// Parts of candle that drop gradients, compute something else than their name says, or draw unseeded numbers.
const FORBIDDEN: &[(&str, &str)] = &[
    ("softmax_last_dim", "has no backward pass: use sconce_ops::softmax"),
    ("max_pool2d_with_stride", "wrong or no gradient: use sconce_ops::max_pool2d"),
    (".max_pool2d(", "wrong or no gradient: use sconce_ops::max_pool2d"),
    (".avg_pool2d(", "no gradient for overlapping windows: use sconce_ops::avg_pool2d"),
    (".conv1d(", "one convolution per group: use sconce_ops::conv1d"),
    (".conv2d(", "one convolution per group: use sconce_ops::conv2d"),
    (".gelu()", "is the tanh form: use sconce_ops::gelu or gelu_tanh"),
    ("arg_sort_last_dim", "unstable on ties: use sconce_ops::argsort"),
    ("Tensor::randn", "unseeded on the CPU: draw from a Generator"),
    ("Tensor::rand", "unseeded on the CPU: draw from a Generator"),
    ("rand_like(", "unseeded on the CPU: draw from a Generator"),
    ("randn_like(", "unseeded on the CPU: draw from a Generator"),
];

/// Items of candle-nn that may not be named, in a path or in a `use`.
const FORBIDDEN_ITEMS: &[&str] = &[
    "LayerNorm",
    "layer_norm",
    "layer_norm_no_bias",
    "RmsNorm",
    "rms_norm",
    "Conv1d",
    "Conv2d",
    "conv1d",
    "conv2d",
    "conv1d_no_bias",
    "conv2d_no_bias",
    "Dropout",
    "BatchNorm",
    "batch_norm",
    "GroupNorm",
    "group_norm",
];

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

fn crates() -> Vec<(String, PathBuf)> {
    let entries = fs::read_dir(root().join("crates")).expect("the folder of crates");
    let mut found: Vec<_> = entries
        .map(|e| e.expect("an entry"))
        .filter(|e| e.path().join("Cargo.toml").is_file())
        .map(|e| (e.file_name().into_string().expect("a crate's name"), e.path()))
        .collect();
    found.sort();
    found
}

fn rust_files(folder: &Path) -> Vec<PathBuf> {
    let Ok(entries) = fs::read_dir(folder) else {
        return vec![];
    };
    let paths: Vec<_> = entries.map(|e| e.expect("an entry").path()).collect();
    let mut files: Vec<_> = paths.iter().filter(|p| p.extension().is_some_and(|e| e == "rs")).cloned().collect();
    files.extend(paths.iter().filter(|p| p.is_dir()).flat_map(|p| rust_files(p)));
    files.sort();
    files
}

/// A source file without comments, as numbered lines.
fn code(path: &Path) -> Vec<(usize, String)> {
    let text = fs::read_to_string(path).expect("a source file");
    let lines = text.lines().map(|line| match line.trim_start().starts_with("//") {
        true => String::new(),
        false => line.split(" // ").next().unwrap_or_default().to_owned(),
    });
    lines.enumerate().map(|(i, line)| (i + 1, line)).collect()
}

/// The part of a file above its unit tests, which by convention close the file.
fn library_code(path: &Path) -> Vec<(usize, String)> {
    code(path).into_iter().take_while(|(_, line)| !line.trim_start().starts_with("#[cfg(test)]")).collect()
}

fn has_word(line: &str, word: &str) -> bool {
    line.split(|c: char| !c.is_alphanumeric() && c != '_').any(|w| w == word)
}

/// The crates of this workspace that a manifest's `[dependencies]` and `[build-dependencies]` name.
fn dependencies(manifest: &str) -> Vec<String> {
    let mut inside = false;
    let mut found = vec![];
    for line in manifest.lines().map(str::trim) {
        if let Some(section) = line.strip_prefix('[') {
            let section = section.trim_end_matches(']');
            inside = section.ends_with("dependencies") && !section.ends_with("dev-dependencies");
        } else if inside {
            let name: String = line.chars().take_while(|c| c.is_alphanumeric() || matches!(c, '-' | '_')).collect();
            if name == "sconce" || name.starts_with("sconce-") {
                found.push(name);
            }
        }
    }
    found
}

#[test]
fn crates_use_only_lower_floors() {
    let floor = |name: &str| FLOORS.iter().find(|(n, _)| *n == name).map(|(_, floor)| *floor);
    let mut wrong = vec![];
    for (name, path) in crates() {
        let Some(own) = floor(&name) else {
            wrong.push(format!("{name} has no floor yet"));
            continue;
        };
        let manifest = fs::read_to_string(path.join("Cargo.toml")).expect("a manifest");
        for used in dependencies(&manifest) {
            match floor(&used) {
                Some(theirs) if theirs < own => {}
                // The benchmarks look at everything, the facade included.
                Some(_) if name == "sconce-bench" => {}
                theirs => wrong.push(format!("{name} (floor {own}) uses {used} (floor {theirs:?})")),
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn dependencies_are_read_from_every_form_of_manifest() {
    let manifest = "[package]\nname = \"sconce-x\"\n[dependencies]\nsconce-ops.workspace = true\n\
        sconce-nn = { path = \"..\" }\nserde = \"1\"\n[target.'cfg(unix)'.dependencies]\nsconce-data = \"1\"\n\
        [dev-dependencies]\nsconce-clip = \"1\"\n[features]\ncuda = [\"sconce-ops/cuda\"]\n";
    assert_eq!(dependencies(manifest), ["sconce-ops", "sconce-nn", "sconce-data"]);
}

#[test]
fn forbidden_parts_of_candle_stay_inside_the_ops() {
    let mut wrong = vec![];
    for (name, path) in crates() {
        // The ops wrap these parts; the benchmarks measure against them.
        if matches!(name.as_str(), "sconce-ops" | "sconce-bench") {
            continue;
        }
        for file in rust_files(&path.join("src")) {
            let mut in_use = false;
            for (number, line) in library_code(&file) {
                let mut complain = |what: &str| wrong.push(format!("{}:{number}: {what}", file.display()));
                for (part, reason) in FORBIDDEN.iter().filter(|(part, _)| line.contains(part)) {
                    complain(&format!("{part} {reason}"));
                }
                in_use |= line.contains("use candle_nn::");
                for item in FORBIDDEN_ITEMS {
                    if line.contains(&format!("candle_nn::{item}")) || (in_use && has_word(&line, item)) {
                        complain(&format!("candle_nn::{item} loses gradients, runs slowly or is unseeded"));
                    }
                }
                in_use &= !line.contains(';');
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn unsafe_stands_only_in_the_ops() {
    let mut wrong = vec![];
    let folders = crates().into_iter().filter(|(name, _)| name != "sconce-ops").map(|(_, path)| path);
    for folder in folders.chain([root().join("examples"), root().join("tests")]) {
        for file in rust_files(&folder).into_iter().filter(|file| !file.ends_with("tests/rules.rs")) {
            for (number, line) in code(&file).into_iter().filter(|(_, line)| has_word(line, "unsafe")) {
                wrong.push(format!("{}:{number}: {}", file.display(), line.trim()));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

fn size(path: &Path) -> u64 {
    match fs::read_dir(path) {
        Ok(entries) => entries.map(|e| size(&e.expect("an entry").path())).sum(),
        Err(_) => fs::metadata(path).map_or(0, |file| file.len()),
    }
}

#[test]
fn the_repository_stays_small() {
    const MIB: u64 = 1 << 20;
    let golden = size(&root().join("tests/golden"));
    assert!(golden <= 16 * MIB, "tests/golden holds {golden} bytes");
    let parts = [".ci", "assets", "crates", "docs", "examples", "tests", "Cargo.lock", "README.md", "CHANGELOG.md"];
    let tree: u64 = parts.iter().map(|part| size(&root().join(part))).sum();
    assert!(tree <= 40 * MIB, "the tree holds {tree} bytes");
    for (name, path) in crates() {
        // crates.io takes 10 MiB, compressed; what does not compress must not come near.
        let bytes = size(&path);
        assert!(bytes <= 10 * MIB, "{name} holds {bytes} bytes");
    }
}
