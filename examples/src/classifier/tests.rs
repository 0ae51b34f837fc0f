//! Whole trainings on the repository's Fashion-MNIST subset.

use std::path::Path;

use clap::Parser;
use sconce::candle::Device;
use sconce::train::Interrupt;

use super::compare::Comparison;
use super::{Options, Summary, train};

#[derive(Parser)]
#[command(no_binary_name = true)]
struct Words {
    #[command(flatten)]
    options: Options,
}

fn options(out: &Path, words: &str) -> Options {
    let words = words.split_whitespace().chain(["--quiet", "--device", "cpu", "--out", out.to_str().unwrap()]);
    Words::try_parse_from(words).unwrap_or_else(|error| panic!("{error}")).options
}

fn run(out: &Path, words: &str) -> Option<Summary> {
    train(&options(out, words), &Device::Cpu, &Interrupt::new()).unwrap()
}

fn error(words: &str) -> String {
    let out = tempfile::tempdir().unwrap();
    train(&options(out.path(), words), &Device::Cpu, &Interrupt::new()).unwrap_err().to_string()
}

fn weights(out: &Path) -> Vec<u8> {
    std::fs::read(out.join("model.safetensors")).unwrap()
}

#[test]
fn a_few_epochs_teach_a_small_model() {
    let out = tempfile::tempdir().unwrap();
    let recipe =
        "--model test_resnet_basic --epochs 4 --batch-size 32 --lr 3e-3 --warmup 1 --crop-padding 2 --flip --mixup 0.1";
    let summary = run(out.path(), recipe).unwrap();
    // One in ten by guessing; 65 % where this was written, and other machines round otherwise.
    assert!(summary.test.top1 > 0.55 && summary.test.top5 > 0.95, "{:?}", summary.test);
    assert_eq!((summary.pictures, summary.test.pictures, summary.classes.len()), (2040, 2000, 10));
    let log = std::fs::read_to_string(out.path().join("log.csv")).unwrap();
    let losses: Vec<f64> =
        log.lines().skip(1).filter_map(|line| line.split(',').nth(1).and_then(|loss| loss.parse().ok())).collect();
    let mean = |part: &[f64]| part.iter().sum::<f64>() / part.len() as f64;
    let (first, last) = (mean(&losses[..10]), mean(&losses[losses.len() - 10..]));
    assert!(last < 0.7 * first, "the loss went from {first} to {last}");
    let read: Summary = serde_json::from_slice(&std::fs::read(out.path().join("summary.json")).unwrap()).unwrap();
    assert_eq!(read.test.hits(), summary.test.hits());
    assert!(std::fs::read_to_string(out.path().join("confusion.svg")).unwrap().contains("rotate"));
    assert!(read.peak_memory.is_none_or(|bytes| bytes > 1 << 20));
}

#[test]
fn a_stopped_training_continues_to_the_same_bits() {
    let recipe = "--model test_vit_avg --limit 96 --batch-size 32 --epochs 3 --warmup 1 --crop-padding 4 --mixup 0.8 \
                  --cutmix 1 --erasing 0.5 --erasing-mode pixel --auto-augment rand-m9-mstd0.5-inc1 --ema 0.9 --validation 0.1 --layer-decay 0.8";
    let whole = tempfile::tempdir().unwrap();
    run(whole.path(), recipe).unwrap();
    let parts = tempfile::tempdir().unwrap();
    // In the middle of the first epoch, at the end of the second, and another number of workers.
    assert!(run(parts.path(), &format!("{recipe} --stop-after 2")).is_none());
    assert!(run(parts.path(), &format!("{recipe} --resume --stop-after 6 --workers 2")).is_none());
    let summary = run(parts.path(), &format!("{recipe} --resume")).unwrap();
    assert!(weights(parts.path()) == weights(whole.path()));
    let log = |out: &Path| std::fs::read_to_string(out.join("log.csv")).unwrap();
    assert_eq!(log(parts.path()), log(whole.path()));
    assert_eq!(summary.validation.map(|figures| figures.pictures), Some(200));
    // Another recipe is not the training to resume.
    let other = options(parts.path(), &format!("{recipe} --resume --lr 0.5"));
    let error = train(&other, &Device::Cpu, &Interrupt::new()).unwrap_err().to_string();
    assert!(error.contains("had lr 0.001 and not 0.5"), "{error}");
    let fresh = tempfile::tempdir().unwrap();
    run(fresh.path(), &format!("{recipe} --seed 2")).unwrap();
    assert!(weights(fresh.path()) != weights(whole.path()));
}

