//! Eigenvalues and singular values of small dense matrices in double precision, on the CPU.

use rayon::prelude::*;

use crate::{Error, Result};

/// Rows below which threads cost more than they bring.
const PARALLEL: usize = 256;

/// A square matrix, row by row.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Square {
    pub(crate) n: usize,
    pub(crate) values: Vec<f64>,
}

impl Square {
    pub(crate) fn new(n: usize, values: Vec<f64>) -> Result<Self> {
        if values.len() != n * n {
            return Err(Error::Input(format!("{} values for a matrix of {n} rows and columns", values.len())));
        }
        match values.iter().all(|v| v.is_finite()) {
            true => Ok(Self { n, values }),
            false => Err(Error::Input("a matrix holds values that are not finite".into())),
        }
    }

    fn identity(n: usize) -> Self {
        let mut values = vec![0.0; n * n];
        values.iter_mut().step_by(n + 1).for_each(|v| *v = 1.0);
        Self { n, values }
    }

    pub(crate) fn row(&self, i: usize) -> &[f64] {
        &self.values[i * self.n..(i + 1) * self.n]
    }

    fn row_mut(&mut self, i: usize) -> &mut [f64] {
        &mut self.values[i * self.n..(i + 1) * self.n]
    }

    /// Rows `i < j`, both to be changed.
    fn pair_mut(&mut self, i: usize, j: usize) -> (&mut [f64], &mut [f64]) {
        let (before, after) = self.values.split_at_mut(j * self.n);
        (&mut before[i * self.n..(i + 1) * self.n], &mut after[..self.n])
    }

    pub(crate) fn transposed(&self) -> Self {
        let n = self.n;
        Self { n, values: (0..n * n).map(|at| self.values[at % n * n + at / n]).collect() }
    }
}

fn dot(a: &[f64], b: &[f64]) -> f64 {
    // Eight sums, in a fixed order: the compiler may not reorder additions by itself.
    let mut sums = [0.0; 8];
    let (whole_a, rest_a) = a.as_chunks::<8>();
    let (whole_b, rest_b) = b.as_chunks::<8>();
    for (a, b) in whole_a.iter().zip(whole_b) {
        for i in 0..8 {
            sums[i] += a[i] * b[i];
        }
    }
    sums.iter().sum::<f64>() + rest_a.iter().zip(rest_b).map(|(a, b)| a * b).sum::<f64>()
}

/// `(x, y) <- (c x - s y, s x + c y)`.
fn rotate(x: &mut [f64], y: &mut [f64], c: f64, s: f64) {
    for (x, y) in x.iter_mut().zip(y) {
        (*x, *y) = (c * *x - s * *y, s * *x + c * *y);
    }
}

/// Eigenvalues, the largest first, and their unit eigenvectors as rows, of a symmetric matrix, of which the lower triangle is
/// read. Householder's reduction to a tridiagonal matrix, then the QL algorithm with implicit shifts (Golub and Van Loan,
/// "Matrix computations", chapter 8). The cost grows with `n^3`.
pub(crate) fn symmetric_eigen(matrix: &Square) -> Result<(Vec<f64>, Square)> {
    let n = matrix.n;
    let (mut diagonal, mut beside, mut vectors) = tridiagonal(matrix);
    ql(&mut diagonal, &mut beside, &mut vectors)?;
    let mut order: Vec<usize> = (0..n).collect();
    order.sort_by(|&a, &b| diagonal[b].total_cmp(&diagonal[a])); // stable
    let mut sorted = Square { n, values: Vec::with_capacity(n * n) };
    order.iter().for_each(|&i| sorted.values.extend_from_slice(vectors.row(i)));
    Ok((order.into_iter().map(|i| diagonal[i]).collect(), sorted))
}

