//! Values that change over training: learning rate, weight decay, momentum, temperature.
//!
//! A [`Schedule`] is a function of a position and holds no state, so that resuming needs nothing but
//! the position. What a position counts, optimiser steps or epochs, is the caller's choice;
//! [`PerEpoch`] turns a schedule over epochs into one over steps.

mod dassl;

use std::fmt::Debug;

use serde::{Deserialize, Serialize};

pub use dassl::{Dassl, DasslSchedule, DasslWarmup};

/// A value for each position of training, counted from 0.
pub trait Schedule: Debug + Send + Sync {
    /// The value at a position.
    fn at(&self, position: u64) -> f64;
}

impl<S: Schedule + ?Sized> Schedule for Box<S> {
    fn at(&self, position: u64) -> f64 {
        (**self).at(position)
    }
}

/// The same value throughout.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Constant(pub f64);

impl Schedule for Constant {
    fn at(&self, _position: u64) -> f64 {
        self.0
    }
}

/// A straight line from `from` at 0 to `to` at `length`, and `to` afterwards.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Linear {
    /// First value.
    pub from: f64,
    /// Last value.
    pub to: f64,
    /// Position of the last value.
    pub length: u64,
}

impl Schedule for Linear {
    fn at(&self, position: u64) -> f64 {
        if position >= self.length {
            return self.to;
        }
        self.from + (self.to - self.from) * (position as f64 / self.length as f64)
    }
}

/// Half a cosine from `from` at 0 to `to` at `length`, and `to` afterwards (Loshchilov and Hutter
/// 2017, without restarts). `to` may be the larger: weight decay 0.04 to 0.4, momentum 0.996 to 1.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Cosine {
    /// First value.
    pub from: f64,
    /// Last value.
    pub to: f64,
    /// Position of the last value.
    pub length: u64,
}

impl Schedule for Cosine {
    fn at(&self, position: u64) -> f64 {
        if position >= self.length {
            return self.to;
        }
        let phase = std::f64::consts::PI * position as f64 / self.length as f64;
        self.to + 0.5 * (self.from - self.to) * (1. + phase.cos())
    }
}

/// Multiplied by `gamma` at each multiple of `every`.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Step {
    /// First value.
    pub base: f64,
    /// Distance between two changes; 0 means never.
    pub every: u64,
    /// Factor of a change.
    pub gamma: f64,
}

impl Schedule for Step {
    fn at(&self, position: u64) -> f64 {
        let changes = position.checked_div(self.every).unwrap_or(0);
        self.base * power(self.gamma, changes)
    }
}

/// Multiplied by `gamma` at each milestone.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct MultiStep {
    /// First value.
    pub base: f64,
    /// Positions of the changes, in any order.
    pub milestones: Vec<u64>,
    /// Factor of a change.
    pub gamma: f64,
}

impl Schedule for MultiStep {
    fn at(&self, position: u64) -> f64 {
        let changes = self.milestones.iter().filter(|&&m| m <= position).count();
        self.base * power(self.gamma, changes as u64)
    }
}

/// Starts another schedule with a straight line.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Warmup<S> {
    /// First value.
    pub from: f64,
    /// Value that the line leads to.
    pub to: f64,
    /// Number of positions of the line.
    pub length: u64,
    /// Whether the last position of the line already has the value `to` (NumPy's `linspace`), and
    /// not only the position after it.
    pub inclusive: bool,
    /// Whether the other schedule starts at 0 after the line, and not at `length`.
    pub restart: bool,
    /// The schedule after the line.
    pub then: S,
}

impl<S: Schedule> Schedule for Warmup<S> {
    fn at(&self, position: u64) -> f64 {
        if position >= self.length {
            let start = if self.restart { self.length } else { 0 };
            return self.then.at(position - start);
        }
        let intervals = self.length - u64::from(self.inclusive);
        if intervals == 0 {
            return self.from;
        }
        self.from + (self.to - self.from) * (position as f64 / intervals as f64)
    }
}

impl Warmup<Cosine> {
    /// The schedule of DINO (Caron et al. 2021) and its descendants, over steps: a line from `start`
    /// to `base` that reaches it at its last step, then a cosine of its own towards `end`.
    pub fn dino(base: f64, end: f64, steps: u64, warmup: u64, start: f64) -> Self {
        Self {
            from: start,
            to: base,
            length: warmup,
            inclusive: true,
            restart: true,
            then: Cosine { from: base, to: end, length: steps.saturating_sub(warmup) },
        }
    }

