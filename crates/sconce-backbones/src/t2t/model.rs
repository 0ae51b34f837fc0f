//! The vision transformer behind the soft splits.

use std::sync::Arc;

use candle_core::{IndexOp, Result, Tensor, bail};
use sconce_attention::{GlobalAttention, GlobalAttentionConfig, MixerSpec, Qkv, TokenLayout, TokenMixer};
use sconce_nn::{Dropout, LayerNorm, Linear, Module, ModuleT, VarBuilder, drop_path_rates, init, layer_norm};

use super::pos::SINUSOID;
use super::tokens::{EPS, INIT};
use super::{Config, TokensToToken};
use crate::vit::{Block, PosResample};
use crate::{Backbone, BackboneConfig, FeatureInfo, Intermediates};

/// T2T-ViT, Yuan et al. 2021 (`arXiv:2101.11986`), under the official names.
///
/// The random features `w` of the soft splits and the sinusoids `pos_embed` are parameters that are not trained: they count, and
/// are saved and loaded.
///
/// # Shapes
/// - input `(B, in_chans, H, W)`, normalised as the checkpoint wants
/// - output `(B, num_classes)`, or `(B, embed_dim)` without classifier
#[derive(Debug, Clone)]
pub struct T2tVit {
    /// The options it was made with.
    pub config: Config,
    /// Pictures to tokens.
    pub tokens_to_token: TokensToToken,
    /// `(1, 1, C)`.
    pub cls_token: Tensor,
    /// `(1, 1 + N, C)`, not trained.
    pub pos_embed: Tensor,
    /// Dropout of the embedded tokens.
    pub pos_drop: Dropout,
    /// The blocks in order.
    pub blocks: Vec<Block>,
    /// Final norm of all tokens.
    pub norm: LayerNorm,
    /// Classifier of the class token.
    pub head: Option<Linear>,
}

impl T2tVit {
    /// A model with global attention, the original.
    ///
    /// # Errors
    /// When the options contradict each other or `vb` lacks a tensor.
    pub fn new(cfg: &Config, vb: VarBuilder) -> Result<Self> {
        Self::with_mixer(cfg, vb, |spec, vb| {
            let options = GlobalAttentionConfig { scale: Some(cfg.scale()), ..spec.into() };
            Ok(Arc::new(GlobalAttention::new(&options, vb)?))
        })
    }

