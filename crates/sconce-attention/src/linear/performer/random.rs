//! Random projections with orthogonal rows, and drawing them anew in training.

use candle_core::{DType, Device, Result, Shape, Tensor, Var, bail};
use sconce_nn::init::{self, CustomInit};
use sconce_nn::{Generator, Init, VarBuilder};
use serde::{Deserialize, Serialize};

/// How long the orthogonal rows of a random projection are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum OrthogonalScaling {
    /// As long as independent Gaussian vectors: the estimate is unbiased. `ortho_scaling = 0` in lucidrains' code.
    #[default]
    Norms,
    /// All `sqrt(D)` long. `ortho_scaling = 1`.
    SqrtDim,
}

impl OrthogonalScaling {
    fn init(self) -> Init {
        let (name, draw): (_, fn(&Shape, &Generator) -> Result<Tensor>) = match self {
            Self::Norms => ("orthogonal features", |shape, generator| {
                let (m, d) = shape.dims2()?;
                orthogonal_features(m, d, Self::Norms, generator)
            }),
            Self::SqrtDim => ("orthogonal features of equal length", |shape, generator| {
                let (m, d) = shape.dims2()?;
                orthogonal_features(m, d, Self::SqrtDim, generator)
            }),
        };
        Init::Custom(CustomInit { name, draw, nearest: candle_nn::Init::Randn { mean: 0.0, stdev: 1.0 } })
    }
}

/// The usual number of features for heads of `d` channels, `d ln d` rounded down: 44 for 16, 110 for 32, 266 for 64.
pub fn default_features(d: usize) -> usize {
    ((d as f64 * (d as f64).ln()) as usize).max(1)
}

/// Gaussian vectors made orthogonal in blocks of `d`, Choromanski et al. 2021 (`arXiv:2009.14794`), section 2.4: the rows of
/// a block are a uniformly random orthonormal basis, then scaled; the last block may be cut short.
///
/// # Shapes
/// - output `(features, d)`, f64 on the CPU
///
/// # Errors
/// When a size is 0.
pub fn orthogonal_features(
    features: usize,
    d: usize,
    scaling: OrthogonalScaling,
    generator: &Generator,
) -> Result<Tensor> {
    if features == 0 || d == 0 {
        bail!("performer: no {features} random features of {d} channels")
    }
    let gaussian = |rows: usize| -> Result<Vec<Vec<f64>>> {
        generator.normal(0.0, 1.0, (rows, d), DType::F64, &Device::Cpu)?.to_vec2::<f64>()
    };
    let mut rows = Vec::with_capacity(features);
    while rows.len() < features {
        let block = orthonormal(gaussian(d)?);
        rows.extend(block.into_iter().take(features - rows.len()));
    }
    let lengths: Vec<f64> = match scaling {
        OrthogonalScaling::Norms => gaussian(features)?.iter().map(|row| norm(row)).collect(),
        OrthogonalScaling::SqrtDim => vec![(d as f64).sqrt(); features],
    };
    for (row, length) in rows.iter_mut().zip(lengths) {
        row.iter_mut().for_each(|v| *v *= length);
    }
    Tensor::from_vec(rows.concat(), (features, d), &Device::Cpu)
}

fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

fn norm(row: &[f64]) -> f64 {
    dot(row, row).sqrt()
}

/// Gram and Schmidt's procedure, each row twice: once leaves an error that grows with the block.
fn orthonormal(mut rows: Vec<Vec<f64>>) -> Vec<Vec<f64>> {
    for i in 0..rows.len() {
        let (done, rest) = rows.split_at_mut(i);
        let row = &mut rest[0];
        for _ in 0..2 {
            for other in done.iter() {
                let along = dot(row, other);
                row.iter_mut().zip(other).for_each(|(v, o)| *v -= along * o);
            }
            let length = norm(row).max(f64::MIN_POSITIVE);
            row.iter_mut().for_each(|v| *v /= length);
        }
    }
    rows
}

