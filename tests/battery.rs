//! What must hold for every model of the registry: parameter counts for all, everything else for the small ones.

use candle_core::{D, DType, Device, Tensor};
use sconce::backbones::{
    Backbone, BackboneConfig, FeatureInfo, Pretrained, ShapeRecorder, create, list_models, pretrained,
};
use sconce::nn::{Checkpoint, Generator, LoadOptions, ParamStore};
use sconce::ops::cross_entropy;

type Outcome = Result<(), Box<dyn std::error::Error>>;

/// The small models, which nobody publishes weights of.
fn small() -> Vec<Pretrained> {
    let records = list_models("*").into_iter().map(|name| pretrained(name).expect("a listed name"));
    records.filter(|record| record.source.is_none()).collect()
}

fn build(record: &Pretrained, seed: u64, dtype: DType) -> candle_core::Result<(Box<dyn Backbone>, ParamStore)> {
    let store = ParamStore::new(seed, dtype, &Device::Cpu);
    Ok((record.config.build(store.vb())?, store))
}

fn pictures(record: &Pretrained, batch: usize, dtype: DType) -> candle_core::Result<Tensor> {
    let shape: Vec<usize> = [vec![batch], record.config.input_shape()].concat();
    Generator::new(7).normal(0.0, 1.0, shape, dtype, &Device::Cpu)
}

/// Equal to the last bit.
fn assert_same(a: &Tensor, b: &Tensor, what: &str) {
    let bits =
        |t: &Tensor| t.flatten_all().and_then(|t| t.to_vec1::<f32>()).expect("f32").into_iter().map(f32::to_bits);
    assert_eq!(a.dims(), b.dims(), "{what}");
    assert!(bits(a).eq(bits(b)), "{what}: values differ");
}

fn largest(t: &Tensor) -> candle_core::Result<f64> {
    t.abs()?.flatten_all()?.max(D::Minus1)?.to_dtype(DType::F64)?.to_scalar()
}

#[test]
fn parameter_counts_are_the_official_ones() -> Outcome {
    let mut compared = 0;
    for name in list_models("*") {
        let record = pretrained(name)?;
        let recorder = ShapeRecorder::default();
        record.config.build(recorder.vb())?;
        assert!(recorder.count() > 0, "{name}");
        if let Some(official) = record.params {
            assert_eq!(recorder.count(), official, "{name}");
            compared += 1;
        }
    }
    assert!(compared >= 25, "only {compared} models have an official count");
    Ok(())
}

#[test]
fn records_are_whole() -> Outcome {
    for name in list_models("*") {
        let record = pretrained(name)?;
        assert_eq!(record.name, name);
        assert_eq!(record.source.is_some(), record.params.is_some(), "{name}");
        assert!(!record.licence.is_empty() && record.paper.starts_with("https://"), "{name}");
        let (height, width) = record.config.input_size();
        let size = (record.preprocess.size.height as usize, record.preprocess.size.width as usize);
        assert_eq!(size, (height, width), "{name}: preprocessing and model disagree");
        let json = serde_json::to_string(&record.config)?;
        assert_eq!(serde_json::from_str::<BackboneConfig>(&json)?, record.config, "{name}");
    }
    let error = pretrained("vit_huge").expect_err("no such model").to_string();
    assert!(error.contains("vit_base_patch16_224"), "{error}");
    Ok(())
}

#[test]
fn every_parameter_gets_a_finite_gradient() -> Outcome {
    for (record, train) in small().into_iter().flat_map(|record| [(record.clone(), false), (record, true)]) {
        let name = record.name;
        let (model, store) = build(&record, 1, DType::F32)?;
        let xs = pictures(&record, 4, DType::F32)?;
        let ys = model.forward_t(&xs, train)?;
        // A model without classifier is trained on its features all the same.
        let labels = Tensor::new(&[0u32, 1, 2, 3], &Device::Cpu)?;
        let mut loss = cross_entropy(&ys, &labels, 0.0)?;
        if record.config.num_classes() == 0 {
            // Norms of a feature pyramid stand beside the path to the pooled features.
            let indices: Vec<usize> = (0..model.feature_info().len()).collect();
            for map in model.forward_intermediates(&xs, &indices, train)?.features {
                loss = (loss + map.sqr()?.mean_all()?)?;
            }
        }
        let grads = loss.backward()?;
        assert!(!store.parameters().is_empty());
        for param in store.parameters() {
            let grad = grads.get(param.var.as_tensor());
            let grad = grad.unwrap_or_else(|| panic!("{name} (train: {train}): {} has no gradient", param.name));
            assert_eq!(grad.dims(), param.var.dims(), "{name}: {}", param.name);
            let largest = largest(grad)?;
            assert!(largest.is_finite(), "{name} (train: {train}): the gradient of {} is {largest}", param.name);
        }
    }
    Ok(())
}

