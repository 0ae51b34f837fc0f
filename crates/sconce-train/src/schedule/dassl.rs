//! The schedules of Dassl, the toolbox under CoOp, CoCoOp, DAPL and their successors.

use serde::{Deserialize, Serialize};

use super::{Schedule, power};

/// How Dassl starts.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DasslWarmup {
    /// A fixed rate.
    Constant {
        /// The rate.
        lr: f64,
    },
    /// A first rate, then `lr * position / warmup`.
    Linear {
        /// The rate at position 0.
        min_lr: f64,
    },
}

/// How Dassl goes on.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DasslSchedule {
    /// PyTorch's cosine annealing to 0 with half period `length`. It rises again afterwards.
    Cosine {
        /// Half the period: Dassl's `MAX_EPOCH`.
        length: u64,
    },
    /// Multiplied by `gamma` every `every` positions.
    SingleStep {
        /// Distance between two changes; 0 means never.
        every: u64,
        /// Factor of a change.
        gamma: f64,
    },
    /// Multiplied by `gamma` at the milestones.
    MultiStep {
        /// Positions of the changes.
        milestones: Vec<u64>,
        /// Factor of a change.
        gamma: f64,
    },
}

/// Dassl's learning rate: a warm-up, then a schedule that counts anew (`WARMUP_RECOUNT`, its default)
/// or that was moved on by the length of the warm-up.
///
/// Trap: with `recount` a cosine keeps its length, so that training of `length` epochs ends before
/// it reaches 0.
///
/// ```
/// use sconce_train::schedule::{Dassl, Schedule};
/// let coop = Dassl::coop(0.002, 50);
/// assert_eq!((coop.at(0), coop.at(1)), (1e-5, 0.002));
/// ```
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Dassl {
    /// Base learning rate.
    pub lr: f64,
    /// The first rates.
    pub warmup: DasslWarmup,
    /// Number of positions of the warm-up; 0 leaves it out.
    pub warmup_length: u64,
    /// Whether the schedule counts from 0 after the warm-up.
    pub recount: bool,
    /// The schedule after the warm-up.
    pub schedule: DasslSchedule,
}

impl Dassl {
    /// The schedule of CoOp and CoCoOp (Zhou et al. 2022), over epochs: one at 1e-5, then a cosine.
    pub fn coop(lr: f64, epochs: u64) -> Self {
        Self {
            lr,
            warmup: DasslWarmup::Constant { lr: 1e-5 },
            warmup_length: 1,
            recount: true,
            schedule: DasslSchedule::Cosine { length: epochs },
        }
    }

    /// The settings of DAPL (Ge et al. 2022): linear warm-up of one position, then a cosine over 25.
    ///
    /// The positions are meant to be epochs. The official code advances it with every iteration,
    /// which makes a wave with a period of 50 iterations; passing iterations reproduces that.
    pub fn dapl(lr: f64, length: u64) -> Self {
        Self {
            lr,
            warmup: DasslWarmup::Linear { min_lr: 1e-5 },
            warmup_length: 1,
            recount: true,
            schedule: DasslSchedule::Cosine { length },
        }
    }

    /// The rate after the warm-up. `start` is what the inner count was set to before its first step.
    fn after(&self, count: u64, start: u64) -> f64 {
        match &self.schedule {
            DasslSchedule::Cosine { length } => {
                let wave = |t: u64| 0.5 * (1. + (std::f64::consts::PI * t as f64 / (*length).max(1) as f64).cos());
                // PyTorch multiplies the last rate by the ratio of two values of the wave. Moved on
                // to `start` with the rate still at its base, the first half wave is scaled up.
                let scale = if start < *length && count <= *length { wave(start) } else { 1. };
                self.lr * wave(count) / scale
            }
            DasslSchedule::SingleStep { every, gamma } => {
                let changes = |t: u64| t.checked_div(*every).unwrap_or(0);
                self.lr * power(*gamma, changes(count) - changes(start))
            }
            DasslSchedule::MultiStep { milestones, gamma } => {
                let passed = |m: &&u64| **m > start && **m <= count;
                self.lr * power(*gamma, milestones.iter().filter(passed).count() as u64)
            }
        }
    }
}

