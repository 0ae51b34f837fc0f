//! Losses of learned hashing, as functions of features, logits and codes.
//!
//! `f` are features `(B, d)`, `h` the K real outputs of a hash layer, `v = tanh(h)`, `b = sign(h)`. Every loss is a scalar
//! computed in f32 at least; half precision is widened first. Losses that compare with a frozen model take no gradient to it.

use candle_core::{D, DType, Result, Tensor, bail};
use sconce_ops::{cross_entropy, l2_normalize, log_softmax, matmul, softmax};
use serde::{Deserialize, Serialize};

/// The sign, +1 for both zeros, whose gradient is that of the identity (straight-through estimator, Bengio et al. 2013,
/// `arXiv:1308.3432`).
///
/// # Shapes
/// - output: as the input
pub use sconce_ops::sign_ste as sign;

/// Below this length a vector counts as zero in a cosine, PyTorch's limit.
const EPS: f64 = 1e-8;

/// Half precision has too few digits for sums over a batch.
fn wide(xs: &Tensor) -> Result<Tensor> {
    if matches!(xs.dtype(), DType::F16 | DType::BF16) { xs.to_dtype(DType::F32) } else { Ok(xs.clone()) }
}

fn positive(name: &str, value: f64) -> Result<()> {
    if value.is_finite() && value > 0.0 { Ok(()) } else { bail!("{name} is {value}, not a number above 0") }
}

/// At least `least` rows and a column.
fn rows(what: &str, xs: &Tensor, least: usize) -> Result<(usize, usize)> {
    match xs.dims() {
        &[b, k] if b >= least && k > 0 => Ok((b, k)),
        dims => bail!("{what} have shape {dims:?}, expected ({least} or more, 1 or more)"),
    }
}

fn same_shape(a: &Tensor, b: &Tensor) -> Result<()> {
    if a.dims() == b.dims() { Ok(()) } else { bail!("shapes {:?} and {:?} differ", a.dims(), b.dims()) }
}

/// Cosines between all rows of `a` and of `b`; 0 for a row of zeros.
///
/// # Shapes
/// - `a` `(N, d)`, `b` `(M, d)`, output `(N, M)`
///
/// # Errors
/// When shapes or types do not agree.
pub fn cosines(a: &Tensor, b: &Tensor) -> Result<Tensor> {
    let (a, b) = (l2_normalize(&wide(a)?, 1, EPS)?, l2_normalize(&wide(b)?, 1, EPS)?);
    matmul(&a, &b.t()?)
}

/// A square matrix without its diagonal.
fn off_diagonal(xs: &Tensor) -> Result<Tensor> {
    let n = xs.dim(0)?;
    // Each of the n - 1 stretches of n + 1 elements after the first ends with an element of the diagonal.
    let stretches = xs.contiguous()?.flatten_all()?.narrow(0, 1, n * n - 1)?.reshape((n - 1, n + 1))?;
    stretches.narrow(1, 0, n)?.contiguous()?.reshape((n, n - 1))
}

/// How the rows of a batch relate: `log softmax_{j != i}(cos(z_i, z_j) / t)`.
///
/// # Shapes
/// - `z` `(B, d)`, B at least 2
/// - output `(B, B - 1)`: row i without its own column
///
/// # Errors
/// Other shapes, a temperature that is not above 0.
pub fn relations(z: &Tensor, temperature: f64) -> Result<Tensor> {
    positive("temperature", temperature)?;
    rows("embeddings", z, 2)?;
    log_softmax(&(off_diagonal(&cosines(z, z)?)? / temperature)?, D::Minus1)
}

/// ViT2Hash's feature preservation: `mean_i |f_i - f0_i|^2`, `f0` without a gradient.
///
/// # Shapes
/// - `student` and `teacher` `(B, d)`
///
/// # Errors
/// When shapes or types do not agree.
pub fn feature_distance(student: &Tensor, teacher: &Tensor) -> Result<Tensor> {
    rows("features", student, 1)?;
    same_shape(student, teacher)?;
    (wide(student)? - wide(&teacher.detach())?)?.sqr()?.sum(1)?.mean_all()
}

