//! The blocks of both kinds: convolution, and attention over space or over space and time.

use std::sync::Arc;

use candle_core::{Result, Tensor};
use sconce_attention::{GlobalAttention, GlobalAttentionConfig, QkvProjection, TokenLayout, TokenMixer};
use sconce_nn::{
    BatchNorm, DropPath, Dropout, Init, LayerNorm, Linear, Mlp, MlpOptions, Module, ModuleT, VarBuilder, batch_norm,
    init, layer_norm,
};
use sconce_ops::gelu;

use super::embed::{to_grid, to_tokens};
use super::windows::{merge, partition};
use super::{Config, GridConv};

/// Of the layer norms in blocks; patches have another.
const EPS: f64 = 1e-6;

/// Layer scale, where a block has it.
fn scale(ys: Tensor, gamma: &Option<Tensor>) -> Result<Tensor> {
    match gamma {
        Some(gamma) => ys.broadcast_mul(gamma),
        None => Ok(ys),
    }
}

/// A block of either kind.
#[derive(Debug, Clone)]
#[expect(clippy::large_enum_variant, reason = "a model has a few dozen of them")]
pub enum Block {
    /// Of the first two stages.
    Conv(CBlock),
    /// Of the last two stages.
    Attention(SaBlock),
    /// Of the last two stages with [`Config::split`].
    Split(SplitSaBlock),
}

impl ModuleT for Block {
    fn forward_t(&self, xs: &Tensor, train: bool) -> Result<Tensor> {
        match self {
            Self::Conv(block) => block.forward_t(xs, train),
            Self::Attention(block) => block.forward_t(xs, train),
            Self::Split(block) => block.forward_t(xs, train),
        }
    }
}

/// An MLP whose layers are convolutions of one element.
///
/// # Shapes
/// - input and output `(B, C, *)`
#[derive(Debug, Clone)]
pub struct ConvMlp {
    /// First layer, before GELU.
    pub fc1: GridConv,
    /// Second layer.
    pub fc2: GridConv,
    /// After GELU and after the second layer.
    pub dropout: Dropout,
}

impl ModuleT for ConvMlp {
    fn forward_t(&self, xs: &Tensor, train: bool) -> Result<Tensor> {
        let hidden = self.dropout.forward_t(&gelu(&self.fc1.forward(xs)?)?, train)?;
        self.dropout.forward_t(&self.fc2.forward(&hidden)?, train)
    }
}

/// Local relation by convolution, Li et al. 2022 (`arXiv:2201.09450`), equations 1 to 3 with learned affinity of neighbours:
/// a depthwise convolution for position, then `conv2(attn(conv1(norm1(x))))` and the MLP, each added to its input.
///
/// # Shapes
/// - input and output `(B, C, H, W)` or `(B, C, T, H, W)`
#[derive(Debug, Clone)]
pub struct CBlock {
    /// Depthwise, window 3.
    pub pos_embed: GridConv,
    /// Before the relation.
    pub norm1: BatchNorm,
    /// Values.
    pub conv1: GridConv,
    /// Affinity: depthwise, window 5.
    pub attn: GridConv,
    /// Output of the relation.
    pub conv2: GridConv,
    /// `(1, C, 1, 1)`, scale of the relation's branch; in models of token labelling only.
    pub gamma_1: Option<Tensor>,
    /// Before the MLP.
    pub norm2: BatchNorm,
    /// Mixes channels.
    pub mlp: ConvMlp,
    /// `(1, C, 1, 1)`, scale of the MLP's branch.
    pub gamma_2: Option<Tensor>,
    /// Drop path of both branches.
    pub drop_path: DropPath,
}

impl CBlock {
    pub(super) fn new(cfg: &Config, stage: usize, drop_path: f64, vb: VarBuilder) -> Result<Self> {
        let (clip, dim, hidden) = (cfg.frames.is_some(), cfg.embed_dim[stage], cfg.mlp_dim(stage));
        let mlp = ConvMlp {
            fc1: GridConv::pointwise(clip, dim, hidden, vb.pp("mlp.fc1"))?,
            fc2: GridConv::pointwise(clip, hidden, dim, vb.pp("mlp.fc2"))?,
            dropout: Dropout::new(cfg.drop_rate),
        };
        let gamma = |name: &str| {
            let start = cfg.init_values.filter(|_| cfg.token_labeling);
            start.map(|value| init::param(&vb, (1, dim, 1, 1), name, Init::Const(value))).transpose()
        };
        Ok(Self {
            pos_embed: GridConv::depthwise(clip, dim, 3, vb.pp("pos_embed"))?,
            norm1: batch_norm(dim, vb.pp("norm1"))?,
            conv1: GridConv::pointwise(clip, dim, dim, vb.pp("conv1"))?,
            attn: GridConv::depthwise(clip, dim, 5, vb.pp("attn"))?,
            conv2: GridConv::pointwise(clip, dim, dim, vb.pp("conv2"))?,
            gamma_1: gamma("gamma_1")?,
            norm2: batch_norm(dim, vb.pp("norm2"))?,
            mlp,
            gamma_2: gamma("gamma_2")?,
            drop_path: DropPath::new(drop_path),
        })
    }
}

