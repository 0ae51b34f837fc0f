//! Batches: shuffled, augmented and collated on worker threads, the same for every number of threads.

use crate::prefetch::ordered_map;
use crate::{Dataset, Error, Generator, ReadReport, Result};
use candle_core::{Device, Tensor};
use std::fmt;
use std::sync::Arc;

/// Samples that can be gathered into a batch.
///
/// Implemented for tensors (stacked along a new first axis), numbers (a tensor of `(B)`), strings and images (a
/// vector), vectors (a batch for each place, for example views of multi-crop), arrays of `f32`, and tuples of
/// these.
pub trait Collate: Sized {
    /// The batch.
    type Batch: Send + 'static;

    /// Gathers samples, of which there is at least one.
    ///
    /// # Errors
    /// Where samples do not fit together, for example tensors of different shapes.
    fn collate(samples: Vec<Self>) -> Result<Self::Batch>;
}

impl Collate for Tensor {
    type Batch = Tensor;

    fn collate(samples: Vec<Self>) -> Result<Tensor> {
        Ok(Tensor::stack(&samples, 0)?)
    }
}

macro_rules! collate_numbers {
    ($($number:ty),*) => {$(
        impl Collate for $number {
            type Batch = Tensor;

            fn collate(samples: Vec<Self>) -> Result<Tensor> {
                let count = samples.len();
                Ok(Tensor::from_vec(samples, count, &Device::Cpu)?)
            }
        }
    )*};
}
collate_numbers!(u8, u32, i64, f32, f64);

impl<const N: usize> Collate for [f32; N] {
    type Batch = Tensor;

    fn collate(samples: Vec<Self>) -> Result<Tensor> {
        Ok(Tensor::from_vec(samples.as_flattened().to_vec(), (samples.len(), N), &Device::Cpu)?)
    }
}

macro_rules! collate_vectors {
    ($($kind:ty),*) => {$(
        impl Collate for $kind {
            type Batch = Vec<$kind>;

            fn collate(samples: Vec<Self>) -> Result<Self::Batch> {
                Ok(samples)
            }
        }
    )*};
}
collate_vectors!(String, usize, crate::Picture, image::RgbImage);

impl<T: Collate> Collate for Vec<T> {
    type Batch = Vec<T::Batch>;

    fn collate(samples: Vec<Self>) -> Result<Self::Batch> {
        let places = samples.first().map_or(0, Vec::len);
        if samples.iter().any(|sample| sample.len() != places) {
            return Err(Error::invalid("samples", "vectors of different lengths"));
        }
        let mut columns: Vec<Vec<T>> = (0..places).map(|_| Vec::with_capacity(samples.len())).collect();
        for sample in samples {
            columns.iter_mut().zip(sample).for_each(|(column, value)| column.push(value));
        }
        columns.into_iter().map(T::collate).collect()
    }
}

macro_rules! collate_tuples {
    ($(($($name:ident),+)),*) => {$(
        impl<$($name: Collate),+> Collate for ($($name,)+) {
            type Batch = ($($name::Batch,)+);

            #[allow(non_snake_case, reason = "a type parameter names its vector")]
            fn collate(samples: Vec<Self>) -> Result<Self::Batch> {
                $(let mut $name = Vec::with_capacity(samples.len());)+
                for sample in samples {
                    collate_tuples!(@push sample, $($name),+);
                }
                Ok(($($name::collate($name)?,)+))
            }
        }
    )*};
    (@push $sample:ident, $a:ident, $b:ident) => { $a.push($sample.0); $b.push($sample.1); };
    (@push $sample:ident, $a:ident, $b:ident, $c:ident) => {
        $a.push($sample.0); $b.push($sample.1); $c.push($sample.2);
    };
    (@push $sample:ident, $a:ident, $b:ident, $c:ident, $d:ident) => {
        $a.push($sample.0); $b.push($sample.1); $c.push($sample.2); $d.push($sample.3);
    };
}
collate_tuples!((A, B), (A, B, C), (A, B, C, D));

/// What becomes of a sample that cannot be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum OnError {
    /// Its error is delivered in place of the batch; the caller decides whether to go on.
    #[default]
    Stop,
    /// It is left out, its batch is smaller, and [`Epoch::report`] names it.
    Skip,
}

/// Settings of a [`DataLoader`].
#[derive(Debug, Clone)]
pub struct LoaderOptions {
    /// Samples in a batch.
    pub batch_size: usize,
    /// Whether each epoch has its own random order.
    pub shuffle: bool,
    /// Whether a last batch that is not full is left out.
    pub drop_last: bool,
    /// Worker threads; 0 loads in the caller's thread.
    pub workers: usize,
    /// Batches that are ready or in the making before they are asked for: the bound on memory.
    pub prefetch: usize,
    /// Seed of the order and of the samples' generators.
    pub seed: u64,
    /// What becomes of unreadable samples.
    pub on_error: OnError,
}

impl Default for LoaderOptions {
    /// Batches of 32 in order, two workers, four batches ahead, seed 0, errors delivered.
    fn default() -> Self {
        Self {
            batch_size: 32,
            shuffle: false,
            drop_last: false,
            workers: 2,
            prefetch: 4,
            seed: 0,
            on_error: OnError::Stop,
        }
    }
}

/// Loads a data set in batches, epoch by epoch.
///
/// The order of the samples depends on `(seed, epoch)`, the randomness of a sample on `(seed, epoch, index)`, and
/// batches come in order: the number of workers changes the speed alone.
pub struct DataLoader<D> {
    dataset: Arc<D>,
    options: LoaderOptions,
}

