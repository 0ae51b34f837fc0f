//! ViT, DeiT and DINO in the registry.

use sconce_data::Preprocess;
use sconce_data::transform::Normalize;
use sconce_nn::{Checkpoint, LoadOptions, VarBuilder};

use super::{Config, HuggingFaceKeys, PosResample, VisionTransformer};
use crate::config::ModelConfig;
use crate::record::{TIMM, family};
use crate::{Backbone, Pretrained};

const DEIT: &str = "https://github.com/facebookresearch/deit";
const DINO: &str = "https://github.com/facebookresearch/dino";

/// The weights that Google published for its ViTs expect values in `[-1, 1]`.
fn half() -> Preprocess {
    Preprocess { normalize: Normalize { mean: [0.5; 3], std: [0.5; 3] }, ..Preprocess::imagenet(224, 0.9) }
}

fn crop90() -> Preprocess {
    Preprocess::imagenet(224, 0.9)
}

pub(crate) fn models() -> Vec<Pretrained> {
    use Config as V;
    let vit = family("Apache-2.0", "https://arxiv.org/abs/2010.11929", TIMM, half);
    let deit = family("Apache-2.0", "https://arxiv.org/abs/2012.12877", DEIT, crop90);
    let dino = family("Apache-2.0", "https://arxiv.org/abs/2104.14294", DINO, Preprocess::dino);
    vec![
        vit.model("vit_tiny_patch16_224", V::vit_tiny_patch16_224(), 5_717_416),
        vit.model("vit_small_patch16_224", V::vit_small_patch16_224(), 22_050_664),
        vit.model("vit_base_patch16_224", V::vit_base_patch16_224(), 86_567_656),
        vit.model("vit_base_patch32_224", V::vit_base_patch32_224(), 88_224_232),
        vit.model("vit_large_patch16_224", V::vit_large_patch16_224(), 304_326_632),
        deit.model("deit_tiny_patch16_224", V::deit_tiny_patch16_224(), 5_717_416),
        deit.model("deit_small_patch16_224", V::deit_small_patch16_224(), 22_050_664),
        deit.model("deit_base_patch16_224", V::deit_base_patch16_224(), 86_567_656),
        deit.model("deit_tiny_distilled_patch16_224", V::deit_tiny_distilled_patch16_224(), 5_910_800),
        deit.model("deit_small_distilled_patch16_224", V::deit_small_distilled_patch16_224(), 22_436_432),
        deit.model("deit_base_distilled_patch16_224", V::deit_base_distilled_patch16_224(), 87_338_192),
        dino.model("dino_vits16", V::dino_vits16(), 21_665_664),
        dino.model("dino_vits8", V::dino_vits8(), 21_670_272),
        dino.model("dino_vitb16", V::dino_vitb16(), 85_798_656),
        dino.model("dino_vitb8", V::dino_vitb8(), 85_807_872),
        vit.test("vit_tiny_patch4_32", V::vit_tiny_patch4_32()),
        vit.test("test_vit", V::test_vit()),
        vit.test("test_vit_avg", V::test_vit_avg()),
        deit.test("test_deit_distilled", V::test_deit_distilled()),
        dino.test("test_dino", V::test_dino()),
    ]
}

impl ModelConfig for Config {
    fn build(&self, vb: VarBuilder) -> candle_core::Result<Box<dyn Backbone>> {
        Ok(Box::new(VisionTransformer::new(self, vb)?))
    }

    fn input_shape(&self) -> Vec<usize> {
        vec![self.in_chans, self.img_size[0], self.img_size[1]]
    }

    fn num_classes(&self) -> usize {
        self.num_classes
    }

    fn set_num_classes(&mut self, num_classes: usize) {
        self.num_classes = num_classes;
    }

    fn open(&self, file: Checkpoint) -> crate::Result<Checkpoint> {
        match HuggingFaceKeys::detect(file.names()) {
            Ok(keys) => Ok(file.with_map(keys)),
            Err(_) => Ok(file),
        }
    }

    fn load_options(&self, options: LoadOptions) -> LoadOptions {
        let mut options = options.ignore("pooler.*").ignore("*.pooler.*");
        if self.num_classes == 0 {
            options = options.ignore("head.*").ignore("classifier.*");
        }
        match self.pos_resample {
            PosResample::Fixed => options,
            rule => options.resize(self.pos_embed_hook(rule)),
        }
    }
}