/// Diagonal, what is beside it (`beside[i]` between i and i + 1), and Q as columns such that `Q^T A Q` is tridiagonal; Q is given
/// transposed, so that what rotates its columns rotates rows.
fn tridiagonal(matrix: &Square) -> (Vec<f64>, Vec<f64>, Square) {
    let n = matrix.n;
    let mut a = matrix.clone();
    for i in 0..n {
        for j in i + 1..n {
            a.values[i * n + j] = a.values[j * n + i];
        }
    }
    let mut beside = vec![0.0; n];
    let mut reflectors: Vec<Option<Vec<f64>>> = vec![None; n];
    for k in 0..n.saturating_sub(2) {
        // The column below the diagonal is the row right of it.
        let x: Vec<f64> = a.row(k)[k + 1..].to_vec();
        let largest = x.iter().fold(0f64, |m, v| m.max(v.abs()));
        if largest == 0.0 {
            continue;
        }
        let mut v: Vec<f64> = x.iter().map(|x| x / largest).collect();
        let alpha = -dot(&v, &v).sqrt().copysign(v[0]);
        v[0] -= alpha;
        let length = dot(&v, &v).sqrt();
        beside[k] = alpha * largest;
        if length == 0.0 {
            continue;
        }
        v.iter_mut().for_each(|v| *v /= length);
        // A <- H A H with H = I - 2 v v^T, on the block below and right of k.
        let block = |row: &[f64]| dot(&row[k + 1..], &v);
        let mut w: Vec<f64> = if n - k > PARALLEL {
            a.values.par_chunks(n).skip(k + 1).map(block).collect()
        } else {
            a.values.chunks(n).skip(k + 1).map(block).collect()
        };
        let along = dot(&w, &v);
        w.iter_mut().zip(&v).for_each(|(w, v)| *w = 2.0 * (*w - along * v));
        let update = |(i, row): (usize, &mut [f64])| {
            for ((a, v_j), w_j) in row[k + 1..].iter_mut().zip(&v).zip(&w) {
                *a -= v[i] * w_j + w[i] * v_j;
            }
        };
        if n - k > PARALLEL {
            a.values.par_chunks_mut(n).skip(k + 1).enumerate().for_each(update);
        } else {
            a.values.chunks_mut(n).skip(k + 1).enumerate().for_each(update);
        }
        reflectors[k] = Some(v);
    }
    if n >= 2 {
        beside[n - 2] = a.values[(n - 1) * n + n - 2];
    }
    let diagonal = (0..n).map(|i| a.values[i * n + i]).collect();
    // Q = H_0 H_1 ..; its transpose is .. H_1 H_0: apply the last first, to columns of the identity, which are rows here.
    let mut q = Square::identity(n);
    for (k, v) in reflectors.iter().enumerate().rev() {
        let Some(v) = v else { continue };
        // Rows up to k of Q are untouched so far and orthogonal to v.
        let reflect = |row: &mut [f64]| {
            let factor = 2.0 * dot(&row[k + 1..], v);
            row[k + 1..].iter_mut().zip(v).for_each(|(x, v)| *x -= factor * v);
        };
        if n - k > PARALLEL {
            q.values.par_chunks_mut(n).skip(k + 1).for_each(reflect);
        } else {
            q.values.chunks_mut(n).skip(k + 1).for_each(reflect);
        }
    }
    (diagonal, beside, q)
}

/// Turns a tridiagonal matrix into its eigenvalues, and the rows of `vectors` along with it.
fn ql(d: &mut [f64], e: &mut [f64], vectors: &mut Square) -> Result<()> {
    const TRIES: usize = 60;
    let n = d.len();
    for l in 0..n {
        for tries in 0.. {
            let small = |m: usize| e[m].abs() <= f64::EPSILON * (d[m].abs() + d[m + 1].abs());
            let m = (l..n.saturating_sub(1)).find(|&m| small(m)).unwrap_or(n - 1);
            if m == l {
                break;
            }
            if tries == TRIES {
                return Err(Error::Input(format!("eigenvalue {l} was not found in {TRIES} iterations")));
            }
            let mut g = (d[l + 1] - d[l]) / (2.0 * e[l]);
            g = d[m] - d[l] + e[l] / (g + g.hypot(1.0).copysign(g));
            let (mut s, mut c, mut p) = (1.0, 1.0, 0.0);
            let mut split = false;
            for i in (l..m).rev() {
                let (f, b) = (s * e[i], c * e[i]);
                let r = f.hypot(g);
                e[i + 1] = r;
                if r == 0.0 {
                    d[i + 1] -= p;
                    e[m] = 0.0;
                    split = true;
                    break;
                }
                (s, c) = (f / r, g / r);
                let gap = d[i + 1] - p;
                let t = (d[i] - gap) * s + 2.0 * c * b;
                p = s * t;
                d[i + 1] = gap + p;
                g = c * t - b;
                let (x, y) = vectors.pair_mut(i, i + 1);
                rotate(x, y, c, s);
            }
            if !split {
                d[l] -= p;
                e[l] = g;
                e[m] = 0.0;
            }
        }
    }
    Ok(())
}

/// `A = U S V^T`: rows of `ut` are the left singular vectors, rows of `vt` the right ones, `s` falls.
pub(crate) struct Svd {
    pub(crate) ut: Square,
    #[cfg_attr(not(test), expect(dead_code, reason = "only tests ask for more than the vectors"))]
    pub(crate) s: Vec<f64>,
    pub(crate) vt: Square,
}