/// ViT2Hash's semantic preservation: `mean_i KL(P(teacher)_i || P(codes)_i)` of [`relations`], the teacher without a gradient.
///
/// # Shapes
/// - `teacher` `(B, d)`, `codes` `(B, K)`, B at least 2
///
/// # Errors
/// As [`relations`], and when the numbers of rows differ.
pub fn relation_kl(teacher: &Tensor, codes: &Tensor, temperature: f64) -> Result<Tensor> {
    let target = relations(&teacher.detach(), temperature)?; // (B, B - 1)
    let found = relations(codes, temperature)?; // (B, B - 1)
    same_shape(&target, &found)?;
    let found = found.to_dtype(target.dtype())?;
    (target.exp()? * (&target - found)?)?.sum(1)?.mean_all()
}

/// ViT2Hash's quantisation loss: `mean (v - sign(v))^2`, the sign without a gradient.
///
/// # Shapes
/// - `codes` `(B, K)`
///
/// # Errors
/// Other shapes.
pub fn quantisation(codes: &Tensor) -> Result<Tensor> {
    rows("codes", codes, 1)?;
    let codes = wide(codes)?;
    (&codes - sign(&codes.detach())?)?.sqr()?.mean_all()
}

/// ViT2Hash's similarity loss: `mean_ij (v_i v_j / K - cos(f0_i, f0_j))^2` with i = j included, the teacher without a gradient.
///
/// # Shapes
/// - `codes` `(B, K)`, `teacher` `(B, d)`
///
/// # Errors
/// When shapes or types do not agree.
pub fn similarity(codes: &Tensor, teacher: &Tensor) -> Result<Tensor> {
    let (_, bits) = rows("codes", codes, 1)?;
    let (codes, target) = (wide(codes)?, cosines(&teacher.detach(), &teacher.detach())?);
    let products = (matmul(&codes, &codes.t()?)? / bits as f64)?; // (B, B)
    (products - target)?.sqr()?.mean_all()
}

/// Weights of the four losses of [`vit2hash`].
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Vit2HashWeights {
    /// Of [`feature_distance`].
    pub rec: f64,
    /// Of [`relation_kl`].
    pub kl: f64,
    /// Of [`quantisation`].
    pub quant: f64,
    /// Of [`similarity`].
    pub sim: f64,
    /// Temperature of the relations.
    pub temperature: f64,
}

impl Default for Vit2HashWeights {
    fn default() -> Self {
        Self { rec: 1.0, kl: 1.0, quant: 0.1, sim: 0.5, temperature: 0.5 }
    }
}

/// The losses of [`vit2hash`].
#[derive(Debug, Clone)]
pub struct Vit2HashLosses {
    /// [`feature_distance`].
    pub rec: Tensor,
    /// [`relation_kl`].
    pub kl: Tensor,
    /// [`quantisation`].
    pub quant: Tensor,
    /// [`similarity`].
    pub sim: Tensor,
    /// Their weighted sum.
    pub total: Tensor,
}

/// All losses of our reconstruction of ViT2Hash. The paper (`arXiv:2201.05541`) has these four in words; their formulas,
/// weights and temperature are ours.
///
/// # Shapes
/// - `teacher` and `student` `(B, d)`, `h` `(B, K)`, B at least 2
///
/// # Errors
/// When shapes or types do not agree.
pub fn vit2hash(teacher: &Tensor, student: &Tensor, h: &Tensor, weights: &Vit2HashWeights) -> Result<Vit2HashLosses> {
    let v = wide(h)?.tanh()?;
    let rec = feature_distance(student, teacher)?;
    let (kl, quant) = (relation_kl(teacher, &v, weights.temperature)?, quantisation(&v)?);
    let sim = similarity(&v, teacher)?;
    let total = ((&rec * weights.rec)? + (&kl * weights.kl)?)?;
    let total = ((total + (&quant * weights.quant)?)? + (&sim * weights.sim)?)?;
    Ok(Vit2HashLosses { rec, kl, quant, sim, total })
}

/// The logistic function by `tanh`, which candle differentiates.
fn sigmoid(xs: &Tensor) -> Result<Tensor> {
    ((xs * 0.5)?.tanh()? + 1.0)? * 0.5
}

