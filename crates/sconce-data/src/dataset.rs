//! Data sets: samples by index.

use crate::{Error, Generator, Result};
use std::sync::Arc;

/// Samples by index, read from several threads at once.
///
/// `get` takes a generator for augmentation; data sets without any ignore it. The [`DataLoader`](crate::DataLoader)
/// hands each sample its own, derived from seed, epoch and index, so a sample does not depend on the order of
/// reading.
pub trait Dataset: Send + Sync {
    /// A sample.
    type Item: Send;

    /// Number of samples.
    fn len(&self) -> usize;

    /// Whether there is no sample.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The sample at `index`.
    ///
    /// # Errors
    /// [`Error::OutOfRange`], or why this sample cannot be read.
    fn get(&self, index: usize, generator: &Generator) -> Result<Self::Item>;

    /// The data set with a function applied to each sample: decoding, augmentation, tokenising.
    fn map<T: Send, F>(self, function: F) -> Map<Self, F>
    where
        Self: Sized,
        F: Fn(Self::Item, &Generator) -> Result<T> + Send + Sync,
    {
        Map { dataset: self, function }
    }

    /// The samples at the given indices, in their order; an index may repeat.
    ///
    /// # Errors
    /// [`Error::OutOfRange`].
    fn subset(self, indices: Vec<usize>) -> Result<Subset<Self>>
    where
        Self: Sized,
    {
        let len = self.len();
        match indices.iter().find(|index| **index >= len) {
            Some(&index) => Err(Error::OutOfRange { index, len }),
            None => Ok(Subset { dataset: self, indices }),
        }
    }
}

impl<D: Dataset + ?Sized> Dataset for Arc<D> {
    type Item = D::Item;

    fn len(&self) -> usize {
        (**self).len()
    }

    fn get(&self, index: usize, generator: &Generator) -> Result<Self::Item> {
        (**self).get(index, generator)
    }
}

/// A data set with a function applied to each sample; made by [`Dataset::map`].
#[derive(Debug, Clone)]
pub struct Map<D, F> {
    dataset: D,
    function: F,
}

impl<D, F> Map<D, F> {
    /// The data set underneath.
    pub fn inner(&self) -> &D {
        &self.dataset
    }
}

impl<D, T, F> Dataset for Map<D, F>
where
    D: Dataset,
    T: Send,
    F: Fn(D::Item, &Generator) -> Result<T> + Send + Sync,
{
    type Item = T;

    fn len(&self) -> usize {
        self.dataset.len()
    }

    fn get(&self, index: usize, generator: &Generator) -> Result<T> {
        (self.function)(self.dataset.get(index, generator)?, generator)
    }
}

/// Some samples of a data set; made by [`Dataset::subset`].
#[derive(Debug, Clone)]
pub struct Subset<D> {
    dataset: D,
    indices: Vec<usize>,
}

impl<D> Subset<D> {
    /// The indices in the data set underneath.
    pub fn indices(&self) -> &[usize] {
        &self.indices
    }
}

impl<D: Dataset> Dataset for Subset<D> {
    type Item = D::Item;

    fn len(&self) -> usize {
        self.indices.len()
    }

    fn get(&self, index: usize, generator: &Generator) -> Result<D::Item> {
        let inner = self.indices.get(index).ok_or(Error::OutOfRange { index, len: self.indices.len() })?;
        self.dataset.get(*inner, generator)
    }
}

/// A data set in memory; samples are cloned, so let them be cheap to clone (`Arc`, `Tensor`) or small.
#[derive(Debug, Clone, Default)]
pub struct InMemory<T> {
    samples: Vec<T>,
}

impl<T> InMemory<T> {
    /// A data set of these samples.
    pub fn new(samples: Vec<T>) -> Self {
        Self { samples }
    }

    /// The samples.
    pub fn samples(&self) -> &[T] {
        &self.samples
    }
}

impl<T> FromIterator<T> for InMemory<T> {
    fn from_iter<I: IntoIterator<Item = T>>(samples: I) -> Self {
        Self::new(samples.into_iter().collect())
    }
}

impl<T: Clone + Send + Sync> Dataset for InMemory<T> {
    type Item = T;

    fn len(&self) -> usize {
        self.samples.len()
    }

    fn get(&self, index: usize, _generator: &Generator) -> Result<T> {
        self.samples.get(index).cloned().ok_or(Error::OutOfRange { index, len: self.samples.len() })
    }
}
