//! BOAT in the registry.

use sconce_data::Preprocess;
use sconce_nn::{Checkpoint, LoadOptions, VarBuilder};

use super::{BoatTransformer, Config, HostConfig};
use crate::config::ModelConfig;
use crate::record::family;
use crate::{Backbone, Pretrained};

const BOAT: &str = "https://github.com/mahaoyuHKU/pytorch-boat";

pub(crate) fn models() -> Vec<Pretrained> {
    use Config as B;
    let boat = family("MIT", "https://arxiv.org/abs/2201.13027", BOAT, || Preprocess::imagenet(224, 0.9));
    vec![
        boat.model("boat_swin_tiny_patch4_window7_224", B::boat_swin_tiny_patch4_window7_224(), 30_265_186),
        boat.model("boat_swin_small_patch4_window7_224", B::boat_swin_small_patch4_window7_224(), 55_158_898),
        boat.model("boat_swin_base_patch4_window7_224", B::boat_swin_base_patch4_window7_224(), 97_612_960),
        boat.model("boat_cswin_64_12211_tiny_224", B::boat_cswin_64_12211_tiny_224(), 26_390_952),
        boat.model("boat_cswin_64_24322_small_224", B::boat_cswin_64_24322_small_224(), 40_112_488),
        boat.model("boat_cswin_96_24322_base_224", B::boat_cswin_96_24322_base_224(), 89_628_712),
        boat.test("test_boat_swin", B::test_boat_swin()),
        boat.test("test_boat_cswin", B::test_boat_cswin()),
        boat.test("test_boat_cswin_drop", B::test_boat_cswin_drop()),
    ]
}

impl HostConfig {
    fn options(&self) -> &dyn ModelConfig {
        match self {
            Self::Swin(cfg) => cfg,
            Self::Cswin(cfg) => cfg,
        }
    }
}

impl ModelConfig for Config {
    fn build(&self, vb: VarBuilder) -> candle_core::Result<Box<dyn Backbone>> {
        Ok(Box::new(BoatTransformer::new(self, vb)?))
    }

    fn input_shape(&self) -> Vec<usize> {
        self.host.options().input_shape()
    }

    fn num_classes(&self) -> usize {
        self.host.options().num_classes()
    }

    fn set_num_classes(&mut self, num_classes: usize) {
        match &mut self.host {
            HostConfig::Swin(cfg) => cfg.set_num_classes(num_classes),
            HostConfig::Cswin(cfg) => cfg.set_num_classes(num_classes),
        }
    }

    fn open(&self, file: Checkpoint) -> crate::Result<Checkpoint> {
        self.host.options().open(file)
    }

    fn load_options(&self, options: LoadOptions) -> LoadOptions {
        self.host.options().load_options(options)
    }
}
