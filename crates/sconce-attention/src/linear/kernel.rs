//! Attention by products of features: the core of all kernels.

use candle_core::{DType, Device, Result, Tensor, bail};
use sconce_ops::matmul;

use super::wide;

/// What keeps the division by the sum of weights from failing.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Epsilon {
    /// Added to the sum of a query's weights.
    Weights(f64),
    /// Added to each feature of the sum over keys.
    Keys(f64),
}

/// Attention whose weights are products of features, Katharopoulos et al. 2020 (`arXiv:2006.16236`), equations 5 and 10:
/// `out_i = sum_j (q_i . k_j) v_j / sum_j (q_i . k_j)`, with keys and values summed up before any query sees them.
///
/// `causal` lets a query see keys up to its own place. Sums then run in chunks of 64 tokens: no state is kept per token.
/// Half precision is computed in f32.
///
/// Cost: `O(N m E)` time; memory beyond the inputs `O(m E)`, when causal `O(N m E / 64)`.
///
/// # Shapes
/// - `q` `(B, heads, Nq, m)`, `k` `(B, heads, N, m)`: features, not negative
/// - `v` `(B, heads, N, E)`
/// - output `(B, heads, Nq, E)`, in the type of `v`
///
/// # Errors
/// When shapes, types or devices do not agree, or `causal` meets `Nq` other than `N`.
pub fn kernel_attention(q: &Tensor, k: &Tensor, v: &Tensor, causal: bool, eps: Epsilon) -> Result<Tensor> {
    let ((b, h, nq, m), (kb, kh, n, km), (vb, vh, vn, e)) = (q.dims4()?, k.dims4()?, v.dims4()?);
    if (kb, kh, km) != (b, h, m) || (vb, vh, vn) != (b, h, n) || (causal && nq != n) {
        bail!("linear attention: q {:?}, k {:?}, v {:?} do not agree", q.dims(), k.dims(), v.dims())
    }
    if b * h * nq * e == 0 {
        return Tensor::zeros((b, h, nq, e), v.dtype(), v.device());
    }
    let dtype = wide(v.dtype());
    let rows = |t: &Tensor| t.to_dtype(dtype)?.flatten_to(1); // (B heads, N, _)
    let (q, k, v_wide) = (rows(q)?, rows(k)?, rows(v)?);
    // A column of ones carries the sum of the weights along.
    let ones = Tensor::ones((b * h, n, 1), dtype, v.device())?;
    let values = Tensor::cat(&[&v_wide, &ones], 2)?; // (B heads, N, E + 1)
    let sums = match causal {
        true => prefix_sums(&q, &k, &values)?,
        false => matmul(&q, &matmul(&k.t()?, &values)?)?,
    }; // (B heads, Nq, E + 1)
    let weights = sums.narrow(2, e, 1)?;
    let weights = match eps {
        Epsilon::Weights(eps) => (weights + eps)?,
        Epsilon::Keys(eps) => (weights + (q.sum_keepdim(2)? * eps)?)?,
    };
    sums.narrow(2, 0, e)?.broadcast_div(&weights)?.reshape((b, h, nq, e))?.to_dtype(v.dtype())
}

/// Tokens that are taken as pairs; beyond them sums are carried.
const CHUNK: usize = 64;

/// `sum_(j <= i) (q_i . k_j) v_j`: pairs within a chunk, and the running sum of `k^T v` of the chunks before.
///
/// # Shapes
/// - `q`, `k` `(R, N, m)`, `v` `(R, N, E)`, output `(R, N, E)`
fn prefix_sums(q: &Tensor, k: &Tensor, v: &Tensor) -> Result<Tensor> {
    let (r, n, m) = q.dims3()?;
    let e = v.dim(2)?;
    let size = CHUNK.min(n);
    let chunks = n.div_ceil(size);
    let cut = |t: &Tensor| t.pad_with_zeros(1, 0, chunks * size - n)?.reshape((r * chunks, size, t.dim(2)?));
    let (q, k, v) = (cut(q)?, cut(k)?, cut(v)?); // (R chunks, size, _)
    let pairs = matmul(&q, &k.t()?)?.broadcast_mul(&lower(size, q.dtype(), q.device())?)?; // (R chunks, size, size)
    let near = matmul(&pairs, &v)?;
    let states = matmul(&k.t()?, &v)?.reshape((r, chunks, m * e))?; // (R, chunks, m E)
    let before = exclusive_scan(&states)?.reshape((r * chunks, m, e))?;
    (near + matmul(&q, &before)?)?.reshape((r, chunks * size, e))?.narrow(1, 0, n)
}

/// Ones on and below the diagonal.
fn lower(n: usize, dtype: DType, device: &Device) -> Result<Tensor> {
    Tensor::tril2(n, dtype, device)
}

