//! What an attention call can be asked for, and the checks that turn it into a plan.

use candle_core::{DType, Result, Tensor, bail};

use crate::{Error, Generator, check};

const OP: &str = "attention";

/// Which keys a query may look at.
#[derive(Clone, Debug, Default)]
pub enum Mask {
    /// Every query sees every key.
    #[default]
    None,
    /// Query `i` sees keys `0..=i`. Aligned to the top left when there are more keys than queries or fewer, as
    /// `is_causal` of PyTorch's `scaled_dot_product_attention`.
    Causal,
    /// `u8` tensor `(B, Nk)`: one keeps a key, zero hides it.
    Padding(Tensor),
    /// Added to the scaled scores; broadcastable to `(B, heads, Nq, Nk)`; `-inf` hides. Receives a gradient, so it may be
    /// a learned position bias. Of four dimensions the first may also be a divisor of `B`: sample `b` then takes mask `b`
    /// modulo that, so that windows of several pictures share the masks of one.
    Additive(Tensor),
    /// [`Mask::Causal`] and [`Mask::Padding`] together.
    CausalPadding(Tensor),
}

/// Options of [`attention`](crate::attention) and its relatives.
///
/// ```
/// use sconce_ops::{AttentionOptions, Mask};
/// let options = AttentionOptions::default().with_mask(Mask::Causal).with_dropout(0.1);
/// assert_eq!(options.scale, None);
/// ```
#[derive(Clone, Debug, Default)]
pub struct AttentionOptions {
    /// Factor on the scores; `D^-1/2` when `None`.
    pub scale: Option<f64>,
    /// Which keys a query may look at.
    pub mask: Mask,
    /// Probability in `[0, 1]` of dropping an attention weight; those kept are divided by `1 - dropout`. Zero outside
    /// training: the op does not know whether it is training.
    pub dropout: f64,
    /// Where dropout draws its seed from; [`Generator::current`] when `None`.
    pub generator: Option<Generator>,
}

impl AttentionOptions {
    /// Sets the factor on the scores.
    pub fn with_scale(mut self, scale: f64) -> Self {
        self.scale = Some(scale);
        self
    }

    /// Sets the mask.
    pub fn with_mask(mut self, mask: Mask) -> Self {
        self.mask = mask;
        self
    }

    /// Sets the dropout probability.
    pub fn with_dropout(mut self, dropout: f64) -> Self {
        self.dropout = dropout;
        self
    }

    /// Sets the generator that dropout draws its seed from.
    pub fn with_generator(mut self, generator: Generator) -> Self {
        self.generator = Some(generator);
        self
    }

    /// Checks the options against the shapes; draws the dropout seed (one number, only when there is dropout).
    pub(super) fn plan(&self, shape: &Shape, q: &Tensor) -> Result<Plan> {
        if !(0. ..=1.).contains(&self.dropout) {
            return Err(Error::value(OP, "dropout", "a probability", self.dropout).into());
        }
        let check_device = |mask: &Tensor| {
            if !mask.device().same_device(q.device()) {
                bail!("attention: the mask is on another device than the queries")
            }
            Ok(())
        };
        let padding = match &self.mask {
            Mask::Padding(keep) | Mask::CausalPadding(keep) => {
                if keep.dtype() != DType::U8 {
                    return Err(Error::dtype(OP, "padding", "u8", keep.dtype()).into());
                }
                if keep.dims() != [shape.b, shape.nk] {
                    let expected = format!("(B, Nk) = ({}, {})", shape.b, shape.nk);
                    return Err(Error::shape(OP, "padding", expected, keep.shape()).into());
                }
                check_device(keep)?;
                Some(keep.clone())
            }
            _ => None,
        };
        let bias = match &self.mask {
            Mask::Additive(bias) => {
                check_device(bias)?;
                if !bias.dtype().is_float() {
                    return Err(Error::dtype(OP, "mask", "a floating type", bias.dtype()).into());
                }
                Some(shape.broadcast(bias)?)
            }
            _ => None,
        };
        let dropout = (self.dropout > 0.0).then(|| {
            let seed = match &self.generator {
                Some(generator) => generator.next_u64(),
                None => Generator::current().next_u64(),
            };
            Dropout { p: self.dropout, seed }
        });
        let scale = self.scale.unwrap_or_else(|| (shape.d.max(1) as f64).powf(-0.5));
        let causal = matches!(self.mask, Mask::Causal | Mask::CausalPadding(_));
        Ok(Plan { shape: *shape, scale, causal, padding, bias, dropout })
    }
}

/// Sizes of one call: `q (b, h, nq, d)`, `k (b, h, nk, d)`, `v (b, h, nk, dv)`.
#[derive(Clone, Copy, Debug)]
pub(super) struct Shape {
    pub(super) b: usize,
    pub(super) h: usize,
    pub(super) nq: usize,
    pub(super) nk: usize,
    pub(super) d: usize,
    pub(super) dv: usize,
}