/// CIBHash's contrast (Qiu et al. 2021, `arXiv:2105.06138`): NT-Xent over the 2B codes of two views of each picture, cosines over
/// the temperature. Codes are the signs of `p - 1/2`, `p` the logistic function of `h`, with the gradient straight through to `p`.
///
/// # Shapes
/// - `hi` and `hj` `(B, K)`: row i of both is the same picture
///
/// # Errors
/// When shapes do not agree, a temperature that is not above 0.
pub fn code_contrast(hi: &Tensor, hj: &Tensor, temperature: f64) -> Result<Tensor> {
    let code = |h: &Tensor| sign(&(sigmoid(&wide(h)?)? - 0.5)?);
    nt_xent(&code(hi)?, &code(hj)?, temperature)
}

/// Normalised temperature-scaled cross entropy (Chen et al. 2020, `arXiv:2002.05709`): each of the 2B rows against its other view
/// among all rows but itself.
///
/// # Shapes
/// - `zi` and `zj` `(B, K)`
///
/// # Errors
/// When shapes do not agree, a temperature that is not above 0.
pub fn nt_xent(zi: &Tensor, zj: &Tensor, temperature: f64) -> Result<Tensor> {
    positive("temperature", temperature)?;
    let (b, _) = rows("codes", zi, 1)?;
    same_shape(zi, zj)?;
    let z = Tensor::cat(&[zi, zj], 0)?; // (2B, K)
    let logits = (off_diagonal(&cosines(&z, &z)?)? / temperature)?; // (2B, 2B - 1)
    // Without its own column, row i finds its other view one column earlier when that comes later.
    let targets = (0..2 * b).map(|i| if i < b { i + b - 1 } else { i - b } as u32);
    cross_entropy(&logits, &Tensor::from_iter(targets, z.device())?, 0.0)
}

/// CIBHash's bottleneck: `(KL(p_i || p_j) + KL(p_j || p_i)) / 2` of the bits' probabilities, summed over the bits, mean over the
/// batch; the second of each takes no gradient. Logarithms are of values + 1e-8.
///
/// # Shapes
/// - `hi` and `hj` `(B, K)`
///
/// # Errors
/// When shapes do not agree.
pub fn bit_kl(hi: &Tensor, hj: &Tensor) -> Result<Tensor> {
    rows("logits", hi, 1)?;
    same_shape(hi, hj)?;
    let (pi, pj) = (sigmoid(&wide(hi)?)?, sigmoid(&wide(hj)?)?);
    let term = |p: &Tensor, q: &Tensor| p * ((p + EPS)?.log()? - (q + EPS)?.log()?)?;
    let rest = |p: &Tensor| p.affine(-1.0, 1.0);
    let kl = |p: &Tensor, q: &Tensor| -> Result<Tensor> {
        let q = q.detach();
        (term(p, &q)? + term(&rest(p)?, &rest(&q)?)?)?.sum(1)?.mean_all()
    };
    (kl(&pi, &pj)? + kl(&pj, &pi)?)? * 0.5
}

/// GreedyHash's unsupervised similarity (Su et al. 2018, NeurIPS): the batch is cut into two halves, and the cosine of the codes of
/// the i-th of both is to be that of their features; mean of the squares. An odd row is left out. Codes are signs of `h`, the
/// gradient straight through.
///
/// # Shapes
/// - `h` `(B, K)`, `features` `(B, d)`, B at least 2
///
/// # Errors
/// When shapes do not agree.
pub fn greedy_similarity(h: &Tensor, features: &Tensor) -> Result<Tensor> {
    let (b, _) = rows("codes", h, 2)?;
    if features.dims2()?.0 != b {
        bail!("{b} codes and features of shape {:?}", features.dims());
    }
    let cosine = |xs: &Tensor| -> Result<Tensor> {
        let xs = l2_normalize(xs, 1, EPS)?;
        (xs.narrow(0, 0, b / 2)? * xs.narrow(0, b / 2, b / 2)?)?.sum(1) // (B / 2)
    };
    let (found, wanted) = (cosine(&sign(&wide(h)?)?)?, cosine(&wide(&features.detach())?)?);
    (found - wanted)?.sqr()?.mean_all()
}

/// GreedyHash's pull of outputs to +1 and -1: `mean ||h| - 1|^3`, without a weight.
///
/// # Shapes
/// - `h` `(B, K)`
///
/// # Errors
/// Other shapes.
pub fn greedy_quantisation(h: &Tensor) -> Result<Tensor> {
    rows("outputs", h, 1)?;
    let off = (wide(h)?.abs()? - 1.0)?.abs()?;
    (off.sqr()? * off)?.mean_all()
}

