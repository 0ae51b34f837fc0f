//! Everything that belongs to one set of weights.

use std::path::Path;

use candle_core::{DType, Device};
use sconce_data::Preprocess;
use sconce_nn::{Checkpoint, LoadOptions};

use crate::{Backbone, BackboneConfig, Result};

/// Options, preprocessing, key names and provenance of one set of weights.
///
/// Weights are not part of the library: get the file from where [`source`](Self::source) points and hand its path to
/// [`load`](Self::load).
#[derive(Debug, Clone, PartialEq)]
pub struct Pretrained {
    /// Name in the registry.
    pub name: &'static str,
    /// Options of the model.
    pub config: BackboneConfig,
    /// How pictures are prepared.
    pub preprocess: Preprocess,
    /// How the official files name their tensors.
    pub keys: KeyNames,
    /// Licence of the official weights, an SPDX expression.
    pub licence: &'static str,
    /// The paper.
    pub paper: &'static str,
    /// The project that publishes the weights; `None` for the small models of tests, which have none.
    pub source: Option<&'static str>,
    /// Number of parameters in the official model.
    pub params: Option<usize>,
}

/// How the official files name their tensors, apart from what the library finds out by itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct KeyNames {
    /// Keys under which the tensors may be nested; the first that exists counts, a flat file is fine too.
    pub nested: &'static [&'static str],
    /// Prefixes to take off, in this order, where all names have them.
    pub prefixes: &'static [&'static str],
}

impl Pretrained {
    /// Opens a checkpoint file of this model so that its tensors answer to this library's names: official files, also
    /// nested or prefixed as training codes leave them, and those of Hugging Face.
    ///
    /// # Errors
    /// When the file cannot be read or is damaged.
    pub fn open(&self, path: impl AsRef<Path>) -> Result<Checkpoint> {
        let file = Checkpoint::open(path)?.select_first(self.keys.nested).strip_prefix(self.keys.prefixes)?;
        self.config.open(file)
    }

    /// Options for a strict load of [`open`](Self::open)'s checkpoint into a [`ParamStore`](sconce_nn::ParamStore): what
    /// official files hold beyond the model is passed over (Hugging Face's pooler; the classifier or DINO's head where the
    /// model has none), and position embeddings are resampled where the options have a rule for that.
    pub fn load_options(&self) -> LoadOptions {
        self.config.load_options()
    }

    /// The model with the weights of a file, for inference. To train on, make it from the builder of a
    /// [`ParamStore`](sconce_nn::ParamStore) and load [`open`](Self::open)'s checkpoint into that with
    /// [`load_options`](Self::load_options).
    ///
    /// # Errors
    /// When the file cannot be read, or a tensor is missing or of another shape.
    pub fn load(&self, path: impl AsRef<Path>, dtype: DType, device: &Device) -> Result<Box<dyn Backbone>> {
        Ok(self.config.build(self.open(path)?.vb_with(dtype, device, &self.load_options()))?)
    }
}

#[cfg(test)]
mod tests {
    use candle_core::Tensor;
    use sconce_nn::{Generator, ParamStore, SaveOptions, save_tensors};

    use super::*;
    use crate::pretrained;
    use crate::vit::{self, HuggingFaceKeys};

    fn model(record: &Pretrained, seed: u64) -> (Box<dyn Backbone>, ParamStore) {
        let store = ParamStore::new(seed, DType::F32, &Device::Cpu);
        (record.config.build(store.vb()).unwrap(), store)
    }

    fn named(store: &ParamStore) -> Vec<(String, Tensor)> {
        store.iter().map(|p| (p.name.to_string(), p.var.as_detached_tensor())).collect()
    }

    fn picture(side: usize) -> Tensor {
        Generator::new(5).normal(0.0, 1.0, (1, 3, side, side), DType::F32, &Device::Cpu).unwrap()
    }

