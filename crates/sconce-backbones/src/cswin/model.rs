//! The CSWin transformer itself.

use std::sync::Arc;

use candle_core::{Result, Tensor, bail};
use sconce_attention::{CrossShapedAttention, MixerSpec, TokenLayout, TokenMixer};
use sconce_nn::{Conv2d, Init, LayerNorm, Linear, Module, ModuleT, VarBuilder, conv2d, drop_path_rates, layer_norm};
use sconce_ops::ConvOptions;

use super::{Block, Config};
use crate::{Backbone, BackboneConfig, FeatureInfo, Intermediates};

const INIT: Init = Init::TruncNormal { std: 0.02 };

/// CSWin transformer, Dong et al. 2022 (`arXiv:2107.00652`), under the official names: attention within stripes of four
/// maps, each half the size of the one before.
///
/// Takes pictures of any size whose maps the stripes divide.
///
/// # Shapes
/// - input `(B, in_chans, H, W)`, normalised as the checkpoint wants
/// - output `(B, num_classes)`, or `(B, num_features)` without classifier
#[derive(Debug, Clone)]
pub struct CSWinTransformer {
    /// The options it was made with.
    pub config: Config,
    /// Pictures to tokens.
    pub stem: Stem,
    /// The stages in order.
    pub stages: Vec<Stage>,
    /// Final norm.
    pub norm: LayerNorm,
    /// Classifier of the mean token.
    pub head: Option<Linear>,
}

/// Blocks on maps of one size, and what leads to that size.
#[derive(Debug, Clone)]
pub struct Stage {
    /// Absent in the first stage.
    pub merge: Option<MergeBlock>,
    /// The blocks in order.
    pub blocks: Vec<Block>,
}

/// Overlapping patches to normalised tokens: a convolution of 7 x 7 with stride 4 (`stage1_conv_embed`).
///
/// # Shapes
/// - input `(B, in_chans, H, W)`, output `(B, H W / 16, C)`
#[derive(Debug, Clone)]
pub struct Stem {
    /// The convolution.
    pub conv: Conv2d,
    /// Norm of the tokens.
    pub norm: LayerNorm,
}

/// Halves a map and doubles its channels: a convolution of 3 x 3 with stride 2, then a norm.
///
/// # Shapes
/// - input `(B, H W, C)`, output `(B, H W / 4, 2C)`
#[derive(Debug, Clone)]
pub struct MergeBlock {
    /// The convolution.
    pub conv: Conv2d,
    /// Norm of the tokens.
    pub norm: LayerNorm,
}

/// A map `(B, C, H, W)` as tokens `(B, H W, C)` with their layout.
fn to_tokens(map: &Tensor) -> Result<(Tensor, TokenLayout)> {
    let (_, _, height, width) = map.dims4()?;
    Ok((map.flatten_from(2)?.transpose(1, 2)?, TokenLayout { prefix: 0, height, width }))
}

impl Stem {
    /// Tokens and their layout.
    ///
    /// # Errors
    /// When the picture does not fit.
    pub fn forward(&self, xs: &Tensor) -> Result<(Tensor, TokenLayout)> {
        let (tokens, layout) = to_tokens(&self.conv.forward(xs)?)?;
        Ok((self.norm.forward(&tokens)?, layout))
    }
}

impl MergeBlock {
    /// Tokens and layout of the smaller map.
    ///
    /// # Errors
    /// When the tokens do not fit.
    pub fn forward(&self, xs: &Tensor, layout: TokenLayout) -> Result<(Tensor, TokenLayout)> {
        let (b, _, c) = xs.dims3()?;
        let map = xs.transpose(1, 2)?.reshape((b, c, layout.height, layout.width))?;
        let (tokens, layout) = to_tokens(&self.conv.forward(&map)?)?;
        Ok((self.norm.forward(&tokens)?, layout))
    }
}

impl Stage {
    /// Tokens after the stage's blocks, with their layout.
    ///
    /// # Errors
    /// When the tokens do not fit.
    pub fn forward(&self, xs: &Tensor, layout: TokenLayout, train: bool) -> Result<(Tensor, TokenLayout)> {
        let (xs, layout) = match &self.merge {
            Some(merge) => merge.forward(xs, layout)?,
            None => (xs.clone(), layout),
        };
        let xs = self.blocks.iter().try_fold(xs, |xs, block| block.forward_layout(&xs, layout, train))?;
        Ok((xs, layout))
    }
}

