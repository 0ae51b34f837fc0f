//! Attention within the rows and the columns of a map, half of the heads each.

use candle_core::{Result, Tensor, bail};
use sconce_nn::{Conv2d, Dropout, Init, Linear, Module, ModuleT, VarBuilder, conv2d};
use sconce_ops::{AttentionOptions, ConvOptions, attention_packed};

use crate::grid::{rows_and_columns, split_heads, square};
use crate::{MixerSpec, Qkv, TokenLayout, TokenMixer};

const WHAT: &str = "cross-shaped attention";

/// Sizes of a [`CrossShapedAttention`].
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct CrossShapedConfig {
    /// Channels of a token, a multiple of `heads`.
    pub dim: usize,
    /// Number of heads, even where there are stripes.
    pub heads: usize,
    /// Width of the stripes in tokens; `None` for one window over the whole map.
    pub stripe: Option<usize>,
    /// Whether queries, keys and values have a bias.
    pub qkv_bias: bool,
    /// Factor on the scores; `D^-1/2` when `None`.
    pub scale: Option<f64>,
    /// Dropout probability of attention weights.
    pub attn_drop: f64,
    /// Dropout probability of the output; the official code has none.
    pub proj_drop: f64,
    /// How the weights of the projections start; biases start at 0.
    pub init: Init,
}

impl CrossShapedConfig {
    /// With bias, without dropout, weights from a normal distribution of standard deviation 0.02 cut at 2.
    pub fn new(dim: usize, heads: usize, stripe: Option<usize>) -> Self {
        let init = Init::TruncNormal { std: 0.02 };
        Self { dim, heads, stripe, qkv_bias: true, scale: None, attn_drop: 0.0, proj_drop: 0.0, init }
    }

    /// The sizes that a block asks for, with stripes of this width.
    pub fn of_block(spec: &MixerSpec, stripe: Option<usize>) -> Self {
        Self {
            qkv_bias: spec.qkv_bias,
            attn_drop: spec.attn_drop,
            proj_drop: spec.proj_drop,
            ..Self::new(spec.dim, spec.heads, stripe)
        }
    }
}

/// How a map is cut into windows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stripes {
    /// One window over the whole map.
    Whole,
    /// Stripes of the map's full height and this width.
    Vertical(usize),
    /// Stripes of this height and the map's full width.
    Horizontal(usize),
}

impl Stripes {
    /// Height and width of a window in a map of `(height, width)`.
    ///
    /// # Errors
    /// When the stripes do not divide the map.
    pub fn window(self, (height, width): (usize, usize)) -> Result<(usize, usize)> {
        if height == 0 || width == 0 {
            bail!("{WHAT}: a map of {height} x {width} has no tokens")
        }
        let (side, stripe, window) = match self {
            Self::Whole => return Ok((height, width)),
            Self::Vertical(stripe) => (width, stripe, (height, stripe)),
            Self::Horizontal(stripe) => (height, stripe, (stripe, width)),
        };
        if stripe == 0 || !side.is_multiple_of(stripe) {
            bail!("{WHAT}: stripes of {stripe} do not divide a map of {height} x {width}")
        }
        Ok(window)
    }
}

/// Attention within the windows of one cut, with the locally enhanced position encoding (LePE): a depthwise 3x3 convolution of
/// the values, which sees zeros beyond the borders of its window.
#[derive(Debug, Clone)]
pub struct LepeAttention {
    /// The position encoding.
    pub get_v: Conv2d,
    /// How the map is cut.
    pub stripes: Stripes,
    /// Number of heads.
    pub heads: usize,
    /// Factor on the scores; `D^-1/2` when `None`.
    pub scale: Option<f64>,
    /// Dropout probability of attention weights.
    pub attn_drop: f64,
}

impl LepeAttention {
    /// Queries, keys and values of one branch by windows, which go row by row.
    ///
    /// # Shapes
    /// - `qkv` `(B, H * W, 3, branches, C)`
    /// - output `(B * windows, window, 3C)`
    ///
    /// # Errors
    /// When the windows do not divide the map or there is no such branch.
    pub fn windows(&self, qkv: &Tensor, branch: usize, (height, width): (usize, usize)) -> Result<Tensor> {
        let (b, _, _, branches, c) = qkv.dims5()?;
        let (h, w) = self.stripes.window((height, width))?;
        let (rows, columns) = (height / h, width / w);
        let cut = qkv.reshape(vec![b, rows, h, columns, w, 3, branches, c])?.narrow(6, branch, 1)?;
        let cut = cut.permute(vec![0, 1, 3, 2, 4, 5, 6, 7])?; // (B, rows, columns, h, w, 3, 1, C)
        cut.reshape((b * rows * columns, h * w, 3 * c))
    }

