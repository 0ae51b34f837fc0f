//! How far a training is, and what follows from the last evaluation.

use serde::{Deserialize, Serialize};

/// What a checkpoint keeps besides weights and the optimiser's state.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub(super) struct Progress {
    /// Epoch at the end of which the second optimiser took over.
    pub(super) switched: Option<u64>,
    /// The course is over before the last epoch.
    pub(super) ended: bool,
    /// Epochs that have been dealt with.
    pub(super) finished: u64,
    /// The best evaluation.
    pub(super) best: Option<Best>,
    /// Evaluations so far: epoch and fraction of right answers.
    pub(super) curve: Vec<(u64, f64)>,
    /// Seconds of each epoch that one process did as a whole, without evaluation.
    pub(super) seconds: Vec<f64>,
}

/// An evaluation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Best {
    /// After so many epochs.
    pub(super) epoch: u64,
    /// Right answers: whole numbers survive a checkpoint exactly.
    pub(super) hits: u64,
}

/// What to do after an epoch of the dual schedule.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Turn {
    /// The same again.
    Stay,
    /// Go back to the best weights and on with the second optimiser.
    Switch,
    /// Stop.
    End,
}

impl Progress {
    /// Notes an evaluation; whether it is the best so far. One that equals the best counts as better.
    pub(super) fn note(&mut self, epoch: u64, hits: u64) -> bool {
        let better = self.best.is_none_or(|best| hits >= best.hits);
        if better {
            self.best = Some(Best { epoch, hits });
        }
        better
    }

    /// What follows once `patience` epochs of one optimiser have brought no new best.
    pub(super) fn turn(&self, epoch: u64, patience: u64) -> Turn {
        let since = self.best.map_or(0, |best| best.epoch).max(self.switched.unwrap_or(0));
        match (epoch.saturating_sub(since) >= patience, self.switched) {
            (false, _) => Turn::Stay,
            (true, None) => Turn::Switch,
            (true, Some(_)) => Turn::End,
        }
    }

    /// The median, which other work on the machine changes least.
    pub(super) fn seconds_per_epoch(&self) -> Option<f64> {
        let mut seconds = self.seconds.clone();
        seconds.sort_by(f64::total_cmp);
        seconds.get(seconds.len() / 2).copied()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Epochs after which the optimiser changes and the training ends, for right answers after each epoch.
    fn course(hits: &[u64], patience: u64) -> (Vec<(u64, Turn)>, Option<Best>) {
        let mut progress = Progress::default();
        let mut turns = Vec::new();
        for (&hits, epoch) in hits.iter().zip(1..) {
            progress.note(epoch, hits);
            let turn = progress.turn(epoch, patience);
            match turn {
                Turn::Stay => continue,
                Turn::Switch => progress.switched = Some(epoch),
                Turn::End => {}
            }
            turns.push((epoch, turn));
            if turn == Turn::End {
                break;
            }
        }
        (turns, progress.best)
    }

    #[test]
    fn patience_is_counted_from_the_best_and_anew_for_the_second_optimiser() {
        // Best after 3, patience over after 5; SGD betters it after 6 and 7, patience over after 9.
        let (turns, best) = course(&[5, 7, 9, 8, 8, 10, 11, 3, 4, 5], 2);
        assert_eq!(turns, [(5, Turn::Switch), (9, Turn::End)]);
        assert_eq!(best, Some(Best { epoch: 7, hits: 11 }));
        // The best is kept over the change: 9 is not beaten by 8.
        let (turns, best) = course(&[9, 1, 1, 8, 8, 8], 2);
        assert_eq!((turns, best), (vec![(3, Turn::Switch), (5, Turn::End)], Some(Best { epoch: 1, hits: 9 })));
    }

    #[test]
    fn an_equal_result_counts_as_better() {
        assert_eq!(course(&[4, 4, 4, 4, 4], 2), (vec![], Some(Best { epoch: 5, hits: 4 })));
    }

    #[test]
    fn the_median_is_of_the_middle() {
        let progress = Progress { seconds: vec![9.0, 1.0, 2.0], ..Default::default() };
        assert_eq!(progress.seconds_per_epoch(), Some(2.0));
        assert_eq!(Progress::default().seconds_per_epoch(), None);
    }
}
