//! The model itself.

use std::sync::Arc;

use candle_core::{IndexOp, Result, Tensor, bail};
use sconce_attention::{MixerSpec, TokenLayout, TokenMixer};
use sconce_nn::{
    Conv2d, DropPath, Dropout, Init, LayerNorm, Linear, Mlp, Module, ModuleT, VarBuilder, conv2d, drop_path_rates,
    init, layer_norm, linear,
};
use sconce_ops::{Activation, ConvOptions};

use super::{Attention, Config, Pool};
use crate::vit::{Block, PosResample};
use crate::{Backbone, BackboneConfig, FeatureInfo, Intermediates};

/// Broad attention based vision transformer, Li et al. 2022 (`arXiv:2202.06268`), under the names of the released class: a ViT
/// whose last tokens get a share of an attention over the queries, keys and values of all blocks, which has no parameters.
///
/// # Shapes
/// - input `(B, in_chans, H, W)`, normalised as the checkpoint wants
/// - output `(B, num_classes)`, or `(B, embed_dim)` without classifier
#[derive(Debug, Clone)]
pub struct BViT {
    /// The options it was made with.
    pub config: Config,
    /// The stem, see [`Config::stem`].
    pub conv: Option<Conv2d>,
    /// Pixels of a patch, channel fastest, to a token.
    pub patch_embedding: Linear,
    /// `(1, rows, C)`, see [`Config::pos_rows`].
    pub pos_embedding: Tensor,
    /// `(1, 1, C)`.
    pub cls_token: Tensor,
    /// Dropout of the embedded tokens.
    pub pos_drop: Dropout,
    /// The blocks in order.
    pub blocks: Vec<Block>,
    /// Norm of the pooled token.
    pub norm: LayerNorm,
    /// Classifier.
    pub head: Option<Linear>,
}

impl BViT {
    /// A model with global attention, the original.
    ///
    /// # Errors
    /// When the options contradict each other or `vb` lacks a tensor.
    pub fn new(cfg: &Config, vb: VarBuilder) -> Result<Self> {
        Self::with_mixer(cfg, vb, |spec, vb| Ok(Arc::new(Attention::new(cfg, spec, vb)?)))
    }

    /// A model whose blocks take their token mixer from `mixer`, which is called once a block with the path
    /// `transformer.layers.<i>.0.fn`. It must be one that hands out its queries, keys and values.
    ///
    /// # Errors
    /// When the options contradict each other, `vb` lacks a tensor, or `mixer` fails.
    pub fn with_mixer(
        cfg: &Config,
        vb: VarBuilder,
        mixer: impl Fn(&MixerSpec, VarBuilder) -> Result<Arc<dyn TokenMixer>>,
    ) -> Result<Self> {
        let (height, width) = cfg.grid(cfg.img_size.into());
        let dim = cfg.embed_dim;
        let patches = height.checked_mul(width).filter(|n| *n > 0);
        if patches.is_none() || cfg.pos_rows().checked_mul(dim).is_none_or(|n| n == 0) || cfg.depth == 0 {
            bail!("bvit: no {} blocks on tokens of {dim} channels from {:?} pixels", cfg.depth, cfg.img_size)
        }
        let side = cfg.patch_size;
        let pixels = side.checked_mul(side).and_then(|n| n.checked_mul(cfg.in_chans));
        let Some(pixels) = pixels else { bail!("bvit: patches of {side} x {side} are too large") };
        let stem = || conv2d(cfg.in_chans, cfg.in_chans, 7, ConvOptions::default().stride(2).padding(3), vb.pp("conv"));
        let normal = Init::Normal { mean: 0.0, std: 1.0 };
        let layout = TokenLayout { prefix: 1, height, width };
        let mut blocks = Vec::with_capacity(cfg.depth);
        for (block, rate) in drop_path_rates(cfg.drop_path_rate, cfg.depth).into_iter().enumerate() {
            let vb = vb.pp("transformer.layers").pp(block);
            let spec = MixerSpec {
                block,
                depth: cfg.depth,
                stage: 0,
                stage_block: block,
                dim,
                heads: cfg.num_heads,
                qkv_bias: false,
                attn_drop: 0.0,
                proj_drop: cfg.proj_drop_rate,
                layout,
            };
            let (attn, ff) = (vb.pp(0), vb.pp(1));
            let mlp = Mlp {
                fc1: linear(dim, cfg.mlp_dim, ff.pp("fn.net.0"))?.with_activation(Activation::Gelu),
                fc2: linear(cfg.mlp_dim, dim, ff.pp("fn.net.3"))?,
                dropout: Dropout::new(cfg.proj_drop_rate),
            };
            blocks.push(Block {
                norm1: layer_norm(dim, cfg.norm_eps, attn.pp("norm"))?,
                attn: mixer(&spec, attn.pp("fn"))?,
                ls1: None,
                drop_path1: DropPath::new(rate),
                norm2: layer_norm(dim, cfg.norm_eps, ff.pp("norm"))?,
                mlp,
                ls2: None,
                drop_path2: DropPath::new(rate),
                attn_adapter: None,
                mlp_adapter: None,
            });
        }
        let mut model = Self {
            conv: cfg.stem.then(stem).transpose()?,
            patch_embedding: linear(pixels, dim, vb.pp("to_patch_embedding.1"))?,
            pos_embedding: init::param(&vb, (1, cfg.pos_rows(), dim), "pos_embedding", normal)?,
            cls_token: init::param(&vb, (1, 1, dim), "cls_token", normal)?,
            pos_drop: Dropout::new(cfg.pos_drop_rate),
            blocks,
            norm: layer_norm(dim, cfg.norm_eps, vb.pp("mlp_head.0"))?,
            head: None,
            config: cfg.clone(),
        };
        model.reset_classifier(cfg.num_classes, vb)?;
        Ok(model)
    }