    /// The schedule of timm and DeiT: a line from `start` towards `base`, then the rest of a cosine
    /// over all `length` positions.
    pub fn timm(base: f64, end: f64, length: u64, warmup: u64, start: f64) -> Self {
        Self {
            from: start,
            to: base,
            length: warmup,
            inclusive: false,
            restart: false,
            then: Cosine { from: base, to: end, length },
        }
    }
}

/// A schedule over epochs, as one over steps.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PerEpoch<S> {
    /// The schedule over epochs.
    pub schedule: S,
    /// Optimiser steps in an epoch; 0 counts as 1.
    pub steps_per_epoch: u64,
}

impl<S: Schedule> Schedule for PerEpoch<S> {
    fn at(&self, position: u64) -> f64 {
        self.schedule.at(position / self.steps_per_epoch.max(1))
    }
}

fn power(base: f64, exponent: u64) -> f64 {
    base.powi(exponent.min(i32::MAX as u64) as i32)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn close(a: f64, b: f64) -> bool {
        (a - b).abs() <= 1e-12 * a.abs().max(b.abs()).max(1e-3)
    }

    #[test]
    fn cosine_goes_either_way_and_stays() {
        let up = Cosine { from: 0.996, to: 1., length: 10 };
        assert_eq!(up.at(0), 0.996);
        assert!(close(up.at(5), 0.998));
        assert_eq!((up.at(10), up.at(999)), (1., 1.));
        assert!((0..10).all(|i| up.at(i) < up.at(i + 1)));
        assert_eq!(Cosine { from: 1., to: 2., length: 0 }.at(0), 2.);
    }

    #[test]
    fn dino_table() {
        // numpy.concatenate((linspace(0, 1, 3), 0.1 + 0.45 * (1 + cos(pi * arange(4) / 4))))
        let schedule = Warmup::dino(1., 0.1, 7, 3, 0.);
        let table = [0., 0.5, 1., 1., 0.868198051533946, 0.55, 0.231801948466054];
        for (i, value) in table.into_iter().enumerate() {
            assert!(close(schedule.at(i as u64), value), "{i}");
        }
        // numpy.linspace(0, 1, 1) is [0]
        assert_eq!(Warmup::dino(1., 0.1, 4, 1, 0.).at(0), 0.);
        assert_eq!(Warmup::dino(1., 0.1, 4, 0, 0.).at(0), 1.);
    }

    #[test]
    fn timm_counts_through_the_warmup() {
        let schedule = Warmup::timm(5e-4, 1e-5, 300, 5, 1e-6);
        assert_eq!(schedule.at(0), 1e-6);
        assert!(close(schedule.at(4), 1e-6 + 4. * (5e-4 - 1e-6) / 5.));
        let at_5 = 1e-5 + 0.5 * (5e-4 - 1e-5) * (1. + (std::f64::consts::PI * 5. / 300.).cos());
        assert!(close(schedule.at(5), at_5));
        assert_eq!(schedule.at(300), 1e-5);
    }

    #[test]
    fn steps_and_milestones() {
        let step = Step { base: 1., every: 3, gamma: 0.1 };
        assert_eq!((step.at(2), step.at(3)), (1., 0.1));
        assert!(close(step.at(6), 0.01));
        assert_eq!(Step { base: 1., every: 0, gamma: 0.1 }.at(9), 1.);
        let multi = MultiStep { base: 2., milestones: vec![5, 2], gamma: 0.5 };
        assert_eq!([1, 2, 4, 5].map(|i| multi.at(i)), [2., 1., 1., 0.5]);
    }

    #[test]
    fn epochs_and_lines() {
        let line = Linear { from: 0.04, to: 0.07, length: 30 };
        assert!(close(line.at(15), 0.055) && line.at(30) == 0.07);
        let per_epoch = PerEpoch { schedule: line, steps_per_epoch: 4 };
        assert_eq!(per_epoch.at(3), 0.04);
        assert_eq!(per_epoch.at(4), line.at(1));
        let boxed: Box<dyn Schedule> = Box::new(Constant(3.));
        assert_eq!(boxed.at(7), 3.);
    }

    #[test]
    fn schedules_can_be_written_into_a_configuration() {
        let schedule = Warmup::dino(5e-4, 1e-6, 1000, 100, 0.);
        let text = serde_json::to_string(&schedule).unwrap();
        let read: Warmup<Cosine> = serde_json::from_str(&text).unwrap();
        assert_eq!(read, schedule);
    }
}