    /// Values of windows as small pictures, which [`get_v`](Self::get_v) convolves.
    ///
    /// # Shapes
    /// - `windows` `(B * windows, h * w, 3C)`, output `(B * windows, C, h, w)`
    ///
    /// # Errors
    /// When the windows are of another map.
    pub fn values(&self, windows: &Tensor, map: (usize, usize)) -> Result<Tensor> {
        let (count, _, c3) = windows.dims3()?;
        let (h, w) = self.stripes.window(map)?;
        let v = windows.reshape((count, h, w, 3, c3 / 3))?.narrow(3, 2, 1)?.squeeze(3)?; // (B', h, w, C)
        v.permute((0, 3, 1, 2))
    }

    /// The position encoding of every token, `(B', h * w, 3C)` to `(B', h * w, C)`.
    fn encode(&self, windows: &Tensor, map: (usize, usize)) -> Result<Tensor> {
        let v = self.values(windows, map)?; // (B', C, h, w)
        let Conv2d { weight, bias, options } = &self.get_v;
        let (h, w) = self.stripes.window(map)?;
        if h <= w {
            return self.get_v.forward(&v)?.flatten_from(2)?.transpose(1, 2);
        }
        // Kernels run along the rows of a picture, and those of a vertical stripe are short: it goes on its side.
        let mut options = *options;
        for axes in [&mut options.stride, &mut options.padding, &mut options.dilation] {
            axes.reverse();
        }
        let lepe = sconce_ops::conv2d(&v.transpose(2, 3)?, &weight.transpose(2, 3)?, bias.as_ref(), &options)?;
        let (count, c, ..) = lepe.dims4()?;
        lepe.permute((0, 3, 2, 1))?.reshape((count, h * w, c)) // (B', C, w, h) to (B', h * w, C)
    }

    /// Mixes the tokens of one branch.
    ///
    /// # Shapes
    /// - `qkv` `(B, H * W, 3, branches, C)`, output `(B, H * W, C)`
    ///
    /// # Errors
    /// When the windows do not divide the map or there is no such branch.
    pub fn forward(&self, qkv: &Tensor, branch: usize, map: (usize, usize), train: bool) -> Result<Tensor> {
        let (b, n, _, _, c) = qkv.dims5()?;
        let windows = self.windows(qkv, branch, map)?;
        let dropout = if train { self.attn_drop } else { 0.0 };
        let options = AttentionOptions { scale: self.scale, dropout, ..Default::default() };
        let mixed = attention_packed(&windows, self.heads, &options)?; // (B', h * w, C)
        let mixed = (mixed + self.encode(&windows, map)?)?; // (B', h * w, C)
        let (h, w) = self.stripes.window(map)?;
        let mixed = mixed.reshape((b, map.0 / h, map.1 / w, h, w, c))?;
        mixed.permute((0, 1, 3, 2, 4, 5))?.reshape((b, n, c))
    }
}

/// Cross-shaped window attention with LePE, Dong et al. 2022, "CSWin Transformer" (`arXiv:2107.00652`), sections 3.2 and 3.3.
///
/// Half of the heads look along vertical stripes of the map, the other half along horizontal ones, so that a token sees a cross;
/// without stripes all heads see the whole map. The stripes follow the map's size at run time.
///
/// Cost in the number of tokens N: `N^1.5` times the stripes' width on a square map (`N^2` without stripes).
///
/// # Shapes
/// - input and output `(B, H * W, C)`, `H` and `W` multiples of the stripes' width
#[derive(Debug, Clone)]
pub struct CrossShapedAttention {
    /// To queries, keys and values, laid out `which | branch | head | d`.
    pub qkv: Linear,
    /// The branches: vertical and horizontal stripes, or one window.
    pub attns: Vec<LepeAttention>,
    /// Output projection.
    pub proj: Linear,
    /// Dropout of the output.
    pub proj_drop: Dropout,
}