    /// A model whose blocks take their token mixer from `mixer`, which is called once a block with the path
    /// `blocks.<i>.attn`. The soft splits keep theirs, which change the width of the tokens.
    ///
    /// # Errors
    /// When the options contradict each other, `vb` lacks a tensor, or `mixer` fails.
    pub fn with_mixer(
        cfg: &Config,
        vb: VarBuilder,
        mixer: impl Fn(&MixerSpec, VarBuilder) -> Result<Arc<dyn TokenMixer>>,
    ) -> Result<Self> {
        let (height, width) = cfg.grid();
        if height * width == 0 {
            bail!("t2t: no tokens from {:?} pixels", cfg.img_size)
        }
        let (dim, layout) = (cfg.embed_dim, TokenLayout { prefix: 1, height, width });
        let tokens_to_token = TokensToToken::new(cfg, vb.pp("tokens_to_token"))?;
        let options = cfg.blocks();
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
                proj_drop: cfg.drop_rate,
                layout,
            };
            blocks.push(Block::new(&options, mixer(&spec, vb.pp("attn"))?, rate, vb)?);
        }
        let mut model = Self {
            tokens_to_token,
            cls_token: init::param(&vb, (1, 1, dim), "cls_token", INIT)?,
            pos_embed: init::frozen(&vb, (1, layout.len(), dim), "pos_embed", SINUSOID)?,
            pos_drop: Dropout::new(cfg.drop_rate),
            blocks,
            norm: layer_norm(dim, EPS, vb.pp("norm"))?,
            head: None,
            config: cfg.clone(),
        };
        model.reset_classifier(cfg.num_classes, vb)?;
        Ok(model)
    }

    /// The tokens that enter the first block, with their layout.
    ///
    /// # Shapes
    /// - `xs` `(B, in_chans, H, W)`, tokens `(B, 1 + N, C)`
    ///
    /// # Errors
    /// When the picture has another size than configured and the configuration does not say how to follow.
    pub fn embed(&self, xs: &Tensor, train: bool) -> Result<(Tensor, TokenLayout)> {
        let (b, _, h, w) = xs.dims4()?;
        let [height, width] = self.config.img_size;
        if self.config.pos_resample == PosResample::Fixed && (h, w) != (height, width) {
            bail!("t2t: made for {height} x {width} pixels, got {h} x {w}; see `Config::pos_resample`")
        }
        let (tokens, grid) = self.tokens_to_token.forward_grid(xs, train)?; // (B, N, C)
        self.assemble(b, &tokens, grid, train)
    }

    /// Puts the class token first and adds the positions.
    fn assemble(
        &self,
        b: usize,
        tokens: &Tensor,
        (height, width): (usize, usize),
        train: bool,
    ) -> Result<(Tensor, TokenLayout)> {
        let pos = match (height, width) == self.config.grid() {
            true => self.pos_embed.clone(),
            false => self.config.pos_resample.apply(&self.pos_embed, 1, (height, width))?,
        };
        let cls = self.cls_token.broadcast_as((b, 1, self.config.embed_dim))?;
        let tokens = Tensor::cat(&[&cls, tokens], 1)?.broadcast_add(&pos)?; // (B, 1 + N, C)
        Ok((self.pos_drop.forward_t(&tokens, train)?, TokenLayout { prefix: 1, height, width }))
    }

    /// Runs the blocks, hands each one's output to `visit`, and makes the broad connection.
    fn blocks_each(
        &self,
        xs: &Tensor,
        train: bool,
        mut visit: impl FnMut(usize, &Tensor),
    ) -> Result<(Tensor, TokenLayout)> {
        let (mut xs, layout) = self.embed(xs, train)?;
        let mut layers: Vec<Qkv> = vec![];
        for (i, block) in self.blocks.iter().enumerate() {
            if self.config.broad.is_some() {
                let (ys, qkv) = block.forward_qkv(&xs, layout, train)?;
                let Some(qkv) = qkv else {
                    bail!("t2t: the mixer of block {i} has no queries, keys and values for the broad connection")
                };
                layers.push(qkv);
                xs = ys;
            } else {
                xs = block.forward_layout(&xs, layout, train)?;
            }
            visit(i, &xs);
        }
        let xs = match &self.config.broad {
            Some(broad) => broad.forward(&xs, &layers)?,
            None => xs,
        };
        Ok((xs, layout))
    }
}

impl Backbone for T2tVit {
    /// Tokens after the final norm, `(B, 1 + N, C)`.
    fn forward_features(&self, xs: &Tensor, train: bool) -> Result<Tensor> {
        let (xs, _) = self.blocks_each(xs, train, |_, _| {})?;
        self.norm.forward(&xs)
    }

    fn forward_head(&self, features: &Tensor, pre_logits: bool, _train: bool) -> Result<Tensor> {
        let pooled = features.i((.., 0))?; // (B, C)
        match &self.head {
            Some(head) if !pre_logits => head.forward(&pooled),
            _ => Ok(pooled),
        }
    }

    /// Tokens of the picture after the blocks `indices`, as maps, before the final norm.
    fn forward_intermediates(&self, xs: &Tensor, indices: &[usize], train: bool) -> Result<Intermediates> {
        if let Some(bad) = indices.iter().find(|i| **i >= self.blocks.len()) {
            bail!("t2t: no block {bad} among {}", self.blocks.len())
        }
        let mut found = vec![None; self.blocks.len()];
        let (xs, layout) = self.blocks_each(xs, train, |i, xs| {
            if indices.contains(&i) {
                found[i] = Some(xs.clone());
            }
        })?;
        let as_map = |i: &usize| {
            let xs = found[*i].as_ref().unwrap_or(&xs);
            let tokens = xs.i((.., layout.prefix..))?.transpose(1, 2)?; // (B, C, N)
            let (b, c, _) = tokens.dims3()?;
            tokens.reshape((b, c, layout.height, layout.width))
        };
        let features = indices.iter().map(as_map).collect::<Result<_>>()?;
        Ok(Intermediates { features, output: self.norm.forward(&xs)? })
    }

