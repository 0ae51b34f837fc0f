//! The model itself.

use std::sync::Arc;

use candle_core::{Result, Tensor, bail};
use sconce_attention::{GlobalAttention, GlobalAttentionConfig, MixerSpec, TokenLayout, TokenMixer};
use sconce_nn::{
    BatchNorm, Dropout, Init, LayerNorm, Linear, Module, ModuleT, VarBuilder, batch_norm, drop_path_rates, layer_norm,
};
use sconce_ops::global_avg_pool;

use super::block::layout;
use super::embed::{to_grid, to_tokens};
use super::{Block, CBlock, Config, PatchEmbed, SaBlock, SplitSaBlock};
use crate::{Backbone, BackboneConfig, FeatureInfo, Intermediates};

/// UniFormer for pictures and dense prediction (Li et al. 2022, `arXiv:2201.09450`) and for clips (`arXiv:2201.04676`), under
/// the official names.
///
/// # Shapes
/// - input `(B, in_chans, H, W)`, of clips `(B, in_chans, T, H, W)`, normalised as the checkpoint wants
/// - output `(B, num_classes)`, or `(B, num_features)` without classifier
/// - maps of the stages `(B, C, H / r, W / r)`, of clips `(B, C, T / 2, H / r, W / r)`; without a convolutional stem, pixels
///   beyond whole patches are left out, as officially
///
/// ```
/// use candle_core::{DType, Device, Tensor};
/// use sconce_backbones::{Backbone, UniFormer, uniformer::Config};
/// use sconce_nn::ParamStore;
///
/// let store = ParamStore::new(0, DType::F32, &Device::Cpu);
/// let model = UniFormer::new(&Config::test_uniformer_video(), store.vb())?;
/// let clip = Tensor::zeros((1, 3, 4, 32, 32), DType::F32, &Device::Cpu)?;
/// let maps = model.forward_intermediates(&clip, &[0, 3], false)?.features;
/// assert_eq!(maps[0].dims(), [1, 8, 2, 8, 8]);
/// assert_eq!(maps[1].dims(), [1, 24, 2, 1, 1]);
/// # Ok::<(), candle_core::Error>(())
/// ```
#[derive(Debug, Clone)]
pub struct UniFormer {
    /// The options it was made with.
    pub config: Config,
    /// `patch_embed1` to `patch_embed4`.
    pub patch_embeds: Vec<PatchEmbed>,
    /// Dropout after the first embedding.
    pub pos_drop: Dropout,
    /// `blocks1` to `blocks4`.
    pub stages: Vec<Vec<Block>>,
    /// Norm of the last map; absent in dense prediction.
    pub norm: Option<BatchNorm>,
    /// `norm1` to `norm4` of dense prediction, over the channels of each stage's map; otherwise none.
    pub norms: Vec<LayerNorm>,
    /// Classifier of the mean token.
    pub head: Option<Linear>,
    /// Classifier of every token, in models trained by token labelling.
    pub aux_head: Option<Linear>,
}

impl UniFormer {
    /// A model with global attention in its last two stages, the original.
    ///
    /// # Errors
    /// When the options contradict each other or `vb` lacks a tensor.
    pub fn new(cfg: &Config, vb: VarBuilder) -> Result<Self> {
        Self::with_mixer(cfg, vb, |spec, vb| {
            Ok(Arc::new(GlobalAttention::new(&GlobalAttentionConfig::from(spec), vb)?))
        })
    }