#[test]
fn saved_and_loaded_models_agree_to_the_last_bit() -> Outcome {
    let folder = tempfile::tempdir()?;
    for record in small() {
        let name = record.name;
        let (model, store) = build(&record, 1, DType::F32)?;
        // A training step moves the running statistics, which must be kept too.
        let xs = pictures(&record, 3, DType::F32)?;
        model.forward_t(&xs, true)?;
        let path = folder.path().join(format!("{name}.safetensors"));
        store.save(&path)?;
        let ys = model.forward_t(&xs, false)?;

        let (other, other_store) = build(&record, 2, DType::F32)?;
        let report = other_store.load(&record.open(&path)?, &LoadOptions::default())?;
        assert!(report.is_clean() && report.loaded.len() == store.names().len(), "{name}: {report}");
        assert_same(&ys, &other.forward_t(&xs, false)?, name);
        for param in store.iter() {
            let loaded = other_store.get(&param.name).expect("the same names");
            assert_same(param.var.as_tensor(), loaded.as_tensor(), &param.name);
        }
        let inference = record.load(&path, DType::F32, &Device::Cpu)?;
        assert_same(&ys, &inference.forward_t(&xs, false)?, name);
    }
    Ok(())
}

#[test]
fn a_checkpoint_of_another_model_is_refused() -> Outcome {
    let folder = tempfile::tempdir()?;
    let (vit, deit) = (pretrained("test_vit")?, pretrained("test_deit_distilled")?);
    let path = folder.path().join("vit.safetensors");
    build(&vit, 1, DType::F32)?.1.save(&path)?;
    let (_, store) = build(&deit, 1, DType::F32)?;
    let error = store.load(&deit.open(&path)?, &LoadOptions::default()).expect_err("other tensors").to_string();
    assert!(error.contains("dist_token") && error.contains("pos_embed"), "{error}");
    let error = deit.load(&path, DType::F32, &Device::Cpu).expect_err("a tensor is missing").to_string();
    assert!(error.contains("pos_embed") || error.contains("dist_token"), "{error}");
    Ok(())
}

#[test]
fn models_keep_the_feature_contract() -> Outcome {
    for record in small() {
        let name = record.name;
        let (mut model, _) = build(&record, 1, DType::F32)?;
        let xs = pictures(&record, 2, DType::F32)?;
        let classes = record.config.num_classes();
        let width = if classes == 0 { model.num_features() } else { classes };
        let features = model.forward_features(&xs, false)?;
        let ys = model.forward_t(&xs, false)?;
        assert_eq!(ys.dims(), [2, width], "{name}");
        assert_eq!(model.num_classes(), classes, "{name}");
        assert_same(&ys, &model.forward_head(&features, false, false)?, name);
        assert_eq!(model.forward_head(&features, true, false)?.dims(), [2, model.num_features()], "{name}");

        let info = model.feature_info();
        let indices: Vec<usize> = (0..info.len()).rev().collect();
        let maps = model.forward_intermediates(&xs, &indices, false)?;
        assert_same(&features, &maps.output, name);
        let (height, width) = record.config.input_size();
        for (&index, map) in indices.iter().zip(&maps.features) {
            let FeatureInfo { module, channels, reduction } = &info[index];
            assert_eq!(map.dims()[..2], [2, *channels], "{name}: {module}");
            assert_eq!(map.dims()[map.rank() - 2..], [height / reduction, width / reduction], "{name}: {module}");
            assert_eq!(map.rank(), xs.rank(), "{name}: {module}");
        }
        assert!(model.forward_intermediates(&xs, &[info.len()], false).is_err(), "{name}");

        let store = ParamStore::new(3, DType::F32, &Device::Cpu);
        model.reset_classifier(3, store.vb())?;
        assert_eq!(model.forward_t(&xs, false)?.dims(), [2, 3], "{name}");
        assert_eq!(model.config().num_classes(), 3, "{name}");
        model.reset_classifier(0, store.vb())?;
        assert_eq!(model.forward_t(&xs, false)?.dims(), [2, model.num_features()], "{name}");
    }
    Ok(())
}

