//! Attention through landmarks.

use candle_core::{Result, Tensor, bail};
use sconce_ops::{
    AttentionOptions, Mask, PoolOptions, attention, attention_weights, avg_pool2d, matmul, pinv, pinv_each,
};
use serde::{Deserialize, Serialize};

use crate::linear::wide;

/// Options of [`nystrom_attention`].
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct NystromOptions {
    /// Number of landmarks `L`.
    pub landmarks: usize,
    /// Iterations of the pseudo-inverse.
    pub iterations: usize,
    /// Scale the start of the pseudo-inverse by maxima over the whole batch, as the official code does: what comes out for one
    /// picture then depends on the others. Off by default, when each matrix has a scale of its own, which converges better too.
    pub compat: bool,
    /// Added to the number of valid tokens that a landmark is the mean of, when there is a mask.
    pub eps: f64,
}

impl Default for NystromOptions {
    fn default() -> Self {
        Self { landmarks: 64, iterations: 6, compat: false, eps: 1e-8 }
    }
}

/// The three factors whose product stands for the matrix of attention weights.
#[derive(Debug, Clone)]
pub struct NystromMatrices {
    /// Queries to landmarks, `(B, heads, N', L)`; `N'` is `N` with padding at the front, a multiple of `L`.
    pub attn1: Tensor,
    /// Pseudo-inverse of landmarks to landmarks, `(B, heads, L, L)`.
    pub attn2_pinv: Tensor,
    /// Landmarks to keys, `(B, heads, L, N')`.
    pub attn3: Tensor,
}

/// Attention through landmarks, Xiong et al. 2021 (`arXiv:2102.03902`), equation 13: landmarks are the means of runs of tokens,
/// and `softmax(q k~^T) pinv(softmax(q~ k~^T)) softmax(q~ k^T) v` stands for attention, all scores scaled by `D^-1/2`.
///
/// Sequences that do not divide into the landmarks are padded with zeros at the front, which take part. The mask keeps (1)
/// or hides (0) tokens; hidden ones count in no landmark. Half precision is computed in f32.
///
/// Cost: `O(N L (D + E) + L^3)`; no `N x L` matrix is held on the CPU.
///
/// # Shapes
/// - `q`, `k` `(B, heads, N, D)`, `v` `(B, heads, N, E)`, `mask` `(B, N)` of any type
/// - output `(B, heads, N, E)`
///
/// # Errors
/// When shapes, types or devices do not agree, or there are no landmarks.
pub fn nystrom_attention(
    q: &Tensor,
    k: &Tensor,
    v: &Tensor,
    mask: Option<&Tensor>,
    options: &NystromOptions,
) -> Result<Tensor> {
    let (b, h, n, _) = q.dims4()?;
    if b * h * n == 0 {
        return v.zeros_like();
    }
    let parts = Parts::new(q, k, mask, options)?;
    let v = parts.prepare(v)?;
    let from_keys = attention(&parts.q_landmarks, &parts.k, &v, &masked(&parts.to_keys))?; // (B, heads, L, E)
    let through = matmul(&parts.inverse(options)?, &from_keys)?; // (B, heads, L, E)
    let out = attention(&parts.q, &parts.k_landmarks, &through, &masked(&parts.to_landmarks))?; // (B, heads, N', E)
    out.narrow(2, parts.padding, n)?.to_dtype(q.dtype())
}

/// The factors of [`nystrom_attention`], for inspection.
///
/// # Shapes
/// - `q`, `k` `(B, heads, N, D)`, `mask` `(B, N)`
///
/// # Errors
/// As [`nystrom_attention`].
pub fn nystrom_matrices(
    q: &Tensor,
    k: &Tensor,
    mask: Option<&Tensor>,
    options: &NystromOptions,
) -> Result<NystromMatrices> {
    let parts = Parts::new(q, k, mask, options)?;
    Ok(NystromMatrices {
        attn1: attention_weights(&parts.q, &parts.k_landmarks, &masked(&parts.to_landmarks))?,
        attn2_pinv: parts.inverse(options)?,
        attn3: attention_weights(&parts.q_landmarks, &parts.k, &masked(&parts.to_keys))?,
    })
}

fn masked(mask: &Option<Tensor>) -> AttentionOptions {
    AttentionOptions::default().with_mask(mask.clone().map_or(Mask::None, Mask::Additive))
}

/// Padded queries and keys, their landmarks, and what is added to the scores where there is a mask.
struct Parts {
    q: Tensor,
    k: Tensor,
    q_landmarks: Tensor,
    k_landmarks: Tensor,
    padding: usize,
    /// `(B, 1, N', 1)`: 1 keeps, 0 hides.
    keep: Option<Tensor>,
    to_landmarks: Option<Tensor>,
    between_landmarks: Option<Tensor>,
    to_keys: Option<Tensor>,
}

