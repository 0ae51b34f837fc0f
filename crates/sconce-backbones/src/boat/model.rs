//! The BOAT transformer itself.

use std::cell::RefCell;
use std::sync::Arc;

use candle_core::{Result, Tensor};
use sconce_attention::{BilateralAttention, CrossShapedAttention, MixerSpec, TokenMixer, WindowAttention};
use sconce_nn::{ModuleT, VarBuilder, layer_norm};

use super::{Config, HostConfig};
use crate::config::ModelConfig;
use crate::{Backbone, BackboneConfig, CSWinTransformer, FeatureInfo, Intermediates, SwinTransformer, cswin, swin};

/// BOAT, Yu et al. 2022, "BOAT: Bilateral Local Attention Vision Transformer" (`arXiv:2201.13027`), under the official names: a
/// Swin or CSWin transformer, some of whose blocks let tokens see others that look alike wherever they stand, after those
/// nearby.
///
/// Takes pictures of any size that the host takes and whose maps [halve evenly](sconce_attention::ClusterOptions::leaves).
///
/// # Shapes
/// - input `(B, in_chans, H, W)`, normalised as the checkpoint wants
/// - output `(B, num_classes)`, or `(B, num_features)` without classifier
#[derive(Debug, Clone)]
pub struct BoatTransformer {
    /// The options it was made with.
    pub config: Config,
    /// The transformer, with the attention among similar tokens in its blocks.
    pub host: Host,
}

/// The transformer that the attention among similar tokens is added to.
#[derive(Debug, Clone)]
pub enum Host {
    /// Of windows.
    Swin(SwinTransformer),
    /// Of stripes.
    Cswin(CSWinTransformer),
}

impl BoatTransformer {
    /// A model with the host's own attention and [`BilateralAttention`], the original.
    ///
    /// # Errors
    /// When the options contradict each other or `vb` lacks a tensor.
    pub fn new(cfg: &Config, vb: VarBuilder) -> Result<Self> {
        Self::with_mixers(
            cfg,
            vb,
            |spec, vb| {
                Ok(match &cfg.host {
                    HostConfig::Swin(host) => Arc::new(WindowAttention::new(&host.window_attention(spec), vb)?),
                    HostConfig::Cswin(host) => {
                        Arc::new(CrossShapedAttention::new(&host.cross_shaped_attention(spec), vb)?)
                    }
                })
            },
            |spec, vb| Ok(Arc::new(BilateralAttention::new(&cfg.content_attention(spec), vb)?)),
        )
    }

    /// A model whose blocks take the host's token mixer from `mixer`, under the paths of the host, and the second one from
    /// `content`, under `layers.<stage>.blocks.<i>.attnC` or `stage<1..4>.<i>.content_attn`.
    ///
    /// # Errors
    /// When the options contradict each other, `vb` lacks a tensor, or a closure fails.
    pub fn with_mixers(
        cfg: &Config,
        vb: VarBuilder,
        mixer: impl Fn(&MixerSpec, VarBuilder) -> Result<Arc<dyn TokenMixer>>,
        content: impl Fn(&MixerSpec, VarBuilder) -> Result<Arc<dyn TokenMixer>>,
    ) -> Result<Self> {
        // Of all blocks in order, with their paths.
        let specs = RefCell::new(vec![]);
        let noted = |spec: &MixerSpec, vb: VarBuilder| {
            specs.borrow_mut().push(*spec);
            mixer(spec, vb)
        };
        let host = match &cfg.host {
            HostConfig::Swin(host) => {
                let mut model = SwinTransformer::with_mixer(host, vb.clone(), noted)?;
                let blocks = model.layers.iter_mut().flat_map(|stage| &mut stage.blocks);
                for (block, spec) in blocks.zip(specs.take()).filter(|(_, spec)| cfg.has_content(spec)) {
                    let vb = vb.pp("layers").pp(spec.stage).pp("blocks").pp(spec.stage_block);
                    block.content = Some(swin::Content {
                        norm4: layer_norm(spec.dim, host.norm_eps, vb.pp("norm4"))?,
                        attn_c: content(&spec, vb.pp("attnC"))?,
                    });
                }
                Host::Swin(model)
            }
            HostConfig::Cswin(host) => {
                let mut model = CSWinTransformer::with_mixer(host, vb.clone(), noted)?;
                let blocks = model.stages.iter_mut().flat_map(|stage| &mut stage.blocks);
                for (block, spec) in blocks.zip(specs.take()).filter(|(_, spec)| cfg.has_content(spec)) {
                    let vb = vb.pp(format!("stage{}", spec.stage + 1)).pp(spec.stage_block);
                    block.content = Some(cswin::Content {
                        norm3: layer_norm(spec.dim, host.norm_eps, vb.pp("norm3"))?,
                        content_attn: content(&spec, vb.pp("content_attn"))?,
                    });
                }
                Host::Cswin(model)
            }
        };
        Ok(Self { config: cfg.clone(), host })
    }

