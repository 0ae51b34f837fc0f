//! Gradients of several batches as one.

use candle_core::backprop::GradStore;

use super::ParamGroups;
use crate::{Error, Result};

/// Sums gradients over `every` batches and gives their mean.
///
/// For losses that are means over equal batches, a step with the mean is the step of one batch
/// `every` times as large.
#[derive(Debug)]
pub struct GradAccumulator {
    every: usize,
    count: usize,
    sum: Option<GradStore>,
}

impl Default for GradAccumulator {
    /// Every batch by itself.
    fn default() -> Self {
        Self { every: 1, count: 0, sum: None }
    }
}

impl GradAccumulator {
    /// Gives a mean after every `every` batches.
    ///
    /// # Errors
    /// `every` is zero.
    pub fn new(every: usize) -> Result<Self> {
        if every == 0 {
            return Err(Error::Config("gradients are accumulated over at least one batch".to_owned()));
        }
        Ok(Self { every, count: 0, sum: None })
    }

    /// Number of batches in the current sum.
    pub fn pending(&self) -> usize {
        self.count
    }

    /// Adds the gradients of a batch; after the last of `every` batches gives the mean of the
    /// gradients of `params` and starts anew.
    ///
    /// # Errors
    /// Gradients that do not fit those before.
    pub fn add(&mut self, grads: GradStore, params: &ParamGroups) -> Result<Option<GradStore>> {
        match &mut self.sum {
            Some(sum) => sum.extend(grads)?,
            none => *none = Some(grads),
        }
        self.count += 1;
        if self.count < self.every {
            return Ok(None);
        }
        self.take(params)
    }

    /// The mean of what has been added so far, at the end of an epoch for instance.
    ///
    /// # Errors
    /// A failure of the device.
    pub fn take(&mut self, params: &ParamGroups) -> Result<Option<GradStore>> {
        let count = std::mem::take(&mut self.count);
        let Some(mut sum) = self.sum.take() else {
            return Ok(None);
        };
        if count > 1 {
            for (_, param) in params.iter() {
                if let Some(grad) = sum.remove(&param.var) {
                    sum.insert(&param.var, (grad / count as f64)?);
                }
            }
        }
        Ok(Some(sum))
    }
}