impl Shape {
    pub(super) fn new(q: &Tensor, k: &Tensor, v: &Tensor) -> Result<Self> {
        let (b, h, nq, d) = q.dims4()?;
        let (kb, kh, nk, kd) = k.dims4()?;
        let (vb, vh, vn, dv) = v.dims4()?;
        if (kb, kh, kd) != (b, h, d) || (vb, vh, vn) != (b, h, nk) {
            let expected = format!("to agree with q {:?} and k {:?}", q.shape(), k.shape());
            return Err(Error::shape(OP, "v", expected, v.shape()).into());
        }
        check::float(OP, q)?;
        for (arg, x) in [("k", k), ("v", v)] {
            if x.dtype() != q.dtype() {
                return Err(Error::dtype(OP, arg, format!("{:?} like q", q.dtype()), x.dtype()).into());
            }
        }
        if !q.device().same_device(k.device()) || !q.device().same_device(v.device()) {
            bail!("attention: q, k, v are on different devices")
        }
        Ok(Self { b, h, nq, nk, d, dv })
    }

    pub(super) fn is_empty(&self) -> bool {
        self.b * self.h * self.nq * self.nk * self.d * self.dv == 0
    }

    /// The additive mask with four dimensions, each one or full, or a part of the batch that repeats; not expanded, so that its
    /// gradient has its own size.
    fn broadcast(&self, bias: &Tensor) -> Result<Tensor> {
        let full = [self.b, self.h, self.nq, self.nk];
        let rank = bias.rank();
        let repeats = |dim: usize, have: usize| dim == 0 && rank == 4 && have > 0 && self.b.is_multiple_of(have);
        let sizes = bias.dims().iter().zip(full[4usize.saturating_sub(rank)..].iter()).enumerate();
        let mut sizes = sizes.map(|(dim, (&have, &want))| have == want || have == 1 || repeats(dim, have));
        let fits = rank <= 4 && sizes.all(|fits| fits);
        if !fits {
            let expected = format!("to broadcast to (B, heads, Nq, Nk) = {full:?}");
            return Err(Error::shape(OP, "mask", expected, bias.shape()).into());
        }
        let mut bias = bias.clone();
        while bias.rank() < 4 {
            bias = bias.unsqueeze(0)?;
        }
        Ok(bias)
    }
}

/// A checked call.
#[derive(Clone, Debug)]
pub(super) struct Plan {
    pub(super) shape: Shape,
    pub(super) scale: f64,
    pub(super) causal: bool,
    /// `(b, nk)`, u8.
    pub(super) padding: Option<Tensor>,
    /// Four dimensions, each one or full; the first may be a divisor of the batch.
    pub(super) bias: Option<Tensor>,
    pub(super) dropout: Option<Dropout>,
}

impl Plan {
    /// With the additive mask in the type of the computation.
    pub(super) fn to_dtype(&self, dtype: DType) -> Result<Self> {
        let bias = self.bias.as_ref().map(|bias| bias.to_dtype(dtype)).transpose()?;
        Ok(Self { bias, ..self.clone() })
    }
}

/// Dropout as a pure function of the seed and the position, so that a backward pass recreates the mask.
#[derive(Clone, Copy, Debug)]
pub(super) struct Dropout {
    p: f64,
    seed: u64,
}

impl Dropout {
    /// What a weight that stays is multiplied by.
    pub(super) fn scale(&self) -> f64 {
        // Nothing stays at p = 1, up to the one hash in 2^32 that cannot lie below the threshold.
        if self.p < 1. { 1. / (1. - self.p) } else { 0. }
    }

    /// Keys of one row of the score matrix; `slice` is `batch * heads + head`.
    #[inline]
    pub(super) fn row(&self, slice: usize, query: usize) -> DropoutRow {
        let mut x = self.seed ^ mix((slice as u64) << 32 | query as u64);
        x = mix(x.wrapping_add(0x9e37_79b9_7f4a_7c15));
        DropoutRow { low: x as u32, high: (x >> 32) as u32, threshold: (self.p * 4_294_967_296.0) as u32 }
    }
}

/// Dropout of one row of the score matrix.
#[derive(Clone, Copy, Debug)]
pub(super) struct DropoutRow {
    low: u32,
    high: u32,
    threshold: u32,
}

impl DropoutRow {
    /// Whether the weight on `key` stays: a 32-bit integer hash against the threshold, cheap enough to vectorise.
    #[inline(always)]
    pub(super) fn keeps(&self, key: usize) -> bool {
        let mut x = (key as u32).wrapping_mul(0x9e37_79b9) ^ self.low;
        x = (x ^ (x >> 16)).wrapping_mul(0x21f0_aaad).wrapping_add(self.high);
        x = (x ^ (x >> 15)).wrapping_mul(0x735a_2d97);
        x ^= x >> 15;
        x >= self.threshold
    }
}

/// The finaliser of SplitMix64: every input bit reaches every output bit.
#[inline]
fn mix(mut x: u64) -> u64 {
    x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}
