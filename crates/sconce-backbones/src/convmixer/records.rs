//! ConvMixers in the registry.

use sconce_data::Preprocess;
use sconce_data::transform::Normalize;
use sconce_nn::{Checkpoint, LoadOptions, VarBuilder};

use super::{Config, ConvMixer, LocuslabKeys};
use crate::config::ModelConfig;
use crate::record::family;
use crate::{Backbone, Pretrained};

const LOCUSLAB: &str = "https://github.com/locuslab/convmixer";
const CIFAR10: &str = "https://github.com/locuslab/convmixer-cifar10";
const PAPER: &str = "https://arxiv.org/abs/2201.09792";

fn imagenet() -> Preprocess {
    Preprocess::imagenet(224, 0.96)
}

fn cifar10() -> Preprocess {
    let normalize = Normalize { mean: [0.4914, 0.4822, 0.4465], std: [0.2471, 0.2435, 0.2616] };
    Preprocess { normalize, ..Preprocess::imagenet(32, 1.0) }
}

pub(crate) fn models() -> Vec<Pretrained> {
    let convmixer = family("MIT", PAPER, LOCUSLAB, imagenet);
    let cifar10 = family("MIT", PAPER, CIFAR10, cifar10);
    vec![
        convmixer.model("convmixer_1536_20", Config::convmixer_1536_20(), 51_625_960),
        convmixer.model("convmixer_768_32", Config::convmixer_768_32(), 21_110_248),
        convmixer.model("convmixer_1024_20_ks9_p14", Config::convmixer_1024_20_ks9_p14(), 24_383_464),
        cifar10.model("convmixer_256_8_cifar10", Config::convmixer_256_8_cifar10(), 594_186),
        convmixer.test("convmixer_tiny_32", Config::convmixer_tiny_32()),
        convmixer.test("test_convmixer", Config::test_convmixer()),
        convmixer.test("test_convmixer_relu", Config::test_convmixer_relu()),
    ]
}

impl ModelConfig for Config {
    fn build(&self, vb: VarBuilder) -> candle_core::Result<Box<dyn Backbone>> {
        Ok(Box::new(ConvMixer::new(self, vb)?))
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
        match LocuslabKeys::detect(file.names()) {
            true => Ok(file.with_map(LocuslabKeys { depth: self.depth })),
            false => Ok(file),
        }
    }

    fn load_options(&self, options: LoadOptions) -> LoadOptions {
        match self.num_classes {
            0 => options.ignore("head.*").ignore(format!("{}.*", LocuslabKeys { depth: self.depth }.head())),
            _ => options,
        }
    }
}

#[cfg(test)]
mod tests {
    use candle_core::{DType, Device, Tensor};
    use sconce_nn::{KeyMap, ParamStore, SaveOptions, Source, save_tensors};

    use super::*;
    use crate::pretrained;

    #[test]
    fn the_authors_files_are_read_also_without_their_classifier() {
        let record = pretrained("test_convmixer_relu").unwrap();
        let store = ParamStore::new(1, DType::F32, &Device::Cpu);
        let model = record.config.build(store.vb()).unwrap();
        let keys = LocuslabKeys { depth: 2 };
        let numbered = |name: &str| match keys.source(name) {
            Source::Tensor(name) => format!("state_dict.module.{name}"),
            other => panic!("{name}: {other:?}"),
        };
        let tensors = store.iter().map(|p| (numbered(&p.name), p.var.as_detached_tensor()));
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("convmixer.safetensors");
        save_tensors(&path, tensors, &SaveOptions::default()).unwrap();

        let xs = Tensor::ones((1, 3, 32, 32), DType::F32, &Device::Cpu).unwrap();
        let bits = |ys: Tensor| ys.flatten_all().unwrap().to_vec1::<f32>().unwrap();
        let ys = bits(model.forward_t(&xs, false).unwrap());
        let loaded = record.load(&path, DType::F32, &Device::Cpu).unwrap();
        assert_eq!(bits(loaded.forward_t(&xs, false).unwrap()), ys);

        let bare = Pretrained { config: record.config.clone().with_num_classes(0), ..record };
        let store = ParamStore::new(2, DType::F32, &Device::Cpu);
        bare.config.build(store.vb()).unwrap();
        let report = store.load(&bare.open(&path).unwrap(), &bare.load_options()).unwrap();
        assert_eq!(report.loaded.len(), store.names().len(), "{report}");
    }
}
