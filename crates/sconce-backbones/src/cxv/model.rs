//! The net itself.

use std::sync::Arc;

use candle_core::{Result, Tensor, bail};
use sconce_attention::{MixerSpec, TokenLayout, TokenMixer};
use sconce_nn::{Conv2d, Linear, Module, ModuleT, VarBuilder, conv2d};
use sconce_ops::{ConvOptions, global_avg_pool};

use super::{Config, Layer};
use crate::{Backbone, BackboneConfig, FeatureInfo, Intermediates};

/// Convolutional X-former, Jeevan and Sethi 2022 (`arXiv:2201.10271`), under the authors' names: CLTV, CNV and CPV, by
/// `Config::mixer`.
///
/// The authors' CNV and CPV work on maps of 32 x 32 alone; these take any size.
///
/// # Shapes
/// - input `(B, in_chans, H, W)`
/// - output `(B, num_classes)`, or `(B, emb_dim)` without classifier
#[derive(Debug, Clone)]
pub struct Cxv {
    /// The options it was made with.
    pub config: Config,
    /// Two convolutions with nothing between them.
    pub conv: [Conv2d; 2],
    /// The layers in order.
    pub layers: Vec<Layer>,
    /// Classifier.
    pub head: Option<Linear>,
}

impl Cxv {
    /// A net with the mixer of its options.
    ///
    /// # Errors
    /// When the options contradict each other or `vb` lacks a tensor.
    pub fn new(cfg: &Config, vb: VarBuilder) -> Result<Self> {
        Self::with_mixer(cfg, vb, |spec, vb| cfg.mixer(spec, vb))
    }

    /// A net whose layers take their token mixer from `mixer`, which is called once a layer with the path
    /// `layers.<i>.2.layers.0.0`.
    ///
    /// # Errors
    /// When the options contradict each other, `vb` lacks a tensor, or `mixer` fails.
    pub fn with_mixer(
        cfg: &Config,
        vb: VarBuilder,
        mixer: impl Fn(&MixerSpec, VarBuilder) -> Result<Arc<dyn TokenMixer>>,
    ) -> Result<Self> {
        let Config { in_chans, emb_dim, emb_kernel, emb_stride, stem_stride, .. } = *cfg;
        if [emb_dim, in_chans, emb_kernel, emb_stride, stem_stride].contains(&0) || !emb_dim.is_multiple_of(4) {
            bail!(
                "cxv: no net of {emb_dim} channels (a multiple of 4), {in_chans} channels of the picture, windows of \
                 {emb_kernel}, strides {emb_stride} and {stem_stride}"
            )
        }
        let stem = ConvOptions::default().stride(stem_stride).padding(1);
        let conv = [
            conv2d(in_chans, emb_dim / 4, 3, stem, vb.pp("conv").pp(0))?,
            conv2d(emb_dim / 4, emb_dim / 2, 3, stem, vb.pp("conv").pp(1))?,
        ];
        let layers = (0..cfg.depth).map(|i| {
            let side = |pixels: usize| pixels.div_ceil(cfg.reduction(i + 1));
            let spec = MixerSpec {
                block: i,
                depth: cfg.depth,
                stage: 0,
                stage_block: i,
                dim: emb_dim,
                heads: cfg.heads,
                qkv_bias: true,
                attn_drop: 0.0,
                proj_drop: cfg.attn_dropout,
                layout: TokenLayout { prefix: 0, height: side(cfg.img_size[0]), width: side(cfg.img_size[1]) },
            };
            let vb = vb.pp("layers").pp(i);
            let input = if i == 0 { emb_dim / 2 } else { emb_dim };
            Layer::new(cfg, input, mixer(&spec, vb.pp("2.layers.0.0"))?, vb)
        });
        let layers = layers.collect::<Result<Vec<_>>>()?;
        if layers.is_empty() {
            bail!("cxv: a net without layers")
        }
        let mut net = Self { config: cfg.clone(), conv, layers, head: None };
        net.reset_classifier(cfg.num_classes, vb)?;
        Ok(net)
    }

    /// The two convolutions before the layers.
    ///
    /// # Shapes
    /// - `xs` `(B, in_chans, H, W)`, output `(B, emb_dim / 2, H, W)`, smaller by `stem_stride^2`
    ///
    /// # Errors
    /// When the input does not fit.
    pub fn forward_stem(&self, xs: &Tensor) -> Result<Tensor> {
        self.conv[1].forward(&self.conv[0].forward(xs)?)
    }
}

impl Backbone for Cxv {
    /// The map of the last layer.
    fn forward_features(&self, xs: &Tensor, train: bool) -> Result<Tensor> {
        let mut xs = self.forward_stem(xs)?;
        for layer in &self.layers {
            xs = layer.forward_t(&xs, train)?;
        }
        Ok(xs)
    }

    fn forward_head(&self, features: &Tensor, pre_logits: bool, _train: bool) -> Result<Tensor> {
        let pooled = global_avg_pool(features)?; // (B, C)
        match &self.head {
            Some(head) if !pre_logits => head.forward(&pooled),
            _ => Ok(pooled),
        }
    }

    /// Maps of the layers `indices`.
    fn forward_intermediates(&self, xs: &Tensor, indices: &[usize], train: bool) -> Result<Intermediates> {
        if let Some(bad) = indices.iter().find(|i| **i >= self.layers.len()) {
            bail!("cxv: no layer {bad} among {}", self.layers.len())
        }
        let mut xs = self.forward_stem(xs)?;
        let mut maps = Vec::with_capacity(self.layers.len());
        for layer in &self.layers {
            xs = layer.forward_t(&xs, train)?;
            maps.push(xs.clone());
        }
        Ok(Intermediates { features: indices.iter().map(|i| maps[*i].clone()).collect(), output: xs })
    }