    /// A model whose attention blocks take their token mixer from `mixer`, which is called once for each of them with the
    /// path `blocks<stage>.<i>.attn`. Frames of a clip lie one below the other in its layout; a block with windows hands it
    /// one window after the other, a split block one frame.
    ///
    /// # Errors
    /// When the options contradict each other, `vb` lacks a tensor, or `mixer` fails.
    pub fn with_mixer(
        cfg: &Config,
        vb: VarBuilder,
        mixer: impl Fn(&MixerSpec, VarBuilder) -> Result<Arc<dyn TokenMixer>>,
    ) -> Result<Self> {
        cfg.check()?;
        let depth = cfg.depth.iter().sum();
        let mut rates = drop_path_rates(cfg.drop_path_rate, depth).into_iter().enumerate();
        let (mut patch_embeds, mut stages, mut norms) = (vec![], vec![], vec![]);
        for (stage, &count) in cfg.depth.iter().enumerate() {
            patch_embeds.push(PatchEmbed::new(cfg, stage, vb.pp(format!("patch_embed{}", stage + 1)))?);
            let mut blocks = Vec::with_capacity(count);
            for (stage_block, (block, rate)) in rates.by_ref().take(count).enumerate() {
                let vb = vb.pp(format!("blocks{}", stage + 1)).pp(stage_block);
                if stage < 2 {
                    blocks.push(Block::Conv(CBlock::new(cfg, stage, rate, vb)?));
                    continue;
                }
                let window = (stage == 2 && cfg.windows.at(stage_block)).then_some(cfg.window_size);
                let [frames, height, width] = cfg.grid(stage);
                let layout = match window {
                    Some(side) => TokenLayout { prefix: 0, height: side, width: side },
                    None if cfg.split => TokenLayout { prefix: 0, height, width },
                    None => layout(&[1, 1, frames, height, width]),
                };
                let spec = MixerSpec {
                    block,
                    depth,
                    stage,
                    stage_block,
                    dim: cfg.embed_dim[stage],
                    heads: cfg.embed_dim[stage] / cfg.head_dim,
                    qkv_bias: cfg.qkv_bias,
                    attn_drop: cfg.attn_drop_rate,
                    proj_drop: cfg.drop_rate,
                    layout,
                };
                let attn = mixer(&spec, vb.pp("attn"))?;
                blocks.push(match cfg.split {
                    true => Block::Split(SplitSaBlock::new(cfg, stage, attn, rate, vb)?),
                    false => Block::Attention(SaBlock::new(cfg, stage, attn, window, rate, vb)?),
                });
            }
            stages.push(blocks);
            if cfg.dense {
                norms.push(layer_norm(cfg.embed_dim[stage], 1e-6, vb.pp(format!("norm{}", stage + 1)))?);
            }
        }
        let norm = if cfg.dense { None } else { Some(batch_norm(cfg.embed_dim[3], vb.pp("norm"))?) };
        let pos_drop = Dropout::new(cfg.drop_rate);
        let config = cfg.clone();
        let mut model = Self { config, patch_embeds, pos_drop, stages, norm, norms, head: None, aux_head: None };
        model.reset_classifier(cfg.num_classes, vb)?;
        Ok(model)
    }

    /// Runs the stages, hands the map of each to `visit`, and returns the last.
    fn stages_each(
        &self,
        xs: &Tensor,
        train: bool,
        mut visit: impl FnMut(usize, &Tensor) -> Result<()>,
    ) -> Result<Tensor> {
        let (rank, wanted) = match self.config.frames {
            Some(_) => (5, "clips (B, C, T, H, W)"),
            None => (4, "pictures (B, C, H, W)"),
        };
        if xs.rank() != rank {
            bail!("uniformer: made for {wanted}, got {:?}", xs.dims())
        }
        let mut xs = xs.clone();
        for (stage, (embed, blocks)) in self.patch_embeds.iter().zip(&self.stages).enumerate() {
            xs = embed.forward_t(&xs, train)?;
            if stage == 0 {
                xs = self.pos_drop.forward_t(&xs, train)?;
            }
            for block in blocks {
                xs = block.forward_t(&xs, train)?;
            }
            visit(stage, &xs)?;
        }
        Ok(xs)
    }

    /// The map of a stage as the pyramid gives it.
    fn pyramid(&self, stage: usize, xs: &Tensor) -> Result<Tensor> {
        match self.norms.get(stage) {
            Some(norm) => to_grid(&norm.forward(&to_tokens(xs)?)?, xs.dims()),
            None => Ok(xs.clone()),
        }
    }

    fn final_norm(&self, xs: &Tensor, train: bool) -> Result<Tensor> {
        match &self.norm {
            Some(norm) => norm.forward_t(xs, train),
            None => self.pyramid(3, xs),
        }
    }