/// Singular value decomposition of a square matrix by one-sided Jacobi rotations (Hestenes 1958), which keep small singular
/// values exact to their own size, down to what rounding of the largest one leaves. A singular matrix gets its left vectors completed to an orthonormal basis. `start` is a
/// guess of `vt`: near the answer it saves most of the sweeps. The cost of a sweep grows with `n^3`.
pub(crate) fn svd(matrix: &Square, start: Option<&Square>) -> Result<Svd> {
    const SWEEPS: usize = 60;
    let n = matrix.n;
    // A dot product is known to about this share of the lengths.
    let digits = f64::EPSILON * (n as f64).sqrt().max(4.0);
    let mut vt = start.cloned().unwrap_or_else(|| Square::identity(n));
    // Rows of `b` are the columns of A V.
    let mut b = Square { n, values: Vec::with_capacity(n * n) };
    for i in 0..n {
        b.values.extend((0..n).map(|r| dot(matrix.row(r), vt.row(i))));
    }
    for sweep in 0.. {
        let mut rotated = false;
        let mut norms: Vec<f64> = (0..n).map(|i| dot(b.row(i), b.row(i))).collect();
        // What is shorter is rounding of longer vectors; every rotation with one of them makes it anew.
        let noise = (f64::EPSILON * n.max(8) as f64).powi(2) * norms.iter().copied().fold(0.0, f64::max);
        for i in 0..n {
            for j in i + 1..n {
                if norms[i].min(norms[j]) <= noise {
                    continue;
                }
                let gamma = dot(b.row(i), b.row(j));
                // Vectors of which one is zero to all digits are orthogonal.
                if gamma.abs() <= digits * (norms[i] * norms[j]).sqrt() || gamma.abs() < f64::MIN_POSITIVE {
                    continue;
                }
                rotated = true;
                let zeta = (norms[j] - norms[i]) / (2.0 * gamma);
                let t = 1f64.copysign(zeta) / (zeta.abs() + zeta.hypot(1.0));
                let c = 1.0 / t.hypot(1.0);
                let s = c * t;
                let (x, y) = b.pair_mut(i, j);
                rotate(x, y, c, s);
                norms[i] = dot(x, x);
                norms[j] = dot(y, y);
                let (x, y) = vt.pair_mut(i, j);
                rotate(x, y, c, s);
            }
        }
        if !rotated {
            break;
        }
        if sweep == SWEEPS {
            return Err(Error::Input(format!("singular values were not found in {SWEEPS} sweeps")));
        }
    }
    let lengths: Vec<f64> = (0..n).map(|i| dot(b.row(i), b.row(i)).sqrt()).collect();
    let mut order: Vec<usize> = (0..n).collect();
    order.sort_by(|&a, &b| lengths[b].total_cmp(&lengths[a])); // stable
    let s: Vec<f64> = order.iter().map(|&i| lengths[i]).collect();
    let pick = |from: &Square| order.iter().flat_map(|&i| from.row(i).iter().copied()).collect::<Vec<_>>();
    let (mut ut, vt) = (Square { n, values: pick(&b) }, Square { n, values: pick(&vt) });
    let least = s.first().copied().unwrap_or(0.0) * f64::EPSILON * n as f64;
    for (i, &length) in s.iter().enumerate() {
        if length > least {
            ut.row_mut(i).iter_mut().for_each(|x| *x /= length);
        } else {
            complete(&mut ut, i);
        }
    }
    Ok(Svd { ut, s, vt })
}

/// Sets row `i` to a unit vector orthogonal to the rows before it: the axis that they leave most of.
fn complete(basis: &mut Square, i: usize) {
    let n = basis.n;
    let left = |axis: usize| 1.0 - (0..i).map(|r| basis.row(r)[axis].powi(2)).sum::<f64>();
    let axis = (0..n).max_by(|&a, &b| left(a).total_cmp(&left(b)).then(b.cmp(&a))).unwrap_or(0);
    let mut v = vec![0.0; n];
    v[axis] = 1.0;
    // Twice is enough to be orthogonal to all digits (Kahan; Parlett).
    for _ in 0..2 {
        for r in 0..i {
            let part = dot(basis.row(r), &v);
            v.iter_mut().zip(basis.row(r)).for_each(|(v, u)| *v -= part * u);
        }
        let length = dot(&v, &v).sqrt();
        v.iter_mut().for_each(|v| *v /= length);
    }
    basis.row_mut(i).copy_from_slice(&v);
}

