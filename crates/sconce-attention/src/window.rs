//! Attention within windows of the map, shifted or not.

mod partition;
#[cfg(test)]
mod tests;

use candle_core::{Device, Result, Tensor, bail};
use sconce_nn::{Dropout, Init, Linear, Module, ModuleT, VarBuilder, init};
use sconce_ops::{AttentionOptions, Mask, ResizeMode, ResizeOptions};

pub use partition::{WindowFit, Windows};

use crate::{Qkv, TokenLayout, TokenMixer};

/// Sizes of a [`WindowAttention`].
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct WindowAttentionConfig {
    /// Channels of a token, a multiple of `heads`.
    pub dim: usize,
    /// Number of heads.
    pub heads: usize,
    /// Rows and columns of a window; they decide the size of the bias table.
    pub window: [usize; 2],
    /// Rows and columns that the map is rolled by before it is cut, where it is larger than a window.
    pub shift: [usize; 2],
    /// What becomes of the window on small maps.
    pub fit: WindowFit,
    /// Whether queries, keys and values have a bias.
    pub qkv_bias: bool,
    /// Factor on the scores; `D^-1/2` when `None`.
    pub scale: Option<f64>,
    /// Dropout probability of attention weights.
    pub attn_drop: f64,
    /// Dropout probability of the output.
    pub proj_drop: f64,
    /// How the weights of the projections and the bias table start; biases start at 0.
    pub init: Init,
}

impl WindowAttentionConfig {
    /// Square windows without shift, with bias, without dropout, weights from a normal distribution of standard deviation
    /// 0.02 cut at 2.
    pub fn new(dim: usize, heads: usize, window: usize) -> Self {
        Self {
            dim,
            heads,
            window: [window; 2],
            shift: [0; 2],
            fit: WindowFit::Square,
            qkv_bias: true,
            scale: None,
            attn_drop: 0.0,
            proj_drop: 0.0,
            init: Init::TruncNormal { std: 0.02 },
        }
    }

    /// For a map of this layout: windows, and with them the bias table, are no larger than it.
    pub fn for_map(mut self, layout: TokenLayout) -> Self {
        (self.window, _) = self.fit.apply(self.window, self.shift, [layout.height, layout.width]);
        self.shift = [0, 1].map(|axis| self.shift[axis].min(self.window[axis] / 2));
        self
    }
}

/// Multi-head self-attention within windows, with a learned bias for each relative position: W-MSA and SW-MSA of Swin, Liu
/// et al. 2021 (`arXiv:2103.14030`), section 3.2. Linear in the number of tokens: each looks at the `M^2` of its window.
///
/// Any map will do. Windows that do not divide it are filled up with zeros, which take part in the attention, as in timm; on
/// a map that is smaller than the window the window shrinks and uses the middle of the bias table. Masks follow the map
/// and are no part of a checkpoint: `relative_position_index` and `attn_mask` of official files can be left out.
///
/// # Shapes
/// - input and output `(B, H W, C)`, `C` a multiple of `heads`; no class token
#[derive(Debug, Clone)]
pub struct WindowAttention {
    /// To queries, keys and values, laid out `which | head | d`.
    pub qkv: Linear,
    /// Output projection.
    pub proj: Linear,
    /// Bias of the scores by relative position, `((2 rows - 1) (2 columns - 1), heads)`; row `(dy + rows - 1) (2 columns -
    /// 1) + dx + columns - 1` belongs to a query `dy` below and `dx` right of its key.
    pub relative_position_bias_table: Tensor,
    /// Number of heads.
    pub heads: usize,
    /// Rows and columns of a window.
    pub window: [usize; 2],
    /// Rows and columns that the map is rolled by.
    pub shift: [usize; 2],
    /// What becomes of the window on small maps.
    pub fit: WindowFit,
    /// Factor on the scores; `D^-1/2` when `None`.
    pub scale: Option<f64>,
    /// Dropout probability of attention weights.
    pub attn_drop: f64,
    /// Dropout of the output.
    pub proj_drop: Dropout,
}