impl Parts {
    fn new(q: &Tensor, k: &Tensor, mask: Option<&Tensor>, options: &NystromOptions) -> Result<Self> {
        let (b, _, n, _) = q.dims4()?;
        let landmarks = options.landmarks;
        if landmarks == 0 || n == 0 || q.dims() != k.dims() {
            bail!("nystrom attention: {landmarks} landmarks of queries {:?} and keys {:?}", q.dims(), k.dims())
        }
        let run = n.div_ceil(landmarks);
        let fits =
            |padded: &usize| padded.checked_mul(q.elem_count()).is_some_and(|size| size <= isize::MAX as usize / 8);
        let Some(padding) = landmarks.checked_mul(run).filter(fits).map(|padded| padded - n) else {
            bail!("nystrom attention: {landmarks} landmarks are too many")
        };
        let dtype = wide(q.dtype());
        let keep = match mask {
            Some(mask) if mask.dims() != [b, n] => {
                bail!("nystrom attention: a mask {:?} for {b} sequences of {n} tokens", mask.dims())
            }
            Some(mask) => Some(mask.to_dtype(dtype)?.reshape((b, 1, n, 1))?.pad_with_zeros(2, padding, 0)?),
            None => None,
        };
        let mut parts = Self {
            q: q.clone(),
            k: k.clone(),
            q_landmarks: q.clone(),
            k_landmarks: k.clone(),
            padding,
            keep,
            to_landmarks: None,
            between_landmarks: None,
            to_keys: None,
        };
        (parts.q, parts.k) = (parts.prepare(q)?, parts.prepare(k)?);
        (parts.q_landmarks, parts.k_landmarks) = (means(&parts.q, run)?, means(&parts.k, run)?); // (B, heads, L, D)
        if let Some(keep) = &parts.keep {
            let count = (means(keep, run)? * run as f64)?; // (B, 1, L, 1)
            // A mean over the run, made one over its valid tokens.
            let factor = (&count + options.eps)?.recip()?.affine(run as f64, 0.0)?;
            parts.q_landmarks = parts.q_landmarks.broadcast_mul(&factor)?;
            parts.k_landmarks = parts.k_landmarks.broadcast_mul(&factor)?;
            let valid = count.gt(0.0)?.to_dtype(dtype)?;
            parts.to_landmarks = Some(hide(keep, &valid)?); // (B, 1, N', L)
            parts.between_landmarks = Some(hide(&valid, &valid)?); // (B, 1, L, L)
            parts.to_keys = Some(hide(&valid, keep)?); // (B, 1, L, N')
        }
        Ok(parts)
    }

    /// Pads at the front and empties hidden tokens.
    fn prepare(&self, xs: &Tensor) -> Result<Tensor> {
        let xs = xs.to_dtype(wide(xs.dtype()))?.pad_with_zeros(2, self.padding, 0)?; // (B, heads, N', _)
        match &self.keep {
            Some(keep) => xs.broadcast_mul(keep),
            None => Ok(xs),
        }
    }

    fn inverse(&self, options: &NystromOptions) -> Result<Tensor> {
        let between = attention_weights(&self.q_landmarks, &self.k_landmarks, &masked(&self.between_landmarks))?;
        match options.compat {
            true => pinv(&between, options.iterations),
            false => pinv_each(&between, options.iterations),
        }
    }
}

/// Means over runs of tokens, `(B, heads, N', D)` to `(B, heads, N' / run, D)`.
fn means(xs: &Tensor, run: usize) -> Result<Tensor> {
    avg_pool2d(xs, &PoolOptions { kernel: [run, 1], stride: [run, 1], ..PoolOptions::new(1) })
}

/// Hides columns from the rows that are themselves valid: so much is added that any score vanishes beside it. Rows that are
/// not have queries of zeros, and so uniform weights, which is what the official code gives them.
fn hide(rows: &Tensor, columns: &Tensor) -> Result<Tensor> {
    const HIDDEN: f64 = 1e30;
    rows.broadcast_mul(&columns.affine(HIDDEN, -HIDDEN)?.transpose(2, 3)?)
}

#[cfg(test)]
mod tests {
    use candle_core::{D, DType, Device};
    use sconce_nn::Generator;

    use super::*;
    use crate::testing::{assert_close, check_gradients, distance};

    fn draw(seed: u64, shape: &[usize]) -> Tensor {
        Generator::new(seed).normal(0.0, 1.0, shape, DType::F64, &Device::Cpu).unwrap()
    }

    fn options(landmarks: usize) -> NystromOptions {
        NystromOptions { landmarks, ..Default::default() }
    }

    #[test]
    fn with_a_landmark_for_each_token_it_is_attention() {
        let [q, k, v] = [1, 2, 3].map(|seed| draw(seed, &[2, 2, 6, 8]));
        let want = attention(&q, &k, &v, &AttentionOptions::default()).unwrap();
        let found = nystrom_attention(&q, &k, &v, None, &NystromOptions { iterations: 30, ..options(6) }).unwrap();
        assert_close(&found, &want, 1e-8);
    }

