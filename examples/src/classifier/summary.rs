//! What a finished training says of itself.

use sconce::data::Normalize;
use serde::{Deserialize, Serialize};

use super::Options;
use super::evaluate::Figures;

/// The contents of `summary.json`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Summary {
    /// Name of the model.
    pub model: String,
    /// Figures on the test pictures.
    pub test: Figures,
    /// Figures on the validation pictures, if some were kept.
    pub validation: Option<Figures>,
    /// Parameters, for this number of classes.
    pub parameters: usize,
    /// Multiply-accumulates of a picture's forward pass.
    pub macs: u64,
    /// Most memory that the process had at any time, in bytes; unknown where the system does not tell.
    pub peak_memory: Option<u64>,
    /// Median seconds of a training epoch, without evaluation.
    pub seconds_per_epoch: Option<f64>,
    /// Epochs trained.
    pub epochs: u64,
    /// Epoch after which the second optimiser took over.
    pub switched: Option<u64>,
    /// Epoch of the weights that were kept.
    pub kept: u64,
    /// Evaluations on the way, of the validation or else the test pictures: epoch and top-1.
    pub curve: Vec<(u64, f64)>,
    /// Pictures trained on.
    pub pictures: usize,
    /// Class names.
    pub classes: Vec<String>,
    /// Height and width of the model's input.
    pub input: [u32; 2],
    /// What values were normalised by.
    pub normalize: Normalize,
    /// How it was trained.
    pub options: Options,
}
