//! Schedules against whole tables of the official schedulers, where the golden numbers are at hand.

use std::collections::BTreeMap;
use std::path::PathBuf;

use sconce_train::schedule::{Dassl, DasslSchedule, DasslWarmup, Schedule};

/// A file of the golden set: of the folder that `SCONCE_GOLDEN_DIR` names, or of the set in the repository.
fn golden(name: &str) -> Option<String> {
    let folder = std::env::var_os("SCONCE_GOLDEN_DIR")
        .map_or_else(|| PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden"), PathBuf::from);
    let path = folder.join(name);
    if !path.exists() {
        eprintln!("skipped: there is no {}", path.display());
        return None;
    }
    Some(std::fs::read_to_string(path).unwrap())
}

fn compare(name: &str, schedule: &Dassl, table: &[f64]) {
    for (position, value) in table.iter().enumerate() {
        let found = schedule.at(position as u64);
        assert!((found - value).abs() <= 1e-12 * schedule.lr, "{name} {position}: {found} instead of {value}");
    }
}

#[test]
fn dassl_per_epoch() {
    let Some(text) = golden("coop/dassl_lr_per_epoch.json") else { return };
    let tables: BTreeMap<String, Vec<f64>> = serde_json::from_str(&text).unwrap();
    for (name, table) in &tables {
        // constant_warm1_max50_lr0.002
        let mut parts = name.split('_');
        let kind = parts.next().unwrap();
        let mut number = |prefix: &str| -> f64 { parts.next().unwrap().strip_prefix(prefix).unwrap().parse().unwrap() };
        let (warmup_length, length) = (number("warm") as u64, number("max") as u64);
        let lr = number("lr");
        let warmup = match kind {
            "constant" => DasslWarmup::Constant { lr: 1e-5 },
            "linear" => DasslWarmup::Linear { min_lr: 1e-5 },
            other => panic!("warm-up {other}"),
        };
        let schedule = DasslSchedule::Cosine { length };
        compare(name, &Dassl { lr, warmup, warmup_length, recount: true, schedule }, table);
    }
    assert!(!tables.is_empty());
}

#[test]
fn dapl_per_iteration() {
    let Some(text) = golden("dapl/lr_per_iteration.json") else { return };
    let tables: serde_json::Value = serde_json::from_str(&text).unwrap();
    let table: Vec<f64> = serde_json::from_value(tables["lr"].clone()).unwrap();
    compare("dapl", &Dassl::dapl(0.003, 25), &table);
    assert!(!table.is_empty());
}
