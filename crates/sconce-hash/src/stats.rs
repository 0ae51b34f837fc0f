//! Whether codes use their bits.

use candle_core::{DType, Device, Tensor};
use sconce_ops::matmul;

use crate::{Codes, Error, Result};

/// What tells wasted bits: a bit that is nearly always the same, two bits that say the same thing.
#[derive(Debug, Clone, PartialEq)]
pub struct CodeStats {
    /// Share of ones at each bit, about 0.5 for a good hash.
    pub balance: Vec<f64>,
    /// Mean Hamming distance over all pairs, about K / 2 for a good hash.
    pub mean_distance: f64,
    /// Mean magnitude of the correlation over all pairs of bits, near 0 for a good hash; 0 for a single bit.
    pub mean_correlation: f64,
    /// The largest of these magnitudes.
    pub max_correlation: f64,
}

impl CodeStats {
    /// Of at least two codes. A bit that is always the same counts as uncorrelated: [`balance`](Self::balance) tells it. The cost is
    /// `N K^2`.
    ///
    /// # Errors
    /// Fewer than two codes.
    pub fn new(codes: &Codes) -> Result<Self> {
        let (n, k) = (codes.len(), codes.bits());
        if n < 2 {
            return Err(Error::Input(format!("{n} codes have no pairs")));
        }
        let balance = codes.balance();
        let mut products = Tensor::zeros((k, k), DType::F64, &Device::Cpu)?;
        // Blocks, because signs take 512 times the room of bits here.
        for start in (0..n).step_by(ROWS) {
            let signs = codes.slice(start..n.min(start + ROWS))?.to_signs()?.to_dtype(DType::F64)?; // (B, K)
            products = (products + matmul(&signs.t()?, &signs)?)?;
        }
        let products = products.to_vec2::<f64>()?;
        let mean: Vec<f64> = balance.iter().map(|ones| 2.0 * ones - 1.0).collect();
        let variance = |i: usize| 1.0 - mean[i] * mean[i];
        let (mut sum, mut max_correlation) = (0.0, 0f64);
        for i in 0..k {
            for j in 0..i {
                if variance(i) > 0.0 && variance(j) > 0.0 {
                    let covariance = products[i][j] / n as f64 - mean[i] * mean[j];
                    let correlation = (covariance / (variance(i) * variance(j)).sqrt()).abs().min(1.0);
                    sum += correlation;
                    max_correlation = max_correlation.max(correlation);
                }
            }
        }
        let pairs = (k * (k - 1) / 2).max(1) as f64;
        Ok(Self { balance, mean_distance: codes.mean_distance(), mean_correlation: sum / pairs, max_correlation })
    }
}

const ROWS: usize = 4096;

#[cfg(test)]
mod tests {
    use super::*;

    fn stats(rows: &[[bool; 3]]) -> Result<CodeStats> {
        CodeStats::new(&Codes::from_bools(3, rows.as_flattened())?)
    }

    #[test]
    fn balance_distance_and_correlation_by_hand() -> Result<()> {
        let (o, l) = (false, true);
        // The second bit is the first, the third is apart.
        let found = stats(&[[o, o, o], [o, o, l], [l, l, o], [l, l, l]])?;
        assert_eq!(found.balance, [0.5; 3]);
        assert!((found.mean_distance - 2.0).abs() < 1e-15);
        assert!((found.max_correlation - 1.0).abs() < 1e-15 && (found.mean_correlation - 1.0 / 3.0).abs() < 1e-15);
        // The opposite is as bad as the same; a constant bit has no correlation.
        let found = stats(&[[o, l, l], [l, o, l]])?;
        assert_eq!((found.max_correlation, found.balance[2]), (1.0, 1.0));
        assert!((found.mean_correlation - 1.0 / 3.0).abs() < 1e-15);
        Ok(())
    }

    #[test]
    fn a_single_code_is_refused() {
        assert!(stats(&[]).is_err() && stats(&[[true; 3]]).is_err());
    }
}