#[test]
fn seeds_decide_every_bit() -> Outcome {
    for record in small() {
        let name = record.name;
        let xs = pictures(&record, 2, DType::F32)?;
        let run = |seed: u64| -> candle_core::Result<Tensor> {
            Generator::new(seed).scope(|| build(&record, seed, DType::F32)?.0.forward_t(&xs, true))
        };
        assert_same(&run(1)?, &run(1)?, name);
        assert!(largest(&(run(1)? - run(2)?)?)? > 0.0, "{name}");
    }
    Ok(())
}

#[test]
fn double_precision_agrees_with_single() -> Outcome {
    for record in small() {
        let (single, store) = build(&record, 1, DType::F32)?;
        let tensors = store.iter().map(|p| (p.name.to_string(), p.var.as_detached_tensor()));
        let double = record.config.build(Checkpoint::from_tensors(tensors).vb(DType::F64, &Device::Cpu))?;
        let ys = double.forward_t(&pictures(&record, 2, DType::F64)?, false)?;
        let xs = pictures(&record, 2, DType::F64)?.to_dtype(DType::F32)?;
        let error = largest(&(single.forward_t(&xs, false)?.to_dtype(DType::F64)? - &ys)?)?;
        assert!(error <= 1e-4 * largest(&ys)? + 1e-5, "{}: {error}", record.name);
    }
    Ok(())
}

#[test]
fn models_take_single_pictures_and_other_sizes() -> Outcome {
    for record in small() {
        let (model, _) = build(&record, 1, DType::F32)?;
        let mut shape = [vec![1], record.config.input_shape()].concat();
        let rank = shape.len();
        shape[rank - 2..].copy_from_slice(&[48, 40]);
        let xs = Generator::new(1).normal(0.0, 1.0, shape, DType::F32, &Device::Cpu)?;
        let ys = model.forward_t(&xs, false)?;
        assert!(largest(&ys)?.is_finite(), "{}", record.name);
    }
    let strict = create("vit_tiny_patch16_224", ShapeRecorder::default().vb())?;
    let error = strict.forward_t(&Tensor::zeros((1, 3, 32, 32), DType::F32, &Device::Cpu)?, false);
    assert!(error.expect_err("made for 224").to_string().contains("224"));
    Ok(())
}

/// The shape that a model is made for; clips are cut to eight frames, which spares minutes and no code.
fn full_input(record: &Pretrained) -> Vec<usize> {
    let mut shape = [vec![1], record.config.input_shape()].concat();
    if let [_, _, frames, _, _] = &mut shape[..] {
        *frames = (*frames).min(8);
    }
    shape
}

/// What the small models go through above, for every model at its full size.
#[test]
#[ignore = "takes minutes and wants --release: `.ci/run` runs it"]
fn the_whole_registry_trains_and_comes_back_from_a_file() -> Outcome {
    let folder = tempfile::tempdir()?;
    for name in list_models("*") {
        let record = pretrained(name)?;
        let (model, store) = build(&record, 1, DType::F32)?;
        let xs = Generator::new(7).normal(0.0, 1.0, full_input(&record), DType::F32, &Device::Cpu)?;
        let info = model.feature_info();
        let indices: Vec<usize> = (0..info.len()).collect();
        let found = model.forward_intermediates(&xs, &indices, false)?;
        let ys = model.forward_head(&found.output, false, false)?;
        let mut loss = cross_entropy(&ys, &Tensor::zeros(1, DType::U32, &Device::Cpu)?, 0.0)?;
        for (info, map) in info.iter().zip(&found.features) {
            assert_eq!(map.dims()[..2], [1, info.channels], "{name}: {}", info.module);
            if record.config.num_classes() == 0 {
                loss = (loss + map.sqr()?.mean_all()?)?;
            }
        }
        let grads = loss.backward()?;
        for param in store.parameters() {
            let grad = grads.get(param.var.as_tensor());
            let grad = grad.unwrap_or_else(|| panic!("{name}: {} has no gradient", param.name));
            assert!(largest(grad)?.is_finite(), "{name}: the gradient of {} is not finite", param.name);
        }
        drop((grads, loss, found));

        let path = folder.path().join(format!("{name}.safetensors"));
        store.save(&path)?;
        drop((model, store));
        let loaded = record.load(&path, DType::F32, &Device::Cpu)?;
        assert_same(&ys, &loaded.forward_t(&xs, false)?, name);
        drop(loaded);
        std::fs::remove_file(&path)?;
        println!("{name}: {:?} to {:?}", xs.dims(), ys.dims());
    }
    Ok(())
}
