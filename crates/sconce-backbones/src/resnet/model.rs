//! The net itself.

use candle_core::{Result, Tensor, bail};
use sconce_nn::{BatchNorm, Conv2d, Dropout, Linear, Module, ModuleT, VarBuilder, drop_path_rates};
use sconce_ops::{ConvOptions, PoolOptions, global_avg_pool, max_pool2d, relu};

use super::block::{Place, batch_norm, conv};
use super::{Block, Config};
use crate::{Backbone, BackboneConfig, FeatureInfo, Intermediates};

/// Residual network, He et al. 2016 (`arXiv:1512.03385`), under the names of torchvision and timm.
///
/// # Shapes
/// - input `(B, in_chans, H, W)`, normalised as the checkpoint wants
/// - output `(B, num_classes)`, or `(B, num_features)` without classifier
#[derive(Debug, Clone)]
pub struct ResNet {
    /// The options it was made with.
    pub config: Config,
    /// 7x7 convolution of stride 2.
    pub conv1: Conv2d,
    /// Norm of the stem.
    pub bn1: BatchNorm,
    /// `layer1` to `layer4`.
    pub stages: Vec<Vec<Block>>,
    /// Dropout before the classifier.
    pub head_drop: Dropout,
    /// Classifier.
    pub fc: Option<Linear>,
}

impl ResNet {
    /// A net of these options.
    ///
    /// # Errors
    /// When the options contradict each other or `vb` lacks a tensor.
    pub fn new(cfg: &Config, vb: VarBuilder) -> Result<Self> {
        if !matches!(cfg.output_stride, 8 | 16 | 32) {
            bail!("resnet: output stride {} is none of 8, 16, 32", cfg.output_stride)
        }
        let stem = ConvOptions::default().stride(2).padding(3);
        let conv1 = conv(cfg.in_chans, cfg.stem, 7, stem, vb.pp("conv1"))?;
        let bn1 = batch_norm(cfg, cfg.stem, vb.pp("bn1"))?;
        let mut rates = drop_path_rates(cfg.drop_path_rate, cfg.layers.iter().sum()).into_iter();
        let (mut input, mut reduction, mut dilation, mut first_dilation) = (cfg.stem, 4, 1, 1);
        let mut stages = vec![];
        for (stage, (&depth, &width)) in cfg.layers.iter().zip(&cfg.channels).enumerate() {
            let mut stride = if stage == 0 { 1 } else { 2 };
            if reduction * stride > cfg.output_stride {
                (dilation, stride) = (dilation * stride, 1);
            }
            reduction *= stride;
            let mut blocks = vec![];
            for index in 0..depth {
                let stride = if index == 0 { stride } else { 1 };
                let drop_path = rates.next().unwrap_or(0.0);
                let place = Place { input, width, stride, first_dilation, dilation, drop_path };
                blocks.push(Block::new(cfg, &place, vb.pp(format!("layer{}", stage + 1)).pp(index))?);
                input = width * cfg.block.expansion();
                first_dilation = dilation;
            }
            stages.push(blocks);
        }
        let head_drop = Dropout::new(cfg.drop_rate);
        let mut net = Self { config: cfg.clone(), conv1, bn1, stages, head_drop, fc: None };
        net.reset_classifier(cfg.num_classes, vb)?;
        Ok(net)
    }

    /// The map of the first activation, at half the resolution.
    fn act1(&self, xs: &Tensor, train: bool) -> Result<Tensor> {
        relu(&self.bn1.forward_t(&self.conv1.forward(xs)?, train)?)
    }

    /// The stem: convolution, norm, ReLU and max pooling.
    ///
    /// # Shapes
    /// - `xs` `(B, in_chans, H, W)`, output `(B, stem, H / 4, W / 4)`
    ///
    /// # Errors
    /// When the input does not fit.
    pub fn forward_stem(&self, xs: &Tensor, train: bool) -> Result<Tensor> {
        pool(&self.act1(xs, train)?)
    }

