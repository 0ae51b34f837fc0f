//! The net itself.

use candle_core::{Result, Tensor, bail};
use sconce_nn::{Dropout, Init, Linear, Module, ModuleT, VarBuilder, init};
use sconce_ops::global_avg_pool;

use super::block::Sizes;
use super::{Config, ConvBn, InvertedResidual};
use crate::{Backbone, BackboneConfig, FeatureInfo, Intermediates};

/// EfficientNet-Lite under the names of the classic PyTorch port (`_conv_stem`, `_blocks.0._depthwise_conv`, `_fc`);
/// [`TimmKeys`](super::TimmKeys) reads timm's files.
///
/// # Shapes
/// - input `(B, in_chans, H, W)`, normalised as the checkpoint wants
/// - features `(B, head, H / 32, W / 32)`
/// - output `(B, num_classes)`, or `(B, head)` without classifier
#[derive(Debug, Clone)]
pub struct EfficientNetLite {
    /// The options it was made with.
    pub config: Config,
    /// 3x3 convolution of stride 2.
    pub stem: ConvBn,
    /// Inverted residuals of all stages.
    pub blocks: Vec<InvertedResidual>,
    /// 1x1 convolution to the classifier's width.
    pub head: ConvBn,
    /// Dropout before the classifier.
    pub head_drop: Dropout,
    /// Classifier.
    pub fc: Option<Linear>,
}

impl EfficientNetLite {
    /// A net of these options.
    ///
    /// # Errors
    /// When a size is 0 or `vb` lacks a tensor.
    pub fn new(cfg: &Config, vb: VarBuilder) -> Result<Self> {
        if [cfg.in_chans, cfg.stem, cfg.head].contains(&0) {
            bail!("efficientnet_lite: in_chans, stem or head is 0")
        }
        for stage in &cfg.stages {
            if [stage.depth, stage.kernel_size, stage.stride, stage.expand_ratio, stage.channels].contains(&0) {
                bail!("efficientnet_lite: a size of 0 in {stage:?}")
            }
        }
        let stem = Sizes { input: cfg.in_chans, output: cfg.stem, kernel: 3, stride: 2, depthwise: false };
        let stem = ConvBn::new(cfg, stem, &vb, ("_conv_stem", "_bn0"))?;
        let total = cfg.places().count().max(1) as f64;
        let mut input = cfg.stem;
        let mut blocks = vec![];
        for (number, place) in cfg.places().enumerate() {
            let drop_path = cfg.drop_path_rate * number as f64 / total;
            blocks.push(InvertedResidual::new(cfg, input, place, drop_path, &vb.pp("_blocks").pp(number))?);
            input = cfg.stages[place.0].channels;
        }
        let head = Sizes { input, output: cfg.head, kernel: 1, stride: 1, depthwise: false };
        let head = ConvBn::new(cfg, head, &vb, ("_conv_head", "_bn1"))?;
        let head_drop = Dropout::new(cfg.drop_rate);
        let mut net = Self { config: cfg.clone(), stem, blocks, head, head_drop, fc: None };
        net.reset_classifier(cfg.num_classes, vb)?;
        Ok(net)
    }

    fn act(&self, xs: &Tensor) -> Result<Tensor> {
        self.config.act.forward(xs)
    }

    fn forward_stem(&self, xs: &Tensor, train: bool) -> Result<Tensor> {
        self.act(&self.stem.forward_t(xs, train)?)
    }

    fn forward_neck(&self, xs: &Tensor, train: bool) -> Result<Tensor> {
        self.act(&self.head.forward_t(xs, train)?)
    }

    /// Numbers of the last blocks before each change of resolution, with channels and reduction.
    fn ends(&self) -> Vec<(usize, usize, usize)> {
        let (mut reduction, mut number) = (2, 0);
        let mut ends: Vec<(usize, usize, usize)> = vec![];
        for stage in &self.config.stages {
            reduction *= stage.stride;
            number += stage.depth;
            if ends.last().is_some_and(|end| end.2 == reduction) {
                ends.pop();
            }
            ends.push((number - 1, stage.channels, reduction));
        }
        ends
    }
}

impl Backbone for EfficientNetLite {
    /// The map of the head.
    fn forward_features(&self, xs: &Tensor, train: bool) -> Result<Tensor> {
        let stem = self.forward_stem(xs, train)?;
        let last = self.blocks.iter().try_fold(stem, |xs, block| block.forward_t(&xs, train))?;
        self.forward_neck(&last, train)
    }

    fn forward_head(&self, features: &Tensor, pre_logits: bool, train: bool) -> Result<Tensor> {
        let pooled = self.head_drop.forward_t(&global_avg_pool(features)?, train)?; // (B, head)
        match &self.fc {
            Some(fc) if !pre_logits => fc.forward(&pooled),
            _ => Ok(pooled),
        }
    }

    /// Maps of the last block of each resolution.
    fn forward_intermediates(&self, xs: &Tensor, indices: &[usize], train: bool) -> Result<Intermediates> {
        let ends = self.ends();
        if let Some(bad) = indices.iter().find(|i| **i >= ends.len()) {
            bail!("efficientnet_lite: no feature map {bad} among {}", ends.len())
        }
        let mut xs = self.forward_stem(xs, train)?;
        let mut maps = vec![];
        for (number, block) in self.blocks.iter().enumerate() {
            xs = block.forward_t(&xs, train)?;
            if ends.iter().any(|end| end.0 == number) {
                maps.push(xs.clone());
            }
        }
        let features = indices.iter().map(|i| maps[*i].clone()).collect();
        Ok(Intermediates { features, output: self.forward_neck(&xs, train)? })
    }

    fn num_features(&self) -> usize {
        self.config.head
    }

    fn num_classes(&self) -> usize {
        self.config.num_classes
    }

    fn feature_info(&self) -> Vec<FeatureInfo> {
        let info =
            |(number, channels, reduction)| FeatureInfo { module: format!("_blocks.{number}"), channels, reduction };
        self.ends().into_iter().map(info).collect()
    }

    fn reset_classifier(&mut self, num_classes: usize, vb: VarBuilder) -> Result<()> {
        self.fc = match num_classes {
            0 => None,
            n => {
                let (vb, bound) = (vb.pp("_fc"), (n as f64).sqrt().recip());
                let weight =
                    init::param(&vb, (n, self.config.head), "weight", Init::Uniform { lo: -bound, hi: bound })?;
                Some(Linear::new(weight, Some(init::param(&vb, n, "bias", Init::Zeros)?)))
            }
        };
        self.config.num_classes = num_classes;
        Ok(())
    }

    fn config(&self) -> BackboneConfig {
        self.config.clone().into()
    }
}

impl ModuleT for EfficientNetLite {
    fn forward_t(&self, xs: &Tensor, train: bool) -> Result<Tensor> {
        self.forward_head(&self.forward_features(xs, train)?, false, train)
    }
}