impl CrossShapedAttention {
    /// Under the official names `qkv`, `attns.{0,1}.get_v` and `proj`.
    ///
    /// # Errors
    /// When the heads do not divide, the stripes have no width, or `vb` lacks a tensor.
    pub fn new(cfg: &CrossShapedConfig, vb: VarBuilder) -> Result<Self> {
        let CrossShapedConfig { dim, heads, stripe, .. } = *cfg;
        if heads == 0 || !dim.is_multiple_of(heads) {
            bail!("{WHAT}: {dim} channels do not divide into {heads} heads")
        }
        let cuts = match stripe {
            None => vec![Stripes::Whole],
            Some(0) => bail!("{WHAT}: stripes without width"),
            Some(_) if !heads.is_multiple_of(2) => bail!("{WHAT}: {heads} heads are not two halves"),
            Some(stripe) => vec![Stripes::Vertical(stripe), Stripes::Horizontal(stripe)],
        };
        let (c, heads) = (dim / cuts.len(), heads / cuts.len());
        let attn = |(branch, stripes): (usize, Stripes)| {
            let options = ConvOptions::default().padding(1).groups(c);
            let get_v = conv2d(c, c, 3, options, vb.pp("attns").pp(branch).pp("get_v"))?;
            Ok(LepeAttention { get_v, stripes, heads, scale: cfg.scale, attn_drop: cfg.attn_drop })
        };
        Ok(Self {
            qkv: Linear::with_init(dim, 3 * dim, cfg.qkv_bias, cfg.init, vb.pp("qkv"))?,
            attns: cuts.into_iter().enumerate().map(attn).collect::<Result<_>>()?,
            proj: Linear::with_init(dim, dim, true, cfg.init, vb.pp("proj"))?,
            proj_drop: Dropout::new(cfg.proj_drop),
        })
    }

    /// Mixes a projection.
    ///
    /// # Shapes
    /// - `qkv` `(B, H * W, 3C)`, output `(B, H * W, C)`
    ///
    /// # Errors
    /// When the stripes do not divide the map.
    fn mix(&self, qkv: &Tensor, map: (usize, usize), train: bool) -> Result<Tensor> {
        let (b, n, c3) = qkv.dims3()?;
        let branches = self.attns.len();
        let qkv = qkv.reshape((b, n, 3, branches, c3 / 3 / branches))?;
        let attend = |(i, attn): (usize, &LepeAttention)| attn.forward(&qkv, i, map, train);
        let mixed = self.attns.iter().enumerate().map(attend).collect::<Result<Vec<_>>>()?;
        let mixed = Tensor::cat(&mixed, 2)?; // (B, N, C)
        self.proj_drop.forward_t(&self.proj.forward(&mixed)?, train)
    }
}

impl TokenMixer for CrossShapedAttention {
    /// Takes the map for a square one.
    fn forward_t(&self, xs: &Tensor, train: bool) -> Result<Tensor> {
        self.forward_layout(xs, square(WHAT, xs)?, train)
    }

    fn forward_layout(&self, xs: &Tensor, layout: TokenLayout, train: bool) -> Result<Tensor> {
        let map = rows_and_columns(WHAT, xs, layout)?;
        self.mix(&self.qkv.forward(xs)?, map, train)
    }

    fn forward_qkv(&self, xs: &Tensor, layout: TokenLayout, train: bool) -> Result<(Tensor, Option<Qkv>)> {
        let map = rows_and_columns(WHAT, xs, layout)?;
        let qkv = self.qkv.forward(xs)?;
        let heads = self.attns.iter().map(|attn| attn.heads).sum();
        Ok((self.mix(&qkv, map, train)?, Some(split_heads(&qkv, heads)?)))
    }
}

#[cfg(test)]
mod tests {
    use candle_core::{D, DType, Device};
    use sconce_nn::{Generator, ParamStore};
    use sconce_ops::{Mask, attention};

    use super::*;

    const LARGE: Init = Init::Normal { mean: 0.0, std: 0.5 };

    fn layout(height: usize, width: usize) -> TokenLayout {
        TokenLayout { prefix: 0, height, width }
    }

    fn tokens(seed: u64, n: usize) -> Tensor {
        Generator::new(seed).normal(0.0, 1.0, (2, n, 12), DType::F64, &Device::Cpu).unwrap()
    }

    fn mixer(stripe: Option<usize>) -> CrossShapedAttention {
        let store = ParamStore::new(1, DType::F64, &Device::Cpu);
        let cfg = CrossShapedConfig { init: LARGE, ..CrossShapedConfig::new(12, 2, stripe) };
        CrossShapedAttention::new(&cfg, store.vb()).unwrap()
    }