    fn num_features(&self) -> usize {
        self.config.emb_dim
    }

    fn num_classes(&self) -> usize {
        self.config.num_classes
    }

    fn feature_info(&self) -> Vec<FeatureInfo> {
        let info = |i| FeatureInfo {
            module: format!("layers.{i}"),
            channels: self.config.emb_dim,
            reduction: self.config.reduction(i + 1),
        };
        (0..self.layers.len()).map(info).collect()
    }

    fn reset_classifier(&mut self, num_classes: usize, vb: VarBuilder) -> Result<()> {
        self.head = match num_classes {
            0 => None,
            n => Some(sconce_nn::linear(self.config.emb_dim, n, vb.pp("head").pp(2))?),
        };
        self.config.num_classes = num_classes;
        Ok(())
    }

    fn config(&self) -> BackboneConfig {
        self.config.clone().into()
    }
}

impl ModuleT for Cxv {
    fn forward_t(&self, xs: &Tensor, train: bool) -> Result<Tensor> {
        self.forward_head(&self.forward_features(xs, train)?, false, train)
    }
}

#[cfg(test)]
mod tests {
    use candle_core::{DType, Device};
    use sconce_nn::{Generator, ParamStore};

    use super::*;

    fn store(dtype: DType) -> ParamStore {
        ParamStore::new(1, dtype, &Device::Cpu)
    }

    fn pictures(b: usize, dtype: DType) -> Tensor {
        Generator::new(2).normal(0.0, 1.0, (b, 3, 32, 32), dtype, &Device::Cpu).unwrap()
    }

    #[test]
    fn pictures_are_by_themselves_unless_compatible_with_the_authors() {
        for (cfg, always) in [(Config::test_cltv(), true), (Config::test_cnv(), false), (Config::test_cpv(), false)] {
            for compat in [true, false] {
                let store = store(DType::F64);
                let net = Cxv::new(&Config { compat, ..cfg.clone() }, store.vb()).unwrap();
                // Weights that let the maxima show in the numbers.
                for param in store.parameters().iter().filter(|p| p.name.contains("2.layers.0.0.to_")) {
                    store.set(&param.name, &(param.var.as_tensor() * 4.0).unwrap()).unwrap();
                }
                let xs = pictures(3, DType::F64);
                let all = net.forward_t(&xs, false).unwrap().narrow(0, 0, 1).unwrap();
                let alone = net.forward_t(&xs.narrow(0, 0, 1).unwrap(), false).unwrap();
                let change = (all - alone).unwrap().abs().unwrap().max_all().unwrap().to_scalar::<f64>().unwrap();
                assert_eq!(change > 1e-10, compat && !always, "{:?}, compat {compat}: {change}", cfg.mixer);
            }
        }
    }

    #[test]
    fn options_that_make_no_sense_are_refused() {
        let base = Config::test_cnv();
        for cfg in [
            Config { emb_dim: 6, ..base.clone() },
            Config { emb_dim: 0, ..base.clone() },
            Config { in_chans: 0, ..base.clone() },
            Config { emb_stride: 0, ..base.clone() },
            Config { stem_stride: 0, ..base.clone() },
            Config { emb_kernel: 0, ..base.clone() },
            Config { heads: 0, ..base.clone() },
            Config { dim_head: 0, ..Config::test_cltv() },
            Config { heads: 0, ..Config::test_cpv() },
            Config { depth: 0, ..base.clone() },
            Config { mlp_mult: 0, ..base.clone() },
            Config { num_landmarks: 0, ..base.clone() },
        ] {
            assert!(Cxv::new(&cfg, store(DType::F32).vb()).is_err(), "{cfg:?}");
        }
        let net = Cxv::new(&base, store(DType::F32).vb()).unwrap();
        assert!(net.forward_t(&Tensor::zeros((1, 1, 32, 32), DType::F32, &Device::Cpu).unwrap(), false).is_err());
    }

    #[test]
    fn strides_shrink_the_map_where_they_should() {
        let sides = |cfg: &Config| {
            let net = Cxv::new(cfg, store(DType::F32).vb()).unwrap();
            let maps = net.forward_intermediates(&pictures(1, DType::F32), &[0, 1], false).unwrap().features;
            let reductions: Vec<usize> = net.feature_info().iter().map(|info| info.reduction).collect();
            (maps.iter().map(|map| map.dims()[3]).collect::<Vec<_>>(), reductions)
        };
        assert_eq!(sides(&Config::test_cltv()), (vec![16, 8], vec![2, 4]));
        assert_eq!(sides(&Config::test_cnv()), (vec![8, 8], vec![4, 4]));
        assert_eq!(sides(&Config { stem_stride: 1, ..Config::test_cpv() }), (vec![32, 32], vec![1, 1]));
    }

    #[test]
    fn half_precision_flows() {
        for dtype in [DType::F16, DType::BF16] {
            for cfg in [Config::test_cltv(), Config::test_cnv(), Config::test_cpv()] {
                let net = Cxv::new(&cfg, store(dtype).vb()).unwrap();
                assert_eq!(net.forward_t(&pictures(1, dtype), true).unwrap().dtype(), dtype);
            }
        }
    }
}