    #[test]
    fn the_factors_multiply_to_the_result() {
        let [q, k, v] = [1, 2, 3].map(|seed| draw(seed, &[2, 2, 13, 4]));
        let keep = Tensor::new(&[[1u8; 13], [1, 1, 1, 1, 1, 0, 0, 0, 1, 1, 1, 0, 0]], &Device::Cpu).unwrap();
        for mask in [None, Some(&keep)] {
            for compat in [true, false] {
                let options = NystromOptions { compat, ..options(5) };
                let found = nystrom_attention(&q, &k, &v, mask, &options).unwrap();
                let NystromMatrices { attn1, attn2_pinv, attn3 } = nystrom_matrices(&q, &k, mask, &options).unwrap();
                assert_eq!((attn1.dims(), attn3.dims()), (&[2, 2, 15, 5][..], &[2, 2, 5, 15][..]));
                let v = match mask {
                    Some(keep) => {
                        let keep = keep.to_dtype(DType::F64).unwrap().reshape((2, 1, 13, 1)).unwrap();
                        v.broadcast_mul(&keep).unwrap()
                    }
                    None => v.clone(),
                };
                let padded = v.pad_with_zeros(2, 2, 0).unwrap();
                let want = matmul(&matmul(&attn1, &attn2_pinv).unwrap(), &matmul(&attn3, &padded).unwrap()).unwrap();
                assert_close(&found, &want.narrow(2, 2, 13).unwrap(), 1e-10);
                let sums = attn3.sum(D::Minus1).unwrap();
                assert_close(&sums, &sums.ones_like().unwrap(), 1e-12);
            }
        }
    }

    #[test]
    fn pictures_do_not_see_each_other_unless_told_so() {
        let [q, k, v] = [1, 2, 3].map(|seed| draw(seed, &[3, 2, 16, 4]));
        for compat in [false, true] {
            let options = NystromOptions { compat, iterations: 2, ..options(4) };
            let all = nystrom_attention(&q, &k, &v, None, &options).unwrap();
            let change = (0..3).map(|i| {
                let one = |t: &Tensor| t.narrow(0, i, 1).unwrap();
                distance(&nystrom_attention(&one(&q), &one(&k), &one(&v), None, &options).unwrap(), &one(&all))
            });
            let change = change.fold(0.0, f64::max);
            assert_eq!(change > 1e-9, compat, "{change}");
        }
    }

    #[test]
    fn hidden_tokens_change_nothing() {
        let [q, k, v] = [1, 2, 3].map(|seed| draw(seed, &[1, 2, 12, 4]));
        let keep = Tensor::new(&[[1u8, 1, 1, 1, 1, 1, 0, 0, 0, 1, 0, 1]], &Device::Cpu).unwrap();
        let with = |at: usize, t: &Tensor| {
            let rest = 11 - at;
            let parts = [t.narrow(2, 0, at).unwrap(), draw(9, &[1, 2, 1, 4]), t.narrow(2, at + 1, rest).unwrap()];
            Tensor::cat(&parts, 2).unwrap()
        };
        let run = |at: Option<usize>| {
            let [q, k, v] = [&q, &k, &v].map(|t| at.map_or(t.clone(), |at| with(at, t)));
            nystrom_attention(&q, &k, &v, Some(&keep), &options(4)).unwrap().narrow(2, 0, 6).unwrap()
        };
        assert!(distance(&run(None), &run(Some(7))) < 1e-12);
        assert!(distance(&run(None), &run(Some(9))) > 1e-3);
    }

    #[test]
    fn gradients_are_exact() {
        let inputs = [draw(1, &[2, 1, 5, 2]), draw(2, &[2, 1, 5, 2]), draw(3, &[2, 1, 5, 2])];
        let keep = Tensor::new(&[[1u8, 1, 1, 1, 1], [1, 0, 1, 1, 0]], &Device::Cpu).unwrap();
        for (mask, compat) in [(None, true), (Some(&keep), false)] {
            let options = NystromOptions { compat, iterations: 3, ..options(3) };
            check_gradients(&inputs, |t| nystrom_attention(&t[0], &t[1], &t[2], mask, &options));
        }
    }

    #[test]
    fn fewer_tokens_than_landmarks_are_padded_and_nonsense_is_refused() {
        let q = draw(1, &[1, 2, 3, 4]);
        let found = nystrom_attention(&q, &q, &q, None, &options(8)).unwrap();
        assert_eq!(found.dims(), [1, 2, 3, 4]);
        assert!(distance(&found, &found) == 0.0, "finite");
        assert!(nystrom_attention(&q, &q, &q, None, &options(0)).is_err());
        assert!(nystrom_attention(&q, &q, &q, None, &options(usize::MAX)).is_err());
        let mask = Tensor::ones((1, 4), DType::U8, &Device::Cpu).unwrap();
        let error = nystrom_attention(&q, &q, &q, Some(&mask), &options(2)).unwrap_err().to_string();
        assert!(error.contains("mask") && error.contains('3'), "{error}");
        assert!(nystrom_attention(&q, &draw(1, &[1, 2, 4, 4]), &q, None, &options(2)).is_err());
    }
}
