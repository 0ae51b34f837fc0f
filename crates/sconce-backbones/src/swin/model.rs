//! The Swin transformer itself.

use std::sync::Arc;

use candle_core::{Result, Tensor, bail};
use sconce_attention::{MixerSpec, TokenLayout, TokenMixer, WindowAttention};
use sconce_nn::{
    Dropout, Init, LayerNorm, Linear, Module, ModuleT, PatchEmbed, VarBuilder, drop_path_rates, init, layer_norm,
    patch_embed, pos_embed::resample_deit,
};

use super::{Block, Config, PatchMerging, StageBroad};
use crate::{Backbone, BackboneConfig, FeatureInfo, Intermediates};

const INIT: Init = Init::TruncNormal { std: 0.02 };

/// Swin transformer, Liu et al. 2021 (`arXiv:2103.14030`), under the names of the official files: attention within windows,
/// shifted in every second block, on maps that halve from stage to stage. Linear in the number of pixels.
///
/// Takes pictures of any whole number of patches: windows that do not divide a map are filled up with zeros.
///
/// # Shapes
/// - input `(B, in_chans, H, W)`, normalised as the checkpoint wants
/// - output `(B, num_classes)`, or `(B, num_features)` without classifier
#[derive(Debug, Clone)]
pub struct SwinTransformer {
    /// The options it was made with.
    pub config: Config,
    /// Pictures to patch tokens.
    pub patch_embed: PatchEmbed,
    /// `(1, patches, C)` where the options ask for it.
    pub absolute_pos_embed: Option<Tensor>,
    /// Dropout of the embedded tokens.
    pub pos_drop: Dropout,
    /// The stages in order.
    pub layers: Vec<Stage>,
    /// Final norm.
    pub norm: LayerNorm,
    /// Dropout before the classifier.
    pub head_drop: Dropout,
    /// Classifier of the mean token.
    pub head: Option<Linear>,
}

/// Blocks on maps of one size, and what leads to the next size.
#[derive(Debug, Clone)]
pub struct Stage {
    /// The blocks in order.
    pub blocks: Vec<Block>,
    /// Connects all blocks to what the last one gives; absent in the original.
    pub broad: Option<StageBroad>,
    /// Absent in the last stage.
    pub downsample: Option<PatchMerging>,
}

impl Stage {
    /// The tokens after the blocks, before the map is halved.
    ///
    /// # Shapes
    /// - `xs` and output `(B, H W, C)`
    ///
    /// # Errors
    /// When the tokens do not fit.
    pub fn forward_blocks(&self, xs: &Tensor, layout: TokenLayout, train: bool) -> Result<Tensor> {
        let Some(broad) = &self.broad else {
            return self.blocks.iter().try_fold(xs.clone(), |xs, block| block.forward_layout(&xs, layout, train));
        };
        let (mut xs, mut layers) = (xs.clone(), Vec::with_capacity(self.blocks.len()));
        for (i, block) in self.blocks.iter().enumerate() {
            let (ys, qkv) = block.forward_qkv(&xs, layout, train)?;
            let Some(qkv) = qkv else {
                bail!("swin: the mixer of block {i} does not hand out its queries, keys and values")
            };
            layers.push(qkv);
            xs = ys;
        }
        if layers.is_empty() { Ok(xs) } else { broad.forward(&xs, &layers, layout) }
    }

    /// What the next stage starts from.
    ///
    /// # Errors
    /// When the tokens do not fit.
    pub fn forward_downsample(&self, xs: &Tensor, layout: TokenLayout) -> Result<(Tensor, TokenLayout)> {
        match &self.downsample {
            Some(merging) => merging.forward_layout(xs, layout),
            None => Ok((xs.clone(), layout)),
        }
    }
}

impl SwinTransformer {
    /// A model with attention within windows, the original.
    ///
    /// # Errors
    /// When the options contradict each other or `vb` lacks a tensor.
    pub fn new(cfg: &Config, vb: VarBuilder) -> Result<Self> {
        Self::with_mixer(cfg, vb, |spec, vb| Ok(Arc::new(WindowAttention::new(&cfg.window_attention(spec), vb)?)))
    }