impl CSWinTransformer {
    /// A model with cross-shaped attention, the original.
    ///
    /// # Errors
    /// When the options contradict each other or `vb` lacks a tensor.
    pub fn new(cfg: &Config, vb: VarBuilder) -> Result<Self> {
        Self::with_mixer(cfg, vb, |spec, vb| {
            Ok(Arc::new(CrossShapedAttention::new(&cfg.cross_shaped_attention(spec), vb)?))
        })
    }

    /// A model whose blocks take their token mixer from `mixer`, which is called once a block with the block's own path
    /// `stage<1..4>.<i>`, where the official names have it. [`Config::cross_shaped_attention`] tells what the original would
    /// have there.
    ///
    /// # Errors
    /// When the options contradict each other, `vb` lacks a tensor, or `mixer` fails.
    pub fn with_mixer(
        cfg: &Config,
        vb: VarBuilder,
        mixer: impl Fn(&MixerSpec, VarBuilder) -> Result<Arc<dyn TokenMixer>>,
    ) -> Result<Self> {
        if cfg.stage_layout(0).is_empty() || cfg.embed_dim == 0 || cfg.embed_dim > usize::MAX >> 8 {
            bail!("cswin: no tokens of {} channels from {:?} pixels", cfg.embed_dim, cfg.img_size)
        }
        let norm = |dim: usize, vb: VarBuilder| layer_norm(dim, cfg.norm_eps, vb);
        let stem = vb.pp("stage1_conv_embed");
        let embed = ConvOptions::default().stride(4).padding(2);
        let stem = Stem {
            conv: conv2d(cfg.in_chans, cfg.embed_dim, 7, embed, stem.pp(0))?,
            norm: norm(cfg.embed_dim, stem.pp(2))?,
        };
        let depth = cfg.depth.iter().sum();
        let mut rates = drop_path_rates(cfg.drop_path_rate, depth).into_iter().enumerate();
        let mut stages = Vec::with_capacity(4);
        for (stage, (&blocks, &heads)) in cfg.depth.iter().zip(&cfg.num_heads).enumerate() {
            let dim = cfg.stage_dim(stage);
            let merge = |stage: usize| {
                let vb = vb.pp(format!("merge{stage}"));
                let halve = ConvOptions::default().stride(2).padding(1);
                let conv = conv2d(dim / 2, dim, 3, halve, vb.pp("conv"))?;
                Ok::<_, candle_core::Error>(MergeBlock { conv, norm: norm(dim, vb.pp("norm"))? })
            };
            let merge = (stage > 0).then(|| merge(stage)).transpose()?;
            let vb = vb.pp(format!("stage{}", stage + 1));
            let spec = MixerSpec {
                block: 0,
                depth,
                stage,
                stage_block: 0,
                dim,
                heads,
                qkv_bias: cfg.qkv_bias,
                attn_drop: cfg.attn_drop_rate,
                proj_drop: 0.0,
                layout: cfg.stage_layout(stage),
            };
            let make = |(stage_block, (block, rate)): (usize, (usize, f64))| {
                let vb = vb.pp(stage_block);
                let attn = mixer(&MixerSpec { block, stage_block, ..spec }, vb.clone())?;
                Block::new(cfg, dim, attn, rate, vb)
            };
            let blocks = rates.by_ref().take(blocks).enumerate().map(make).collect::<Result<_>>()?;
            stages.push(Stage { merge, blocks });
        }
        let norm = norm(cfg.stage_dim(3), vb.pp("norm"))?;
        let mut model = Self { config: cfg.clone(), stem, stages, norm, head: None };
        model.reset_classifier(cfg.num_classes, vb)?;
        Ok(model)
    }

    /// Runs the stages and hands the tokens after each to `visit`.
    fn stages_each(
        &self,
        xs: &Tensor,
        train: bool,
        mut visit: impl FnMut(usize, &Tensor, TokenLayout),
    ) -> Result<Tensor> {
        let (mut xs, mut layout) = self.stem.forward(xs)?;
        for (i, stage) in self.stages.iter().enumerate() {
            (xs, layout) = stage.forward(&xs, layout, train)?;
            visit(i, &xs, layout);
        }
        self.norm.forward(&xs)
    }
}

impl Backbone for CSWinTransformer {
    /// Tokens after the final norm, `(B, N, C)`.
    fn forward_features(&self, xs: &Tensor, train: bool) -> Result<Tensor> {
        self.stages_each(xs, train, |_, _, _| {})
    }

