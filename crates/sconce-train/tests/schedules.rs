//! Schedules against whole tables of the official schedulers.

use std::collections::BTreeMap;

use sconce_train::schedule::{Dassl, DasslSchedule, DasslWarmup, Schedule};

/// Rates printed by the official schedulers: Dassl's of CoOp by epoch, DAPL's by iteration.
const DASSL: &str = include_str!("data/dassl_lr_per_epoch.json");
const DAPL: &str = include_str!("data/lr_per_iteration.json");

fn compare(name: &str, schedule: &Dassl, table: &[f64]) {
    assert!(!table.is_empty(), "{name}");
    for (position, value) in table.iter().enumerate() {
        let found = schedule.at(position as u64);
        assert!((found - value).abs() <= 1e-12 * schedule.lr, "{name} {position}: {found} instead of {value}");
    }
}

#[test]
fn dassl_per_epoch() {
    let tables: BTreeMap<String, Vec<f64>> = serde_json::from_str(DASSL).unwrap();
    assert!(!tables.is_empty());
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
    let tables: serde_json::Value = serde_json::from_str(DAPL).unwrap();
    let table: Vec<f64> = serde_json::from_value(tables["lr"].clone()).unwrap();
    compare("dapl", &Dassl::dapl(0.003, 25), &table);
    assert!(!table.is_empty());
}
