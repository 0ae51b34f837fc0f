//! Banded linear maps along the last two axes: average pooling and resizing are both such a pair of maps.

mod kernel;

use candle_core::{DType, Device, Result, Tensor};

use crate::check;

/// A sparse matrix `(output, input)` in which every row is one run of weights.
///
/// Starts and ends of the runs never decrease from row to row, so the transpose is banded too.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Band {
    /// Number of columns.
    pub(crate) input: usize,
    /// First column of each row's run.
    pub(crate) starts: Vec<usize>,
    /// Where each row's weights begin in `weights`; one more than there are rows.
    pub(crate) offsets: Vec<usize>,
    pub(crate) weights: Vec<f64>,
}

impl Band {
    /// An empty map, to be filled by [`Band::push`].
    pub(crate) fn new(input: usize) -> Self {
        Self { input, starts: Vec::new(), offsets: vec![0], weights: Vec::new() }
    }

    /// Appends a row.
    pub(crate) fn push(&mut self, start: usize, weights: impl IntoIterator<Item = f64>) {
        self.starts.push(start);
        self.weights.extend(weights);
        self.offsets.push(self.weights.len());
    }

    pub(crate) fn identity(len: usize) -> Self {
        let mut band = Self::new(len);
        (0..len).for_each(|at| band.push(at, [1.0]));
        band
    }

    /// Number of rows.
    pub(crate) fn output(&self) -> usize {
        self.starts.len()
    }

    /// First column and weights of row `at`.
    pub(crate) fn row(&self, at: usize) -> (usize, &[f64]) {
        (self.starts[at], &self.weights[self.offsets[at]..self.offsets[at + 1]])
    }

    /// Whether the map leaves its input as it is.
    pub(crate) fn is_identity(&self) -> bool {
        self.input == self.output() && (0..self.input).all(|at| self.row(at) == (at, &[1.0][..]))
    }

    pub(crate) fn transpose(&self) -> Self {
        // Rows of `self` that touch each column: a range, because the runs are ordered.
        let mut ranges = vec![(usize::MAX, 0usize); self.input];
        for at in 0..self.output() {
            let (start, weights) = self.row(at);
            for range in &mut ranges[start..start + weights.len()] {
                *range = (range.0.min(at), at + 1);
            }
        }
        let mut band = Self::new(self.output());
        for (column, &(lo, hi)) in ranges.iter().enumerate() {
            let lo = lo.min(hi); // a column that nothing touches has an empty run
            band.push(
                lo,
                (lo..hi).map(|at| {
                    let (start, weights) = self.row(at);
                    column.checked_sub(start).and_then(|k| weights.get(k)).copied().unwrap_or(0.0)
                }),
            );
        }
        band
    }

    /// The matrix itself, `(output, input)`.
    fn dense(&self, dtype: DType, device: &Device) -> Result<Tensor> {
        let mut values = vec![0f64; self.output() * self.input];
        for at in 0..self.output() {
            let (start, weights) = self.row(at);
            values[at * self.input + start..][..weights.len()].copy_from_slice(weights);
        }
        Tensor::from_vec(values, (self.output(), self.input), &Device::Cpu)?.to_dtype(dtype)?.to_device(device)
    }
}

/// `rows * xs * columns^T` for every plane of `xs` `(B, C, H, W)`.
pub(crate) fn apply(xs: &Tensor, rows: Band, columns: Band) -> Result<Tensor> {
    if rows.is_identity() && columns.is_identity() {
        return Ok(xs.clone());
    }
    if !xs.device().is_cpu() {
        return reference(xs, &rows, &columns);
    }
    let wide = xs.to_dtype(check::wide(xs.dtype()))?.contiguous()?;
    wide.apply_op1(kernel::Banded::new(rows, columns))?.to_dtype(xs.dtype())
}

/// [`apply`] as two matrix products.
pub(crate) fn reference(xs: &Tensor, rows: &Band, columns: &Band) -> Result<Tensor> {
    let (b, c, h, w) = xs.dims4()?;
    let (rows_dense, columns_dense) = (rows.dense(xs.dtype(), xs.device())?, columns.dense(xs.dtype(), xs.device())?);
    let xs = xs.reshape((b * c * h, w))?.matmul(&columns_dense.t()?)?; // (B C H, oW)
    let xs = xs.reshape((b * c, h, columns.output()))?; // (B C, H, oW)
    let ys = rows_dense.unsqueeze(0)?.broadcast_matmul(&xs)?; // (B C, oH, oW)
    ys.reshape((b, c, rows.output(), columns.output()))
}