/// The sum of all that stand before, along dimension 1, by doubling steps: candle's cumulative sum is quadratic, and a loop
/// of slices would be so in its backward pass.
fn exclusive_scan(xs: &Tensor) -> Result<Tensor> {
    let n = xs.dim(1)?;
    let shift = |xs: &Tensor, by: usize| xs.narrow(1, 0, n - by)?.pad_with_zeros(1, by, 0);
    if n == 1 {
        return xs.zeros_like();
    }
    let mut sums = shift(xs, 1)?;
    let mut step = 1;
    while step < n {
        sums = (&sums + shift(&sums, step)?)?;
        step *= 2;
    }
    Ok(sums)
}

#[cfg(test)]
mod tests {
    use candle_core::D;
    use sconce_nn::Generator;

    use super::*;
    use crate::testing::{assert_close, check_gradients};

    fn features(seed: u64, shape: [usize; 4]) -> Tensor {
        Generator::new(seed).uniform(0.1, 1.0, &shape[..], DType::F64, &Device::Cpu).unwrap()
    }

    /// The definition, with the matrix of weights.
    fn direct(q: &Tensor, k: &Tensor, v: &Tensor, causal: bool, eps: Epsilon) -> Tensor {
        let mut weights = q.matmul(&k.t().unwrap().contiguous().unwrap()).unwrap();
        if causal {
            let n = q.dim(2).unwrap();
            weights = weights.broadcast_mul(&lower(n, DType::F64, &Device::Cpu).unwrap()).unwrap();
        }
        let sum = weights.sum_keepdim(D::Minus1).unwrap();
        let sum = match eps {
            Epsilon::Weights(eps) => (sum + eps).unwrap(),
            Epsilon::Keys(eps) => (sum + (q.sum_keepdim(3).unwrap() * eps).unwrap()).unwrap(),
        };
        weights.matmul(v).unwrap().broadcast_div(&sum).unwrap()
    }

    #[test]
    fn sums_agree_with_the_matrix_of_weights() {
        for n in [1, 5, 64, 65, 200, 333] {
            let (q, k, v) = (features(1, [2, 2, n, 5]), features(2, [2, 2, n, 5]), features(3, [2, 2, n, 3]));
            for (causal, eps) in
                [(false, Epsilon::Weights(0.1)), (true, Epsilon::Weights(0.0)), (true, Epsilon::Keys(0.3))]
            {
                let found = kernel_attention(&q, &k, &v, causal, eps).unwrap();
                assert_close(&found, &direct(&q, &k, &v, causal, eps), 1e-12);
            }
        }
    }

    #[test]
    fn gradients_are_exact() {
        let inputs = [features(1, [1, 2, 4, 3]), features(2, [1, 2, 4, 3]), features(3, [1, 2, 4, 2])];
        check_gradients(&inputs, |t| kernel_attention(&t[0], &t[1], &t[2], true, Epsilon::Keys(0.1)));
        check_gradients(&inputs, |t| kernel_attention(&t[0], &t[1], &t[2], false, Epsilon::Weights(0.1)));
        // Over several chunks, against the definition.
        let long = [features(4, [1, 1, 150, 3]), features(5, [1, 1, 150, 3]), features(6, [1, 1, 150, 2])];
        let vars: Vec<_> = long.iter().map(|t| candle_core::Var::from_tensor(t).unwrap()).collect();
        let [q, k, v] = &vars[..] else { panic!("three") };
        let grads = |out: Tensor| out.sqr().unwrap().sum_all().unwrap().backward().unwrap();
        let ours = grads(kernel_attention(q, k, v, true, Epsilon::Weights(0.0)).unwrap());
        let theirs = grads(direct(q, k, v, true, Epsilon::Weights(0.0)));
        for var in &vars {
            assert_close(ours.get(var).unwrap(), theirs.get(var).unwrap(), 1e-11);
        }
    }

    #[test]
    fn queries_may_be_fewer_and_wrong_shapes_are_refused() {
        let (q, k, v) = (features(1, [2, 1, 3, 4]), features(2, [2, 1, 7, 4]), features(3, [2, 1, 7, 5]));
        let eps = Epsilon::Weights(0.0);
        assert_close(&kernel_attention(&q, &k, &v, false, eps).unwrap(), &direct(&q, &k, &v, false, eps), 1e-12);
        assert!(kernel_attention(&q, &k, &v, true, eps).is_err());
        assert!(kernel_attention(&q, &k, &q, false, eps).is_err());
        assert!(kernel_attention(&v, &k, &v, false, eps).is_err());
        let none = Tensor::zeros((2, 1, 0, 4), DType::F64, &Device::Cpu).unwrap();
        assert_eq!(kernel_attention(&none, &k, &v, false, eps).unwrap().dims(), [2, 1, 0, 5]);
    }
}
