//! Training a small dual encoder from scratch on the emoji data.
//!
//! CLIP's recipe (Radford et al. 2021) at the size of 5,352 pictures: a ModifiedResNet of 64 x 64 pixels and a text tower of two
//! blocks, symmetric InfoNCE in which drawings of one concept share their captions, AdamW, cosine learning rate.

use std::path::Path;
use std::sync::Arc;

use sconce::candle::{DType, Device, Tensor};
use sconce::clip::{
    Bundle, Config, Pairing, Pretrained, ResNetConfig, TextConfig, TokenizerConfig, TokenizerSpec, TransformerConfig,
    contrastive_loss,
};
use sconce::data::{DataLoader, Dataset, Generator, InMemory, LoaderOptions, Picture, Preprocess};
use sconce::nn::{ParamStore, SaveOptions};
use sconce::train::{Outcome, StepError, StepOutput};
use serde::Serialize;

use crate::contrastive::{self, SIDE, augmentation, numbered};
use crate::emoji::{Emoji, subcategory_words};
use crate::evaluate::{Figures, evaluate};
use crate::write_json;

pub use crate::contrastive::Options;

/// Every so many steps the captions are the subcategories instead of names and keywords.
const SUBCATEGORY_EVERY: u64 = 6;

/// The small model: a ModifiedResNet of width 20 and two text blocks of width 128 over OpenAI's first 2,500 merges.
#[must_use]
pub fn record() -> Pretrained {
    let tokenizer = TokenizerConfig { merges: 2500, context_length: 24, truncate: true, ..Default::default() };
    let resnet = ResNetConfig { image_size: SIDE as usize, depths: [2, 2, 2, 2], width: 20, heads: None };
    let text = TextConfig {
        context_length: tokenizer.context_length,
        vocab_size: tokenizer.vocab_size(),
        end_token: None,
        transformer: TransformerConfig::new(128, 2),
    };
    Pretrained {
        model: Config::resnet(128, resnet, text),
        preprocess: Preprocess::clip(SIDE),
        tokenizer: TokenizerSpec::ClipBpe(tokenizer),
        license: "Apache-2.0".into(),
        paper: "https://arxiv.org/abs/2103.00020".into(),
        source: "cargo run --release --example pretrain_clip".into(),
    }
}

/// Labels and captions of the training pictures.
struct Captions {
    emoji: Arc<Vec<Emoji>>,
    names: Vec<u32>,
    subcategories: Vec<u32>,
}

impl Captions {
    fn new(emoji: Arc<Vec<Emoji>>) -> Self {
        let names = numbered(emoji.iter().map(|e| e.caption.name.as_str()));
        let subcategories = numbered(emoji.iter().map(|e| e.caption.subcategory.as_str()));
        Self { emoji, names, subcategories }
    }

    /// A caption for each picture, and the label that says which pictures share it.
    fn draw(&self, indices: &[u32], subcategories: bool, generator: &Generator) -> (Vec<String>, Vec<u32>) {
        let labels = if subcategories { &self.subcategories } else { &self.names };
        let caption = |&index: &u32| {
            let caption = &self.emoji[index as usize].caption;
            if subcategories {
                return subcategory_words(&caption.subcategory);
            }
            contrastive::caption(&caption.name, &caption.keywords, 3, generator)
        };
        (indices.iter().map(caption).collect(), indices.iter().map(|&i| labels[i as usize]).collect())
    }
}

/// What a finished training leaves beside the weights.
#[derive(Debug, Clone, Serialize)]
pub struct Summary {
    /// How it was trained.
    pub options: Options,
    /// Pictures trained on.
    pub pictures: usize,
    /// Trainable parameters.
    pub parameters: usize,
    /// Figures on the drawing style that was kept back.
    pub figures: Figures,
}