impl ModuleT for CBlock {
    fn forward_t(&self, xs: &Tensor, train: bool) -> Result<Tensor> {
        let xs = (xs + self.pos_embed.forward(xs)?)?;
        let ys = self.norm1.forward_t(&xs, train)?;
        let ys = scale(ys.apply(&self.conv1)?.apply(&self.attn)?.apply(&self.conv2)?, &self.gamma_1)?;
        let xs = (xs + self.drop_path.forward_t(&ys, train)?)?;
        let ys = scale(self.mlp.forward_t(&self.norm2.forward_t(&xs, train)?, train)?, &self.gamma_2)?;
        xs + self.drop_path.forward_t(&ys, train)?
    }
}

/// What both kinds of attention blocks end with.
fn mlp(cfg: &Config, stage: usize, vb: &VarBuilder) -> Result<Mlp> {
    let options = MlpOptions { dropout: cfg.drop_rate, ..MlpOptions::new(cfg.mlp_dim(stage)) };
    Mlp::new(cfg.embed_dim[stage], &options, vb.pp("mlp"))
}

/// Global relation by attention, Li et al. 2022 (`arXiv:2201.09450`): a depthwise convolution for position, then a
/// transformer block on the elements of the map as tokens. A clip's tokens are those of all its frames.
///
/// # Shapes
/// - input and output `(B, C, H, W)` or `(B, C, T, H, W)`
#[derive(Debug, Clone)]
pub struct SaBlock {
    /// Depthwise, window 3.
    pub pos_embed: GridConv,
    /// Before the mixer.
    pub norm1: LayerNorm,
    /// Lets tokens see each other: global attention, or what the model was given instead. It is told the map of a clip as that
    /// of its frames one below the other.
    pub attn: Arc<dyn TokenMixer>,
    /// Side of the windows that the mixer sees one by one, in place of the whole map.
    pub window: Option<usize>,
    /// `(C)`, scale of the mixer's branch.
    pub gamma_1: Option<Tensor>,
    /// Before the MLP.
    pub norm2: LayerNorm,
    /// Mixes the channels of each token.
    pub mlp: Mlp,
    /// `(C)`, scale of the MLP's branch.
    pub gamma_2: Option<Tensor>,
    /// Drop path of both branches.
    pub drop_path: DropPath,
}

impl SaBlock {
    pub(super) fn new(
        cfg: &Config,
        stage: usize,
        attn: Arc<dyn TokenMixer>,
        window: Option<usize>,
        drop_path: f64,
        vb: VarBuilder,
    ) -> Result<Self> {
        let dim = cfg.embed_dim[stage];
        let gamma = |name: &str| cfg.init_values.map(|v| init::param(&vb, dim, name, Init::Const(v))).transpose();
        Ok(Self {
            pos_embed: GridConv::depthwise(cfg.frames.is_some(), dim, 3, vb.pp("pos_embed"))?,
            norm1: layer_norm(dim, EPS, vb.pp("norm1"))?,
            attn,
            window,
            gamma_1: gamma("gamma_1")?,
            norm2: layer_norm(dim, EPS, vb.pp("norm2"))?,
            mlp: mlp(cfg, stage, &vb)?,
            gamma_2: gamma("gamma_2")?,
            drop_path: DropPath::new(drop_path),
        })
    }

    /// The mixer on tokens of a map of `dims`, window by window where the block has windows.
    ///
    /// # Shapes
    /// - `tokens` and output `(B, N, C)`, `dims` those of the map, `(B, C, *)`
    ///
    /// # Errors
    /// When the tokens do not fit.
    pub fn mix(&self, tokens: &Tensor, dims: &[usize], train: bool) -> Result<Tensor> {
        let layout = layout(dims);
        let Some(window) = self.window else {
            return self.attn.forward_layout(tokens, layout, train);
        };
        let size = (layout.height, layout.width);
        let windows = partition(tokens, size, window)?; // (B * windows, window * window, C)
        let layout = TokenLayout { prefix: 0, height: window, width: window };
        merge(&self.attn.forward_layout(&windows, layout, train)?, size, window)
    }
}

/// A map's tokens; the frames of a clip count as rows.
pub(super) fn layout(dims: &[usize]) -> TokenLayout {
    let (height, width) = match dims {
        [_, _, frames, height, width] => (frames * height, *width),
        [_, _, height, width] => (*height, *width),
        _ => (0, 0),
    };
    TokenLayout { prefix: 0, height, width }
}