    fn num_features(&self) -> usize {
        self.config.embed_dim
    }

    fn num_classes(&self) -> usize {
        self.config.num_classes
    }

    fn feature_info(&self) -> Vec<FeatureInfo> {
        let channels = self.config.embed_dim;
        let info = |i| FeatureInfo { module: format!("blocks.{i}"), channels, reduction: 16 };
        (0..self.blocks.len()).map(info).collect()
    }

    fn reset_classifier(&mut self, num_classes: usize, vb: VarBuilder) -> Result<()> {
        self.head = match num_classes {
            0 => None,
            n => Some(Linear::with_init(self.config.embed_dim, n, true, INIT, vb.pp("head"))?),
        };
        self.config.num_classes = num_classes;
        Ok(())
    }

    fn config(&self) -> BackboneConfig {
        self.config.clone().into()
    }
}

impl ModuleT for T2tVit {
    fn forward_t(&self, xs: &Tensor, train: bool) -> Result<Tensor> {
        self.forward_head(&self.forward_features(xs, train)?, false, train)
    }
}

#[cfg(test)]
mod tests {
    use candle_core::{DType, Device};
    use sconce_attention::linear::EluAttention;
    use sconce_nn::{Generator, ParamKind, ParamStore};

    use super::super::QkScale;
    use super::*;

    fn store(dtype: DType) -> ParamStore {
        ParamStore::new(1, dtype, &Device::Cpu)
    }

    fn pictures(h: usize, w: usize, dtype: DType) -> Tensor {
        Generator::new(2).normal(0.0, 1.0, (2, 3, h, w), dtype, &Device::Cpu).unwrap()
    }

    fn distance(a: &Tensor, b: &Tensor) -> f64 {
        (a - b).unwrap().abs().unwrap().max_all().unwrap().to_scalar().unwrap()
    }

    #[test]
    fn features_and_positions_are_kept_as_they_start() {
        let store = store(DType::F64);
        let model = T2tVit::new(&Config { token_dim: 16, ..Config::test_t2t() }, store.vb()).unwrap();
        let fixed: Vec<_> = store.iter().filter(|p| p.kind == ParamKind::Fixed).map(|p| p.name.to_string()).collect();
        assert_eq!(fixed, ["tokens_to_token.attention1.w", "tokens_to_token.attention2.w", "pos_embed"]);
        let w = store.get("tokens_to_token.attention1.w").unwrap().as_detached_tensor();
        let products = w.matmul(&w.t().unwrap().contiguous().unwrap()).unwrap();
        let want = (Tensor::eye(8, DType::F64, &Device::Cpu).unwrap() * 8.0).unwrap();
        assert!(distance(&products, &want) < 1e-12, "orthogonal rows of length sqrt(m)");
        let wanted = super::super::sinusoid(5, 32).unwrap();
        assert_eq!(distance(&model.pos_embed, &wanted), 0.0);
        // They come from the file when there is one.
        store.set("pos_embed", &wanted.zeros_like().unwrap()).unwrap();
        assert_eq!(distance(&model.pos_embed, &wanted.zeros_like().unwrap()), 0.0);
    }