    /// Sets whether the batch norms keep their running statistics and normalise with them, also in training.
    pub fn set_frozen_bn(&mut self, frozen: bool) {
        self.config.frozen_bn = frozen;
        self.bn1.frozen = frozen;
        for block in self.stages.iter_mut().flatten() {
            for conv in block.convs.iter_mut().chain(&mut block.downsample) {
                conv.bn.frozen = frozen;
            }
        }
    }
}

fn pool(xs: &Tensor) -> Result<Tensor> {
    max_pool2d(xs, &PoolOptions::new(3).stride(2).padding(1))
}

impl Backbone for ResNet {
    /// The map of the last stage.
    fn forward_features(&self, xs: &Tensor, train: bool) -> Result<Tensor> {
        let mut xs = self.forward_stem(xs, train)?;
        for block in self.stages.iter().flatten() {
            xs = block.forward_t(&xs, train)?;
        }
        Ok(xs)
    }

    fn forward_head(&self, features: &Tensor, pre_logits: bool, train: bool) -> Result<Tensor> {
        let pooled = global_avg_pool(features)?; // (B, C)
        let pooled = self.head_drop.forward_t(&pooled, train)?;
        match &self.fc {
            Some(fc) if !pre_logits => fc.forward(&pooled),
            _ => Ok(pooled),
        }
    }

    /// Maps of the first activation (number 0) and of the four stages.
    fn forward_intermediates(&self, xs: &Tensor, indices: &[usize], train: bool) -> Result<Intermediates> {
        if let Some(bad) = indices.iter().find(|i| **i > self.stages.len()) {
            bail!("resnet: no feature map {bad} among {}", self.stages.len() + 1)
        }
        let mut maps = vec![self.act1(xs, train)?];
        let mut xs = pool(&maps[0])?;
        for stage in &self.stages {
            for block in stage {
                xs = block.forward_t(&xs, train)?;
            }
            maps.push(xs.clone());
        }
        Ok(Intermediates { features: indices.iter().map(|i| maps[*i].clone()).collect(), output: xs })
    }

    fn num_features(&self) -> usize {
        self.config.stage_channels()[3]
    }

    fn num_classes(&self) -> usize {
        self.config.num_classes
    }

    fn feature_info(&self) -> Vec<FeatureInfo> {
        let stem = FeatureInfo { module: "act1".into(), channels: self.config.stem, reduction: 2 };
        let stages = self.config.stage_channels().into_iter().enumerate().map(|(i, channels)| FeatureInfo {
            module: format!("layer{}", i + 1),
            channels,
            reduction: (4 << i).min(self.config.output_stride),
        });
        std::iter::once(stem).chain(stages).collect()
    }

    fn reset_classifier(&mut self, num_classes: usize, vb: VarBuilder) -> Result<()> {
        self.fc = match num_classes {
            0 => None,
            n => Some(sconce_nn::linear(self.num_features(), n, vb.pp("fc"))?),
        };
        self.config.num_classes = num_classes;
        Ok(())
    }

    fn config(&self) -> BackboneConfig {
        BackboneConfig::Resnet(self.config.clone())
    }
}

impl ModuleT for ResNet {
    fn forward_t(&self, xs: &Tensor, train: bool) -> Result<Tensor> {
        self.forward_head(&self.forward_features(xs, train)?, false, train)
    }
}

#[cfg(test)]
mod tests {
    use candle_core::{D, DType, Device};
    use sconce_nn::{Generator, ParamStore};

    use super::super::{BlockKind, StrideIn};
    use super::*;

    fn store() -> ParamStore {
        ParamStore::new(1, DType::F32, &Device::Cpu)
    }

    fn picture() -> Tensor {
        Generator::new(2).normal(0.0, 1.0, (2, 3, 64, 64), DType::F32, &Device::Cpu).unwrap()
    }

    fn distance(a: &Tensor, b: &Tensor) -> f32 {
        (a - b).unwrap().abs().unwrap().flatten_all().unwrap().max(D::Minus1).unwrap().to_scalar().unwrap()
    }