/// Trains and writes `model.safetensors` (half precision), `config.json` and `train.json` to `options.out`.
///
/// Returns nothing when it was interrupted; running again with `resume` continues.
///
/// # Errors
/// Files that cannot be read or written, and what training can meet: a loss that is not finite.
pub fn train(
    train: Vec<Emoji>,
    test: &[Emoji],
    options: &Options,
    device: &Device,
) -> Result<Option<Summary>, StepError> {
    let store = ParamStore::new(options.seed, DType::F32, device);
    let bundle = Bundle::new(record(), Path::new(""), &store)?;
    let Bundle { model, tokenizer, .. } = &bundle;

    let emoji = Arc::new(train);
    let captions = Captions::new(Arc::clone(&emoji));
    let pipeline = augmentation();
    let pictures = emoji.iter().enumerate().map(|(i, e)| (e.picture.clone(), i as u32)).collect();
    let dataset = InMemory::new(pictures)
        .map(move |(picture, index), generator| Ok((pipeline.apply(picture, generator)?, index)));
    let loader = DataLoader::new(
        dataset,
        LoaderOptions {
            batch_size: options.batch_size.min(emoji.len()),
            shuffle: true,
            drop_last: true,
            workers: options.workers,
            seed: options.seed,
            ..Default::default()
        },
    )?;
    let steps = options.epochs * loader.batches() as u64;

    let columns = ["loss", "scale", "lr", "grad_norm", "image_to_text_r1", "text_to_image_r1", "top1"];
    let mut trainer = options.trainer(&store, steps, &columns)?;

    let pictures: Vec<Picture> = test.iter().map(|e| Picture::from(e.picture.clone())).collect();
    let measure = || {
        let parts = pictures.chunks(128).map(|batch| bundle.embed_pictures(batch)).collect::<Result<Vec<_>, _>>()?;
        evaluate(&bundle, test, &Tensor::cat(&parts, 0)?, device)
    };
    let mut figures = None;
    while trainer.position().epoch < options.epochs {
        let at = trainer.position();
        let outcome =
            trainer.epoch(loader.epoch_from(at.epoch, at.batch as usize), |position, (images, indices)| {
                model.clamp_logit_scale()?;
                let subcategories = position.step % SUBCATEGORY_EVERY == SUBCATEGORY_EVERY - 1;
                let indices = indices.to_vec1::<u32>()?;
                let (texts, labels) = captions.draw(&indices, subcategories, &Generator::current());
                let ids = tokenizer.tokenize(&texts.iter().map(String::as_str).collect::<Vec<_>>(), device)?;
                let output = model.forward_t(&images.to_device(device)?, &ids, true)?;
                let scale = output.scale.to_scalar::<f32>()?;
                let loss = contrastive_loss(&output, &Pairing::Labels(Tensor::new(labels, device)?))?;
                Ok(StepOutput::new(loss).with("scale", f64::from(scale)))
            })?;
        if outcome == Outcome::Interrupted {
            eprintln!("stopped after step {}; run again with --resume to continue", trainer.position().step);
            return Ok(None);
        }
        model.clamp_logit_scale()?;
        let epoch = trainer.position().epoch;
        if epoch == options.epochs || epoch % options.evaluate_every.max(1) == 0 {
            let found = measure()?;
            trainer.log(&[
                ("image_to_text_r1", found.image_to_text_r1),
                ("text_to_image_r1", found.text_to_image_r1),
                ("top1", found.top1),
            ])?;
            eprintln!(
                "epoch {epoch}: image to text R@1 {:.1} %, text to image R@1 {:.1} %, top-1 {:.1} %",
                100.0 * found.image_to_text_r1,
                100.0 * found.text_to_image_r1,
                100.0 * found.top1
            );
            figures = Some(found);
        }
    }
    let figures = match figures {
        Some(figures) => figures,
        None => measure()?,
    };
    let summary =
        Summary { options: options.clone(), pictures: emoji.len(), parameters: store.count_trainable(), figures };
    bundle.save(&options.out, &store, &SaveOptions::default().with_dtype(DType::F16))?;
    write_json(&options.out.join("train.json"), &summary)?;
    Ok(Some(summary))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::emoji::{self, TEST_DOMAIN, TRAIN_DOMAINS};

    fn options(out: &Path, seed: u64, workers: usize) -> Options {
        Options {
            epochs: 1,
            batch_size: 24,
            lr: 1e-3,
            weight_decay: 0.1,
            warmup: 2,
            seed,
            workers,
            out: out.to_path_buf(),
            resume: false,
            evaluate_every: 100,
            progress: false,
        }
    }

    /// The bytes of the weights after a short training on real pictures.
    fn weights(seed: u64, workers: usize) -> Vec<u8> {
        let folder = emoji::assets().join("emoji");
        let (mut pictures, _) = emoji::load(&folder, &TRAIN_DOMAINS).unwrap();
        pictures.truncate(48);
        let (test, _) = emoji::load(&folder, &[TEST_DOMAIN]).unwrap();
        let out = tempfile::tempdir().unwrap();
        let options = options(out.path(), seed, workers);
        train(pictures, &test[..16], &options, &Device::Cpu).unwrap().unwrap();
        std::fs::read(out.path().join("model.safetensors")).unwrap()
    }

    #[test]
    fn the_seed_alone_decides_the_weights() {
        let first = weights(1, 1);
        assert_eq!(first, weights(1, 3));
        assert_ne!(first, weights(2, 1));
    }

    #[test]
    fn the_published_recipe_fits_its_budget() {
        let store = ParamStore::new(1, DType::F32, &Device::Cpu);
        Bundle::new(record(), Path::new(""), &store).unwrap();
        assert!(store.count() * 2 < 8_000_000, "{} parameters in half precision", store.count());
    }
}
