//! A few labelled pictures of each class beside the class's name: Tip-Adapter (Zhang et al. 2022) on pictures that the dual
//! encoder never saw.

use std::collections::HashSet;

use sconce::adapt::{FitConfig, FitOptions, TipAdapter, fit};
use sconce::candle::{DType, Tensor};
use sconce::clip::Bundle;
use sconce::data::Generator;
use sconce::metrics::top_k_accuracy;
use sconce::nn::ParamStore;
use sconce::train::StepError;
use serde::Serialize;

use crate::emoji::{Emoji, subcategory_words};

/// Classes with fewer pictures are left out: half of a class is for testing.
const LEAST: usize = 8;
/// Weight of the cache and sharpness of its comparison: three for the one, the paper's for the other.
const ALPHA: f64 = 3.0;
const BETA: f64 = 5.5;

/// How well pictures are told apart with a few labelled ones.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct FewShot {
    /// Labelled pictures of each class.
    pub shots: usize,
    /// Classes.
    pub classes: usize,
    /// Pictures that were tested, none of them labelled.
    pub tested: usize,
    /// By the names alone.
    pub zero_shot: f64,
    /// With a cache of the labelled pictures.
    pub tip_adapter: f64,
    /// With the keys of the cache trained.
    pub tip_adapter_f: f64,
    /// By guessing.
    pub chance: f64,
}

/// Labels `shots` pictures of each subcategory and tests on the others, but for those that look like a labelled one to the pixel.
///
/// # Errors
/// No class with enough pictures, and those of the text tower.
pub fn few_shot(
    bundle: &Bundle,
    emoji: &[Emoji],
    images: &Tensor,
    shots: usize,
    seed: u64,
) -> Result<FewShot, StepError> {
    let device = images.device();
    let mut classes: Vec<&str> = emoji.iter().map(|e| e.caption.subcategory.as_str()).collect();
    classes.sort_unstable();
    let large = classes.chunk_by(|a, b| a == b).filter(|class| class.len() >= LEAST.max(shots + 1));
    let classes: Vec<&str> = large.map(|class| class[0]).collect();
    if classes.is_empty() || shots == 0 {
        return Err(
            crate::Error::new(format!("no class has more than {shots} pictures, or none is to be labelled")).into()
        );
    }

    let generator = Generator::new(seed).fork("few-shot");
    let (mut cache, mut test) = (Split::default(), Split::default());
    for (label, class) in classes.iter().enumerate() {
        let mut members: Vec<u32> =
            (0..emoji.len() as u32).filter(|i| emoji[*i as usize].caption.subcategory == *class).collect();
        generator.shuffle(&mut members);
        let (labelled, others) = members.split_at(shots);
        cache.push(labelled, label);
        test.push(others, label);
    }
    // Some concepts share a drawing: a labelled one is not tested under another name.
    let labelled: HashSet<&[u8]> =
        cache.indices.iter().map(|i| emoji[*i as usize].picture.as_raw().as_slice()).collect();
    let test = test.without(|i| labelled.contains(emoji[i as usize].picture.as_raw().as_slice()));

    let words: Vec<String> = classes.iter().map(|class| subcategory_words(class)).collect();
    let texts = bundle.embed_texts(&words)?;
    let zero_shot = |images: &Tensor| bundle.model.logits(images, &texts);
    let (keys, queries) = (cache.of(images)?, test.of(images)?);
    let labels = Tensor::new(test.labels.as_slice(), device)?;
    let accuracy = |logits: &Tensor| Ok::<f64, StepError>(top_k_accuracy(logits, &labels, &[1])?[0]);

    let tip = TipAdapter::new(&keys, &cache.labels, classes.len())?;
    let plain = zero_shot(&queries)?;
    let cached = tip.logits(&plain, &queries, ALPHA, BETA)?;
    let store = ParamStore::new(seed, DType::F32, device);
    let trained = tip.trainable(store.vb())?;
    let config = FitConfig { seed, ..FitConfig::tip_adapter_f() };
    let targets = Tensor::new(cache.labels.as_slice(), device)?;
    let logits = |images: &Tensor| trained.logits(&zero_shot(images)?, images, ALPHA, BETA);
    fit(&store, &keys, &targets, &config, &FitOptions::default(), logits)?;
    Ok(FewShot {
        shots,
        classes: classes.len(),
        tested: test.labels.len(),
        zero_shot: accuracy(&plain)?,
        tip_adapter: accuracy(&cached)?,
        tip_adapter_f: accuracy(&trained.logits(&plain, &queries, ALPHA, BETA)?)?,
        chance: 1.0 / classes.len() as f64,
    })
}

/// Pictures by number and their classes.
#[derive(Default)]
struct Split {
    indices: Vec<u32>,
    labels: Vec<u32>,
}

impl Split {
    fn push(&mut self, indices: &[u32], label: usize) {
        self.indices.extend(indices);
        self.labels.extend(vec![label as u32; indices.len()]);
    }

    fn without(self, left_out: impl Fn(u32) -> bool) -> Self {
        let (indices, labels) = self.indices.into_iter().zip(self.labels).filter(|(i, _)| !left_out(*i)).unzip();
        Self { indices, labels }
    }

    fn of(&self, images: &Tensor) -> sconce::candle::Result<Tensor> {
        images.index_select(&Tensor::new(self.indices.as_slice(), images.device())?, 0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::emoji::{TEST_DOMAIN, assets, load};
    use sconce::candle::Device;

    #[test]
    fn too_many_shots_are_refused() {
        let bundle = Bundle::load(assets().join("weights/emoji-clip"), DType::F32, &Device::Cpu).unwrap();
        let (emoji, _) = load(&assets().join("emoji"), &[TEST_DOMAIN]).unwrap();
        let images = Tensor::zeros((emoji.len(), 128), DType::F32, &Device::Cpu).unwrap();
        for shots in [0, 100] {
            let error = few_shot(&bundle, &emoji, &images, shots, 1).unwrap_err();
            assert!(error.to_string().contains("no class"), "{error}");
        }
    }
}
