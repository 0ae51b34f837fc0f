//! Accuracy of a classifier.

use std::sync::Arc;

use sconce::backbones::Backbone;
use sconce::candle::{DType, Device, Tensor};
use sconce::data::{DataLoader, Dataset, LoaderOptions, Pipeline, Result as DataResult};
use sconce::metrics::{Confusion, TopK};
use sconce::ops::cross_entropy;
use sconce::train::StepError;
use serde::{Deserialize, Serialize};

use super::data::Labelled;

/// What a classifier reaches on labelled pictures.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Figures {
    /// Pictures.
    pub pictures: u64,
    /// Fraction whose class has the highest score.
    pub top1: f64,
    /// Fraction whose class is among the five highest scores.
    pub top5: f64,
    /// Mean cross entropy.
    pub loss: f64,
}

impl Figures {
    /// How many pictures were right.
    #[must_use]
    pub fn hits(&self) -> u64 {
        (self.top1 * self.pictures as f64).round() as u64
    }
}

/// Batches of the pictures at `indices` with their labels.
///
/// # Errors
/// An index out of range; a batch size of zero.
pub fn loader(
    pictures: &Arc<Labelled>,
    indices: &[usize],
    pipeline: Pipeline,
    options: LoaderOptions,
) -> DataResult<DataLoader<impl Dataset<Item = (Tensor, u32)> + use<> + 'static>> {
    let dataset = Arc::clone(pictures)
        .subset(indices.to_vec())?
        .map(move |(picture, label), generator| Ok((pipeline.apply(picture, generator)?, label)));
    DataLoader::new(dataset, options)
}

/// Evaluates a model on all batches of a loader, and counts which class was taken for which.
///
/// # Errors
/// Pictures that cannot be read; scores that are not numbers.
pub fn evaluate<D>(
    model: &dyn Backbone,
    loader: &DataLoader<D>,
    classes: usize,
    device: &Device,
) -> Result<(Figures, Confusion), StepError>
where
    D: Dataset<Item = (Tensor, u32)> + 'static,
{
    let mut accuracy = TopK::new(&[1, 5])?;
    let mut confusion = Confusion::new(classes);
    let mut loss = 0.0;
    for batch in loader.epoch(0) {
        let (images, labels) = batch?;
        let (images, labels) = (images.to_device(device)?, labels.to_device(device)?);
        let scores = model.forward_t(&images, false)?; // (B, K)
        let mean = cross_entropy(&scores, &labels, 0.0)?.to_dtype(DType::F64)?.to_scalar::<f64>()?;
        loss += mean * labels.elem_count() as f64;
        accuracy.update(&scores, &labels)?;
        confusion.update(&scores, &labels)?;
    }
    let values = accuracy.values()?;
    let pictures = accuracy.total();
    Ok((Figures { pictures, top1: values[0], top5: values[1], loss: loss / pictures as f64 }, confusion))
}