    /// The picture cut into patches, each pixel's channels side by side.
    ///
    /// # Shapes
    /// - `xs` `(B, in_chans, H, W)` after the stem, output `(B, patches, patch^2 in_chans)`
    ///
    /// # Errors
    /// When the map is not a whole number of patches.
    pub fn patchify(&self, xs: &Tensor) -> Result<Tensor> {
        let (b, c, h, w) = xs.dims4()?;
        let p = self.config.patch_size;
        if p == 0 || h * w == 0 || !h.is_multiple_of(p) || !w.is_multiple_of(p) {
            bail!("bvit: a map of {h} x {w} is not a whole number of {p} x {p} patches")
        }
        let xs = xs.reshape((b, c, h / p, p, w / p, p))?.permute((0, 2, 4, 3, 5, 1))?; // (B, rows, columns, p, p, C)
        xs.reshape((b, h / p * (w / p), p * p * c)) // (B, patches, p p C)
    }

    /// The tokens that enter the first block, with their layout.
    ///
    /// # Shapes
    /// - `xs` `(B, in_chans, H, W)`, output `(B, 1 + patches, C)`
    ///
    /// # Errors
    /// When the picture has another size than configured and the configuration does not say how to follow.
    pub fn embed(&self, xs: &Tensor, train: bool) -> Result<(Tensor, TokenLayout)> {
        let (b, _, h, w) = xs.dims4()?;
        let (height, width) = self.config.grid((h, w));
        let layout = TokenLayout { prefix: 1, height, width };
        let pos = self.positions((h, w), layout)?; // (1, N, C)
        let map = self.conv.as_ref().map_or_else(|| Ok(xs.clone()), |conv| conv.forward(xs))?;
        let patches = self.patch_embedding.forward(&self.patchify(&map)?)?; // (B, patches, C)
        let cls = self.cls_token.broadcast_as((b, 1, self.config.embed_dim))?;
        let tokens = Tensor::cat(&[&cls, &patches], 1)?.broadcast_add(&pos)?; // (B, N, C)
        Ok((self.pos_drop.forward_t(&tokens, train)?, layout))
    }

    fn positions(&self, size: (usize, usize), layout: TokenLayout) -> Result<Tensor> {
        let configured = self.config.img_size.into();
        let (height, width) = self.config.grid(configured);
        let pos = self.pos_embedding.narrow(1, 0, 1 + height * width)?;
        match self.config.pos_resample {
            PosResample::Fixed if size != configured => {
                bail!("bvit: made for {configured:?} pixels, got {size:?}; see `Config::pos_resample`")
            }
            _ if (layout.height, layout.width) == (height, width) => Ok(pos),
            rule => rule.apply(&pos, 1, (layout.height, layout.width)),
        }
    }

    /// Runs the blocks, hands each one's output to `visit`, and connects them all to the last.
    fn blocks_each(
        &self,
        xs: &Tensor,
        train: bool,
        mut visit: impl FnMut(usize, &Tensor),
    ) -> Result<(Tensor, TokenLayout)> {
        let (mut xs, layout) = self.embed(xs, train)?;
        let mut layers = Vec::with_capacity(self.blocks.len());
        for (i, block) in self.blocks.iter().enumerate() {
            let (ys, qkv) = block.forward_qkv(&xs, layout, train)?;
            let Some(qkv) = qkv else {
                bail!("bvit: the mixer of block {i} does not hand out its queries, keys and values")
            };
            layers.push(qkv);
            xs = ys;
            visit(i, &xs);
        }
        Ok((self.config.broad.forward(&xs, &layers)?, layout))
    }
}

impl Backbone for BViT {
    /// Tokens after the broad connection, `(B, N, C)`; the norm follows the pooling.
    fn forward_features(&self, xs: &Tensor, train: bool) -> Result<Tensor> {
        Ok(self.blocks_each(xs, train, |_, _| {})?.0)
    }

    fn forward_head(&self, features: &Tensor, pre_logits: bool, _: bool) -> Result<Tensor> {
        let (_, _, _) = features.dims3()?;
        let pooled = match self.config.pool {
            Pool::Cls => features.i((.., 0))?,
            Pool::Mean => features.mean(1)?,
        };
        let pooled = self.norm.forward(&pooled)?; // (B, C)
        match &self.head {
            Some(head) if !pre_logits => head.forward(&pooled),
            _ => Ok(pooled),
        }
    }

