//! Models by name.

use std::sync::OnceLock;

use sconce_data::Preprocess;
use sconce_data::transform::Normalize;
use sconce_nn::{VarBuilder, matches};

use crate::{Backbone, BackboneConfig, Error, KeyNames, Pretrained, Result, resnet, vit};

const TIMM: &str = "https://github.com/huggingface/pytorch-image-models";
const TORCHVISION: &str = "https://github.com/pytorch/vision";
const DEIT: &str = "https://github.com/facebookresearch/deit";
const DINO: &str = "https://github.com/facebookresearch/dino";

/// A line of the registry before the common parts are filled in.
struct Family {
    licence: &'static str,
    paper: &'static str,
    source: Option<&'static str>,
    preprocess: fn() -> Preprocess,
    keys: KeyNames,
}

const PREFIXES: &[&str] = &["module.", "backbone.", "model."];

const fn family(
    licence: &'static str,
    paper: &'static str,
    source: &'static str,
    preprocess: fn() -> Preprocess,
) -> Family {
    let keys = KeyNames { nested: &["state_dict", "model", "teacher"], prefixes: PREFIXES };
    Family { licence, paper, source: Some(source), preprocess, keys }
}

impl Family {
    fn model(&self, name: &'static str, config: BackboneConfig, params: usize) -> Pretrained {
        Pretrained {
            name,
            config,
            preprocess: (self.preprocess)(),
            keys: self.keys,
            licence: self.licence,
            paper: self.paper,
            source: self.source,
            params: Some(params),
        }
    }

    /// A small model that nobody publishes weights of.
    fn test(&self, name: &'static str, config: BackboneConfig) -> Pretrained {
        let (_, side, _) = config.input_size();
        let preprocess = Preprocess::imagenet(side as u32, 1.0);
        Pretrained { preprocess, source: None, params: None, ..self.model(name, config, 0) }
    }
}

/// The weights that Google published for its ViTs expect values in `[-1, 1]`.
fn half() -> Preprocess {
    Preprocess { normalize: Normalize { mean: [0.5; 3], std: [0.5; 3] }, ..Preprocess::imagenet(224, 0.9) }
}

fn crop90() -> Preprocess {
    Preprocess::imagenet(224, 0.9)
}

fn models() -> Vec<Pretrained> {
    use BackboneConfig::{Resnet, Vit};
    use resnet::Config as R;
    use vit::Config as V;
    let vit = family("Apache-2.0", "https://arxiv.org/abs/2010.11929", TIMM, half);
    let deit = family("Apache-2.0", "https://arxiv.org/abs/2012.12877", DEIT, crop90);
    let dino = family("Apache-2.0", "https://arxiv.org/abs/2104.14294", DINO, Preprocess::dino);
    let torchvision = Preprocess::imagenet_torchvision;
    let resnet = family("BSD-3-Clause", "https://arxiv.org/abs/1512.03385", TORCHVISION, torchvision);
    let resnext = family("BSD-3-Clause", "https://arxiv.org/abs/1611.05431", TORCHVISION, torchvision);
    let wide = family("BSD-3-Clause", "https://arxiv.org/abs/1605.07146", TORCHVISION, torchvision);
    vec![
        vit.model("vit_tiny_patch16_224", Vit(V::vit_tiny_patch16_224()), 5_717_416),
        vit.model("vit_small_patch16_224", Vit(V::vit_small_patch16_224()), 22_050_664),
        vit.model("vit_base_patch16_224", Vit(V::vit_base_patch16_224()), 86_567_656),
        vit.model("vit_base_patch32_224", Vit(V::vit_base_patch32_224()), 88_224_232),
        vit.model("vit_large_patch16_224", Vit(V::vit_large_patch16_224()), 304_326_632),
        deit.model("deit_tiny_patch16_224", Vit(V::deit_tiny_patch16_224()), 5_717_416),
        deit.model("deit_small_patch16_224", Vit(V::deit_small_patch16_224()), 22_050_664),
        deit.model("deit_base_patch16_224", Vit(V::deit_base_patch16_224()), 86_567_656),
        deit.model("deit_tiny_distilled_patch16_224", Vit(V::deit_tiny_distilled_patch16_224()), 5_910_800),
        deit.model("deit_small_distilled_patch16_224", Vit(V::deit_small_distilled_patch16_224()), 22_436_432),
        deit.model("deit_base_distilled_patch16_224", Vit(V::deit_base_distilled_patch16_224()), 87_338_192),
        dino.model("dino_vits16", Vit(V::dino_vits16()), 21_665_664),
        dino.model("dino_vits8", Vit(V::dino_vits8()), 21_670_272),
        dino.model("dino_vitb16", Vit(V::dino_vitb16()), 85_798_656),
        dino.model("dino_vitb8", Vit(V::dino_vitb8()), 85_807_872),
        dino.model("dino_resnet50", Resnet(R { num_classes: 0, ..R::resnet50() }), 23_508_032),
        resnet.model("resnet18", Resnet(R::resnet18()), 11_689_512),
        resnet.model("resnet34", Resnet(R::resnet34()), 21_797_672),
        resnet.model("resnet50", Resnet(R::resnet50()), 25_557_032),
        resnet.model("resnet101", Resnet(R::resnet101()), 44_549_160),
        resnet.model("resnet152", Resnet(R::resnet152()), 60_192_808),
        resnext.model("resnext50_32x4d", Resnet(R::resnext50_32x4d()), 25_028_904),
        resnext.model("resnext101_32x8d", Resnet(R::resnext101_32x8d()), 88_791_336),
        wide.model("wide_resnet50_2", Resnet(R::wide_resnet50_2()), 68_883_240),
        wide.model("wide_resnet101_2", Resnet(R::wide_resnet101_2()), 126_886_696),
        vit.test("test_vit", Vit(V::test_vit())),
        vit.test("test_vit_avg", Vit(V::test_vit_avg())),
        deit.test("test_deit_distilled", Vit(V::test_deit_distilled())),
        dino.test("test_dino", Vit(V::test_dino())),
        resnet.test("test_resnet_basic", Resnet(R::test_resnet_basic())),
        resnet.test("test_resnet_bottleneck", Resnet(R::test_resnet_bottleneck())),
        resnext.test("test_resnext", Resnet(R::test_resnext())),
    ]
}

fn registry() -> &'static [Pretrained] {
    static MODELS: OnceLock<Vec<Pretrained>> = OnceLock::new();
    MODELS.get_or_init(models)
}

/// The names that match a pattern, in which `*` stands for any run of characters: `*`, `vit_*`, `*patch16*`.
pub fn list_models(pattern: &str) -> Vec<&'static str> {
    registry().iter().map(|model| model.name).filter(|name| matches(pattern, name)).collect()
}

/// The record of a model: options, preprocessing, key names, licence, source.
///
/// # Errors
/// When there is no model of that name.
pub fn pretrained(name: &str) -> Result<Pretrained> {
    let found = registry().iter().find(|model| model.name == name);
    found.cloned().ok_or_else(|| {
        let family = name.split('_').next().unwrap_or_default();
        let similar = list_models("*").into_iter().filter(|known| !family.is_empty() && known.contains(family));
        Error::UnknownModel { name: name.into(), similar: similar.map(str::to_owned).collect() }
    })
}

/// A model by name, with the options of its official weights. For other options change the record's
/// [`config`](Pretrained::config) and build that.
///
/// # Errors
/// When there is no model of that name or `vb` lacks a tensor.
pub fn create(name: &str, vb: VarBuilder) -> Result<Box<dyn Backbone>> {
    Ok(pretrained(name)?.config.build(vb)?)
}