    fn distance(a: &Tensor, b: &Tensor) -> f64 {
        (a - b).unwrap().abs().unwrap().flatten_all().unwrap().max(D::Minus1).unwrap().to_scalar().unwrap()
    }

    /// One branch by attention over all tokens under a mask, and by convolutions of windows cut out one by one.
    fn branch(attn: &LepeAttention, qkv: &Qkv, head: usize, h: usize, w: usize) -> Tensor {
        let (window_h, window_w) = attn.stripes.window((h, w)).unwrap();
        let window_of = |token: usize| (token / w / window_h, token % w / window_w);
        let n = h * w;
        let hidden = |i: usize| if window_of(i / n) == window_of(i % n) { 0.0 } else { f64::NEG_INFINITY };
        let mask = Tensor::from_vec((0..n * n).map(hidden).collect(), (n, n), &Device::Cpu).unwrap();
        let part = |xs: &Tensor| xs.narrow(1, head, 1).unwrap();
        let (q, k, v) = (part(&qkv.q), part(&qkv.k), part(&qkv.v));
        let options = AttentionOptions::default().with_mask(Mask::Additive(mask));
        let mixed = attention(&q, &k, &v, &options).unwrap().squeeze(1).unwrap(); // (B, N, D)
        let map = v.squeeze(1).unwrap().transpose(1, 2).unwrap().reshape((2, 6, h, w)).unwrap();
        let rows = (0..h / window_h).map(|i| {
            let columns = (0..w / window_w).map(|j| {
                let cut = map.narrow(2, i * window_h, window_h).unwrap().narrow(3, j * window_w, window_w).unwrap();
                attn.get_v.forward(&cut.contiguous().unwrap()).unwrap()
            });
            Tensor::cat(&columns.collect::<Vec<_>>(), 3).unwrap()
        });
        let lepe = Tensor::cat(&rows.collect::<Vec<_>>(), 2).unwrap();
        (mixed + lepe.flatten_from(2).unwrap().transpose(1, 2).unwrap()).unwrap()
    }

    #[test]
    fn stripes_and_position_encoding_agree_with_the_definition() {
        for (stripe, h, w) in [(2, 4, 6), (1, 3, 2), (3, 3, 3)] {
            let mixer = mixer(Some(stripe));
            let (ys, qkv) = mixer.forward_qkv(&tokens(2, h * w), layout(h, w), false).unwrap();
            let parts: Vec<_> = (0..2).map(|i| branch(&mixer.attns[i], qkv.as_ref().unwrap(), i, h, w)).collect();
            let expected = mixer.proj.forward(&Tensor::cat(&parts, 2).unwrap()).unwrap();
            assert!(distance(&ys, &expected) < 1e-12, "{stripe}, {h} x {w}");
            assert!(distance(&ys, &mixer.forward_layout(&tokens(2, h * w), layout(h, w), false).unwrap()) < 1e-12);
        }
    }

    #[test]
    fn without_stripes_every_token_sees_every_other() {
        let mixer = mixer(None);
        let xs = tokens(2, 9);
        let changed = Tensor::cat(&[tokens(3, 9).narrow(1, 0, 1).unwrap(), xs.narrow(1, 1, 8).unwrap()], 1).unwrap();
        let run = |xs: &Tensor| mixer.forward_t(xs, false).unwrap();
        for token in 0..9 {
            let at = |ys: Tensor| ys.narrow(1, token, 1).unwrap();
            assert!(distance(&at(run(&xs)), &at(run(&changed))) > 1e-6, "{token}");
        }
    }

    #[test]
    fn what_does_not_divide_is_refused() {
        let store = ParamStore::new(1, DType::F64, &Device::Cpu);
        for (heads, stripe) in [(5, None), (0, None), (3, Some(2)), (2, Some(0))] {
            assert!(CrossShapedAttention::new(&CrossShapedConfig::new(12, heads, stripe), store.vb()).is_err());
        }
        let mixer = mixer(Some(2));
        let error = mixer.forward_layout(&tokens(2, 12), layout(4, 3), false).unwrap_err().to_string();
        assert!(error.contains("stripes of 2") && error.contains("4 x 3"), "{error}");
        assert!(mixer.forward_layout(&tokens(2, 5), TokenLayout { prefix: 1, height: 2, width: 2 }, false).is_err());
        assert!(mixer.forward_layout(&tokens(2, 5), layout(2, 2), false).is_err());
        assert!(mixer.forward_t(&tokens(2, 8), false).unwrap_err().to_string().contains("8 tokens"));
    }
}
