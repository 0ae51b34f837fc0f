//! What every hashing method can do.

use std::fmt::Debug;
use std::path::{Path, PathBuf};

use candle_core::{Device, Tensor};
use sconce_ops::Generator;
use sconce_train::{Interrupt, Outcome, Progress};

use crate::{CibHash, Codes, Csq, Error, GreedyHash, Itq, Lsh, Result, SpectralHashing, ViT2Hash, file};

/// Pictures or features by index. A tensor whose first axis counts them is one; for pictures that do not fit in memory,
/// implement it on what reads them.
pub trait Inputs {
    /// Their number.
    fn len(&self) -> usize;

    /// Whether there is none.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// These, as they are.
    ///
    /// # Shapes
    /// - output `(B, *)`, B the number of indices
    ///
    /// # Errors
    /// An index that does not exist, or why they cannot be read.
    fn batch(&self, indices: &[u32]) -> Result<Tensor>;

    /// These as methods that learn from augmented pictures want them: random crops, flips, colours. What a method adds to that is
    /// its [`Corruption`](crate::Corruption)s. By default as they are.
    ///
    /// # Errors
    /// As [`batch`](Self::batch).
    fn view(&self, indices: &[u32], generator: &Generator) -> Result<Tensor> {
        let _ = generator;
        self.batch(indices)
    }
}

impl Inputs for Tensor {
    fn len(&self) -> usize {
        self.dims().first().copied().unwrap_or(0)
    }

    fn batch(&self, indices: &[u32]) -> Result<Tensor> {
        let n = Inputs::len(self);
        match indices.iter().find(|&&i| i as usize >= n) {
            Some(i) => Err(Error::Input(format!("input {i} of {n}"))),
            None => Ok(self.contiguous()?.index_select(&Tensor::new(indices, self.device())?, 0)?),
        }
    }
}

/// What the pictures show, for supervised methods.
#[derive(Debug, Clone)]
pub enum Labels {
    /// One class each.
    Single(Vec<u32>),
    /// Any classes, at least one each: rows of flags, all of one length.
    Multi(Vec<Vec<bool>>),
}

impl Labels {
    /// Number of pictures.
    pub fn len(&self) -> usize {
        match self {
            Self::Single(labels) => labels.len(),
            Self::Multi(labels) => labels.len(),
        }
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// What a method learns from.
#[derive(Clone, Copy)]
pub struct TrainSet<'a> {
    /// Features or pictures.
    pub inputs: &'a dyn Inputs,
    /// Their labels, which unsupervised methods do not look at.
    pub labels: Option<&'a Labels>,
}

impl<'a> TrainSet<'a> {
    /// Without labels.
    pub fn new(inputs: &'a dyn Inputs) -> Self {
        Self { inputs, labels: None }
    }

    /// With labels.
    pub fn labelled(inputs: &'a dyn Inputs, labels: &'a Labels) -> Self {
        Self { inputs, labels: Some(labels) }
    }
}

/// What a fit has around it; none of it changes the result. The classic methods have a use for nothing here.
#[derive(Clone, Debug, Default)]
pub struct FitOptions {
    /// Whether progress bars are drawn, one for each epoch.
    pub progress: Progress,
    /// Asks to stop after the step that is under way; [`Interrupt::on_ctrl_c`] is Ctrl-C.
    pub interrupt: Interrupt,
    /// Folder for `log.csv` and `checkpoints`, one after each epoch and one when interrupted; made if there is none. Nothing is
    /// written without.
    pub out: Option<PathBuf>,
    /// Goes on from the latest checkpoint in [`out`](Self::out), where there is one, to the same bits as without interruption.
    /// The method must be as it was when the training began: its weights are what the teacher is made of.
    pub resume: bool,
}

/// What a fit did.
#[derive(Clone, Debug, PartialEq)]
pub struct FitReport {
    /// Learned methods: mean loss of each epoch. ITQ: quantisation loss before each iteration and after the last. Empty for
    /// methods that minimise nothing.
    pub losses: Vec<f64>,
    /// Whether it came to its end.
    pub outcome: Outcome,
}

impl FitReport {
    pub(crate) fn completed(losses: Vec<f64>) -> Self {
        Self { losses, outcome: Outcome::Completed }
    }
}

/// A method that turns features or pictures into binary codes.
///
/// ```
/// use candle_core::{DType, Device};
/// use sconce_hash::{FitOptions, Hasher, Itq, ItqConfig, TrainSet};
/// use sconce_ops::Generator;
///
/// let features = Generator::new(1).normal(0.0, 1.0, (200, 32), DType::F32, &Device::Cpu)?;
/// let mut hasher = Itq::new(&ItqConfig { bits: 16, ..Default::default() })?;
/// hasher.fit(&TrainSet::new(&features), &FitOptions::default())?;
/// let codes = hasher.encode(&features)?;
/// assert_eq!((codes.len(), codes.bits()), (200, 16));
/// # Ok::<(), sconce_hash::Error>(())
/// ```
pub trait Hasher: Debug + Send {
    /// The method's name, as files have it.
    fn method(&self) -> &'static str;

