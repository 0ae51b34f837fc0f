//! Whole models learn: no parameter is left behind.

use std::sync::Arc;

use candle_core::{D, DType, Device, ModuleT, Tensor, Var};
use candle_nn::VarBuilder;
use sconce::attention::{GlobalAttention, GlobalAttentionConfig, MixerSpec, TokenMixer};
use sconce::backbones::vit::Config;
use sconce::backbones::{Backbone, DinoHead, DinoHeadConfig, VisionTransformer};
use sconce::nn::{Generator, Init, ParamStore, init};
use sconce::ops::cross_entropy;
use sconce::train::{AdamW, AdamWConfig, Optimizer, ParamGroups};

type Outcome = Result<(), Box<dyn std::error::Error>>;

fn largest(t: &Tensor) -> candle_core::Result<f64> {
    t.abs()?.flatten_all()?.max(D::Minus1)?.to_dtype(DType::F64)?.to_scalar()
}

/// Trains on one batch and wants a finite gradient other than zero on every parameter in every step. Gives the losses.
fn train(
    store: &ParamStore,
    steps: usize,
    loss: impl Fn() -> candle_core::Result<Tensor>,
) -> Result<Vec<f32>, Box<dyn std::error::Error>> {
    let params = store.parameters();
    let groups = ParamGroups::new(params.iter().map(|p| (p.name.to_string(), p.var.clone())))?;
    let mut optimizer = AdamW::new(groups, AdamWConfig { lr: 5e-4, ..AdamWConfig::default() });
    let mut losses = vec![];
    for step in 0..steps {
        let loss = loss()?;
        let grads = loss.backward()?;
        for param in &params {
            let grad = grads.get(param.var.as_tensor());
            let grad = grad.unwrap_or_else(|| panic!("step {step}: {} has no gradient", param.name));
            let largest = largest(grad)?;
            assert!(largest.is_finite() && largest > 0.0, "step {step}: gradient of {} is {largest}", param.name);
        }
        optimizer.step(&grads)?;
        losses.push(loss.to_scalar()?);
    }
    Ok(losses)
}

/// ViT-Tiny in its full depth on small pictures, with every kind of dropout on: patch convolution, positions, layer norm,
/// packed attention with dropped weights, exact GELU, drop path, layer scale, classifier and cross entropy.
#[test]
fn vit_tiny_trains_every_parameter() -> Outcome {
    let config = Config {
        img_size: [32, 32],
        patch_size: 8,
        num_classes: 10,
        init_values: Some(1.0),
        drop_rate: 0.05,
        pos_drop_rate: 0.05,
        proj_drop_rate: 0.05,
        attn_drop_rate: 0.05,
        drop_path_rate: 0.05,
        ..Config::vit_tiny_patch16_224()
    };
    let store = ParamStore::new(1, DType::F32, &Device::Cpu);
    let model = VisionTransformer::new(&config, store.vb())?;
    let xs = Generator::new(2).normal(0.0, 1.0, (10, 3, 32, 32), DType::F32, &Device::Cpu)?;
    let labels = Tensor::arange(0u32, 10, &Device::Cpu)?;
    let losses =
        Generator::new(3).scope(|| train(&store, 6, || cross_entropy(&model.forward_t(&xs, true)?, &labels, 0.1)))?;
    assert!(losses[5] < losses[0], "{losses:?}");
    Ok(())
}

/// A distilled DeiT trains both heads.
#[test]
fn distilled_deit_trains_both_heads() -> Outcome {
    let store = ParamStore::new(1, DType::F32, &Device::Cpu);
    let model = VisionTransformer::new(&Config::test_deit_distilled(), store.vb())?;
    let xs = Generator::new(2).normal(0.0, 1.0, (4, 3, 32, 32), DType::F32, &Device::Cpu)?;
    let labels = Tensor::arange(0u32, 4, &Device::Cpu)?;
    let losses = train(&store, 5, || {
        let (cls, dist) = model.forward_distilled(&xs, true)?;
        cross_entropy(&cls, &labels, 0.0)? + cross_entropy(&dist, &labels, 0.0)?
    })?;
    assert!(losses[4] < losses[0], "{losses:?}");
    Ok(())
}

