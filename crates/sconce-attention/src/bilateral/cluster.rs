//! Groups of equal size of tokens that are alike.

use candle_core::{DType, Result, Tensor, bail};
use sconce_ops::{argsort, l2_normalize, matmul, softmax};

/// How [`balanced_clusters`] groups.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct ClusterOptions {
    /// Groups are halved as long as their halves keep at least this many tokens.
    pub leaf: usize,
    /// Factor on the cosines before the softmax that assigns tokens to the two centres of a group.
    pub temperature: f64,
    /// Times that the centres of a group are computed anew before it is halved.
    pub iterations: usize,
}

impl Default for ClusterOptions {
    /// The official code's: leaves of 49 tokens, temperature 100, 2 iterations.
    fn default() -> Self {
        Self { leaf: 49, temperature: 100.0, iterations: 2 }
    }
}

impl ClusterOptions {
    /// Number of leaves, a power of two, that `tokens` tokens are grouped into.
    ///
    /// # Errors
    /// When a group on the way is odd: the number of tokens must be a leaf's, from `leaf` to `2 * leaf - 1`, times a power
    /// of two.
    pub fn leaves(&self, tokens: usize) -> Result<usize> {
        let Some(times) = tokens.checked_div(self.leaf) else { bail!("balanced clusters: leaves without tokens") };
        let leaves = 1 << times.max(1).ilog2();
        if !tokens.is_multiple_of(leaves) {
            bail!(
                "balanced clusters: {tokens} tokens do not divide into {leaves} leaves of equal size, each of at least {}",
                self.leaf
            )
        }
        Ok(leaves)
    }
}

/// Groups tokens by repeated halving: of each group, the half that is less like the first of two centres comes first. The two
/// centres start as the means of the group's first and last half and move by a softmax of cosines, as in k-means.
///
/// Gives the order in which tokens of the same leaf stand together, leaves in depth-first order: token `order[i]` stands at place
/// `i`. Within a leaf, tokens are ordered as the last halving sorted them (in raster order when there was none). Ties keep their
/// order. No gradient passes. Half precision is computed in f32.
///
/// Yu et al. 2022, "BOAT" (`arXiv:2201.13027`), section 3.2, in the form of the official code, which takes the ratio of the
/// similarities increasingly. Cost in the number of tokens: `N log N`.
///
/// # Shapes
/// - `xs` `(B, heads, N, D)`: every head has its own clusters
/// - output `(B, heads, N)`, `u32`
///
/// # Errors
/// When the number of tokens does not halve evenly, see [`ClusterOptions::leaves`].
pub fn balanced_clusters(xs: &Tensor, options: &ClusterOptions) -> Result<Tensor> {
    let (b, heads, n, d) = xs.dims4()?;
    let leaves = options.leaves(n)?;
    if u32::try_from(b * heads * n).is_err() {
        bail!("balanced clusters: {b} x {heads} x {n} tokens are too many to count")
    }
    let wide = if xs.dtype() == DType::F64 { DType::F64 } else { DType::F32 };
    let mut xs = xs.detach().to_dtype(wide)?.reshape((b * heads, n, d))?; // (groups, size, D)
    let mut order = Tensor::arange(0, n as u32, xs.device())?.expand((b * heads, n))?.contiguous()?;
    for _ in 0..leaves.ilog2() {
        let (groups, size, _) = xs.dims3()?;
        let sorted = argsort(&ratio(&xs, options)?, false)?; // (groups, size)
        order = order.gather(&sorted, 1)?.reshape((2 * groups, size / 2))?;
        let starts = Tensor::arange_step(0, (groups * size) as u32, size as u32, xs.device())?.reshape((groups, 1))?;
        let rows = sorted.broadcast_add(&starts)?.flatten_all()?;
        xs = xs.reshape((groups * size, d))?.index_select(&rows, 0)?.reshape((2 * groups, size / 2, d))?;
    }
    order.reshape((b, heads, n))
}