    /// Bits of a code.
    fn bits(&self) -> usize;

    /// Learns from a training set. The same set, options and seed give the same bits on the same machine.
    ///
    /// # Errors
    /// [`Error::Input`] for too few samples, other shapes, values that are not finite; [`Error::Config`] for labels that are
    /// missing; [`Error::NonFiniteLoss`]; those of files and of tensor arithmetic.
    fn fit(&mut self, data: &TrainSet<'_>, options: &FitOptions) -> Result<FitReport>;

    /// The real numbers whose signs are the bits.
    ///
    /// # Shapes
    /// - `xs` `(B, d)` features or `(B, C, H, W)` pictures
    /// - output `(B, K)`
    ///
    /// # Errors
    /// When a classic method has not been fitted, or the input is not of the size it was fitted on.
    fn project(&self, xs: &Tensor) -> Result<Tensor>;

    /// The codes: bit 1 where the projection is at least 0.
    ///
    /// # Shapes
    /// - `xs` as [`project`](Self::project)
    ///
    /// # Errors
    /// Those of [`project`](Self::project); [`Error::Input`] for a projection that is NaN.
    fn encode(&self, xs: &Tensor) -> Result<Codes> {
        Codes::from_signs(&self.project(xs)?)
    }

    /// The codes of all inputs, `batch_size` at a time.
    ///
    /// # Errors
    /// Those of [`encode`](Self::encode) and of the inputs; [`Error::Config`] for batches of nothing.
    fn encode_all(&self, inputs: &dyn Inputs, batch_size: usize) -> Result<Codes> {
        let mut codes = Codes::new(self.bits())?;
        for indices in all_batches(inputs, batch_size)? {
            codes.extend(&self.encode(&inputs.batch(&indices)?)?)?;
        }
        Ok(codes)
    }

    /// Writes method, options and weights to a `.safetensors` file, whole or not at all. The same method gives the same bytes.
    ///
    /// # Errors
    /// When it has not been fitted or the file cannot be written.
    fn save(&self, path: &Path) -> Result<()>;

    /// Reads what [`save`](Self::save) wrote. [`load_hasher`] reads any method.
    ///
    /// # Errors
    /// [`Error::Corrupt`] and [`Error::Nn`] for a file that is damaged, of a later version or of another method.
    fn load(path: &Path, device: &Device) -> Result<Self>
    where
        Self: Sized;
}

/// Reads whatever method a file holds.
///
/// # Errors
/// As [`Hasher::load`], and for a method that this crate does not have.
pub fn load_hasher(path: impl AsRef<Path>, device: &Device) -> Result<Box<dyn Hasher>> {
    fn boxed<H: Hasher + 'static>(path: &Path, device: &Device) -> Result<Box<dyn Hasher>> {
        Ok(Box::new(H::load(path, device)?))
    }
    let path = path.as_ref();
    let method = file::method(path)?;
    let load = match method.as_str() {
        Lsh::METHOD => boxed::<Lsh>,
        Itq::METHOD => boxed::<Itq>,
        SpectralHashing::METHOD => boxed::<SpectralHashing>,
        ViT2Hash::METHOD => boxed::<ViT2Hash>,
        CibHash::METHOD => boxed::<CibHash>,
        GreedyHash::METHOD => boxed::<GreedyHash>,
        Csq::METHOD => boxed::<Csq>,
        _ => return Err(Error::Corrupt { path: path.into(), what: format!("there is no method named {method}") }),
    };
    load(path, device)
}

/// All indices, in order, so many at a time.
pub(crate) fn all_batches(inputs: &dyn Inputs, batch_size: usize) -> Result<Vec<Vec<u32>>> {
    if batch_size == 0 {
        return Err(Error::Config("batches of nothing".into()));
    }
    let n = u32::try_from(inputs.len()).map_err(|_| Error::Input(format!("{} inputs are too many", inputs.len())))?;
    Ok((0..n)
        .step_by(batch_size)
        .map(|start| (start..n.min(start.saturating_add(batch_size as u32))).collect())
        .collect())
}

/// That a width in bits is one that codes can have.
pub(crate) fn check_bits(bits: usize) -> Result<()> {
    Codes::new(bits).map(|_| ())
}
