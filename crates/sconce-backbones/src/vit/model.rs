//! The vision transformer itself.

use std::sync::Arc;

use candle_core::{IndexOp, Result, Tensor, bail};
use sconce_attention::{GlobalAttention, GlobalAttentionConfig, MixerSpec, TokenLayout, TokenMixer};
use sconce_nn::{
    Dropout, Init, LayerNorm, Linear, Module, ModuleT, PatchEmbed, VarBuilder, drop_path_rates, init, layer_norm,
    patch_embed,
};

use super::{Block, Config, InitScheme, Pool, PosResample};
use crate::{Backbone, BackboneConfig, FeatureInfo, Intermediates};

const INIT: Init = Init::TruncNormal { std: 0.02 };

/// Vision transformer with a class token: ViT (Dosovitskiy et al. 2021, `arXiv:2010.11929`), DeiT (Touvron et al. 2021,
/// `arXiv:2012.12877`) and the backbones of DINO (Caron et al. 2021, `arXiv:2104.14294`), under timm's names.
///
/// # Shapes
/// - input `(B, in_chans, H, W)`, normalised as the checkpoint wants
/// - output `(B, num_classes)`, or `(B, embed_dim)` without classifier
#[derive(Debug, Clone)]
pub struct VisionTransformer {
    /// The options it was made with.
    pub config: Config,
    /// Pictures to patch tokens.
    pub patch_embed: PatchEmbed,
    /// `(1, 1, C)`.
    pub cls_token: Tensor,
    /// `(1, 1, C)` in distilled models.
    pub dist_token: Option<Tensor>,
    /// `(1, prefix + patches, C)`.
    pub pos_embed: Tensor,
    /// Dropout of the embedded tokens.
    pub pos_drop: Dropout,
    /// The blocks in order.
    pub blocks: Vec<Block>,
    /// Final norm of all tokens; absent with mean pooling.
    pub norm: Option<LayerNorm>,
    /// Norm of the pooled token with mean pooling.
    pub fc_norm: Option<LayerNorm>,
    /// Dropout before the classifier.
    pub head_drop: Dropout,
    /// Classifier of the class token.
    pub head: Option<Linear>,
    /// Classifier of the distillation token.
    pub head_dist: Option<Linear>,
}

impl VisionTransformer {
    /// A model with global attention, the original.
    ///
    /// # Errors
    /// When the options contradict each other or `vb` lacks a tensor.
    pub fn new(cfg: &Config, vb: VarBuilder) -> Result<Self> {
        Self::with_mixer(cfg, vb, |spec, vb| {
            Ok(Arc::new(GlobalAttention::new(&GlobalAttentionConfig::from(spec), vb)?))
        })
    }

