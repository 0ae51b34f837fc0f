//! BViT in the registry.

use candle_core::{Result, Tensor};
use sconce_data::Preprocess;
use sconce_nn::{LoadOptions, VarBuilder};

use super::{BViT, Config};
use crate::config::ModelConfig;
use crate::record::family;
use crate::vit::PosResample;
use crate::{Backbone, Pretrained};

const BVIT: &str = "https://github.com/koala719/BViT";

/// Shorter side 256.
fn crop875() -> Preprocess {
    Preprocess::imagenet(224, 0.875)
}

pub(crate) fn models() -> Vec<Pretrained> {
    let bvit = family("Apache-2.0", "https://arxiv.org/abs/2202.06268", BVIT, crop875);
    vec![
        bvit.model("bvit_5m", Config::bvit_5m(), 5_710_504),
        bvit.model("bvit_5m_stem", Config::bvit_5m_stem(), 5_710_948),
        bvit.model("bvit_22m", Config::bvit_22m(), 22_036_840),
        bvit.model("bvit_22m_stem", Config::bvit_22m_stem(), 22_037_284),
        bvit.test("bvit_tiny_patch4_32", Config::bvit_tiny_patch4_32()),
        bvit.test("test_bvit", Config::test_bvit()),
        bvit.test("test_bvit_stem", Config::test_bvit_stem()),
    ]
}

impl ModelConfig for Config {
    fn build(&self, vb: VarBuilder) -> Result<Box<dyn Backbone>> {
        Ok(Box::new(BViT::new(self, vb)?))
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

    fn load_options(&self, mut options: LoadOptions) -> LoadOptions {
        if self.num_classes == 0 {
            options = options.ignore("mlp_head.1.*");
        }
        // With a stem the file does not tell which of its rows were in use.
        if self.stem || self.pos_resample == PosResample::Fixed {
            return options;
        }
        let (rule, to) = (self.pos_resample, self.grid(self.img_size.into()));
        options.resize(move |name: &str, found: &Tensor, _: &[usize]| {
            let square = found.dim(1).is_ok_and(|n| n > 1 && (n - 1).isqrt().pow(2) == n - 1);
            if name == "pos_embedding" && square { rule.apply(found, 1, to).map(Some) } else { Ok(None) }
        })
    }
}
