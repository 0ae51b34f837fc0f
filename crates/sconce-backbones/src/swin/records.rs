//! Swin transformers in the registry.

use candle_core::{Result, Tensor};
use sconce_attention::bias_table_hook;
use sconce_data::Preprocess;
use sconce_nn::{Checkpoint, LoadOptions, VarBuilder, pos_embed::resample_deit};

use super::{Config, SwinTransformer, TimmKeys};
use crate::config::ModelConfig;
use crate::record::family;
use crate::{Backbone, Pretrained};

const SWIN: &str = "https://github.com/microsoft/Swin-Transformer";

fn crop90() -> Preprocess {
    Preprocess::imagenet(224, 0.9)
}

/// The whole picture.
fn at_384() -> Preprocess {
    Preprocess::imagenet(384, 1.0)
}

pub(crate) fn models() -> Vec<Pretrained> {
    use Config as S;
    let swin = family("MIT", "https://arxiv.org/abs/2103.14030", SWIN, crop90);
    let swin_384 = family("MIT", "https://arxiv.org/abs/2103.14030", SWIN, at_384);
    vec![
        swin.model("swin_tiny_patch4_window7_224", S::swin_tiny_patch4_window7_224(), 28_288_354),
        swin.model("swin_small_patch4_window7_224", S::swin_small_patch4_window7_224(), 49_606_258),
        swin.model("swin_base_patch4_window7_224", S::swin_base_patch4_window7_224(), 87_768_224),
        swin.model("swin_base_patch4_window7_224_22k", S::swin_base_patch4_window7_224_22k(), 109_130_249),
        swin.model("swin_large_patch4_window7_224", S::swin_large_patch4_window7_224(), 196_532_476),
        swin.model("swin_large_patch4_window7_224_22k", S::swin_large_patch4_window7_224_22k(), 228_565_093),
        swin_384.model("swin_base_patch4_window12_384", S::swin_base_patch4_window12_384(), 87_903_584),
        swin_384.model("swin_large_patch4_window12_384", S::swin_large_patch4_window12_384(), 196_735_516),
        swin.test("test_swin", S::test_swin()),
        swin.test("test_swin_ape", S::test_swin_ape()),
        swin.test("test_swin_broad", S::test_swin_broad()),
    ]
}

impl ModelConfig for Config {
    fn build(&self, vb: VarBuilder) -> Result<Box<dyn Backbone>> {
        Ok(Box::new(SwinTransformer::new(self, vb)?))
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
        match TimmKeys::detect(file.names()) {
            Some(keys) => Ok(file.with_map(keys)),
            None => Ok(file),
        }
    }

    fn load_options(&self, options: LoadOptions) -> LoadOptions {
        // What the model computes itself for every map.
        let mut options = options.ignore("*.relative_position_index").ignore("*.attn_mask").resize(bias_table_hook());
        if self.num_classes == 0 {
            options = options.ignore("head.*");
        }
        let to = self.grid();
        options.resize(move |name: &str, found: &Tensor, _: &[usize]| {
            let square = found.dim(1).is_ok_and(|n| n.isqrt().pow(2) == n);
            if name == "absolute_pos_embed" && square { resample_deit(found, 0, to).map(Some) } else { Ok(None) }
        })
    }
}