    /// A model whose blocks take their token mixer from `mixer`, which is called once a block with the path
    /// `layers.<stage>.blocks.<i>.attn`. [`Config::window_attention`] tells what the original would have there.
    ///
    /// # Errors
    /// When the options contradict each other, `vb` lacks a tensor, or `mixer` fails.
    pub fn with_mixer(
        cfg: &Config,
        vb: VarBuilder,
        mixer: impl Fn(&MixerSpec, VarBuilder) -> Result<Arc<dyn TokenMixer>>,
    ) -> Result<Self> {
        let stages = cfg.depths.len();
        if stages == 0 || cfg.num_heads.len() != stages {
            bail!("swin: {} depths and {} numbers of heads make no stages", stages, cfg.num_heads.len())
        }
        if cfg.stage_dim(stages - 1).is_none() {
            bail!("swin: too many channels after {stages} stages from {}", cfg.embed_dim)
        }
        let layout = cfg.stage_layout(0);
        let tokens = layout.height.checked_mul(layout.width).and_then(|n| n.checked_mul(cfg.embed_dim));
        if tokens.is_none_or(|n| n == 0) {
            bail!("swin: no tokens of {} channels from {:?} pixels", cfg.embed_dim, cfg.img_size)
        }
        let mut patch_embed = patch_embed(cfg.in_chans, cfg.embed_dim, cfg.patch_size, vb.pp("patch_embed"))?;
        if cfg.patch_norm {
            patch_embed = patch_embed.with_norm(layer_norm(cfg.embed_dim, cfg.norm_eps, vb.pp("patch_embed.norm"))?);
        }
        let pos = || init::param(&vb, (1, layout.len(), cfg.embed_dim), "absolute_pos_embed", INIT);
        let absolute_pos_embed = cfg.ape.then(pos).transpose()?;
        let depth = cfg.depths.iter().sum();
        let mut rates = drop_path_rates(cfg.drop_path_rate, depth).into_iter().enumerate();
        let (mut layers, mut dim) = (Vec::with_capacity(stages), cfg.embed_dim);
        for (stage, (&blocks, &heads)) in cfg.depths.iter().zip(&cfg.num_heads).enumerate() {
            let vb = vb.pp("layers").pp(stage);
            dim = cfg.embed_dim << stage;
            let spec = MixerSpec {
                block: 0,
                depth,
                stage,
                stage_block: 0,
                dim,
                heads,
                qkv_bias: cfg.qkv_bias,
                attn_drop: cfg.attn_drop_rate,
                proj_drop: cfg.proj_drop_rate,
                layout: cfg.stage_layout(stage),
            };
            let make = |(stage_block, (block, rate)): (usize, (usize, f64))| {
                let vb = vb.pp("blocks").pp(stage_block);
                let attn = mixer(&MixerSpec { block, stage_block, ..spec }, vb.pp("attn"))?;
                Block::new(cfg, dim, attn, rate, vb)
            };
            let blocks = rates.by_ref().take(blocks).enumerate().map(make).collect::<Result<_>>()?;
            let merging = || PatchMerging::new(dim, cfg.norm_eps, vb.pp("downsample"));
            let downsample = (stage + 1 < stages).then(merging).transpose()?;
            layers.push(Stage { blocks, broad: cfg.stage_broad(stage), downsample });
        }
        let mut model = Self {
            patch_embed,
            absolute_pos_embed,
            pos_drop: Dropout::new(cfg.pos_drop_rate),
            layers,
            norm: layer_norm(dim, cfg.norm_eps, vb.pp("norm"))?,
            head_drop: Dropout::new(cfg.drop_rate),
            head: None,
            config: cfg.clone(),
        };
        model.reset_classifier(cfg.num_classes, vb)?;
        Ok(model)
    }

