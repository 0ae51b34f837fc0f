//! UniFormers in the registry.

use sconce_data::transform::Normalize;
use sconce_data::{Filter, Preprocess, ResizeMode};
use sconce_nn::{LoadOptions, VarBuilder};

use super::{Config, UniFormer, inflate};
use crate::config::ModelConfig;
use crate::record::family;
use crate::{Backbone, Pretrained};

const UNIFORMER: &str = "https://github.com/Sense-X/UniFormer";
const IMAGE: &str = "https://arxiv.org/abs/2201.09450";
const VIDEO: &str = "https://arxiv.org/abs/2201.04676";

fn crop875() -> Preprocess {
    Preprocess::imagenet(224, 0.875)
}

fn crop90() -> Preprocess {
    Preprocess::imagenet(224, 0.9)
}

/// Each frame of a clip: shorter side 256, bilinear, centre crop 224, the statistics of SlowFast's code.
fn frames() -> Preprocess {
    Preprocess {
        resize: ResizeMode::ShorterSide(256),
        filter: Filter::Bilinear,
        normalize: Normalize { mean: [0.45; 3], std: [0.225; 3] },
        ..Preprocess::imagenet(224, 1.0)
    }
}

pub(crate) fn models() -> Vec<Pretrained> {
    use Config as U;
    let image = family("Apache-2.0", IMAGE, UNIFORMER, crop875);
    // The code of token labelling evaluates with timm's defaults.
    let labelling = family("Apache-2.0", IMAGE, UNIFORMER, crop90);
    let video = family("Apache-2.0", VIDEO, UNIFORMER, frames);
    let test_video = video.test("test_uniformer_video", U::test_uniformer_video());
    let normalize = frames().normalize;
    vec![
        image.model("uniformer_small", U::uniformer_small(), 21_545_256),
        image.model("uniformer_small_plus", U::uniformer_small_plus(), 24_032_552),
        image.model("uniformer_small_plus_dim64", U::uniformer_small_plus_dim64(), 24_032_552),
        image.model("uniformer_base", U::uniformer_base(), 49_776_552),
        image.model("uniformer_base_ls", U::uniformer_base_ls(), 49_796_520),
        labelling.model("uniformer_large_ls", U::uniformer_large_ls(), 100_103_888),
        video.model("uniformer_small_k400_8x8", U::uniformer_small_k400_8x8(), 21_400_400),
        video.model("uniformer_small_k400_16x4", U::uniformer_small_k400_16x4(), 21_400_400),
        video.model("uniformer_small_k400_32x4", U::uniformer_small_k400_32x4(), 21_400_400),
        video.model("uniformer_base_k400_8x8", U::uniformer_base_k400_8x8(), 49_813_200),
        video.model("uniformer_base_k400_16x4", U::uniformer_base_k400_16x4(), 49_813_200),
        video.model("uniformer_base_k400_32x4", U::uniformer_base_k400_32x4(), 49_813_200),
        image.model("uniformer_small_dense", U::uniformer_small_dense(), 21_033_280),
        image.model("uniformer_small_dense_w14", U::uniformer_small_dense_w14(), 21_033_280),
        image.model("uniformer_small_dense_h14", U::uniformer_small_dense_h14(), 21_033_280),
        image.model("uniformer_base_dense", U::uniformer_base_dense(), 49_264_576),
        image.model("uniformer_base_dense_w14", U::uniformer_base_dense_w14(), 49_264_576),
        image.model("uniformer_base_dense_h14", U::uniformer_base_dense_h14(), 49_264_576),
        image.test("uniformer_tiny_32", U::uniformer_tiny_32()),
        image.test("test_uniformer", U::test_uniformer()),
        Pretrained { preprocess: Preprocess { normalize, ..test_video.preprocess.clone() }, ..test_video },
        image.test("test_uniformer_dense", U::test_uniformer_dense()),
    ]
}

impl ModelConfig for Config {
    fn build(&self, vb: VarBuilder) -> candle_core::Result<Box<dyn Backbone>> {
        Ok(Box::new(UniFormer::new(self, vb)?))
    }

    fn input_shape(&self) -> Vec<usize> {
        let [height, width] = self.img_size;
        match self.frames {
            Some(frames) => vec![self.in_chans, frames, height, width],
            None => vec![self.in_chans, height, width],
        }
    }

    fn num_classes(&self) -> usize {
        self.num_classes
    }

    fn set_num_classes(&mut self, num_classes: usize) {
        self.num_classes = num_classes;
    }

    fn load_options(&self, options: LoadOptions) -> LoadOptions {
        let mut options = options;
        if self.num_classes == 0 {
            options = options.ignore("head.*").ignore("aux_head.*");
        }
        if self.dense {
            // Detectors and segmenters keep theirs beside the backbone.
            let parts = ["neck.*", "rpn_head.*", "roi_head.*", "decode_head.*", "auxiliary_head.*", "keypoint_head.*"];
            options = parts.into_iter().fold(options, LoadOptions::ignore);
        }
        match self.frames {
            Some(_) => options.resize(inflate),
            None => options,
        }
    }
}