    /// The outputs of the classifier of the mean token and of that of every token, which token labelling compares with the
    /// label and with a teacher's map of labels; the usual output is the first plus half the largest of the second.
    ///
    /// # Shapes
    /// - `xs` as the model's input, outputs `(B, num_classes)` and `(B, N, num_classes)`
    ///
    /// # Errors
    /// When the model has not both classifiers or the input does not fit.
    pub fn forward_tokens(&self, xs: &Tensor, train: bool) -> Result<(Tensor, Tensor)> {
        let (Some(head), Some(aux)) = (&self.head, &self.aux_head) else {
            bail!("uniformer: no classifier of tokens; see `Config::token_labeling`")
        };
        let features = self.forward_features(xs, train)?;
        Ok((head.forward(&global_avg_pool(&features)?)?, aux.forward(&to_tokens(&features)?)?))
    }
}

impl Backbone for UniFormer {
    /// The map of the last stage after its norm.
    fn forward_features(&self, xs: &Tensor, train: bool) -> Result<Tensor> {
        self.final_norm(&self.stages_each(xs, train, |_, _| Ok(()))?, train)
    }

    fn forward_head(&self, features: &Tensor, pre_logits: bool, _train: bool) -> Result<Tensor> {
        let pooled = global_avg_pool(features)?; // (B, C)
        let head = match &self.head {
            Some(head) if !pre_logits => head,
            _ => return Ok(pooled),
        };
        let logits = head.forward(&pooled)?; // (B, classes)
        match &self.aux_head {
            Some(aux) => logits + (aux.forward(&to_tokens(features)?)?.max(1)? * 0.5)?, // (B, N, classes) -> (B, classes)
            None => Ok(logits),
        }
    }

    /// Maps of the four stages; those of dense prediction after the norms of the pyramid.
    fn forward_intermediates(&self, xs: &Tensor, indices: &[usize], train: bool) -> Result<Intermediates> {
        if let Some(bad) = indices.iter().find(|i| **i >= self.stages.len()) {
            bail!("uniformer: no feature map {bad} among {}", self.stages.len())
        }
        let mut maps = vec![];
        let xs = self.stages_each(xs, train, |stage, xs| {
            maps.push(if indices.contains(&stage) { self.pyramid(stage, xs)? } else { xs.clone() });
            Ok(())
        })?;
        let output = match (&self.norm, indices.contains(&3)) {
            (None, true) => maps[3].clone(),
            _ => self.final_norm(&xs, train)?,
        };
        Ok(Intermediates { features: indices.iter().map(|i| maps[*i].clone()).collect(), output })
    }

    fn num_features(&self) -> usize {
        self.config.embed_dim[3]
    }

    fn num_classes(&self) -> usize {
        self.config.num_classes
    }

    fn feature_info(&self) -> Vec<FeatureInfo> {
        let Config { dense, embed_dim, patch_sizes, .. } = self.config;
        let kind = if dense { "norm" } else { "blocks" };
        let info = |stage: usize| FeatureInfo {
            module: format!("{kind}{}", stage + 1),
            channels: embed_dim[stage],
            reduction: patch_sizes[..=stage].iter().product(),
        };
        (0..4).map(info).collect()
    }

    fn reset_classifier(&mut self, num_classes: usize, vb: VarBuilder) -> Result<()> {
        let linear = |name: &str| match num_classes {
            0 => Ok(None),
            n => {
                let init = Init::TruncNormal { std: 0.02 };
                Linear::with_init(self.config.embed_dim[3], n, true, init, vb.pp(name)).map(Some)
            }
        };
        let aux = if self.config.token_labeling { linear("aux_head")? } else { None };
        (self.head, self.aux_head) = (linear("head")?, aux);
        self.config.num_classes = num_classes;
        Ok(())
    }

    fn config(&self) -> BackboneConfig {
        self.config.clone().into()
    }
}

impl ModuleT for UniFormer {
    fn forward_t(&self, xs: &Tensor, train: bool) -> Result<Tensor> {
        self.forward_head(&self.forward_features(xs, train)?, false, train)
    }
}