/// CSQ's central similarity (Yuan et al. 2020, `arXiv:1908.00347`): mean binary cross entropy of `(tanh u + 1) / 2` against the bits
/// of each picture's centre. Computed from `u` itself, so that no saturated output gives an infinity.
///
/// # Shapes
/// - `u` `(B, K)`, `centers` `(B, K)` of +1 and -1: for each picture its own
///
/// # Errors
/// When shapes or types do not agree.
pub fn central_similarity(u: &Tensor, centers: &Tensor) -> Result<Tensor> {
    rows("outputs", u, 1)?;
    same_shape(u, centers)?;
    // -log sigmoid(2 u c), the positive part written so that its slope at 0 is 1/2.
    let x = (wide(u)? * wide(&centers.detach())?)?.affine(-2.0, 0.0)?;
    let size = x.abs()?;
    let softplus = (((&x + &size)? * 0.5)? + (size.neg()?.exp()? + 1.0)?.log()?)?;
    softplus.mean_all()
}

/// CSQ's quantisation loss: `mean (|tanh u| - 1)^2`, without a weight.
///
/// # Shapes
/// - `u` `(B, K)`
///
/// # Errors
/// Other shapes.
pub fn central_quantisation(u: &Tensor) -> Result<Tensor> {
    rows("outputs", u, 1)?;
    (wide(u)?.tanh()?.abs()? - 1.0)?.sqr()?.mean_all()
}

/// The loss of weighted contrastive hashing (Yu et al. 2022, `arXiv:2209.14099`): cross entropy of `h1 h2^T / (K t)` against the
/// given weights, plus the mean square of the bits' means and minus that of `h1`.
///
/// # Shapes
/// - `h1` and `h2` `(B, K)`, `weights` `(B, B)` whose rows sum to 1
///
/// # Errors
/// When shapes or types do not agree, a temperature that is not above 0.
pub fn weighted_contrast(h1: &Tensor, h2: &Tensor, weights: &Tensor, temperature: f64) -> Result<Tensor> {
    positive("temperature", temperature)?;
    let (_, bits) = rows("codes", h1, 1)?;
    same_shape(h1, h2)?;
    let (h1, h2) = (wide(h1)?, wide(h2)?);
    let logits = (matmul(&h1, &h2.t()?)? / (bits as f64 * temperature))?; // (B, B)
    let contrast = (log_softmax(&logits, 1)? * wide(weights)?)?.sum(1)?.mean_all()?.neg()?;
    (contrast + h1.mean(0)?.sqr()?.mean_all()?)? - h1.sqr()?.mean_all()?
}

/// SPQ's soft quantisation (Jang and Cho 2021, `arXiv:2109.02244`): each of M parts of a feature becomes the mean of its codebook's
/// words, weighted by `softmax(-sharpness |x_m - c|^2)`.
///
/// # Shapes
/// - `xs` `(B, M d)`, `codebooks` `(words, M d)`: book m has the columns of part m
/// - output: as `xs`
///
/// # Errors
/// When shapes or types do not agree, `books` does not divide the width, `sharpness` is not above 0.
pub fn soft_quantise(xs: &Tensor, codebooks: &Tensor, books: usize, sharpness: f64) -> Result<Tensor> {
    positive("sharpness", sharpness)?;
    let (_, width) = rows("features", xs, 1)?;
    let (_, columns) = rows("codebooks", codebooks, 1)?;
    if books == 0 || width % books != 0 || columns != width {
        bail!("{books} books for features of width {width} and codebooks of width {columns}");
    }
    let (xs, codebooks, part) = (wide(xs)?, wide(codebooks)?, width / books);
    let one = |m: usize| -> Result<Tensor> {
        let (x, words) = (xs.narrow(1, m * part, part)?, codebooks.narrow(1, m * part, part)?);
        let distances = x.unsqueeze(1)?.broadcast_sub(&words.unsqueeze(0)?)?.sqr()?.sum(2)?; // (B, words)
        matmul(&softmax(&distances.affine(-sharpness, 0.0)?, 1)?, &words)
    };
    Tensor::cat(&(0..books).map(one).collect::<Result<Vec<_>>>()?, 1)
}