impl WindowAttention {
    /// Under the official names `qkv`, `proj` and `relative_position_bias_table`.
    ///
    /// # Errors
    /// When `heads` does not divide `dim`, when the window is empty or not larger than the shift, or when `vb` lacks a
    /// tensor.
    pub fn new(cfg: &WindowAttentionConfig, vb: VarBuilder) -> Result<Self> {
        let WindowAttentionConfig { dim, heads, window, shift, fit, qkv_bias, scale, attn_drop, proj_drop, init } =
            *cfg;
        if heads == 0 || !dim.is_multiple_of(heads) {
            bail!("window attention: {dim} channels do not divide into {heads} heads")
        }
        let side = |axis: usize| window[axis].checked_mul(2).filter(|_| shift[axis] < window[axis]).map(|n| n - 1);
        let (Some(rows), Some(columns)) = (side(0), side(1)) else {
            bail!("window attention: no windows of {window:?} shifted by {shift:?}")
        };
        let Some(positions) = rows.checked_mul(columns) else {
            bail!("window attention: windows of {window:?} are too large")
        };
        Ok(Self {
            qkv: Linear::with_init(dim, 3 * dim, qkv_bias, init, vb.pp("qkv"))?,
            proj: Linear::with_init(dim, dim, true, init, vb.pp("proj"))?,
            relative_position_bias_table: init::param(&vb, (positions, heads), "relative_position_bias_table", init)?,
            heads,
            window,
            shift,
            fit,
            scale,
            attn_drop,
            proj_drop: Dropout::new(proj_drop),
        })
    }

    /// How a map is cut.
    ///
    /// # Errors
    /// When the layout has tokens without a place, or none at all.
    pub fn windows(&self, layout: TokenLayout, device: &Device) -> Result<Windows> {
        let (size, shift) = self.fit.apply(self.window, self.shift, [layout.height, layout.width]);
        Windows::new(layout, size, shift, device)
    }

    /// The bias of the scores in a window of `size`, which may be smaller than the attention's own.
    ///
    /// # Shapes
    /// - output `(heads, area, area)`, queries before keys
    ///
    /// # Errors
    /// When the window is larger than the attention's own.
    pub fn position_bias(&self, size: [usize; 2]) -> Result<Tensor> {
        let [rows, columns] = self.window;
        if size[0] > rows || size[1] > columns {
            bail!("window attention: a table for windows of {:?} has no biases for {size:?}", self.window)
        }
        let area = size[0] * size[1];
        let place = |i: usize| (i / size[1], i % size[1]);
        let mut index = Vec::with_capacity(area * area);
        for (y, x) in (0..area).map(place) {
            let of = |(ky, kx): (usize, usize)| (y + rows - 1 - ky) * (2 * columns - 1) + (x + columns - 1 - kx);
            index.extend((0..area).map(|key| of(place(key)) as u32));
        }
        let table = &self.relative_position_bias_table;
        let index = Tensor::new(index, table.device())?;
        let bias = table.contiguous()?.index_select(&index, 0)?.reshape((area, area, self.heads))?;
        bias.permute((2, 0, 1))?.contiguous() // (heads, area, area)
    }

    /// Attention within windows that are cut already, up to and without the output projection.
    ///
    /// # Shapes
    /// - `qkv` `(B windows, area, 3 C)`
    /// - output `(B windows, area, C)`
    ///
    /// # Errors
    /// When the input is not that of whole maps.
    fn attend(&self, qkv: &Tensor, windows: &Windows, train: bool) -> Result<Tensor> {
        let mut bias = self.position_bias(windows.size)?.unsqueeze(0)?; // (1, heads, area, area)
        if let Some(mask) = windows.mask(bias.dtype(), bias.device())? {
            // Every picture of the batch has the same masks.
            bias = bias.broadcast_add(&mask.unsqueeze(1)?)?; // (windows, heads, area, area)
        }
        let options = AttentionOptions {
            scale: self.scale,
            mask: Mask::Additive(bias),
            dropout: if train { self.attn_drop } else { 0.0 },
            generator: None,
        };
        sconce_ops::attention_packed(qkv, self.heads, &options)
    }

    /// The part that works on windows alone, the official module of this name: projections and attention without cutting,
    /// putting together, and dropout of the output.
    ///
    /// # Shapes
    /// - `xs` and output `(B windows, area, C)`
    ///
    /// # Errors
    /// When the input is not that of whole maps.
    pub fn forward_windows(&self, xs: &Tensor, windows: &Windows, train: bool) -> Result<Tensor> {
        self.proj.forward(&self.attend(&self.qkv.forward(xs)?, windows, train)?)
    }