#[test]
fn the_dual_schedule_goes_on_from_the_best_weights_and_keeps_them() {
    let out = tempfile::tempdir().unwrap();
    // A rate at which AdamW does not stay at its best, and a second optimiser that changes nothing.
    let recipe = "--model test_vit --limit 128 --batch-size 32 --epochs 12 --schedule dual --patience 1 --validation 0.2 \
                  --lr 0.03 --sgd-lr 0";
    let stopped = format!("{recipe} --stop-after 4");
    assert!(run(out.path(), &stopped).is_none());
    let summary = run(out.path(), &format!("{recipe} --resume")).unwrap();
    let switched = summary.switched.expect("no change of the optimiser");
    assert!(switched < 12);
    let before: Vec<f64> = summary.curve.iter().filter(|(epoch, _)| *epoch <= switched).map(|point| point.1).collect();
    let after: Vec<f64> = summary.curve.iter().filter(|(epoch, _)| *epoch > switched).map(|point| point.1).collect();
    let best = before.iter().copied().fold(0.0, f64::max);
    assert!(*before.last().unwrap() < best, "{before:?}");
    assert!(!after.is_empty() && after.iter().all(|top1| *top1 == best), "{before:?} {after:?}");
    assert_eq!(summary.validation.unwrap().top1, best);
    assert_eq!(weights(out.path()), std::fs::read(out.path().join("best.safetensors")).unwrap());
}

#[test]
fn shards_and_folders_of_pictures_train_too() {
    let emoji = crate::emoji::assets().join("emoji");
    let out = tempfile::tempdir().unwrap();
    let (train_shard, test_shard) = (emoji.join("noto-64.tar.gz"), emoji.join("noto-v1-64.tar.gz"));
    let summary = run(
        out.path(),
        &format!(
            "--model test_resnet_basic --image-size 24 --data {} --test {} --label-key category --limit 64 --batch-size 32 \
             --epochs 1 --random-resized-crop 0.5 --auto-augment trivial",
            train_shard.display(),
            test_shard.display()
        ),
    )
    .unwrap();
    assert_eq!((summary.test.pictures, summary.input), (977, [24, 24]));
    assert!(summary.classes.len() > 5 && summary.classes.iter().any(|class| class.starts_with("Animals")));

    let folder = tempfile::tempdir().unwrap();
    for (class, value) in [("dark", 10u8), ("light", 240)] {
        let class = folder.path().join(class);
        std::fs::create_dir(&class).unwrap();
        for i in 0..8 {
            let picture = image::RgbImage::from_pixel(20 + i, 30, image::Rgb([value - i as u8, value, value]));
            picture.save(class.join(format!("{i}.png"))).unwrap();
        }
    }
    let recipe = format!(
        "--model test_resnet_basic --data {} --holdout 0.25 --batch-size 4 --epochs 3 --lr 0.01 --normalize half",
        folder.path().display()
    );
    let summary = run(out.path(), &recipe).unwrap();
    assert_eq!(summary.classes, ["dark", "light"]);
    assert_eq!((summary.pictures, summary.test.pictures, summary.test.top1), (12, 4, 1.0));
    // Without pictures to test on there is nothing to tell.
    let words = format!("--model test_vit --data {}", folder.path().display());
    assert!(error(&words).contains("--holdout"));
}