/// A random projection: a buffer `projection_matrix` `(features, d)` that is saved and loaded with the model. Clones share it.
#[derive(Debug, Clone)]
pub struct RandomProjection {
    /// `(features, d)`.
    pub matrix: Var,
    /// Length of its rows when drawn anew.
    pub scaling: OrthogonalScaling,
}

impl RandomProjection {
    /// From `vb`'s tensor `projection_matrix`; a [`ParamStore`](sconce_nn::ParamStore) draws it.
    ///
    /// # Errors
    /// When a size is 0 or `vb` lacks the tensor.
    pub fn new(features: usize, d: usize, scaling: OrthogonalScaling, vb: VarBuilder) -> Result<Self> {
        if features == 0 || d == 0 {
            bail!("performer: no {features} random features of {d} channels")
        }
        let matrix = init::buffer_with(&vb, (features, d), "projection_matrix", scaling.init())?;
        Ok(Self { matrix: Var::from_tensor(&matrix)?, scaling })
    }

    /// The matrix as it is now, without a gradient.
    pub fn get(&self) -> Tensor {
        self.matrix.as_detached_tensor()
    }

    /// Draws it anew.
    ///
    /// # Errors
    /// Candle's.
    pub fn redraw(&self, generator: &Generator) -> Result<()> {
        let (features, d) = self.matrix.dims2()?;
        let drawn = orthogonal_features(features, d, self.scaling, generator)?;
        self.matrix.set(&drawn.to_dtype(self.matrix.dtype())?.to_device(self.matrix.device())?)
    }
}

/// Draws random projections anew every so many training steps, so that a model does not grow around one draw: the
/// `ProjectionUpdater` of lucidrains' code. Clones share the count.
///
/// ```
/// use std::cell::RefCell;
/// use candle_core::{DType, Device};
/// use sconce_attention::linear::{PerformerAttention, PerformerConfig, Redrawer};
/// use sconce_nn::{Generator, ParamStore};
///
/// let store = ParamStore::new(0, DType::F32, &Device::Cpu);
/// let mixer = PerformerAttention::new(&PerformerConfig::new(64, 2), store.vb().pp("attn"))?;
/// let redrawer = Redrawer::new([mixer.fast_attention.clone()], 1000, store.vb().pp("proj_updater"))?;
/// for _step in 0..3 {
///     redrawer.step(&Generator::current())?; // before the forward pass of a training step
/// }
/// assert_eq!(redrawer.calls()?, 3);
/// # Ok::<(), candle_core::Error>(())
/// ```
#[derive(Debug, Clone)]
pub struct Redrawer {
    /// What is drawn anew.
    pub projections: Vec<RandomProjection>,
    /// Steps between draws; 1000 in lucidrains' code.
    pub interval: usize,
    calls: Var,
}

impl Redrawer {
    /// The count is a buffer `calls_since_last_redraw` of `vb`, as in official files, so that an interrupted training goes on
    /// where it stood.
    ///
    /// # Errors
    /// When `vb` lacks the buffer.
    pub fn new(
        projections: impl IntoIterator<Item = RandomProjection>,
        interval: usize,
        vb: VarBuilder,
    ) -> Result<Self> {
        // Half precision would stop counting at 256 or 2048.
        let calls = init::buffer(&vb.to_dtype(DType::F32), (), "calls_since_last_redraw", 0.0)?;
        Ok(Self { projections: projections.into_iter().collect(), interval, calls: Var::from_tensor(&calls)? })
    }

    /// To be called once for each training step, never in evaluation: counts, or draws and starts to count again when the
    /// count has reached the interval. Returns whether it drew.
    ///
    /// # Errors
    /// Candle's.
    pub fn step(&self, generator: &Generator) -> Result<bool> {
        let calls = self.calls()?;
        let due = calls >= self.interval;
        if due {
            self.projections.iter().try_for_each(|projection| projection.redraw(generator))?;
        }
        let calls = if due { 0.0 } else { (calls + 1) as f32 };
        self.calls.set(&Tensor::new(calls, self.calls.device())?)?;
        Ok(due)
    }