    /// A model whose blocks take their token mixer from `mixer`, which is called once a block with the path
    /// `blocks.<i>.attn`. A mixer of one's own in every second block:
    ///
    /// ```
    /// use std::sync::Arc;
    /// use sconce_attention::{GlobalAttention, TokenMixer};
    /// use sconce_backbones::vit::{Config, VisionTransformer};
    /// use sconce_nn::{Linear, Module, ModuleT, ParamStore, linear};
    /// # use candle_core::{DType, Device, Result, Tensor};
    ///
    /// /// A linear layer across the tokens, the same for all channels (MLP-Mixer).
    /// #[derive(Debug)]
    /// struct AcrossTokens(Linear);
    ///
    /// impl TokenMixer for AcrossTokens {
    ///     fn forward_t(&self, xs: &Tensor, _train: bool) -> Result<Tensor> {
    ///         self.0.forward(&xs.transpose(1, 2)?)?.transpose(1, 2) // (B, N, C)
    ///     }
    /// }
    ///
    /// let store = ParamStore::new(1, DType::F32, &Device::Cpu);
    /// let model = VisionTransformer::with_mixer(&Config::test_vit(), store.vb(), |spec, vb| {
    ///     let tokens = spec.layout.len();
    ///     Ok(match spec.block % 2 {
    ///         0 => Arc::new(GlobalAttention::new(&spec.into(), vb)?),
    ///         _ => Arc::new(AcrossTokens(linear(tokens, tokens, vb.pp("mix"))?)),
    ///     })
    /// })?;
    /// let logits = model.forward_t(&Tensor::ones((2, 3, 32, 32), DType::F32, &Device::Cpu)?, true)?;
    /// let grads = logits.sqr()?.sum_all()?.backward()?;
    /// assert!(grads.get(&store.get("blocks.1.attn.mix.weight").unwrap()).is_some());
    /// # Ok::<(), candle_core::Error>(())
    /// ```
    ///
    /// # Errors
    /// When the options contradict each other, `vb` lacks a tensor, or `mixer` fails.
    pub fn with_mixer(
        cfg: &Config,
        vb: VarBuilder,
        mixer: impl Fn(&MixerSpec, VarBuilder) -> Result<Arc<dyn TokenMixer>>,
    ) -> Result<Self> {
        let (height, width) = cfg.grid();
        if height * width * cfg.embed_dim == 0 {
            bail!("vit: no tokens of {} channels from {:?} pixels", cfg.embed_dim, cfg.img_size)
        }
        if cfg.distilled && cfg.global_pool == Pool::Avg {
            bail!("vit: a distilled model has no mean pooling")
        }
        let (dim, prefix) = (cfg.embed_dim, cfg.num_prefix_tokens());
        let layout = TokenLayout { prefix, height, width };
        let token = |name: &str, init: Init| init::param(&vb, (1, 1, dim), name, init);
        let cls_init = match cfg.init {
            InitScheme::Timm => Init::Normal { mean: 0.0, std: 1e-6 },
            InitScheme::Deit => INIT,
        };
        let mut blocks = Vec::with_capacity(cfg.depth);
        for (block, rate) in drop_path_rates(cfg.drop_path_rate, cfg.depth).into_iter().enumerate() {
            let vb = vb.pp("blocks").pp(block);
            let spec = MixerSpec {
                block,
                depth: cfg.depth,
                stage: 0,
                stage_block: block,
                dim,
                heads: cfg.num_heads,
                qkv_bias: cfg.qkv_bias,
                attn_drop: cfg.attn_drop_rate,
                proj_drop: cfg.proj_drop_rate,
                layout,
            };
            blocks.push(Block::new(cfg, mixer(&spec, vb.pp("attn"))?, rate, vb)?);
        }
        let norm = |name: &str| layer_norm(dim, cfg.norm_eps, vb.pp(name));
        let (norm, fc_norm) = match cfg.global_pool {
            Pool::Token => (Some(norm("norm")?), None),
            Pool::Avg => (None, Some(norm("fc_norm")?)),
        };
        let mut model = Self {
            patch_embed: patch_embed(cfg.in_chans, dim, cfg.patch_size, vb.pp("patch_embed"))?,
            cls_token: token("cls_token", cls_init)?,
            dist_token: cfg.distilled.then(|| token("dist_token", INIT)).transpose()?,
            pos_embed: init::param(&vb, (1, layout.len(), dim), "pos_embed", INIT)?,
            pos_drop: Dropout::new(cfg.pos_drop_rate),
            blocks,
            norm,
            fc_norm,
            head_drop: Dropout::new(cfg.drop_rate),
            head: None,
            head_dist: None,
            config: cfg.clone(),
        };
        model.reset_classifier(cfg.num_classes, vb)?;
        Ok(model)
    }

