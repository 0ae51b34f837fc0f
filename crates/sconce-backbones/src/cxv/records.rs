//! Convolutional X-formers in the registry.

use sconce_data::Preprocess;
use sconce_nn::{LoadOptions, VarBuilder};

use super::{Config, Cxv};
use crate::config::ModelConfig;
use crate::record::family;
use crate::{Backbone, Pretrained};

const CXV: &str = "https://github.com/pranavphoenix/CXV";

/// The authors publish no preprocessing; ImageNet's statistics stand in for it.
fn preprocess() -> Preprocess {
    Preprocess::imagenet(32, 1.0)
}

pub(crate) fn models() -> Vec<Pretrained> {
    let cxv = family("CC0-1.0", "https://arxiv.org/abs/2201.10271", CXV, preprocess);
    vec![
        cxv.model("cltv", Config::cltv(), 3_967_434),
        cxv.model("cnv", Config::cnv(), 1_344_734),
        cxv.model("cpv", Config::cpv(), 1_345_994),
        cxv.test("cltv_tiny_32", Config::cltv_tiny_32()),
        cxv.test("cnv_tiny_32", Config::cnv_tiny_32()),
        cxv.test("cpv_tiny_32", Config::cpv_tiny_32()),
        cxv.test("test_cltv", Config::test_cltv()),
        cxv.test("test_cnv", Config::test_cnv()),
        cxv.test("test_cpv", Config::test_cpv()),
    ]
}

impl ModelConfig for Config {
    fn build(&self, vb: VarBuilder) -> candle_core::Result<Box<dyn Backbone>> {
        Ok(Box::new(Cxv::new(self, vb)?))
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
        // Performer's trainer counts in a buffer; these projections are never drawn anew.
        let options = options.ignore("*calls_since_last_redraw");
        match self.num_classes {
            0 => options.ignore("head.*"),
            _ => options,
        }
    }
}

#[cfg(test)]
mod tests {
    use candle_core::{DType, Device, Tensor};
    use sconce_ops::count_macs;

    use super::*;
    use crate::ShapeRecorder;

    #[test]
    fn a_hundred_classes_and_the_small_budget() {
        for (cfg, params) in [(Config::cltv(), 3_979_044), (Config::cnv(), 1_356_344), (Config::cpv(), 1_357_604)] {
            let recorder = ShapeRecorder::default();
            Cxv::new(&Config { num_classes: 100, ..cfg }, recorder.vb()).unwrap();
            assert_eq!(recorder.count(), params);
        }
        for cfg in [Config::cltv_tiny_32(), Config::cnv_tiny_32(), Config::cpv_tiny_32()] {
            let recorder = ShapeRecorder::default();
            let net = Cxv::new(&cfg, recorder.vb()).unwrap();
            let picture = Tensor::zeros((1, 3, 32, 32), DType::F32, &Device::Cpu).unwrap();
            let (_, macs) = count_macs(|| sconce_nn::ModuleT::forward_t(&net, &picture, false).unwrap());
            let params = recorder.count();
            assert!((1_000_000..1_500_000).contains(&params), "{:?}: {params} parameters", cfg.mixer);
            assert!(macs < 100_000_000, "{:?}: {macs} multiply-accumulates", cfg.mixer);
        }
    }
}
