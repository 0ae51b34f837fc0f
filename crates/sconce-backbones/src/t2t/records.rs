//! T2T-ViTs in the registry.

use candle_core::{Result, Tensor};
use sconce_data::Preprocess;
use sconce_nn::{LoadOptions, VarBuilder};

use super::{Config, T2tVit};
use crate::config::ModelConfig;
use crate::record::family;
use crate::vit::PosResample;
use crate::{Backbone, Pretrained};

const T2T: &str = "https://github.com/yitu-opensource/T2T-ViT";

fn preprocess() -> Preprocess {
    Preprocess::imagenet(224, 0.9)
}

pub(crate) fn models() -> Vec<Pretrained> {
    let t2t = family("BSD-3-Clause-Clear", "https://arxiv.org/abs/2101.11986", T2T, preprocess);
    vec![
        t2t.model("t2t_vit_7", Config::t2t_vit_7(), 4_310_222),
        t2t.model("t2t_vit_10", Config::t2t_vit_10(), 5_889_230),
        t2t.model("t2t_vit_12", Config::t2t_vit_12(), 6_941_902),
        t2t.model("t2t_vit_14", Config::t2t_vit_14(), 21_545_550),
        t2t.model("t2t_vit_19", Config::t2t_vit_19(), 39_177_422),
        t2t.model("t2t_vit_24", Config::t2t_vit_24(), 64_105_934),
        t2t.model("t2t_vit_t_14", Config::t2t_vit_t_14(), 21_541_070),
        t2t.test("test_t2t", Config::test_t2t()),
        t2t.test("test_t2t_transformer", Config::test_t2t_transformer()),
    ]
}

impl ModelConfig for Config {
    fn build(&self, vb: VarBuilder) -> Result<Box<dyn Backbone>> {
        Ok(Box::new(T2tVit::new(self, vb)?))
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

    fn load_options(&self, options: LoadOptions) -> LoadOptions {
        let options = match self.num_classes {
            0 => options.ignore("head.*"),
            _ => options,
        };
        match self.pos_resample {
            PosResample::Fixed => options,
            rule => options.resize(pos_embed_hook(rule, self.grid())),
        }
    }
}

/// Brings `pos_embed` of a checkpoint for square pictures of another size to this grid.
fn pos_embed_hook(
    rule: PosResample,
    to: (usize, usize),
) -> impl Fn(&str, &Tensor, &[usize]) -> Result<Option<Tensor>> + Send + Sync + 'static {
    move |name, found, wanted| {
        let &[1, tokens, channels] = found.dims() else { return Ok(None) };
        let side = tokens.saturating_sub(1).isqrt();
        if name != "pos_embed" || tokens != 1 + side * side || side == 0 || wanted.last() != Some(&channels) {
            return Ok(None);
        }
        rule.apply(found, 1, to).map(Some)
    }
}