impl ModuleT for SaBlock {
    fn forward_t(&self, xs: &Tensor, train: bool) -> Result<Tensor> {
        let xs = (xs + self.pos_embed.forward(xs)?)?;
        let tokens = to_tokens(&xs)?; // (B, N, C)
        let ys = scale(self.mix(&self.norm1.forward(&tokens)?, xs.dims(), train)?, &self.gamma_1)?;
        let tokens = (tokens + self.drop_path.forward_t(&ys, train)?)?;
        let ys = scale(self.mlp.forward_t(&self.norm2.forward(&tokens)?, train)?, &self.gamma_2)?;
        to_grid(&(tokens + self.drop_path.forward_t(&ys, train)?)?, xs.dims())
    }
}

/// Attention over time and then over space, Li et al. 2022 (`arXiv:2201.04676`), the cheaper variant of its ablation.
///
/// What attention over time adds is seen by attention over space and not kept: the second branch is added to the tokens
/// from before the first.
///
/// # Shapes
/// - input and output `(B, C, T, H, W)`
#[derive(Debug, Clone)]
pub struct SplitSaBlock {
    /// Depthwise, window 3.
    pub pos_embed: GridConv,
    /// Before attention over time.
    pub t_norm: LayerNorm,
    /// Over the frames of one place; starts as the identity's mean, with queries and keys of 0.
    pub t_attn: Arc<dyn TokenMixer>,
    /// Before attention over space.
    pub norm1: LayerNorm,
    /// Over the places of one frame: global attention, or what the model was given instead.
    pub attn: Arc<dyn TokenMixer>,
    /// Before the MLP.
    pub norm2: LayerNorm,
    /// Mixes the channels of each token.
    pub mlp: Mlp,
    /// Drop path of all branches; as officially, it drops the tokens of one place, one frame, one clip.
    pub drop_path: DropPath,
}

impl SplitSaBlock {
    pub(super) fn new(
        cfg: &Config,
        stage: usize,
        attn: Arc<dyn TokenMixer>,
        drop_path: f64,
        vb: VarBuilder,
    ) -> Result<Self> {
        let dim = cfg.embed_dim[stage];
        let over_time = GlobalAttentionConfig {
            qkv_bias: cfg.qkv_bias,
            attn_drop: cfg.attn_drop_rate,
            proj_drop: cfg.drop_rate,
            ..GlobalAttentionConfig::new(dim, dim / cfg.head_dim)
        };
        let vb_time = vb.pp("t_attn");
        let qkv = Linear::with_init(dim, 3 * dim, cfg.qkv_bias, Init::Zeros, vb_time.pp("qkv"))?;
        let proj = Linear::with_init(dim, dim, true, Init::Ones, vb_time.pp("proj"))?;
        Ok(Self {
            pos_embed: GridConv::depthwise(true, dim, 3, vb.pp("pos_embed"))?,
            t_norm: layer_norm(dim, EPS, vb.pp("t_norm"))?,
            t_attn: Arc::new(GlobalAttention::from_parts(QkvProjection::Packed(qkv), proj, &over_time)?),
            norm1: layer_norm(dim, EPS, vb.pp("norm1"))?,
            attn,
            norm2: layer_norm(dim, EPS, vb.pp("norm2"))?,
            mlp: mlp(cfg, stage, &vb)?,
            drop_path: DropPath::new(drop_path),
        })
    }
}

impl ModuleT for SplitSaBlock {
    fn forward_t(&self, xs: &Tensor, train: bool) -> Result<Tensor> {
        let xs = (xs + self.pos_embed.forward(xs)?)?;
        let (b, c, t, h, w) = xs.dims5()?;
        let frames = xs.permute((0, 2, 3, 4, 1))?.reshape((b, t, h * w, c))?; // (B, T, H * W, C)

        let places = frames.transpose(1, 2)?.reshape((b * h * w, t, c))?; // (B * H * W, T, C)
        let layout = TokenLayout { prefix: 0, height: t, width: 1 };
        let ys = self.t_attn.forward_layout(&self.t_norm.forward(&places)?, layout, train)?;
        let places = (places + self.drop_path.forward_t(&ys, train)?)?;

        let moved = places.reshape((b, h * w, t, c))?.transpose(1, 2)?.reshape((b * t, h * w, c))?; // (B * T, H * W, C)
        let layout = TokenLayout { prefix: 0, height: h, width: w };
        let ys = self.attn.forward_layout(&self.norm1.forward(&moved)?, layout, train)?;
        let frames = frames.reshape((b * t, h * w, c))?;
        let tokens = (frames + self.drop_path.forward_t(&ys, train)?)?.reshape((b, t * h * w, c))?; // (B, N, C)

        let ys = self.mlp.forward_t(&self.norm2.forward(&tokens)?, train)?;
        to_grid(&(tokens + self.drop_path.forward_t(&ys, train)?)?, xs.dims())
    }
}