    fn backbone(&self) -> &dyn Backbone {
        match &self.host {
            Host::Swin(model) => model,
            Host::Cswin(model) => model,
        }
    }
}

impl Backbone for BoatTransformer {
    /// Tokens after the final norm, `(B, N, C)`.
    fn forward_features(&self, xs: &Tensor, train: bool) -> Result<Tensor> {
        self.backbone().forward_features(xs, train)
    }

    fn forward_head(&self, features: &Tensor, pre_logits: bool, train: bool) -> Result<Tensor> {
        self.backbone().forward_head(features, pre_logits, train)
    }

    fn forward_intermediates(&self, xs: &Tensor, indices: &[usize], train: bool) -> Result<Intermediates> {
        self.backbone().forward_intermediates(xs, indices, train)
    }

    fn num_features(&self) -> usize {
        self.backbone().num_features()
    }

    fn num_classes(&self) -> usize {
        self.backbone().num_classes()
    }

    fn feature_info(&self) -> Vec<FeatureInfo> {
        self.backbone().feature_info()
    }

    fn reset_classifier(&mut self, num_classes: usize, vb: VarBuilder) -> Result<()> {
        match &mut self.host {
            Host::Swin(model) => model.reset_classifier(num_classes, vb)?,
            Host::Cswin(model) => model.reset_classifier(num_classes, vb)?,
        }
        self.config.set_num_classes(num_classes);
        Ok(())
    }

    fn config(&self) -> BackboneConfig {
        BackboneConfig::Boat(self.config.clone())
    }
}

impl ModuleT for BoatTransformer {
    fn forward_t(&self, xs: &Tensor, train: bool) -> Result<Tensor> {
        self.forward_head(&self.forward_features(xs, train)?, false, train)
    }
}

#[cfg(test)]
mod tests {
    use candle_core::{D, DType, Device};
    use sconce_nn::{Generator, ParamStore};

    use super::*;
    use crate::ShapeRecorder;

    #[test]
    fn second_mixers_stand_where_the_official_code_has_them() {
        let names = |cfg: &Config| {
            let recorder = ShapeRecorder::default();
            BoatTransformer::new(cfg, recorder.vb()).unwrap();
            recorder.shapes().into_iter().map(|(name, _)| name).collect::<Vec<_>>()
        };
        let count = |names: &[String], part: &str| names.iter().filter(|name| name.contains(part)).count();
        let swin = names(&Config::boat_swin_tiny_patch4_window7_224());
        // Shifted blocks of the first three stages: 1, 1 and 3.
        assert_eq!((count(&swin, ".norm4."), count(&swin, ".attnC.")), (5 * 2, 5 * 6));
        assert!(swin.iter().any(|name| name == "layers.2.blocks.5.attnC.get_v.weight"));
        let cswin = names(&Config::boat_cswin_64_12211_tiny_224());
        // Blocks of even number: 1, 1, 11 and 1.
        assert_eq!((count(&cswin, ".norm3."), count(&cswin, ".content_attn.")), (14 * 2, 14 * 6));
        assert_eq!(cswin.len(), 530);
        assert_eq!(names(&Config::boat_cswin_96_24322_base_224()).len(), 816);
    }

    #[test]
    fn neighbours_in_the_batch_matter_only_under_compat() {
        let xs = |seed| Generator::new(seed).normal(0.0, 1.0, (2, 3, 32, 32), DType::F32, &Device::Cpu).unwrap();
        let (a, b) = (xs(1), xs(2));
        let mixed = Tensor::cat(&[a.narrow(0, 0, 1).unwrap(), b.narrow(0, 1, 1).unwrap()], 0).unwrap();
        for compat in [false, true] {
            let cfg = Config { compat, ..Config::test_boat_cswin() };
            let model = BoatTransformer::new(&cfg, ParamStore::new(1, DType::F32, &Device::Cpu).vb()).unwrap();
            let first = |xs: &Tensor| model.forward_t(xs, false).unwrap().narrow(0, 0, 1).unwrap();
            let difference = (first(&a) - first(&mixed)).unwrap().abs().unwrap().flatten_all().unwrap();
            assert_eq!(difference.max(D::Minus1).unwrap().to_scalar::<f32>().unwrap() > 0.0, compat);
            assert_eq!(model.forward_t(&a.narrow(0, 0, 1).unwrap(), false).is_err(), compat);
        }
    }

    #[test]
    fn maps_that_do_not_halve_evenly_are_refused() {
        let cfg = Config { leaf: 4, ..Config::test_boat_cswin() };
        let model = BoatTransformer::new(&cfg, ParamStore::new(1, DType::F32, &Device::Cpu).vb()).unwrap();
        let xs = Tensor::zeros((1, 3, 48, 40), DType::F32, &Device::Cpu).unwrap();
        let error = model.forward_t(&xs, false).unwrap_err().to_string();
        assert!(error.contains("120 tokens"), "{error}");
    }
}