#[cfg(test)]
mod tests {
    use sconce_ops::Generator;

    use super::*;

    fn normal(n: usize, seed: u64) -> Square {
        let generator = Generator::new(seed);
        Square { n, values: (0..n * n).map(|_| generator.gaussian()).collect() }
    }

    fn product(a: &Square, b: &Square) -> Square {
        let (n, bt) = (a.n, b.transposed());
        Square { n, values: (0..n * n).map(|at| dot(a.row(at / n), bt.row(at % n))).collect() }
    }

    fn distance(a: &Square, b: &Square) -> f64 {
        a.values.iter().zip(&b.values).fold(0.0, |m: f64, (a, b)| m.max((a - b).abs()))
    }

    fn orthogonal(q: &Square) {
        assert!(distance(&product(q, &q.transposed()), &Square::identity(q.n)) < 1e-12);
    }

    /// `vectors^T diag(values) vectors`.
    fn composed(values: &[f64], left: &Square, right: &Square) -> Square {
        let n = left.n;
        let mut scaled = right.clone();
        (0..n).for_each(|i| scaled.row_mut(i).iter_mut().for_each(|x| *x *= values[i]));
        product(&left.transposed(), &scaled)
    }

    #[test]
    fn eigenvectors_compose_the_matrix() -> Result<()> {
        // 300 rows run on threads.
        for (n, seed) in [(1, 1), (2, 2), (3, 3), (17, 4), (64, 5), (300, 6)] {
            let a = normal(n, seed);
            let a = product(&a, &a.transposed());
            let (values, vectors) = symmetric_eigen(&a)?;
            orthogonal(&vectors);
            assert!(values.is_sorted_by(|a, b| a >= b));
            assert!(distance(&composed(&values, &vectors, &vectors), &a) < 1e-12 * values[0] * n as f64);
        }
        Ok(())
    }

    #[test]
    fn known_eigenvalues() -> Result<()> {
        // The second difference of n points has 2 - 2 cos(k pi / (n + 1)).
        let n = 10;
        let mut a = Square { n, values: vec![0.0; n * n] };
        for i in 0..n {
            a.values[i * n + i] = 2.0;
            if i > 0 {
                a.values[i * n + i - 1] = -1.0; // the lower triangle alone
            }
        }
        let (values, _) = symmetric_eigen(&a)?;
        for (k, value) in (1..=n).rev().zip(values) {
            let wanted = 2.0 - 2.0 * (k as f64 * std::f64::consts::PI / (n + 1) as f64).cos();
            assert!((value - wanted).abs() < 1e-13, "{value} {wanted}");
        }
        Ok(())
    }

    #[test]
    fn degenerate_matrices_have_eigenvectors_too() -> Result<()> {
        for a in [Square { n: 5, values: vec![0.0; 25] }, Square::identity(5), Square { n: 5, values: vec![1.0; 25] }] {
            let (values, vectors) = symmetric_eigen(&a)?;
            orthogonal(&vectors);
            assert!(distance(&composed(&values, &vectors, &vectors), &a) < 1e-14);
        }
        Ok(())
    }

    #[test]
    fn singular_vectors_compose_the_matrix() -> Result<()> {
        for n in [1, 2, 7, 32] {
            let mut a = normal(n, n as u64);
            // From full rank to rank 1, and with columns of very different sizes.
            for rank in [n, n.div_ceil(2), 1] {
                for row in rank..n {
                    let first = a.row(0).to_vec();
                    a.row_mut(row).copy_from_slice(&first);
                }
                a.values.iter_mut().step_by(n).for_each(|x| *x *= 1e-6);
                let Svd { ut, s, vt } = svd(&a, None)?;
                orthogonal(&ut);
                orthogonal(&vt);
                assert!(s.is_sorted_by(|a, b| a >= b) && s[n - 1] >= 0.0);
                assert!(distance(&composed(&s, &ut, &vt), &a) < 1e-13 * s[0] * n as f64);
                let again = svd(&a, Some(&vt))?;
                assert!(again.s.iter().zip(&s).all(|(a, b)| (a - b).abs() <= 1e-13 * s[0]));
            }
        }
        let zero = svd(&Square { n: 3, values: vec![0.0; 9] }, None)?;
        orthogonal(&zero.ut);
        assert_eq!(zero.s, [0.0; 3]);
        Ok(())
    }

    #[test]
    fn values_that_are_not_finite_are_refused() {
        assert!(Square::new(1, vec![f64::NAN]).is_err());
        assert!(Square::new(2, vec![0.0]).is_err());
    }
}