    #[test]
    fn dilation_replaces_stride_with_the_same_tensors() {
        for cfg in [Config::test_resnet_basic(), Config::test_resnet_bottleneck()] {
            let store = store();
            for (output_stride, sides) in [(32, [16, 8, 4, 2]), (16, [16, 8, 4, 4]), (8, [16, 8, 8, 8])] {
                let net = ResNet::new(&Config { output_stride, ..cfg.clone() }, store.vb()).unwrap();
                let maps = net.forward_intermediates(&picture(), &[1, 2, 3, 4], false).unwrap().features;
                let found: Vec<usize> = maps.iter().map(|map| map.dims()[3]).collect();
                assert_eq!(found, sides, "output stride {output_stride}");
                let last = net.stages[3][0].convs.iter().map(|c| c.conv.options.dilation[0]).max();
                // The first block of a stage still has the dilation of the stage before; basic blocks end with their own.
                let expected = match (output_stride, cfg.block) {
                    (32, _) | (16, BlockKind::Bottleneck) => 1,
                    (16, BlockKind::Basic) | (8, BlockKind::Bottleneck) => 2,
                    _ => 4,
                };
                assert_eq!(last, Some(expected), "output stride {output_stride}");
            }
        }
        assert!(ResNet::new(&Config { output_stride: 4, ..Config::resnet18() }, store().vb()).is_err());
        assert!(ResNet::new(&Config { groups: 2, ..Config::test_resnet_basic() }, store().vb()).is_err());
    }

    #[test]
    fn caffe_weights_stride_in_the_first_convolution() {
        let strides = |stride_in| {
            let cfg = Config { stride_in, output_stride: 32, ..Config::test_resnet_bottleneck() };
            let net = ResNet::new(&cfg, store().vb()).unwrap();
            net.stages[1][0].convs.iter().map(|c| c.conv.options.stride[0]).collect::<Vec<_>>()
        };
        assert_eq!(strides(StrideIn::Conv2), [1, 2, 1]);
        assert_eq!(strides(StrideIn::Conv1), [2, 1, 1]);
    }

    #[test]
    fn frozen_norms_keep_their_statistics_in_training() {
        let cfg = Config { zero_init_last: false, ..Config::test_resnet_basic() };
        let mut net = ResNet::new(&cfg, store().vb()).unwrap();
        let xs = picture();
        let evaluated = net.forward_t(&xs, false).unwrap();
        net.set_frozen_bn(true);
        assert_eq!(distance(&net.forward_t(&xs, true).unwrap(), &evaluated), 0.0);
        assert_eq!(distance(&net.forward_t(&xs, false).unwrap(), &evaluated), 0.0);
        net.set_frozen_bn(false);
        assert!(distance(&net.forward_t(&xs, true).unwrap(), &evaluated) > 1e-3);
        assert!(distance(&net.forward_t(&xs, false).unwrap(), &evaluated) > 1e-4, "statistics have moved");
    }

    #[test]
    fn parameters_start_as_in_timm_or_torchvision() {
        let values =
            |store: &ParamStore, name: &str| store.get(name).unwrap().flatten_all().unwrap().to_vec1::<f32>().unwrap();
        for zero_init_last in [true, false] {
            let cfg = Config { zero_init_last, ..Config::test_resnet_bottleneck() };
            let store = store();
            ResNet::new(&cfg, store.vb()).unwrap();
            let last = if zero_init_last { 0.0 } else { 1.0 };
            assert!(values(&store, "layer2.1.bn3.weight").iter().all(|v| *v == last));
            assert!(values(&store, "layer2.1.bn2.weight").iter().all(|v| *v == 1.0));
            assert!(values(&store, "layer2.0.downsample.1.weight").iter().all(|v| *v == 1.0));
            // He et al. 2015 by outputs: variance 2 / (channels out * kernel area).
            let weight = values(&store, "layer4.0.conv2.weight");
            let variance = weight.iter().map(|v| v * v).sum::<f32>() / weight.len() as f32;
            assert!((variance * (24.0 * 9.0) / 2.0 - 1.0).abs() < 0.1, "{variance}");
        }
    }
}