    /// The tokens that enter the first block, with their layout.
    ///
    /// # Shapes
    /// - `xs` `(B, in_chans, H, W)`, tokens `(B, prefix + patches, C)`
    ///
    /// # Errors
    /// When the picture has another size than configured and the configuration does not say how to follow.
    pub fn embed(&self, xs: &Tensor, train: bool) -> Result<(Tensor, TokenLayout)> {
        let (b, _, h, w) = xs.dims4()?;
        let p = self.config.patch_size;
        let layout = TokenLayout { prefix: self.config.num_prefix_tokens(), height: h / p, width: w / p };
        let pos = self.positions((h, w), layout)?; // (1, N, C)
        let patches = self.patch_embed.forward(xs)?; // (B, patches, C)
        let dim = self.config.embed_dim;
        let mut tokens = vec![self.cls_token.broadcast_as((b, 1, dim))?];
        if let Some(dist) = &self.dist_token {
            tokens.push(dist.broadcast_as((b, 1, dim))?);
        }
        tokens.push(patches);
        let tokens = Tensor::cat(&tokens, 1)?.broadcast_add(&pos)?; // (B, N, C)
        Ok((self.pos_drop.forward_t(&tokens, train)?, layout))
    }

    fn positions(&self, size: (usize, usize), layout: TokenLayout) -> Result<Tensor> {
        let [height, width] = self.config.img_size;
        let to = (layout.height, layout.width);
        match self.config.pos_resample {
            PosResample::Fixed if size != (height, width) => {
                bail!("vit: made for {height} x {width} pixels, got {size:?}; see `Config::pos_resample`")
            }
            _ if to == self.config.grid() => Ok(self.pos_embed.clone()),
            rule => rule.apply(&self.pos_embed, layout.prefix, to),
        }
    }

    /// Runs the blocks and hands each one's output to `visit`.
    fn blocks_each(
        &self,
        xs: &Tensor,
        train: bool,
        mut visit: impl FnMut(usize, &Tensor),
    ) -> Result<(Tensor, TokenLayout)> {
        let (mut xs, layout) = self.embed(xs, train)?;
        for (i, block) in self.blocks.iter().enumerate() {
            xs = block.forward_layout(&xs, layout, train)?;
            visit(i, &xs);
        }
        Ok((xs, layout))
    }

    fn final_norm(&self, xs: &Tensor) -> Result<Tensor> {
        self.norm.as_ref().map_or_else(|| Ok(xs.clone()), |norm| norm.forward(xs))
    }

    /// The outputs of the class and the distillation head, which training compares with label and teacher; the usual
    /// output is their mean.
    ///
    /// # Shapes
    /// - `xs` `(B, in_chans, H, W)`, outputs `(B, num_classes)`
    ///
    /// # Errors
    /// When the model is not distilled or the input does not fit.
    pub fn forward_distilled(&self, xs: &Tensor, train: bool) -> Result<(Tensor, Tensor)> {
        if self.dist_token.is_none() {
            bail!("vit: not a distilled model")
        }
        self.heads(&self.forward_features(xs, train)?, train)
    }

    fn heads(&self, features: &Tensor, train: bool) -> Result<(Tensor, Tensor)> {
        let classify = |token: usize, head: &Option<Linear>| {
            let xs = self.head_drop.forward_t(&features.i((.., token))?, train)?;
            head.as_ref().map_or(Ok(xs.clone()), |head| head.forward(&xs))
        };
        Ok((classify(0, &self.head)?, classify(1, &self.head_dist)?))
    }

    /// Attention of the last block, DINO's `get_last_selfattention`.
    ///
    /// # Shapes
    /// - `xs` `(B, in_chans, H, W)`, output `(B, heads, N, N)`, rows summing to one
    ///
    /// # Errors
    /// When the input does not fit or the last mixer has no attention weights.
    pub fn get_last_selfattention(&self, xs: &Tensor) -> Result<Tensor> {
        let Some((last, others)) = self.blocks.split_last() else { bail!("vit: a model without blocks") };
        let (mut xs, layout) = self.embed(xs, false)?;
        for block in others {
            xs = block.forward_layout(&xs, layout, false)?;
        }
        let weights = last.attn.attention_weights(&last.norm1.forward(&xs)?)?;
        weights.ok_or_else(|| candle_core::Error::msg("vit: the last mixer has no attention weights"))
    }