    /// Patch tokens after the blocks `indices`, as maps, before the broad connection.
    fn forward_intermediates(&self, xs: &Tensor, indices: &[usize], train: bool) -> Result<Intermediates> {
        if let Some(bad) = indices.iter().find(|i| **i >= self.blocks.len()) {
            bail!("bvit: no block {bad} among {}", self.blocks.len())
        }
        let mut found = vec![None; self.blocks.len()];
        let (output, layout) = self.blocks_each(xs, train, |i, xs| {
            if indices.contains(&i) {
                found[i] = Some(xs.clone());
            }
        })?;
        let as_map = |i: &usize| {
            let Some(xs) = &found[*i] else { bail!("bvit: no block {i}") };
            let patches = xs.i((.., layout.prefix..))?.transpose(1, 2)?; // (B, C, patches)
            let (b, c, _) = patches.dims3()?;
            patches.reshape((b, c, layout.height, layout.width))
        };
        Ok(Intermediates { features: indices.iter().map(as_map).collect::<Result<_>>()?, output })
    }

    fn num_features(&self) -> usize {
        self.config.embed_dim
    }

    fn num_classes(&self) -> usize {
        self.config.num_classes
    }

    fn feature_info(&self) -> Vec<FeatureInfo> {
        let (channels, reduction) = (self.config.embed_dim, self.config.reduction());
        let info = |i| FeatureInfo { module: format!("transformer.layers.{i}"), channels, reduction };
        (0..self.blocks.len()).map(info).collect()
    }

    fn reset_classifier(&mut self, num_classes: usize, vb: VarBuilder) -> Result<()> {
        self.head = match num_classes {
            0 => None,
            n => Some(linear(self.config.embed_dim, n, vb.pp("mlp_head.1"))?),
        };
        self.config.num_classes = num_classes;
        Ok(())
    }

    fn config(&self) -> BackboneConfig {
        BackboneConfig::Bvit(self.config.clone())
    }
}

impl ModuleT for BViT {
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

    fn vb() -> VarBuilder<'static> {
        ParamStore::new(1, DType::F32, &Device::Cpu).vb()
    }

    #[test]
    fn a_mixer_without_queries_is_refused() {
        #[derive(Debug)]
        struct Mean;
        impl TokenMixer for Mean {
            fn forward_t(&self, xs: &Tensor, _: bool) -> Result<Tensor> {
                xs.mean_keepdim(1)?.broadcast_as(xs.shape())
            }
        }
        let model = BViT::with_mixer(&Config::test_bvit(), vb(), |_, _| Ok(Arc::new(Mean))).unwrap();
        let xs = Tensor::zeros((1, 3, 32, 32), DType::F32, &Device::Cpu).unwrap();
        let error = model.forward_t(&xs, false).unwrap_err().to_string();
        assert!(error.contains("block 0"), "{error}");
    }

    #[test]
    fn the_stem_costs_444_parameters_and_three_quarters_of_the_tokens() {
        let count = |cfg: &Config| {
            let recorder = ShapeRecorder::default();
            BViT::new(cfg, recorder.vb()).unwrap();
            recorder.count()
        };
        assert_eq!(count(&Config::bvit_5m_stem()) - count(&Config::bvit_5m()), 444);
        assert_eq!(Config::bvit_5m().grid((224, 224)), (14, 14));
        assert_eq!(Config::bvit_5m_stem().grid((224, 224)), (7, 7));
    }

    #[test]
    fn options_that_contradict_each_other_are_refused() {
        for bad in [
            Config { num_heads: 0, ..Config::test_bvit() },
            Config { head_dim: 0, ..Config::test_bvit() },
            Config { head_dim: usize::MAX, ..Config::test_bvit() },
            Config { patch_size: 0, ..Config::test_bvit() },
            Config { depth: 0, ..Config::test_bvit() },
            Config { img_size: [4, 4], ..Config::test_bvit() },
            Config { img_size: [usize::MAX; 2], ..Config::test_bvit() },
            Config { embed_dim: 0, ..Config::test_bvit() },
        ] {
            assert!(BViT::new(&bad, vb()).is_err(), "{bad:?}");
        }
        let strict = BViT::new(&Config { pos_resample: PosResample::Fixed, ..Config::test_bvit() }, vb()).unwrap();
        let xs = Tensor::zeros((1, 3, 40, 32), DType::F32, &Device::Cpu).unwrap();
        let error = strict.forward_t(&xs, false).unwrap_err().to_string();
        assert!(error.contains("(32, 32)") && error.contains("pos_resample"), "{error}");
        let ragged = BViT::new(&Config::test_bvit(), vb()).unwrap();
        let xs = Tensor::zeros((1, 3, 36, 32), DType::F32, &Device::Cpu).unwrap();
        assert!(ragged.forward_t(&xs, false).unwrap_err().to_string().contains("36 x 32"));
    }
}
