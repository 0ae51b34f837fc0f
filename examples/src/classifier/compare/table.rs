//! The figures of all seeds of a model in one row.

use serde::Serialize;

use crate::classifier::Summary;
use crate::numbers::grouped;

/// A model.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(super) struct Row {
    pub(super) model: String,
    pub(super) parameters: usize,
    pub(super) macs: u64,
    /// Fraction of test pictures that are right, for each seed that is done.
    pub(super) top1: Vec<f64>,
    pub(super) top1_mean: f64,
    /// Half of the distance between the best and the worst seed.
    pub(super) top1_half_range: f64,
    pub(super) top5_mean: f64,
    /// Most memory of any seed, in bytes.
    pub(super) peak_memory: Option<u64>,
    /// Median over seeds.
    pub(super) seconds_per_epoch: Option<f64>,
    pub(super) epochs: Vec<u64>,
}

fn mean(values: &[f64]) -> f64 {
    values.iter().sum::<f64>() / values.len().max(1) as f64
}

/// A row for every model of which at least one training is done, in the order of `models`.
pub(super) fn rows(models: &[String], done: &[Summary]) -> Vec<Row> {
    let row = |model: &String| {
        let of: Vec<&Summary> = done.iter().filter(|summary| summary.model == *model).collect();
        let first = of.first()?;
        let top1: Vec<f64> = of.iter().map(|summary| summary.test.top1).collect();
        let top5: Vec<f64> = of.iter().map(|summary| summary.test.top5).collect();
        let (best, worst) = top1.iter().fold((0.0f64, 1.0f64), |(b, w), &x| (b.max(x), w.min(x)));
        let mut seconds: Vec<f64> = of.iter().filter_map(|summary| summary.seconds_per_epoch).collect();
        seconds.sort_by(f64::total_cmp);
        Some(Row {
            model: model.clone(),
            parameters: first.parameters,
            macs: first.macs,
            top1_mean: mean(&top1),
            top1_half_range: (best - worst) / 2.0,
            top5_mean: mean(&top5),
            top1,
            peak_memory: of.iter().filter_map(|summary| summary.peak_memory).max(),
            seconds_per_epoch: seconds.get(seconds.len() / 2).copied(),
            epochs: of.iter().map(|summary| summary.epochs).collect(),
        })
    };
    models.iter().filter_map(row).collect()
}

/// The table for a page of results.
pub(super) fn markdown(rows: &[Row], seeds: usize) -> String {
    let mut text = String::from(
        "| model | parameters | MMACs | top-1 (%) | seeds (%) | top-5 (%) | peak memory (MiB) | s / epoch |\n\
         | --- | ---: | ---: | ---: | --- | ---: | ---: | ---: |\n",
    );
    for row in rows {
        let percent = |fraction: f64| format!("{:.2}", 100.0 * fraction);
        let spread = if row.top1.len() > 1 { format!(" ± {}", percent(row.top1_half_range)) } else { String::new() };
        let missing = if row.top1.len() < seeds { format!(" ({} of {seeds})", row.top1.len()) } else { String::new() };
        let each = row.top1.iter().map(|&top1| percent(top1)).collect::<Vec<_>>().join(", ");
        let unknown = || "unknown".to_owned();
        text += &format!(
            "| {} | {} | {:.1} | {}{spread} | {each}{missing} | {} | {} | {} |\n",
            row.model,
            grouped(row.parameters),
            row.macs as f64 / 1e6,
            percent(row.top1_mean),
            percent(row.top5_mean),
            row.peak_memory.map_or_else(unknown, |bytes| grouped((bytes >> 20) as usize)),
            row.seconds_per_epoch.map_or_else(unknown, |seconds| format!("{seconds:.1}")),
        );
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_tells_mean_spread_and_what_is_missing() {
        let row = Row {
            model: "m".into(),
            parameters: 1_345_994,
            macs: 1_660_000_000,
            top1: vec![0.9, 0.91],
            top1_mean: 0.905,
            top1_half_range: 0.005,
            top5_mean: 1.0,
            peak_memory: Some(300 << 20),
            seconds_per_epoch: Some(12.34),
            epochs: vec![30, 30],
        };
        let text = markdown(&[row], 3);
        let last = text.lines().last().unwrap();
        assert_eq!(last, "| m | 1,345,994 | 1660.0 | 90.50 ± 0.50 | 90.00, 91.00 (2 of 3) | 100.00 | 300 | 12.3 |");
    }
}