/// DINO's backbone and head with batch norm; the last layer's lengths are trained like its directions.
#[test]
fn dino_head_trains_every_parameter() -> Outcome {
    let store = ParamStore::new(1, DType::F32, &Device::Cpu);
    let backbone = VisionTransformer::new(&Config::test_dino(), store.vb().pp("backbone"))?;
    let options =
        DinoHeadConfig { out_dim: 12, use_bn: true, hidden_dim: 16, bottleneck_dim: 8, ..DinoHeadConfig::new(32) };
    let head = DinoHead::new(&options, store.vb().pp("head"))?;
    let names = store.names();
    for name in ["head.mlp.0.weight", "head.mlp.1.running_mean", "head.mlp.3.weight", "head.mlp.6.bias"] {
        assert!(names.iter().any(|n| n == name), "{name}");
    }
    let xs = Generator::new(2).normal(0.0, 1.0, (6, 3, 32, 32), DType::F32, &Device::Cpu)?;
    let labels = Tensor::arange(0u32, 6, &Device::Cpu)?;
    // A linear layer before batch norm has a bias without effect: it is the only thing with a gradient of nothing.
    store.freeze("head.mlp.0.bias")?;
    store.freeze("head.mlp.3.bias")?;
    let losses =
        train(&store, 5, || cross_entropy(&head.forward_t(&backbone.forward_t(&xs, true)?, true)?, &labels, 0.0))?;
    assert!(losses[4] < losses[0], "{losses:?}");
    Ok(())
}

/// A mixer that this library does not have: attention plus a learned share of the mean token.
#[derive(Debug)]
struct WithMean {
    attention: GlobalAttention,
    share: Tensor,
}

impl WithMean {
    fn new(spec: &MixerSpec, vb: VarBuilder) -> candle_core::Result<Self> {
        let attention = GlobalAttention::new(&GlobalAttentionConfig::from(spec), vb.clone())?;
        Ok(Self { attention, share: init::param(&vb, spec.dim, "share", Init::Const(0.1))? })
    }
}

impl TokenMixer for WithMean {
    fn forward_t(&self, xs: &Tensor, train: bool) -> candle_core::Result<Tensor> {
        let mean = xs.mean_keepdim(1)?.broadcast_mul(&self.share)?; // (B, 1, C)
        self.attention.forward_t(xs, train)?.broadcast_add(&mean)
    }
}

/// An adapter after Houlsby et al. 2019, reduced to a scale: enough to see that it is asked.
#[derive(Debug)]
struct Scale(Var);

impl TokenMixer for Scale {
    fn forward_t(&self, xs: &Tensor, _: bool) -> candle_core::Result<Tensor> {
        xs.broadcast_mul(self.0.as_tensor())
    }
}

#[test]
fn blocks_take_a_mixer_and_adapters_from_outside() -> Outcome {
    let store = ParamStore::new(1, DType::F32, &Device::Cpu);
    let mut model = VisionTransformer::with_mixer(&Config::test_vit(), store.vb(), |spec, vb| {
        Ok(Arc::new(WithMean::new(spec, vb)?))
    })?;
    assert!(store.get("blocks.1.attn.share").is_some());
    let xs = Generator::new(2).normal(0.0, 1.0, (4, 3, 32, 32), DType::F32, &Device::Cpu)?;
    let labels = Tensor::arange(0u32, 4, &Device::Cpu)?;
    let losses = train(&store, 5, || cross_entropy(&model.forward_t(&xs, true)?, &labels, 0.0))?;
    assert!(losses[4] < losses[0], "{losses:?}");

    let before = model.forward_features(&xs, false)?;
    let scales = [Var::new(1f32, &Device::Cpu)?, Var::new(1f32, &Device::Cpu)?];
    model.blocks[0].attn_adapter = Some(Arc::new(Scale(scales[0].clone())));
    model.blocks[0].mlp_adapter = Some(Arc::new(Scale(scales[1].clone())));
    assert_eq!(largest(&(model.forward_features(&xs, false)? - before)?)?, 0.0);
    let grads = cross_entropy(&model.forward_t(&xs, false)?, &labels, 0.0)?.backward()?;
    for scale in &scales {
        assert!(grads.get(scale.as_tensor()).is_some_and(|g| largest(g).is_ok_and(|g| g > 0.0)));
    }
    Ok(())
}