#[cfg(test)]
mod tests {
    use candle_core::{DType, Device};
    use sconce_nn::{Generator, ParamStore};
    use sconce_ops::count_macs;

    use super::super::Windows;
    use super::*;
    use crate::ShapeRecorder;

    fn normal(shape: &[usize]) -> Tensor {
        Generator::new(2).normal(0.0, 1.0, shape, DType::F32, &Device::Cpu).unwrap()
    }

    fn model(cfg: &Config) -> UniFormer {
        UniFormer::new(cfg, ParamStore::new(1, DType::F32, &Device::Cpu).vb()).unwrap()
    }

    #[test]
    fn divided_attention_has_the_official_number_of_parameters() {
        let recorder = ShapeRecorder::default();
        let cfg = Config { split: true, ..Config::uniformer_small_k400_16x4() };
        UniFormer::new(&cfg, recorder.vb()).unwrap();
        assert_eq!(recorder.count(), 27_847_504);
    }

    #[test]
    fn the_net_for_small_pictures_is_as_small_as_it_says() {
        let recorder = ShapeRecorder::default();
        let model = UniFormer::new(&Config::uniformer_tiny_32(), recorder.vb()).unwrap();
        assert_eq!(recorder.count(), 1_669_418);
        let (maps, macs) = count_macs(|| model.forward_intermediates(&normal(&[1, 3, 32, 32]), &[0, 1, 2, 3], false));
        let sides = maps.unwrap().features.iter().map(|map| map.dims()[3]).collect::<Vec<_>>();
        assert_eq!((sides, macs / 1_000_000), (vec![16, 8, 4, 4], 38));
    }

    #[test]
    fn options_that_contradict_each_other_are_refused() {
        let (image, video) = (Config::test_uniformer(), Config::test_uniformer_video());
        for bad in [
            Config { head_dim: 0, ..image.clone() },
            Config { head_dim: 7, ..image.clone() },
            Config { embed_dim: [8, 0, 16, 24], ..image.clone() },
            Config { patch_sizes: [4, 2, 0, 2], ..image.clone() },
            Config { mlp_ratio: 0.0, ..image.clone() },
            Config { in_chans: 0, ..image.clone() },
            Config { depth: [1, 2, usize::MAX, 1], ..image.clone() },
            Config { mlp_ratio: f64::INFINITY, ..image.clone() },
            Config { img_size: [usize::MAX, 32], ..image.clone() },
            Config { frames: Some(usize::MAX), ..video.clone() },
            Config { split: true, ..image.clone() },
            Config { std: true, ..image.clone() },
            Config { dense: true, ..image.clone() },
            Config { windows: Windows::All, window_size: 0, ..image.clone() },
            Config { conv_stem: true, patch_sizes: [2, 2, 2, 1], ..image },
            Config { conv_stem: true, ..video.clone() },
            Config { windows: Windows::Hybrid, ..video.clone() },
            Config { split: true, init_values: Some(0.1), ..video },
        ] {
            let store = ParamStore::new(1, DType::F32, &Device::Cpu);
            let error = UniFormer::new(&bad, store.vb()).expect_err(&format!("{bad:?}")).to_string();
            assert!(error.contains("uniformer"), "{error}");
            assert!(store.names().is_empty(), "{bad:?}");
        }
    }

    #[test]
    fn half_precision_trains_too() {
        for dtype in [DType::F16, DType::BF16] {
            for cfg in [Config::test_uniformer(), Config::test_uniformer_video(), Config::test_uniformer_dense()] {
                let store = ParamStore::new(1, dtype, &Device::Cpu);
                let model = UniFormer::new(&cfg, store.vb()).unwrap();
                let shape: &[usize] = if cfg.frames.is_some() { &[2, 3, 4, 32, 32] } else { &[2, 3, 32, 32] };
                let ys = model.forward_t(&normal(shape).to_dtype(dtype).unwrap(), true).unwrap();
                assert_eq!(ys.dtype(), dtype);
                let sum = ys.sqr().unwrap().sum_all().unwrap();
                assert!(sum.backward().unwrap().get(&store.get("patch_embed1.proj.weight").unwrap()).is_some());
                assert!(sum.to_dtype(DType::F32).unwrap().to_scalar::<f32>().unwrap().is_finite());
            }
        }
    }