/// How much more a token of its group is like the group's first centre than like the second: the ratio of the cosines, each
/// plus one. `(groups, size, D)` to `(groups, size)`.
fn ratio(xs: &Tensor, options: &ClusterOptions) -> Result<Tensor> {
    const EPS: f64 = 1e-12;
    let (groups, size, d) = xs.dims3()?;
    let unit = l2_normalize(xs, 2, EPS)?;
    let cosines = |centres: &Tensor| matmul(&unit, &centres.transpose(1, 2)?); // (groups, size, 2)
    let halves = xs.reshape((groups, 2, size / 2, d))?.mean(2)?; // (groups, 2, D)
    let mut centres = l2_normalize(&halves, 2, EPS)?;
    for _ in 0..options.iterations {
        let assigned = softmax(&(cosines(&centres)? * options.temperature)?, 2)?; // (groups, size, 2)
        centres = l2_normalize(&matmul(&assigned.transpose(1, 2)?, xs)?, 2, EPS)?; // (groups, 2, D)
    }
    let likeness = (cosines(&centres)? + 1.0)?;
    (likeness.narrow(2, 0, 1)? / likeness.narrow(2, 1, 1)?)?.squeeze(2)
}

#[cfg(test)]
mod tests {
    use candle_core::Device;
    use sconce_nn::Generator;

    use super::*;

    fn order(xs: &Tensor, leaf: usize) -> Vec<u32> {
        let options = ClusterOptions { leaf, ..Default::default() };
        balanced_clusters(xs, &options).unwrap().flatten_all().unwrap().to_vec1().unwrap()
    }

    #[test]
    fn leaves_hold_what_is_alike() {
        // Four directions in the plane, taken in turn; 0 and 1 are near each other, and so are 2 and 3.
        let angles = [0.0f64, 0.6, 3.0, 3.6];
        let points: Vec<f64> = (0..32)
            .flat_map(|i| [(i + 1) as f64 * angles[i % 4].cos(), (i + 1) as f64 * angles[i % 4].sin()])
            .collect();
        for dtype in [DType::F64, DType::F32, DType::BF16] {
            let xs = Tensor::from_slice(&points, (1, 1, 32, 2), &Device::Cpu).unwrap().to_dtype(dtype).unwrap();
            for leaf in order(&xs, 8).chunks(8) {
                assert!(leaf.iter().all(|token| token % 4 == leaf[0] % 4), "{dtype:?}: {leaf:?}");
            }
            // The halves of the first level stand side by side.
            let kinds: Vec<u32> = order(&xs, 8).chunks(8).map(|leaf| leaf[0] % 4 / 2).collect();
            assert!(kinds[0] == kinds[1] && kinds[2] == kinds[3] && kinds[0] != kinds[2], "{dtype:?}: {kinds:?}");
        }
    }

    #[test]
    fn every_head_of_every_image_has_all_tokens_once_and_its_own_order() {
        let xs = Generator::new(1).normal(0.0, 1.0, (2, 3, 40, 4), DType::F32, &Device::Cpu).unwrap();
        let all = order(&xs, 5);
        let rows: Vec<_> = all.chunks(40).collect();
        for row in &rows {
            let mut sorted = row.to_vec();
            sorted.sort_unstable();
            assert_eq!(sorted, (0..40).collect::<Vec<_>>());
        }
        assert_eq!(rows.len(), 6);
        assert_ne!(rows[0], rows[1]);
        let alone = order(&xs.narrow(0, 1, 1).unwrap().narrow(1, 2, 1).unwrap(), 5);
        assert_eq!(rows[5], alone);
    }

    #[test]
    fn ties_keep_their_order_and_one_leaf_is_the_raster() {
        let same = Tensor::ones((1, 1, 64, 3), DType::F32, &Device::Cpu).unwrap();
        assert_eq!(order(&same, 4), (0..64).collect::<Vec<_>>());
        let xs = Generator::new(1).normal(0.0, 1.0, (1, 1, 9, 4), DType::F32, &Device::Cpu).unwrap();
        assert_eq!(order(&xs, 5), (0..9).collect::<Vec<_>>());
        assert_eq!(order(&xs, 100), (0..9).collect::<Vec<_>>());
    }

    #[test]
    fn leaves_take_a_number_of_tokens_that_halves_evenly() {
        let options = ClusterOptions::default();
        let found: Vec<_> = [49, 196, 784, 3136, 9216, 12].map(|n| options.leaves(n).unwrap()).into();
        assert_eq!(found, [1, 4, 16, 64, 128, 1]);
        let error = options.leaves(225).unwrap_err().to_string();
        assert!(error.contains("225 tokens") && error.contains("4 leaves"), "{error}");
        assert!(ClusterOptions { leaf: 0, ..options }.leaves(8).is_err());
    }
}
