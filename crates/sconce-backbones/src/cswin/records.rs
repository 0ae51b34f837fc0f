//! CSWin in the registry.

use sconce_data::Preprocess;
use sconce_nn::{LoadOptions, VarBuilder};

use super::{CSWinTransformer, Config};
use crate::config::ModelConfig;
use crate::record::family;
use crate::{Backbone, Pretrained};

const CSWIN: &str = "https://github.com/microsoft/CSWin-Transformer";

pub(crate) fn models() -> Vec<Pretrained> {
    let cswin = family("MIT", "https://arxiv.org/abs/2107.00652", CSWIN, || Preprocess::imagenet(224, 0.9));
    let large = family("MIT", "https://arxiv.org/abs/2107.00652", CSWIN, || Preprocess::imagenet(384, 1.0));
    vec![
        cswin.model("cswin_64_12211_tiny_224", Config::cswin_64_12211_tiny_224(), 22_320_552),
        cswin.model("cswin_64_24322_small_224", Config::cswin_64_24322_small_224(), 34_643_304),
        cswin.model("cswin_96_24322_base_224", Config::cswin_96_24322_base_224(), 77_382_184),
        cswin.model("cswin_144_24322_large_224", Config::cswin_144_24322_large_224(), 173_262_664),
        large.model("cswin_96_24322_base_384", Config::cswin_96_24322_base_384(), 77_382_184),
        large.model("cswin_144_24322_large_384", Config::cswin_144_24322_large_384(), 173_262_664),
        cswin.test("test_cswin", Config::test_cswin()),
        cswin.test("test_cswin_drop", Config::test_cswin_drop()),
    ]
}

impl ModelConfig for Config {
    fn build(&self, vb: VarBuilder) -> candle_core::Result<Box<dyn Backbone>> {
        Ok(Box::new(CSWinTransformer::new(self, vb)?))
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
        if self.num_classes == 0 { options.ignore("head.*") } else { options }
    }
}