    #[test]
    fn inputs_of_the_other_kind_are_refused() {
        let (image, video) = (model(&Config::test_uniformer()), model(&Config::test_uniformer_video()));
        let error = image.forward_t(&normal(&[1, 3, 4, 32, 32]), false).unwrap_err().to_string();
        assert!(error.contains("pictures"), "{error}");
        let error = video.forward_t(&normal(&[1, 3, 32, 32]), false).unwrap_err().to_string();
        assert!(error.contains("clips"), "{error}");
        assert!(image.forward_t(&normal(&[1, 3, 16, 32]), false).is_err(), "less than a patch is left");
        assert!(image.forward_t(&normal(&[1, 4, 32, 32]), false).is_err());
    }

    #[test]
    fn clips_of_any_length_are_taken() {
        for (cfg, frames) in [
            (Config::test_uniformer_video(), [1, 5, 8]),
            (Config { split: true, ..Config::test_uniformer_video() }, [1, 5, 8]),
            (Config { std: true, ..Config::test_uniformer_video() }, [1, 5, 8]),
        ] {
            let model = model(&cfg);
            for frames in frames {
                let clip = normal(&[2, 3, frames, 32, 32]);
                let map = model.forward_intermediates(&clip, &[1], false).unwrap().features.remove(0);
                assert_eq!(map.dims(), [2, 12, frames.div_ceil(2), 4, 4]);
                assert_eq!(model.forward_t(&clip, false).unwrap().dims(), [2, 10]);
            }
        }
    }

    #[test]
    fn the_second_classifier_adds_half_of_its_largest() {
        let model = model(&Config { patch_sizes: [2, 2, 2, 1], ..Config::test_uniformer() });
        let xs = normal(&[2, 3, 32, 32]);
        let (class, tokens) = model.forward_tokens(&xs, false).unwrap();
        assert_eq!(tokens.dims(), [2, 16, 10]);
        let (class, tokens) = (class.to_vec2::<f32>().unwrap(), tokens.to_vec3::<f32>().unwrap());
        let output = model.forward_t(&xs, false).unwrap().to_vec2::<f32>().unwrap();
        for b in 0..2 {
            for k in 0..10 {
                let largest = tokens[b].iter().map(|token| token[k]).fold(f32::MIN, f32::max);
                assert!((output[b][k] - class[b][k] - 0.5 * largest).abs() < 1e-6);
            }
        }
        assert!(
            self::model(&Config::test_uniformer_video()).forward_tokens(&normal(&[1, 3, 4, 32, 32]), false).is_err()
        );
    }

    #[test]
    fn mixers_are_told_their_place() {
        let seen = std::sync::Mutex::new(vec![]);
        let build = |cfg: &Config| {
            seen.lock().unwrap().clear();
            let store = ParamStore::new(1, DType::F32, &Device::Cpu);
            UniFormer::with_mixer(cfg, store.vb(), |spec, vb| {
                let place = [spec.block, spec.depth, spec.stage, spec.stage_block, spec.heads];
                seen.lock().unwrap().push((vb.prefix(), place, [spec.layout.height, spec.layout.width]));
                Ok(Arc::new(GlobalAttention::new(&GlobalAttentionConfig::from(spec), vb)?))
            })
            .unwrap();
            seen.lock().unwrap().clone()
        };
        let dense = build(&Config::test_uniformer_dense());
        assert_eq!(dense.len(), 5);
        assert_eq!(dense[2], ("blocks3.2.attn".to_string(), [4, 7, 2, 2, 2], [3, 3]));
        assert_eq!(dense[3], ("blocks3.3.attn".to_string(), [5, 7, 2, 3, 2], [2, 2]));
        assert_eq!(dense[4], ("blocks4.0.attn".to_string(), [6, 7, 3, 0, 3], [1, 1]));
        assert_eq!(build(&Config::test_uniformer_video())[0].2, [4, 2], "two frames, one below the other");
        assert_eq!(build(&Config { split: true, ..Config::test_uniformer_video() })[0].2, [2, 2]);
    }
}