#[cfg(unix)]
#[test]
fn a_comparison_does_what_is_missing_and_nothing_twice() {
    let out = tempfile::tempdir().unwrap();
    let recipe = "--epochs 1 --limit 32 --batch-size 16";
    let comparison = |models: &[&str], seeds: &[u64], recipe: &str| Comparison {
        models: models.iter().map(ToString::to_string).collect(),
        seeds: seeds.to_vec(),
        out: out.path().to_path_buf(),
        options: options(out.path(), &format!("--model test_vit {recipe}")),
        arguments: recipe.split_whitespace().map(String::from).collect(),
    };
    let compare = |comparison: Comparison, program: &str| comparison.run(&[program.into()], &Interrupt::new());
    let message = |result: Result<bool, crate::Error>| result.unwrap_err().to_string();
    // A program that ends without a result was stopped; one that fails is named with its folder.
    assert!(!compare(comparison(&["test_vit"], &[1], recipe), "true").unwrap());
    let failed = message(compare(comparison(&["test_vit"], &[1], recipe), "false"));
    assert!(failed.contains("test_vit-seed1") && failed.contains("exit status: 1"), "{failed}");
    assert!(message(compare(comparison(&["test_vit", "nothing"], &[1], recipe), "false")).contains("nothing"));

    for seed in [1, 2] {
        let folder = out.path().join(format!("test_vit-seed{seed}"));
        run(&folder, &format!("--model test_vit --seed {seed} {recipe}")).unwrap();
    }
    // Everything is done: no program is started.
    assert!(compare(comparison(&["test_vit"], &[1, 2], recipe), "false").unwrap());
    let table = std::fs::read_to_string(out.path().join("table.md")).unwrap();
    assert!(table.lines().count() == 3 && table.contains("| test_vit | 32,554 |"), "{table}");
    assert!(std::fs::read_to_string(out.path().join("table.svg")).unwrap().contains(">test_vit</text>"));
    // A third seed is not, and results of another recipe do not count.
    assert!(compare(comparison(&["test_vit"], &[1, 2, 3], recipe), "false").is_err());
    let other = message(compare(comparison(&["test_vit"], &[1], "--epochs 2"), "false"));
    assert!(other.contains("other options"), "{other}");
}

#[test]
fn options_of_the_model_are_replaced_and_checked() {
    let out = tempfile::tempdir().unwrap();
    let recipe = "--model test_vit --limit 32 --epochs 1 --set depth=1 --set mlp_ratio=2.0 --drop-path 0.2 --image-size 24 --auto-augment randaugment-1-2";
    let small = run(out.path(), recipe).unwrap();
    let plain = run(out.path(), "--model test_vit --limit 32 --epochs 1").unwrap();
    assert!(small.parameters < plain.parameters && 0 < small.macs && small.macs < plain.macs);
    assert_eq!(small.input, [24, 24]);
    assert!(error("--model test_vit --set dept=1").contains("no option dept"));
    assert!(error("--model test_vit --set depth=deep").contains("deep"));
    assert!(error("--model test_vit --set depth").contains("KEY=VALUE"));
    assert!(error("--model test_vit --set in_chans=1").contains("[1, 32, 32]"));
    assert!(error("--model test_resnet_basic --layer-decay 0.8").contains("blocks.N"));
}

#[test]
fn bad_input_is_named() {
    assert!(error("--model vit_tny_patch4").contains("vit_tny_patch4"));
    assert!(error("--model test_vit --data /nowhere/at/all").contains("/nowhere/at/all"));
    assert!(error("--model test_vit --schedule dual").contains("--validation"));
    assert!(error("--model test_vit --num-classes 5").contains("there are 5 classes"));
    assert!(error("--model test_vit --validation 1.5").contains("1.5"));
    assert!(error("--model test_vit --auto-augment random").contains("--auto-augment random"));
    assert!(error("--model test_vit --auto-augment randaugment-2").contains("randaugment-OPERATIONS-STRENGTH"));
    assert!(error("--model test_vit --epochs 1 --limit 32 --auto-augment randaugment-2-31").contains("magnitude"));
    assert!(error("--model test_vit --epochs 0").contains("--epochs"));
    assert!(error("--model test_vit --epochs 1 --limit 32 --mixup=-1").contains("mixup_alpha"));

    let folder = tempfile::tempdir().unwrap();
    let words = format!("--model test_vit --data {}", folder.path().display());
    assert!(error(&words).contains("no class folder"));
    let images = folder.path().join("train-images-idx3-ubyte");
    let labels = folder.path().join("train-labels-idx1-ubyte");
    std::fs::write(&images, [0, 0, 8, 3, 0, 0, 0, 2, 0, 0, 0, 1, 0, 0, 0, 1, 7]).unwrap();
    let missing = error(&words);
    assert!(missing.contains("train-images-idx3-ubyte") && missing.contains("needs 2 bytes"), "{missing}");
    std::fs::write(&images, [0, 0, 8, 3, 0, 0, 0, 2, 0, 0, 0, 1, 0, 0, 0, 1, 7, 7]).unwrap();
    assert!(error(&words).contains("train-labels-idx1-ubyte"));
    std::fs::write(&labels, [0, 0, 8, 1, 0, 0, 0, 3, 0, 1, 2]).unwrap();
    assert!(error(&words).contains("for 2 pictures"));
    std::fs::write(&labels, [0, 0, 8, 1, 0, 0, 0, 2, 0, 9]).unwrap();
    assert!(error(&format!("{words} --num-classes 3 --holdout 0.5")).contains("picture 1 has label 9"));
}