    #[test]
    fn scale_and_broad_connection_show() {
        let store = store(DType::F64);
        let run = |cfg: Config| {
            let model = T2tVit::new(&cfg, store.vb()).unwrap();
            model.forward_t(&pictures(32, 32, DType::F64), false).unwrap()
        };
        let base = Config { broad: None, ..Config::test_t2t() };
        run(base.clone());
        for param in store.parameters().iter().filter(|p| p.name.contains("attn.qkv")) {
            store.set(&param.name, &(param.var.as_tensor() * 20.0).unwrap()).unwrap();
        }
        let usual = run(base.clone());
        assert!(distance(&usual, &run(Config { qk_scale: QkScale::Released, ..base.clone() })) > 1e-6);
        assert!(distance(&usual, &run(Config { qk_scale: QkScale::Factor(0.25), ..base.clone() })) < 1e-12);
        assert!(distance(&usual, &run(Config::test_t2t())) > 1e-6);
        assert_eq!(Config::t2t_vit_14().scale(), 384f64.powf(-0.5), "the factor of the released weights");
    }

    #[test]
    fn blocks_take_other_mixers_but_the_broad_connection_wants_queries() {
        let make = |cfg: &Config| {
            T2tVit::with_mixer(cfg, store(DType::F64).vb(), |spec, vb| {
                Ok(Arc::new(EluAttention::new(&spec.into(), vb)?))
            })
        };
        let xs = pictures(32, 32, DType::F64);
        let plain = make(&Config { broad: None, ..Config::test_t2t() }).unwrap();
        assert_eq!(plain.forward_t(&xs, true).unwrap().dims(), [2, 10]);
        let error = make(&Config::test_t2t()).unwrap().forward_t(&xs, false).unwrap_err().to_string();
        assert!(error.contains("block 0"), "{error}");
    }

    #[test]
    fn other_sizes_follow_the_rule_or_are_refused() {
        let fixed = Config { pos_resample: PosResample::Fixed, ..Config::test_t2t() };
        let model = T2tVit::new(&fixed, store(DType::F32).vb()).unwrap();
        let error = model.forward_t(&pictures(48, 32, DType::F32), false).unwrap_err().to_string();
        assert!(error.contains("32 x 32") && error.contains("48 x 32"), "{error}");
        let model = T2tVit::new(&Config::test_t2t(), store(DType::F32).vb()).unwrap();
        let maps = model.forward_intermediates(&pictures(64, 96, DType::F32), &[1], false).unwrap().features;
        assert_eq!(maps[0].dims(), [2, 32, 4, 6]);
        // Windows reach beyond the edge, so that a picture of few pixels still is a token.
        assert!(model.forward_t(&pictures(2, 32, DType::F32), false).is_err());
        let wide = Config { img_size: [32, 64], pos_resample: PosResample::Fixed, ..Config::test_t2t() };
        let model = T2tVit::new(&wide, store(DType::F32).vb()).unwrap();
        assert_eq!(model.forward_t(&pictures(32, 64, DType::F32), false).unwrap().dims(), [2, 10]);
    }

    #[test]
    fn options_that_make_no_sense_are_refused() {
        let base = Config::test_t2t();
        for cfg in [
            Config { img_size: [2, 32], ..base.clone() },
            Config { token_dim: 1, ..base.clone() },
            Config { token_dim: usize::MAX, ..base.clone() },
            Config { in_chans: 0, ..base.clone() },
            Config { embed_dim: 0, ..base.clone() },
            Config { num_heads: 0, ..base.clone() },
            Config { num_heads: 5, ..base.clone() },
        ] {
            assert!(T2tVit::new(&cfg, store(DType::F32).vb()).is_err(), "{cfg:?}");
        }
    }

    #[test]
    fn half_precision_flows() {
        for dtype in [DType::F16, DType::BF16] {
            for cfg in [Config::test_t2t(), Config::test_t2t_transformer()] {
                let model = T2tVit::new(&cfg, store(dtype).vb()).unwrap();
                let ys = model.forward_t(&pictures(32, 32, dtype), true).unwrap();
                assert_eq!(ys.dtype(), dtype);
                assert!(ys.to_dtype(DType::F32).unwrap().sum_all().unwrap().to_scalar::<f32>().unwrap().is_finite());
            }
        }
    }
}
