use candle_core::{ModuleT, Result, Tensor};
use sconce_ops::Generator;

/// Dropout, Srivastava et al. 2014: in training each element is 0 with probability `p`, the others are divided by `1 - p`.
///
/// Draws from [`Generator::current`].
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Dropout {
    /// Probability of dropping, in `[0, 1)`.
    pub p: f64,
}

impl Dropout {
    /// With this probability of dropping.
    pub fn new(p: f64) -> Self {
        Self { p }
    }
}

impl ModuleT for Dropout {
    fn forward_t(&self, xs: &Tensor, train: bool) -> Result<Tensor> {
        if train && self.p > 0. { sconce_ops::dropout(xs, self.p, &Generator::current()) } else { Ok(xs.clone()) }
    }
}

/// Stochastic depth, Huang et al. 2016: in training the whole sample is 0 with probability `p`, the others are divided by
/// `1 - p`. Stands before a residual sum.
///
/// Draws from [`Generator::current`].
///
/// # Shapes
/// - input and output `(B, *)`
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct DropPath {
    /// Probability of dropping, in `[0, 1)`.
    pub p: f64,
}

impl DropPath {
    /// With this probability of dropping.
    pub fn new(p: f64) -> Self {
        Self { p }
    }
}

impl ModuleT for DropPath {
    fn forward_t(&self, xs: &Tensor, train: bool) -> Result<Tensor> {
        if train && self.p > 0. { sconce_ops::drop_path(xs, self.p, &Generator::current()) } else { Ok(xs.clone()) }
    }
}

/// The drop-path rate of each of `depth` blocks in the order of execution: evenly spaced from 0 to `rate`.
///
/// ```
/// assert_eq!(sconce_nn::drop_path_rates(0.2, 3), [0.0, 0.1, 0.2]);
/// ```
pub fn drop_path_rates(rate: f64, depth: usize) -> Vec<f64> {
    (0..depth).map(|i| rate * i as f64 / (depth - 1).max(1) as f64).collect()
}