    fn output(&self, mixed: &Tensor, windows: &Windows, train: bool) -> Result<Tensor> {
        self.proj_drop.forward_t(&self.proj.forward(&windows.merge(mixed)?)?, train)
    }
}

impl TokenMixer for WindowAttention {
    /// The tokens of a square map; others need [`forward_layout`](TokenMixer::forward_layout).
    fn forward_t(&self, xs: &Tensor, train: bool) -> Result<Tensor> {
        let (_, n, _) = xs.dims3()?;
        let side = n.isqrt();
        if side * side != n {
            bail!("window attention: {n} tokens are no square map; use `forward_layout`")
        }
        self.forward_layout(xs, TokenLayout { prefix: 0, height: side, width: side }, train)
    }

    fn forward_layout(&self, xs: &Tensor, layout: TokenLayout, train: bool) -> Result<Tensor> {
        let windows = self.windows(layout, xs.device())?;
        let qkv = self.qkv.forward(&windows.partition(xs)?)?; // (B windows, area, 3 C)
        self.output(&self.attend(&qkv, &windows, train)?, &windows, train)
    }

    /// Queries, keys and values are those of the whole map in its own order, not rolled.
    fn forward_qkv(&self, xs: &Tensor, layout: TokenLayout, train: bool) -> Result<(Tensor, Option<Qkv>)> {
        let windows = self.windows(layout, xs.device())?;
        let qkv = self.qkv.forward(xs)?; // (B, N, 3 C)
        // A token of zeros is projected to the bias.
        let cut = windows.partition_padded(&qkv, self.qkv.bias.as_ref())?;
        let ys = self.output(&self.attend(&cut, &windows, train)?, &windows, train)?;
        let (b, n, c3) = qkv.dims3()?;
        let part = |which: usize| {
            let part = qkv.narrow(2, which * (c3 / 3), c3 / 3)?;
            part.reshape((b, n, self.heads, c3 / 3 / self.heads))?.transpose(1, 2) // (B, heads, N, D)
        };
        Ok((ys, Some(Qkv { q: part(0)?, k: part(1)?, v: part(2)? })))
    }
}

/// The bias table of a square window for a square window of another size: bicubic (`a = -0.75`), pixel centres at one half,
/// without antialiasing, as the official code does before fine-tuning. Differentiable.
///
/// # Shapes
/// - `table` `((2 M - 1)^2, heads)`
/// - output `((2 window - 1)^2, heads)`
///
/// # Errors
/// When the table is not that of a square window, or `window` is 0.
pub fn resample_bias_table(table: &Tensor, window: usize) -> Result<Tensor> {
    let (positions, heads) = table.dims2()?;
    let side = positions.isqrt();
    let Some(to) = window.checked_mul(2).filter(|n| *n > 0 && side * side == positions).map(|n| n - 1) else {
        bail!("a table of {positions} biases cannot be resampled to windows of {window} x {window}")
    };
    let map = table.t()?.reshape((1, heads, side, side))?;
    let map = sconce_ops::resize(&map, &ResizeOptions::size(to, to).mode(ResizeMode::Bicubic))?;
    map.reshape((heads, to * to))?.t()?.contiguous() // (heads, positions) -> (positions, heads)
}

/// A hook for [`LoadOptions::resize`](sconce_nn::LoadOptions::resize) that brings bias tables of square windows to the size
/// of the model's by [`resample_bias_table`].
///
/// ```
/// use sconce_attention::bias_table_hook;
/// use sconce_nn::LoadOptions;
///
/// let options = LoadOptions::default().resize(bias_table_hook());
/// ```
pub fn bias_table_hook() -> impl Fn(&str, &Tensor, &[usize]) -> Result<Option<Tensor>> + Send + Sync + 'static {
    |name, found, wanted| {
        let (&[positions, heads], &[to, wanted]) = (found.dims(), wanted) else { return Ok(None) };
        let square = |n: usize| n > 0 && n.isqrt() % 2 == 1 && n.isqrt().pow(2) == n;
        if !name.ends_with("relative_position_bias_table") || heads != wanted || !square(positions) || !square(to) {
            return Ok(None);
        }
        resample_bias_table(found, to.isqrt() / 2 + 1).map(Some)
    }
}