    /// Tokens after each of the last `n` blocks, through the final norm: DINO's `get_intermediate_layers`.
    ///
    /// # Shapes
    /// - `xs` `(B, in_chans, H, W)`, outputs `(B, N, C)`
    ///
    /// # Errors
    /// When the input does not fit or there are fewer blocks.
    pub fn get_intermediate_layers(&self, xs: &Tensor, n: usize) -> Result<Vec<Tensor>> {
        let Some(first) = self.blocks.len().checked_sub(n) else {
            bail!("vit: {n} layers asked of {}", self.blocks.len())
        };
        let mut layers = Vec::with_capacity(n);
        self.blocks_each(xs, false, |i, xs| {
            if i >= first {
                layers.push(self.final_norm(xs));
            }
        })?;
        layers.into_iter().collect()
    }
}

impl Backbone for VisionTransformer {
    /// Tokens after the final norm, `(B, N, C)`.
    fn forward_features(&self, xs: &Tensor, train: bool) -> Result<Tensor> {
        let (xs, _) = self.blocks_each(xs, train, |_, _| {})?;
        self.final_norm(&xs)
    }

    fn forward_head(&self, features: &Tensor, pre_logits: bool, train: bool) -> Result<Tensor> {
        if self.dist_token.is_some() {
            let (cls, dist) = match pre_logits {
                true => (features.i((.., 0))?, features.i((.., 1))?),
                false => self.heads(features, train)?,
            };
            return (cls + dist)? / 2.0;
        }
        let pooled = match self.config.global_pool {
            Pool::Token => features.i((.., 0))?,                                        // (B, C)
            Pool::Avg => features.i((.., self.config.num_prefix_tokens()..))?.mean(1)?, // (B, C)
        };
        let pooled = self.fc_norm.as_ref().map_or(Ok(pooled.clone()), |norm| norm.forward(&pooled))?;
        let pooled = self.head_drop.forward_t(&pooled, train)?;
        match &self.head {
            Some(head) if !pre_logits => head.forward(&pooled),
            _ => Ok(pooled),
        }
    }

    /// Patch tokens after the blocks `indices`, as maps `(B, C, H / patch, W / patch)`, before the final norm.
    fn forward_intermediates(&self, xs: &Tensor, indices: &[usize], train: bool) -> Result<Intermediates> {
        if let Some(bad) = indices.iter().find(|i| **i >= self.blocks.len()) {
            bail!("vit: no block {bad} among {}", self.blocks.len())
        }
        let mut found = vec![None; self.blocks.len()];
        let (xs, layout) = self.blocks_each(xs, train, |i, xs| {
            if indices.contains(&i) {
                found[i] = Some(xs.clone());
            }
        })?;
        let as_map = |i: &usize| {
            let xs = found[*i].as_ref().unwrap_or(&xs);
            let patches = xs.i((.., layout.prefix..))?.transpose(1, 2)?; // (B, C, patches)
            let (b, c, _) = patches.dims3()?;
            patches.reshape((b, c, layout.height, layout.width))
        };
        let features = indices.iter().map(as_map).collect::<Result<_>>()?;
        Ok(Intermediates { features, output: self.final_norm(&xs)? })
    }

    fn num_features(&self) -> usize {
        self.config.embed_dim
    }

    fn num_classes(&self) -> usize {
        self.config.num_classes
    }

    fn feature_info(&self) -> Vec<FeatureInfo> {
        let Config { embed_dim, patch_size, .. } = self.config;
        let info = |i| FeatureInfo { module: format!("blocks.{i}"), channels: embed_dim, reduction: patch_size };
        (0..self.blocks.len()).map(info).collect()
    }

    fn reset_classifier(&mut self, num_classes: usize, vb: VarBuilder) -> Result<()> {
        let dim = self.config.embed_dim;
        let head = |name: &str| match num_classes {
            0 => Ok(None),
            n => Linear::with_init(dim, n, true, INIT, vb.pp(name)).map(Some),
        };
        let dist = if self.config.distilled { head("head_dist")? } else { None };
        (self.head, self.head_dist) = (head("head")?, dist);
        self.config.num_classes = num_classes;
        Ok(())
    }