impl Schedule for Dassl {
    fn at(&self, position: u64) -> f64 {
        if position >= self.warmup_length {
            let start = if self.recount { 0 } else { self.warmup_length };
            return self.after(position - self.warmup_length + start, start);
        }
        match self.warmup {
            DasslWarmup::Constant { lr } => lr,
            DasslWarmup::Linear { min_lr } if position == 0 => min_lr,
            DasslWarmup::Linear { .. } => self.lr * position as f64 / self.warmup_length as f64,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn compare(schedule: &Dassl, table: &[(u64, f64)]) {
        for &(position, value) in table {
            let found = schedule.at(position);
            assert!((found - value).abs() <= 1e-12 * schedule.lr, "position {position}: {found} instead of {value}");
        }
    }

    // Values that the official schedulers gave.
    #[test]
    fn coop_table() {
        compare(
            &Dassl::coop(0.002, 50),
            &[
                (0, 1e-5),
                (1, 0.002),
                (2, 0.0019980267284282717),
                (9, 0.0018763066800438636),
                (26, 0.001),
                (50, 1.9732715717284396e-06),
                (51, 0.),
                (52, 1.9732715717284413e-06),
            ],
        );
    }

    #[test]
    fn linear_warmup_table() {
        let schedule = Dassl {
            lr: 0.01,
            warmup: DasslWarmup::Linear { min_lr: 1e-5 },
            warmup_length: 4,
            recount: true,
            schedule: DasslSchedule::Cosine { length: 10 },
        };
        compare(
            &schedule,
            &[(0, 1e-5), (1, 0.0025), (3, 0.0075), (4, 0.01), (11, 0.0020610737385376348), (12, 0.0009549150281252633)],
        );
    }

    #[test]
    fn dapl_advanced_by_iterations_is_a_wave() {
        compare(
            &Dassl::dapl(0.003, 25),
            &[
                (0, 1e-5),
                (1, 0.003),
                (2, 0.002988172051971717),
                (25, 1.1827948028283352e-05),
                (26, 0.),
                (51, 0.003),
                (119, 0.0005438640153769742),
            ],
        );
    }

    #[test]
    fn without_recount_the_inner_schedule_has_lost_the_warmup() {
        let cosine = Dassl { recount: false, ..Dassl::coop(0.002, 50) };
        // PyTorch's recursion, from the base rate at count 1.
        let mut lr = 0.002;
        let wave = |t: u64| 1. + (std::f64::consts::PI * t as f64 / 50.).cos();
        let mut table = vec![(0, 1e-5), (1, lr)];
        for t in 2..=50 {
            lr *= wave(t) / wave(t - 1);
            table.push((t, lr));
        }
        compare(&cosine, &table);

        let steps = |recount, schedule| Dassl {
            lr: 1.,
            warmup: DasslWarmup::Constant { lr: 0.5 },
            warmup_length: 2,
            recount,
            schedule,
        };
        let single = DasslSchedule::SingleStep { every: 3, gamma: 0.1 };
        let multi = DasslSchedule::MultiStep { milestones: vec![2, 4], gamma: 0.1 };
        compare(&steps(true, single.clone()), &[(1, 0.5), (2, 1.), (4, 1.), (5, 0.1), (8, 0.01)]);
        compare(&steps(false, single), &[(1, 0.5), (2, 1.), (3, 0.1), (6, 0.01)]);
        compare(&steps(true, multi.clone()), &[(2, 1.), (4, 0.1), (6, 0.01)]);
        compare(&steps(false, multi), &[(2, 1.), (3, 1.), (4, 0.1), (9, 0.1)]);
    }
}
