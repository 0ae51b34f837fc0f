//! Residual networks in the registry.

use sconce_data::Preprocess;
use sconce_nn::{LoadOptions, VarBuilder};

use super::{Config, ResNet};
use crate::config::ModelConfig;
use crate::record::family;
use crate::{Backbone, Pretrained};

const TORCHVISION: &str = "https://github.com/pytorch/vision";
const DINO: &str = "https://github.com/facebookresearch/dino";

pub(crate) fn models() -> Vec<Pretrained> {
    use Config as R;
    let torchvision = Preprocess::imagenet_torchvision;
    let dino = family("Apache-2.0", "https://arxiv.org/abs/2104.14294", DINO, Preprocess::dino);
    let resnet = family("BSD-3-Clause", "https://arxiv.org/abs/1512.03385", TORCHVISION, torchvision);
    let resnext = family("BSD-3-Clause", "https://arxiv.org/abs/1611.05431", TORCHVISION, torchvision);
    let wide = family("BSD-3-Clause", "https://arxiv.org/abs/1605.07146", TORCHVISION, torchvision);
    vec![
        dino.model("dino_resnet50", R { num_classes: 0, ..R::resnet50() }, 23_508_032),
        resnet.model("resnet18", R::resnet18(), 11_689_512),
        resnet.model("resnet34", R::resnet34(), 21_797_672),
        resnet.model("resnet50", R::resnet50(), 25_557_032),
        resnet.model("resnet101", R::resnet101(), 44_549_160),
        resnet.model("resnet152", R::resnet152(), 60_192_808),
        resnext.model("resnext50_32x4d", R::resnext50_32x4d(), 25_028_904),
        resnext.model("resnext101_32x8d", R::resnext101_32x8d(), 88_791_336),
        wide.model("wide_resnet50_2", R::wide_resnet50_2(), 68_883_240),
        wide.model("wide_resnet101_2", R::wide_resnet101_2(), 126_886_696),
        resnet.test("test_resnet_basic", R::test_resnet_basic()),
        resnet.test("test_resnet_bottleneck", R::test_resnet_bottleneck()),
        resnext.test("test_resnext", R::test_resnext()),
    ]
}

impl ModelConfig for Config {
    fn build(&self, vb: VarBuilder) -> candle_core::Result<Box<dyn Backbone>> {
        Ok(Box::new(ResNet::new(self, vb)?))
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
        match self.num_classes {
            0 => options.ignore("fc.*").ignore("head.*"),
            _ => options,
        }
    }
}
