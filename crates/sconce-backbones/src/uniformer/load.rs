//! Weights of one kind of UniFormer for another: pictures to clips, classification to dense prediction and back.

use candle_core::{Result, Tensor};
use sconce_nn::LoadOptions;

/// A hook for [`LoadOptions::resize`] that makes filters for clips from those for pictures: each is repeated in every frame
/// of its window and divided by their number, so that a still clip gives what its picture gave.
///
/// # Shapes
/// - `found` `(O, I, kH, kW)`, output `(O, I, kT, kH, kW)`; for other shapes `None`
///
/// # Errors
/// Candle's, when the device has no room.
pub fn inflate(_name: &str, found: &Tensor, wanted: &[usize]) -> Result<Option<Tensor>> {
    match (found.dims(), wanted) {
        (&[o, i, h, w], &[wo, wi, frames, wh, ww]) if [o, i, h, w] == [wo, wi, wh, ww] && frames > 0 => {
            (found / frames as f64)?.unsqueeze(2)?.broadcast_as(wanted)?.contiguous().map(Some) // (O, I, kT, kH, kW)
        }
        _ => Ok(None),
    }
}

/// Options to load a file for pictures into a model for clips: filters are [inflate]d; the classifier is taken where its
/// classes are as many and otherwise stays as it started, and so does attention over time, which pictures do not have.
///
/// ```
/// use candle_core::{DType, Device};
/// use sconce_backbones::uniformer::{self, Config, UniFormer};
/// use sconce_nn::{Checkpoint, ParamStore};
///
/// let (pictures, clips) = (ParamStore::new(0, DType::F32, &Device::Cpu), ParamStore::new(1, DType::F32, &Device::Cpu));
/// UniFormer::new(&Config { frames: None, ..Config::test_uniformer_video() }, pictures.vb())?;
/// UniFormer::new(&Config::test_uniformer_video(), clips.vb())?;
/// let file = Checkpoint::from_tensors(pictures.iter().map(|p| (p.name.to_string(), p.var.as_detached_tensor())));
/// let report = clips.load(&file, &uniformer::from_image())?;
/// assert!(report.resized.contains(&"blocks1.0.attn.weight".to_string()));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub fn from_image() -> LoadOptions {
    LoadOptions::default().resize(inflate).ignore("head.*").ignore("*.t_norm.*").ignore("*.t_attn.*")
}

/// Options to load a classifier's file into a model for dense prediction, or the reverse: the trunk must fit, and what stands
/// behind it (the pyramid's `norm1` to `norm4`; `norm` and the classifiers) may be missing, left over or of another shape.
pub fn trunk() -> LoadOptions {
    let behind = ["norm.*", "norm1.*", "norm2.*", "norm3.*", "norm4.*", "head.*", "aux_head.*"];
    behind.into_iter().fold(LoadOptions::default(), LoadOptions::ignore)
}

#[cfg(test)]
mod tests {
    use candle_core::{D, DType, Device};
    use sconce_nn::{Checkpoint, Generator, ModuleT, ParamStore};

    use super::super::{Config, UniFormer};
    use super::*;
    use crate::Backbone;

    fn model(cfg: &Config, seed: u64) -> (UniFormer, ParamStore) {
        let store = ParamStore::new(seed, DType::F32, &Device::Cpu);
        (UniFormer::new(cfg, store.vb()).unwrap(), store)
    }

    fn file(store: &ParamStore) -> Checkpoint {
        Checkpoint::from_tensors(store.iter().map(|p| (p.name.to_string(), p.var.as_detached_tensor())))
    }

    fn distance(a: &Tensor, b: &Tensor) -> f32 {
        (a - b).unwrap().abs().unwrap().flatten_all().unwrap().max(D::Minus1).unwrap().to_scalar().unwrap()
    }

    #[test]
    fn inflated_filters_sum_to_what_they_were() {
        let weight = Generator::new(1).normal(0.0, 1.0, (4, 1, 3, 3), DType::F32, &Device::Cpu).unwrap();
        let inflated = inflate("w", &weight, &[4, 1, 5, 3, 3]).unwrap().unwrap();
        assert_eq!(inflated.dims(), [4, 1, 5, 3, 3]);
        assert!(distance(&inflated.sum(2).unwrap(), &weight) < 1e-6);
        for wanted in [&[4, 1, 3, 3][..], &[4, 2, 5, 3, 3], &[4, 1, 0, 3, 3], &[4, 1, 3]] {
            assert!(inflate("w", &weight, wanted).unwrap().is_none(), "{wanted:?}");
        }
    }