    fn forward_head(&self, features: &Tensor, pre_logits: bool, _: bool) -> Result<Tensor> {
        let (_, _, _) = features.dims3()?;
        let pooled = features.mean(1)?; // (B, C)
        match &self.head {
            Some(head) if !pre_logits => head.forward(&pooled),
            _ => Ok(pooled),
        }
    }

    /// Maps after each of the four stages, before the final norm.
    fn forward_intermediates(&self, xs: &Tensor, indices: &[usize], train: bool) -> Result<Intermediates> {
        if let Some(bad) = indices.iter().find(|i| **i >= self.stages.len()) {
            bail!("cswin: no feature map {bad} among {}", self.stages.len())
        }
        let mut maps = vec![];
        let output = self.stages_each(xs, train, |_, xs, layout| maps.push((xs.clone(), layout)))?;
        let as_map = |i: &usize| {
            let (xs, TokenLayout { height, width, .. }) = &maps[*i];
            let (b, _, c) = xs.dims3()?;
            xs.transpose(1, 2)?.reshape((b, c, *height, *width))
        };
        Ok(Intermediates { features: indices.iter().map(as_map).collect::<Result<_>>()?, output })
    }

    fn num_features(&self) -> usize {
        self.config.stage_dim(3)
    }

    fn num_classes(&self) -> usize {
        self.config.num_classes
    }

    fn feature_info(&self) -> Vec<FeatureInfo> {
        let info = |i| FeatureInfo {
            module: format!("stage{}", i + 1),
            channels: self.config.stage_dim(i),
            reduction: 4 << i,
        };
        (0..self.stages.len()).map(info).collect()
    }

    fn reset_classifier(&mut self, num_classes: usize, vb: VarBuilder) -> Result<()> {
        self.head = match num_classes {
            0 => None,
            n => Some(Linear::with_init(self.num_features(), n, true, INIT, vb.pp("head"))?),
        };
        self.config.num_classes = num_classes;
        Ok(())
    }

    fn config(&self) -> BackboneConfig {
        BackboneConfig::Cswin(self.config.clone())
    }
}

impl ModuleT for CSWinTransformer {
    fn forward_t(&self, xs: &Tensor, train: bool) -> Result<Tensor> {
        self.forward_head(&self.forward_features(xs, train)?, false, train)
    }
}

#[cfg(test)]
mod tests {
    use candle_core::{DType, Device};
    use sconce_nn::ParamStore;

    use super::*;
    use crate::ShapeRecorder;

    fn zeros(h: usize, w: usize) -> Tensor {
        Tensor::zeros((1, 3, h, w), DType::F32, &Device::Cpu).unwrap()
    }

    #[test]
    fn the_official_tensors_are_there() {
        let recorder = ShapeRecorder::default();
        CSWinTransformer::new(&Config::cswin_64_12211_tiny_224(), recorder.vb()).unwrap();
        let shapes = recorder.shapes();
        assert_eq!(shapes.len(), 418);
        let shape = |name: &str| shapes.iter().find(|(n, _)| n == name).unwrap_or_else(|| panic!("{name}")).1.dims();
        assert_eq!(shape("stage3.20.attns.1.get_v.weight"), [128, 1, 3, 3]);
        assert_eq!(shape("stage4.0.attns.0.get_v.weight"), [512, 1, 3, 3]);
    }

    #[test]
    fn sizes_that_the_stripes_do_not_divide_are_refused() {
        let store = ParamStore::new(1, DType::F32, &Device::Cpu);
        let model = CSWinTransformer::new(&Config::test_cswin(), store.vb()).unwrap();
        for (h, w) in [(32, 32), (64, 32), (48, 40), (47, 39)] {
            assert_eq!(model.forward_t(&zeros(h, w), false).unwrap().dims(), [1, 10], "{h} x {w}");
        }
        let error = model.forward_t(&zeros(32, 36), false).unwrap_err().to_string();
        assert!(error.contains("stripes of 2") && error.contains("8 x 9"), "{error}");
        for bad in [
            Config { img_size: [2, 32], ..Config::test_cswin() },
            Config { embed_dim: 0, ..Config::test_cswin() },
            Config { embed_dim: usize::MAX, ..Config::test_cswin() },
            Config { num_heads: [2, 2, 4, 5], ..Config::test_cswin() },
            Config { split_size: [0, 1, 2, 1], ..Config::test_cswin() },
        ] {
            assert!(CSWinTransformer::new(&bad, store.vb()).is_err(), "{bad:?}");
        }
    }
}