    /// Training steps since the last draw.
    ///
    /// # Errors
    /// Candle's.
    pub fn calls(&self) -> Result<usize> {
        Ok(self.calls.as_detached_tensor().to_dtype(DType::F32)?.to_scalar::<f32>()? as usize)
    }
}

#[cfg(test)]
mod tests {
    use sconce_nn::{Checkpoint, LoadOptions, ParamStore};

    use super::*;
    use crate::testing::{assert_close, distance, mean_square};

    #[test]
    fn numbers_of_features_are_the_official_ones() {
        assert_eq!([16, 32, 64, 1].map(default_features), [44, 110, 266, 1]);
    }

    #[test]
    fn rows_are_orthogonal_in_blocks_and_of_the_right_length() {
        let features = |scaling| orthogonal_features(40, 16, scaling, &Generator::new(3)).unwrap();
        let equal = features(OrthogonalScaling::SqrtDim);
        for (start, len) in [(0, 16), (16, 16), (32, 8)] {
            let block = equal.narrow(0, start, len).unwrap();
            let products = (block.matmul(&block.t().unwrap().contiguous().unwrap()).unwrap() / 16.0).unwrap();
            assert_close(&products, &Tensor::eye(len, DType::F64, &Device::Cpu).unwrap(), 1e-14);
        }
        let lengths = mean_square(&features(OrthogonalScaling::Norms)).to_vec1::<f64>().unwrap();
        // A mean of 16 squared Gaussians: standard deviation sqrt(2 / 16).
        let mean = lengths.iter().sum::<f64>() / 40.0;
        let spread = lengths.iter().map(|l| (l - mean).powi(2)).sum::<f64>() / 40.0;
        assert!((mean - 1.0).abs() < 0.2 && (0.05..0.25).contains(&spread), "{mean} {spread}");
        let other = orthogonal_features(40, 16, OrthogonalScaling::SqrtDim, &Generator::new(4)).unwrap();
        assert!(distance(&other, &equal) > 1.0 && distance(&features(OrthogonalScaling::SqrtDim), &equal) == 0.0);
        assert!(orthogonal_features(0, 16, OrthogonalScaling::Norms, &Generator::new(1)).is_err());
        assert!(orthogonal_features(16, 0, OrthogonalScaling::Norms, &Generator::new(1)).is_err());
    }

    #[test]
    fn projections_are_drawn_anew_when_due_and_not_before() {
        let store = ParamStore::new(1, DType::BF16, &Device::Cpu);
        let make = |name: &str| RandomProjection::new(20, 8, OrthogonalScaling::Norms, store.vb().pp(name)).unwrap();
        let (a, b) = (make("a"), make("b"));
        let redrawer = Redrawer::new([a.clone(), b.clone()], 300, store.vb()).unwrap();
        let before = a.get().copy().unwrap();
        let generator = Generator::new(7);
        for step in 0..300 {
            assert!(!redrawer.step(&generator).unwrap(), "{step}");
        }
        assert_eq!((distance(&a.get(), &before), redrawer.calls().unwrap()), (0.0, 300));
        assert!(redrawer.step(&generator).unwrap());
        assert!(distance(&a.get(), &before) > 0.1 && distance(&a.get(), &b.get()) > 0.1);
        assert_eq!(redrawer.calls().unwrap(), 0);
        // The model sees the new matrix, and so does the file.
        assert_eq!(distance(store.get("a.projection_matrix").unwrap().as_tensor(), &a.get()), 0.0);
        assert!(store.parameters().is_empty() && store.buffers().len() == 3);
    }

    #[test]
    fn the_count_of_an_official_file_is_read() {
        let store = ParamStore::new(1, DType::F32, &Device::Cpu);
        let redrawer = Redrawer::new([], 1000, store.vb().pp("proj_updater")).unwrap();
        let count = ("proj_updater.calls_since_last_redraw".into(), Tensor::new(537i64, &Device::Cpu).unwrap());
        store.load(&Checkpoint::from_tensors([count]), &LoadOptions::default()).unwrap();
        assert_eq!(redrawer.calls().unwrap(), 537);
    }
}