    #[test]
    fn a_still_clip_gives_what_its_picture_gave() {
        // One convolutional stage deep and far from the ends of the clip, no frame of padding is seen.
        let clips = Config { depth: [1, 0, 0, 0], frames: Some(24), num_classes: 7, ..Config::test_uniformer_video() };
        let pictures = Config { frames: None, num_classes: 10, ..clips.clone() };
        let (picture_model, store) = model(&pictures, 1);
        let (clip_model, clip_store) = model(&clips, 2);
        let fresh = clip_store.get("head.weight").unwrap().as_detached_tensor().copy().unwrap();
        let report = clip_store.load(&file(&store), &from_image()).unwrap();
        assert_eq!(report.resized.len(), 4 + 6, "{report}");
        assert_eq!(
            distance(&fresh, &clip_store.get("head.weight").unwrap()),
            0.0,
            "the classifier of 7 classes is fresh"
        );

        let picture = Generator::new(3).normal(0.0, 1.0, (1, 3, 32, 32), DType::F32, &Device::Cpu).unwrap();
        let clip = picture.unsqueeze(2).unwrap().broadcast_as((1, 3, 24, 32, 32)).unwrap();
        let still = picture_model.forward_intermediates(&picture, &[0], false).unwrap().features.remove(0);
        let moving = clip_model.forward_intermediates(&clip, &[0], false).unwrap().features.remove(0);
        let middle = moving.narrow(2, 6, 1).unwrap().squeeze(2).unwrap();
        assert!(distance(&middle, &still) < 1e-5);
        // Without the hook the file is refused.
        assert!(clip_store.load(&file(&store), &LoadOptions::default().ignore("head.*")).is_err());
    }

    #[test]
    fn attention_over_time_stays_fresh() {
        let clips = Config { split: true, ..Config::test_uniformer_video() };
        let (_, pictures) = model(&Config { frames: None, split: false, ..clips.clone() }, 1);
        let (_, store) = model(&clips, 2);
        let report = store.load(&file(&pictures), &from_image()).unwrap();
        assert!(report.is_clean() && !report.loaded.iter().any(|name| name.contains(".t_")), "{report}");
        let ones = store.get("blocks3.0.t_attn.proj.weight").unwrap();
        assert_eq!(distance(&ones, &ones.ones_like().unwrap()), 0.0);
    }

    #[test]
    fn classification_and_dense_prediction_share_their_trunk() {
        let dense_cfg = Config::test_uniformer_dense();
        let class_cfg = Config { dense: false, num_classes: 10, ..dense_cfg.clone() };
        let xs = Generator::new(3).normal(0.0, 1.0, (1, 3, 32, 32), DType::F32, &Device::Cpu).unwrap();
        let (classifier, class_store) = model(&class_cfg, 1);
        let (dense, dense_store) = model(&dense_cfg, 2);
        assert!(dense_store.load(&file(&class_store), &LoadOptions::default()).is_err(), "not without being told");
        dense_store.load(&file(&class_store), &trunk()).unwrap();
        let map = classifier.forward_intermediates(&xs, &[3], false).unwrap().features.remove(0);
        let normed = dense.forward_features(&xs, false).unwrap();
        // The fresh norm of the pyramid is the identity up to mean and variance.
        let mean = map.mean_keepdim(1).unwrap();
        let centred = map.broadcast_sub(&mean).unwrap();
        let std = (centred.sqr().unwrap().mean_keepdim(1).unwrap() + 1e-6).unwrap().sqrt().unwrap();
        assert!(distance(&normed, &centred.broadcast_div(&std).unwrap()) < 1e-4);
        // And back into a third model.
        let (other, other_store) = model(&class_cfg, 3);
        other_store.load(&file(&dense_store), &trunk()).unwrap();
        let again = other.forward_intermediates(&xs, &[3], false).unwrap().features.remove(0);
        assert_eq!(distance(&again, &map), 0.0);
        assert!(distance(&other.forward_t(&xs, false).unwrap(), &classifier.forward_t(&xs, false).unwrap()) > 0.0);
    }
}