    fn config(&self) -> BackboneConfig {
        BackboneConfig::Vit(self.config.clone())
    }
}

impl ModuleT for VisionTransformer {
    fn forward_t(&self, xs: &Tensor, train: bool) -> Result<Tensor> {
        self.forward_head(&self.forward_features(xs, train)?, false, train)
    }
}

#[cfg(test)]
mod tests {
    use candle_core::{DType, Device};
    use sconce_nn::ParamStore;

    use super::*;

    fn values(store: &ParamStore, name: &str) -> Vec<f64> {
        let var = store.get(name).unwrap_or_else(|| panic!("{name}"));
        var.flatten_all().unwrap().to_dtype(DType::F64).unwrap().to_vec1().unwrap()
    }

    fn std(values: &[f64]) -> f64 {
        (values.iter().map(|v| v * v).sum::<f64>() / values.len() as f64).sqrt()
    }

    #[test]
    fn parameters_start_as_the_official_codes_start_them() {
        for (init, cls) in [(InitScheme::Timm, 1e-6), (InitScheme::Deit, 0.02)] {
            let cfg = Config { embed_dim: 128, depth: 1, num_heads: 2, init, ..Config::test_vit() };
            let store = ParamStore::new(1, DType::F32, &Device::Cpu);
            VisionTransformer::new(&cfg, store.vb()).unwrap();
            let found = std(&values(&store, "cls_token"));
            assert!((found / cls - 1.0).abs() < 0.25, "class token: {found}");
            for name in ["pos_embed", "blocks.0.attn.qkv.weight", "blocks.0.mlp.fc2.weight", "head.weight"] {
                let found = std(&values(&store, name));
                assert!((found / 0.02 - 1.0).abs() < 0.1, "{name}: {found}");
            }
            for name in ["blocks.0.attn.qkv.bias", "blocks.0.mlp.fc1.bias", "head.bias", "norm.bias"] {
                assert!(values(&store, name).iter().all(|v| *v == 0.0), "{name}");
            }
            assert!(values(&store, "blocks.0.norm1.weight").iter().all(|v| *v == 1.0));
            // PyTorch's default of a convolution: uniform within 1 / sqrt(fan in).
            let bound = 1.0 / (3.0 * 64.0f64).sqrt();
            let patch = values(&store, "patch_embed.proj.weight");
            assert!(patch.iter().all(|v| v.abs() <= bound) && (std(&patch) * 3f64.sqrt() / bound - 1.0).abs() < 0.05);
        }
    }

    #[test]
    fn sizes_without_a_rule_are_refused() {
        let vb = || ParamStore::new(1, DType::F32, &Device::Cpu).vb();
        let fixed =
            VisionTransformer::new(&Config { pos_resample: PosResample::Fixed, ..Config::test_vit() }, vb()).unwrap();
        let zeros = |h, w| Tensor::zeros((1, 3, h, w), DType::F32, &Device::Cpu).unwrap();
        let error = fixed.forward_t(&zeros(32, 40), false).unwrap_err().to_string();
        assert!(error.contains("32 x 32") && error.contains("pos_resample"), "{error}");
        let wide = Config { img_size: [16, 48], pos_resample: PosResample::Fixed, ..Config::test_vit() };
        assert_eq!(
            VisionTransformer::new(&wide, vb()).unwrap().forward_t(&zeros(16, 48), false).unwrap().dims(),
            [1, 10]
        );
        for bad in [
            Config { img_size: [4, 4], ..Config::test_vit() },
            Config { patch_size: 0, ..Config::test_vit() },
            Config { num_heads: 5, ..Config::test_vit() },
            Config { distilled: true, global_pool: Pool::Avg, ..Config::test_vit() },
        ] {
            assert!(VisionTransformer::new(&bad, vb()).is_err(), "{bad:?}");
        }
    }
}
