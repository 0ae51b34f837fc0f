//! The net itself.

use candle_core::{Result, Tensor, bail};
use sconce_nn::{Linear, Module, ModuleT, VarBuilder};
use sconce_ops::{ConvOptions, global_avg_pool};

use super::{Block, Config, ConvActNorm};
use crate::{Backbone, BackboneConfig, FeatureInfo, Intermediates};

/// ConvMixer, Trockman and Kolter 2022 (`arXiv:2201.09792`), under the names of timm; [`LocuslabKeys`] reads the files
/// of the authors.
///
/// [`LocuslabKeys`]: super::LocuslabKeys
///
/// # Shapes
/// - input `(B, in_chans, H, W)`, normalised as the checkpoint wants
/// - maps `(B, dim, H / patch_size, W / patch_size)` after every block; pixels beyond whole patches are left out
/// - output `(B, num_classes)`, or `(B, dim)` without classifier
#[derive(Debug, Clone)]
pub struct ConvMixer {
    /// The options it was made with.
    pub config: Config,
    /// Embeds patches.
    pub stem: ConvActNorm,
    /// Residual blocks.
    pub blocks: Vec<Block>,
    /// Classifier.
    pub head: Option<Linear>,
}

impl ConvMixer {
    /// A net of these options.
    ///
    /// # Errors
    /// When a size is 0 or `vb` lacks a tensor.
    pub fn new(cfg: &Config, vb: VarBuilder) -> Result<Self> {
        let &Config { in_chans, dim, kernel_size, patch_size, .. } = cfg;
        for (what, size) in
            [("in_chans", in_chans), ("dim", dim), ("kernel_size", kernel_size), ("patch_size", patch_size)]
        {
            if size == 0 {
                bail!("convmixer: {what} is 0")
            }
        }
        let patches = ConvOptions::default().stride(patch_size);
        let stem = ConvActNorm::new(cfg, (in_chans, patch_size), patches, &vb.pp("stem"), 0)?;
        let blocks = (0..cfg.depth).map(|i| Block::new(cfg, vb.pp("blocks").pp(i))).collect::<Result<_>>()?;
        let mut net = Self { config: cfg.clone(), stem, blocks, head: None };
        net.reset_classifier(cfg.num_classes, vb)?;
        Ok(net)
    }
}

impl Backbone for ConvMixer {
    /// The map of the last block.
    fn forward_features(&self, xs: &Tensor, train: bool) -> Result<Tensor> {
        let stem = self.stem.forward_t(xs, train)?;
        self.blocks.iter().try_fold(stem, |xs, block| block.forward_t(&xs, train))
    }

    fn forward_head(&self, features: &Tensor, pre_logits: bool, _train: bool) -> Result<Tensor> {
        let pooled = global_avg_pool(features)?; // (B, dim)
        match &self.head {
            Some(head) if !pre_logits => head.forward(&pooled),
            _ => Ok(pooled),
        }
    }

    /// Maps of the blocks.
    fn forward_intermediates(&self, xs: &Tensor, indices: &[usize], train: bool) -> Result<Intermediates> {
        if let Some(bad) = indices.iter().find(|i| **i >= self.blocks.len()) {
            bail!("convmixer: no feature map {bad} among {}", self.blocks.len())
        }
        let mut xs = self.stem.forward_t(xs, train)?;
        let mut maps = vec![];
        for block in &self.blocks {
            xs = block.forward_t(&xs, train)?;
            maps.push(xs.clone());
        }
        Ok(Intermediates { features: indices.iter().map(|i| maps[*i].clone()).collect(), output: xs })
    }

    fn num_features(&self) -> usize {
        self.config.dim
    }

    fn num_classes(&self) -> usize {
        self.config.num_classes
    }

    fn feature_info(&self) -> Vec<FeatureInfo> {
        let info = |i| FeatureInfo {
            module: format!("blocks.{i}"),
            channels: self.config.dim,
            reduction: self.config.patch_size,
        };
        (0..self.blocks.len()).map(info).collect()
    }

    fn reset_classifier(&mut self, num_classes: usize, vb: VarBuilder) -> Result<()> {
        self.head = match num_classes {
            0 => None,
            n => Some(sconce_nn::linear(self.config.dim, n, vb.pp("head"))?),
        };
        self.config.num_classes = num_classes;
        Ok(())
    }

    fn config(&self) -> BackboneConfig {
        self.config.clone().into()
    }
}

impl ModuleT for ConvMixer {
    fn forward_t(&self, xs: &Tensor, train: bool) -> Result<Tensor> {
        self.forward_head(&self.forward_features(xs, train)?, false, train)
    }
}

#[cfg(test)]
mod tests {
    use candle_core::{DType, Device};
    use sconce_nn::{Generator, ParamStore};

    use super::*;

    fn store() -> ParamStore {
        ParamStore::new(1, DType::F32, &Device::Cpu)
    }

    #[test]
    fn sizes_of_zero_and_pictures_below_a_patch_are_refused() {
        let base = Config::test_convmixer();
        for cfg in [
            Config { dim: 0, ..base.clone() },
            Config { in_chans: 0, ..base.clone() },
            Config { kernel_size: 0, ..base.clone() },
            Config { patch_size: 0, ..base.clone() },
        ] {
            assert!(ConvMixer::new(&cfg, store().vb()).is_err(), "{cfg:?}");
        }
        let net = ConvMixer::new(&base, store().vb()).unwrap();
        assert!(net.forward_t(&Tensor::zeros((1, 3, 3, 32), DType::F32, &Device::Cpu).unwrap(), false).is_err());
        assert!(net.forward_t(&Tensor::zeros((1, 1, 32, 32), DType::F32, &Device::Cpu).unwrap(), false).is_err());
    }

    /// PyTorch's rule for even windows: the extra zeros stand right and below.
    #[test]
    fn even_windows_reach_further_right_and_down() {
        let cfg = Config { dim: 1, kernel_size: 2, ..Config::test_convmixer() };
        let store = store();
        let mut net = ConvMixer::new(&cfg, store.vb()).unwrap();
        let depthwise = &mut net.blocks[0].depthwise;
        let device = &Device::Cpu;
        depthwise.conv.bias = None;
        depthwise.conv.weight = Tensor::new(&[[[[0f32, 0.], [0., 1.]]]], device).unwrap();
        let map = Tensor::arange(0f32, 6., device).unwrap().reshape((1, 1, 2, 3)).unwrap();
        let moved = depthwise.convolve(&map).unwrap().squeeze(0).unwrap().squeeze(0).unwrap();
        assert_eq!(moved.to_vec2::<f32>().unwrap(), [[4., 5., 0.], [0., 0., 0.]]);
    }

    #[test]
    fn half_precision_flows() {
        for dtype in [DType::F16, DType::BF16] {
            let store = ParamStore::new(1, dtype, &Device::Cpu);
            let net = ConvMixer::new(&Config::test_convmixer(), store.vb()).unwrap();
            let xs = Generator::new(2).normal(0.0, 1.0, (1, 3, 32, 32), dtype, &Device::Cpu).unwrap();
            assert_eq!(net.forward_t(&xs, true).unwrap().dtype(), dtype);
        }
    }
}