    /// Saves the tensors, loads them strictly into a fresh model, and wants its outputs to be those of `model`.
    fn comes_back(record: &Pretrained, model: &dyn Backbone, tensors: Vec<(String, Tensor)>) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("model.safetensors");
        save_tensors(&path, tensors, &SaveOptions::default()).unwrap();
        let (other, store) = self::model(record, 2);
        let report = store.load(&record.open(&path).unwrap(), &record.load_options()).unwrap();
        assert_eq!(report.loaded.len(), store.names().len(), "{report}");
        let output = |model: &dyn Backbone| {
            model.forward_t(&picture(32), false).unwrap().flatten_all().unwrap().to_vec1::<f32>().unwrap()
        };
        assert_eq!(output(model), output(&*other));
        assert_eq!(output(model), output(&*record.load(&path, DType::F32, &Device::Cpu).unwrap()));
    }

    /// Our tensors under the names of Hugging Face's files, with the projections taken apart and a pooler added.
    fn hugging_face(store: &ParamStore, prefix: &str) -> Vec<(String, Tensor)> {
        use sconce_nn::{KeyMap, Source};
        let keys = HuggingFaceKeys { prefix: prefix.into() };
        let mut tensors = vec![];
        for (name, tensor) in named(store) {
            match keys.source(&name) {
                Source::Tensor(name) => tensors.push((name, tensor)),
                Source::Concat { names, dim } => {
                    let parts = tensor.chunk(names.len(), dim).unwrap();
                    tensors.extend(names.into_iter().zip(parts.into_iter().map(|p| p.contiguous().unwrap())));
                }
                other => panic!("{name}: {other:?}"),
            }
        }
        tensors.push((format!("{prefix}pooler.dense.bias"), Tensor::zeros(32, DType::F32, &Device::Cpu).unwrap()));
        tensors
    }

    #[test]
    fn hugging_faces_names_are_read_with_and_without_prefix() {
        for (name, prefix) in [("test_vit", "vit."), ("test_deit_distilled", "deit."), ("test_dino", "")] {
            let record = pretrained(name).unwrap();
            let (model, store) = model(&record, 1);
            let tensors = hugging_face(&store, prefix);
            assert!(
                tensors.iter().any(|(n, _)| *n == format!("{prefix}encoder.layer.0.attention.attention.query.weight"))
            );
            comes_back(&record, &*model, tensors);
        }
    }

    #[test]
    fn nested_and_prefixed_files_are_read() {
        for (name, prefix) in [
            ("test_vit", "model."),
            ("test_dino", "teacher.module.backbone."),
            ("test_resnet_basic", "state_dict.module."),
            ("test_cswin", "state_dict_ema."),
            ("test_boat_swin", "model."),
            ("test_resnet_bottleneck", ""),
        ] {
            let record = pretrained(name).unwrap();
            let (model, store) = model(&record, 1);
            let mut tensors: Vec<_> = named(&store).into_iter().map(|(n, t)| (format!("{prefix}{n}"), t)).collect();
            if name == "test_dino" {
                let head = Tensor::zeros((4, 4), DType::F32, &Device::Cpu).unwrap();
                tensors.push(("teacher.module.head.mlp.0.weight".into(), head));
            }
            comes_back(&record, &*model, tensors);
        }
    }

    #[test]
    fn position_embeddings_follow_the_size_on_loading() {
        let mut record = pretrained("test_vit").unwrap();
        let (_, store) = model(&record, 1);
        let small = store.get("pos_embed").unwrap().as_detached_tensor();
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("model.safetensors");
        store.save(&path).unwrap();
        let BackboneConfig::Vit(cfg) = &mut record.config else { panic!("a vit") };
        cfg.img_size = [48, 40];
        let rule = cfg.pos_resample;
        let (larger, store) = model(&record, 2);
        let report = store.load(&record.open(&path).unwrap(), &record.load_options()).unwrap();
        assert_eq!(report.resized, ["pos_embed"]);
        let expected = rule.apply(&small, 1, (6, 5)).unwrap().flatten_all().unwrap().to_vec1::<f32>().unwrap();
        let found = store.get("pos_embed").unwrap().flatten_all().unwrap().to_vec1::<f32>().unwrap();
        assert_eq!(found, expected);
        let xs = Tensor::zeros((1, 3, 48, 40), DType::F32, &Device::Cpu).unwrap();
        assert_eq!(larger.forward_t(&xs, false).unwrap().dims(), [1, 10]);
        // Without a rule the sizes differ and nothing is loaded.
        let BackboneConfig::Vit(cfg) = &mut record.config else { panic!("a vit") };
        cfg.pos_resample = vit::PosResample::Fixed;
        let error = store.load(&record.open(&path).unwrap(), &record.load_options()).unwrap_err().to_string();
        assert!(error.contains("pos_embed"), "{error}");
    }
}