    /// The tokens that enter the first stage, with their layout.
    ///
    /// # Shapes
    /// - `xs` `(B, in_chans, H, W)`, output `(B, H W / patch^2, C)`
    ///
    /// # Errors
    /// When the picture is not a whole number of patches.
    pub fn embed(&self, xs: &Tensor, train: bool) -> Result<(Tensor, TokenLayout)> {
        let (_, _, h, w) = xs.dims4()?;
        let mut tokens = self.patch_embed.forward(xs)?; // (B, N, C)
        let (height, width) = self.patch_embed.grid((h, w));
        if let Some(pos) = &self.absolute_pos_embed {
            let pos = match (height, width) == self.config.grid() {
                true => pos.clone(),
                false => resample_deit(pos, 0, (height, width))?,
            };
            tokens = tokens.broadcast_add(&pos)?;
        }
        Ok((self.pos_drop.forward_t(&tokens, train)?, TokenLayout { prefix: 0, height, width }))
    }

    /// Runs the stages and hands the tokens after each one's blocks to `visit`.
    fn stages_each(
        &self,
        xs: &Tensor,
        train: bool,
        mut visit: impl FnMut(usize, &Tensor, TokenLayout),
    ) -> Result<Tensor> {
        let (mut xs, mut layout) = self.embed(xs, train)?;
        for (i, stage) in self.layers.iter().enumerate() {
            xs = stage.forward_blocks(&xs, layout, train)?;
            visit(i, &xs, layout);
            (xs, layout) = stage.forward_downsample(&xs, layout)?;
        }
        self.norm.forward(&xs)
    }
}

impl Backbone for SwinTransformer {
    /// Tokens after the final norm, `(B, N, C)`.
    fn forward_features(&self, xs: &Tensor, train: bool) -> Result<Tensor> {
        self.stages_each(xs, train, |_, _, _| {})
    }

    fn forward_head(&self, features: &Tensor, pre_logits: bool, train: bool) -> Result<Tensor> {
        let (_, _, _) = features.dims3()?;
        let pooled = self.head_drop.forward_t(&features.mean(1)?, train)?; // (B, C)
        match &self.head {
            Some(head) if !pre_logits => head.forward(&pooled),
            _ => Ok(pooled),
        }
    }

    /// Maps after the blocks of the stages `indices`, before they are halved and before the final norm.
    fn forward_intermediates(&self, xs: &Tensor, indices: &[usize], train: bool) -> Result<Intermediates> {
        if let Some(bad) = indices.iter().find(|i| **i >= self.layers.len()) {
            bail!("swin: no stage {bad} among {}", self.layers.len())
        }
        let mut found = Vec::with_capacity(self.layers.len());
        let output = self.stages_each(xs, train, |_, xs, layout| found.push((xs.clone(), layout)))?;
        let as_map = |i: &usize| {
            let Some((xs, TokenLayout { height, width, .. })) = found.get(*i) else { bail!("swin: no stage {i}") };
            let (b, _, c) = xs.dims3()?;
            xs.transpose(1, 2)?.reshape((b, c, *height, *width)) // (B, C, H, W)
        };
        Ok(Intermediates { features: indices.iter().map(as_map).collect::<Result<_>>()?, output })
    }

    fn num_features(&self) -> usize {
        self.config.stage_dim(self.layers.len().saturating_sub(1)).unwrap_or(0)
    }

    fn num_classes(&self) -> usize {
        self.config.num_classes
    }

    fn feature_info(&self) -> Vec<FeatureInfo> {
        let info = |(i, stage): (usize, &Stage)| FeatureInfo {
            module: format!("layers.{i}.blocks.{}", stage.blocks.len().saturating_sub(1)),
            channels: self.config.stage_dim(i).unwrap_or(0),
            reduction: self.config.patch_size << i,
        };
        self.layers.iter().enumerate().map(info).collect()
    }

    fn reset_classifier(&mut self, num_classes: usize, vb: VarBuilder) -> Result<()> {
        let dim = self.num_features();
        self.head = match num_classes {
            0 => None,
            n => Some(Linear::with_init(dim, n, true, INIT, vb.pp("head"))?),
        };
        self.config.num_classes = num_classes;
        Ok(())
    }

    fn config(&self) -> BackboneConfig {
        BackboneConfig::Swin(self.config.clone())
    }
}

impl ModuleT for SwinTransformer {
    fn forward_t(&self, xs: &Tensor, train: bool) -> Result<Tensor> {
        self.forward_head(&self.forward_features(xs, train)?, false, train)
    }
}
