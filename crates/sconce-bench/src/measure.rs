//! Timing of several ways to compute the same: by turns, so that a change of the machine's mood meets them all.

use std::{fmt, time::Instant};

use candle_core::{Result, Tensor};
use serde::Serialize;

/// One way to compute it.
pub(crate) type Contender = Box<dyn Fn() -> Result<Tensor>>;

/// Two ways to compute the same.
pub(crate) struct Case {
    pub(crate) op: &'static str,
    pub(crate) shape: String,
    pub(crate) pass: &'static str,
    pub(crate) ours: Contender,
    pub(crate) candle: Contender,
}

/// Median and spread of one contender's times.
#[derive(Serialize)]
pub(crate) struct Times {
    pub(crate) median_ms: f64,
    /// Distance of the quartiles over the median.
    pub(crate) spread: f64,
}

/// The outcome of a case.
#[derive(Serialize)]
pub(crate) struct Row {
    op: &'static str,
    shape: String,
    pass: &'static str,
    ours: Times,
    candle: Times,
    ratio: f64,
}

pub(crate) const HEADER: &str = "| op | shape | pass | ours | spread | candle | spread | ratio |\n\
                                 | --- | --- | --- | ---: | ---: | ---: | ---: | ---: |";

impl Case {
    /// What `--filter` looks at.
    pub(crate) fn name(&self) -> String {
        format!("{} {} {}", self.op, self.shape, self.pass)
    }

    /// Times both contenders.
    pub(crate) fn run(self, rounds: u32) -> Result<Row> {
        let times = by_turns(&[self.ours, self.candle], rounds)?;
        let Ok([ours, candle]) = <[Times; 2]>::try_from(times) else {
            candle_core::bail!("two contenders have two times")
        };
        let ratio = ours.median_ms / candle.median_ms;
        Ok(Row { op: self.op, shape: self.shape, pass: self.pass, ours, candle, ratio })
    }
}

/// Runs the contenders in turn, `rounds` times; one round of each beforehand warms caches and pools and is not counted.
pub(crate) fn by_turns(contenders: &[Contender], rounds: u32) -> Result<Vec<Times>> {
    // Short operations are repeated within a measurement, to stand clear of the clock's and the scheduler's grain.
    let repeats = contenders.iter().map(|run| {
        run()?;
        let start = Instant::now();
        run()?;
        Ok((2e-3 / start.elapsed().as_secs_f64().max(1e-9)).clamp(1., 1000.) as u32)
    });
    let repeats = repeats.collect::<Result<Vec<u32>>>()?;
    let mut times = vec![Vec::new(); contenders.len()];
    for _ in 0..rounds {
        for ((run, times), &repeats) in contenders.iter().zip(&mut times).zip(&repeats) {
            let start = Instant::now();
            for _ in 0..repeats {
                run()?;
            }
            times.push(start.elapsed().as_secs_f64() * 1e3 / f64::from(repeats));
        }
    }
    Ok(times.into_iter().map(Times::new).collect())
}

impl Times {
    /// Of times in milliseconds, at least one.
    pub(crate) fn new(mut times: Vec<f64>) -> Self {
        times.sort_by(f64::total_cmp);
        let at = |q: f64| times[((times.len() - 1) as f64 * q).round() as usize];
        let median_ms = at(0.5);
        Self { median_ms, spread: (at(0.75) - at(0.25)) / median_ms }
    }
}

impl fmt::Display for Row {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { op, shape, pass, ours, candle, ratio } = self;
        write!(
            f,
            "| {op} | {shape} | {pass} | {:.3} | {:.0} % | {:.3} | {:.0} % | {ratio:.2} |",
            ours.median_ms,
            ours.spread * 100.,
            candle.median_ms,
            candle.spread * 100.
        )
    }
}