impl<D> fmt::Debug for DataLoader<D> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DataLoader").field("options", &self.options).finish_non_exhaustive()
    }
}

impl<D> Clone for DataLoader<D> {
    fn clone(&self) -> Self {
        Self { dataset: Arc::clone(&self.dataset), options: self.options.clone() }
    }
}

impl<D> DataLoader<D>
where
    D: Dataset + 'static,
    D::Item: Collate,
{
    /// A loader over a data set.
    ///
    /// # Errors
    /// [`Error::Invalid`] for a batch size of zero.
    pub fn new(dataset: D, options: LoaderOptions) -> Result<Self> {
        if options.batch_size == 0 {
            return Err(Error::invalid("batch_size", "zero"));
        }
        Ok(Self { dataset: Arc::new(dataset), options })
    }

    /// The data set.
    pub fn dataset(&self) -> &D {
        &self.dataset
    }

    /// The settings.
    pub fn options(&self) -> &LoaderOptions {
        &self.options
    }

    /// Number of batches in an epoch.
    pub fn batches(&self) -> usize {
        let (len, size) = (self.dataset.len(), self.options.batch_size);
        if self.options.drop_last { len / size } else { len.div_ceil(size) }
    }

    /// The order of the samples in an epoch.
    pub fn order(&self, epoch: u64) -> Vec<usize> {
        let mut order: Vec<usize> = (0..self.dataset.len()).collect();
        if self.options.shuffle {
            Generator::new(self.options.seed).fork(&format!("order/{epoch}")).shuffle(&mut order);
        }
        order
    }

    /// The batches of an epoch.
    pub fn epoch(&self, epoch: u64) -> Epoch<<D::Item as Collate>::Batch> {
        self.epoch_from(epoch, 0)
    }

    /// The batches of an epoch after the first `skipped`, which are not loaded: to resume within an epoch.
    pub fn epoch_from(&self, epoch: u64, skipped: usize) -> Epoch<<D::Item as Collate>::Batch> {
        let size = self.options.batch_size;
        let order = self.order(epoch);
        let batches: Vec<Vec<usize>> =
            order.chunks(size).take(self.batches()).skip(skipped).map(<[usize]>::to_vec).collect();
        let remaining = batches.len();
        let dataset = Arc::clone(&self.dataset);
        let generator = Generator::new(self.options.seed).fork(&format!("samples/{epoch}"));
        let on_error = self.options.on_error;
        let load = move |indices: Vec<usize>| load_batch(&*dataset, &indices, &generator, on_error);
        let workers = self.options.workers.min(remaining);
        let (batches, failed) = match ordered_map(batches.into_iter(), workers, self.options.prefetch, load) {
            Ok(map) => (Some(map), None),
            Err(error) => (None, Some(error)),
        };
        Epoch { batches: batches.map(|map| Box::new(map) as Box<_>), failed, report: ReadReport::default(), remaining }
    }
}

/// A batch, none when every sample of it was skipped, and the skipped samples.
type Loaded<B> = Result<(Option<B>, Vec<(usize, Error)>)>;

fn load_batch<D>(
    dataset: &D,
    indices: &[usize],
    generator: &Generator,
    on_error: OnError,
) -> Loaded<<D::Item as Collate>::Batch>
where
    D: Dataset,
    D::Item: Collate,
{
    let mut samples = Vec::with_capacity(indices.len());
    let mut skipped = Vec::new();
    for &index in indices {
        match dataset.get(index, &generator.fork(&index.to_string())) {
            Ok(sample) => samples.push(sample),
            Err(error) if on_error == OnError::Skip => skipped.push((index, error)),
            Err(error) => return Err(error.at(format!("sample {index}"))),
        }
    }
    let batch = if samples.is_empty() { None } else { Some(D::Item::collate(samples)?) };
    Ok((batch, skipped))
}

type Batches<B> = Box<dyn Iterator<Item = Result<Loaded<B>>> + Send>;

/// The batches of one epoch, in order. Dropping it stops the workers.
pub struct Epoch<B> {
    batches: Option<Batches<B>>,
    failed: Option<Error>,
    report: ReadReport,
    remaining: usize,
}

impl<B> Epoch<B> {
    /// The samples skipped in the batches delivered so far.
    pub fn report(&self) -> &ReadReport {
        &self.report
    }
}

impl<B> Iterator for Epoch<B> {
    type Item = Result<B>;

    fn next(&mut self) -> Option<Result<B>> {
        if let Some(error) = self.failed.take() {
            self.remaining = 0;
            return Some(Err(error));
        }
        loop {
            let loaded = self.batches.as_mut()?.next()?.and_then(|loaded| loaded);
            self.remaining = self.remaining.saturating_sub(1);
            match loaded {
                Ok((batch, skipped)) => {
                    for (index, error) in skipped {
                        self.report.push("data set", Some(format!("sample {index}")), error);
                    }
                    if let Some(batch) = batch {
                        return Some(Ok(batch));
                    }
                }
                Err(error) => return Some(Err(error)),
            }
        }
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        // Batches whose samples are all skipped are not delivered.
        (0, Some(self.remaining + usize::from(self.failed.is_some())))
    }
}

impl<B> fmt::Debug for Epoch<B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Epoch")
            .field("remaining", &self.remaining)
            .field("report", &self.report)
            .finish_non_exhaustive()
    }
}
