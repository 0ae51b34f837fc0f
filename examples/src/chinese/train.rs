//! The training itself.

use std::path::PathBuf;

use sconce::candle::{DType, Device, Tensor};
use sconce::clip::Pairing;
use sconce::clip::wukong::{Bundle, Recalls};
use sconce::data::Generator;
use sconce::nn::{ParamStore, SaveOptions};
use sconce::train::{Outcome, StepError, StepOutput};
use serde::Serialize;

use super::data::{self, Batches};
use super::model::{self, Kind};
use super::{Loss, Tower};
use crate::contrastive::{Options, caption, numbered};
use crate::emoji::Emoji;
use crate::write_json;

/// Keywords in a caption at most.
const KEYWORDS: usize = 2;

/// What a finished training leaves beside the weights.
#[derive(Debug, Clone, Serialize)]
pub struct Summary {
    /// How it was trained.
    pub options: Options,
    /// What was contrasted.
    pub loss: Loss,
    /// Where the image tower is from.
    pub tower: Tower,
    /// Views of each picture, for a locked tower.
    pub views: Option<usize>,
    /// Pictures trained on.
    pub pictures: usize,
    /// Trainable parameters.
    pub parameters: usize,
    /// On the drawing style that was kept back.
    pub figures: Recalls,
    /// The same by guessing.
    pub chance: Recalls,
}

/// What to train.
#[derive(Debug, Clone)]
pub struct Plan {
    /// The model.
    pub kind: Kind,
    /// The recipe.
    pub options: Options,
    /// Views of each picture that a locked tower encodes beforehand, the picture as it is among them.
    pub views: usize,
    /// File for what a locked tower has encoded; in the folder of the training when absent.
    pub features: Option<PathBuf>,
}

/// Retrieval between pictures and their names.
///
/// # Errors
/// Those of the towers.
pub fn evaluate(bundle: &Bundle, tokens: &Tensor, emoji: &[Emoji]) -> Result<Recalls, StepError> {
    let names: Vec<&str> = emoji.iter().map(|e| e.caption.name_zh.as_str()).collect();
    let texts = bundle.embed_texts(&names)?;
    let images = bundle.model.embed_tokens(tokens, false)?.detach();
    let own: Vec<usize> = (0..emoji.len()).collect();
    Ok(Recalls::new(&bundle.model.similarity(&images, &texts)?, &own)?)
}

/// Trains and writes `model.safetensors` (half precision), `config.json`, `vocab.txt` and `train.json` to the folder of the
/// options.
///
/// Returns nothing when it was interrupted; running again with `resume` continues.
///
/// # Errors
/// Files that cannot be read or written, and what training can meet: a loss that is not finite.
pub fn train(train: &[Emoji], test: &[Emoji], plan: &Plan, device: &Device) -> Result<Option<Summary>, StepError> {
    let options = &plan.options;
    let store = ParamStore::new(options.seed, DType::F32, device);
    let bundle = model::bundle(&plan.kind, train, &store)?;
    let (model, tokenizer) = (&bundle.model, &bundle.tokenizer);
    let locked = plan.kind.tower == Tower::Locked;
    let batches = if locked {
        let beside = || options.out.join("features.safetensors");
        let kept = data::views(&bundle, train, plan.views.max(1), &plan.features.clone().unwrap_or_else(beside))?;
        Batches::tokens(&kept, options)?
    } else {
        Batches::pictures(train, options)?
    };
    let kept_test = if locked { Some(data::tokens(&bundle, test)?) } else { None };
    let measure = || match &kept_test {
        Some(tokens) => evaluate(&bundle, tokens, test),
        None => evaluate(&bundle, &data::tokens(&bundle, test)?, test),
    };
    let names = numbered(train.iter().map(|e| e.caption.name_zh.as_str()));

    let columns = ["loss", "scale", "lr", "grad_norm", "image_to_text_r1", "text_to_image_r1", "mean_recall"];
    let mut trainer = options.trainer(&store, options.epochs * batches.count as u64, &columns)?;
    let mut figures = None;
    while trainer.position().epoch < options.epochs {
        let at = trainer.position();
        let outcome = trainer.epoch(batches.epoch_from(at.epoch, at.batch as usize), |_, (input, indices)| {
            model.clamp_logit_scale()?;
            let indices = indices.to_vec1::<u32>()?;
            let generator = Generator::current();
            let text = |&index: &u32| {
                let of = &train[index as usize].caption;
                caption(&of.name_zh, &of.keywords_zh, KEYWORDS, &generator)
            };
            let texts: Vec<String> = indices.iter().map(text).collect();
            let ids = tokenizer.tokenize(&texts.iter().map(String::as_str).collect::<Vec<_>>(), device)?;
            let labels: Vec<u32> = indices.iter().map(|&index| names[index as usize]).collect();
            let input = input.to_device(device)?;
            let images = match locked {
                true => model.embed_tokens(&input, true)?,
                false => model.encode_image(&input, true)?,
            };
            let scale = model.scale()?;
            let similarity = model.similarity(&images, &model.encode_text(&ids, true)?)?;
            let loss = similarity.loss(&scale, &Pairing::Labels(Tensor::new(labels, device)?))?;
            Ok(StepOutput::new(loss).with("scale", f64::from(scale.to_scalar::<f32>()?)))
        })?;
        if outcome == Outcome::Interrupted {
            eprintln!("stopped after step {}; run again with --resume to continue", trainer.position().step);
            return Ok(None);
        }
        model.clamp_logit_scale()?;
        let epoch = trainer.position().epoch;
        if epoch == options.epochs || epoch % options.evaluate_every.max(1) == 0 {
            let found = measure()?;
            let [i2t, t2i] = [found.image_to_text[0], found.text_to_image[0]];
            trainer.log(&[("image_to_text_r1", i2t), ("text_to_image_r1", t2i), ("mean_recall", found.mean)])?;
            let [i2t, t2i, mean] = [i2t, t2i, found.mean].map(|value| 100.0 * value);
            eprintln!(
                "epoch {epoch}: image to text R@1 {i2t:.1} %, text to image R@1 {t2i:.1} %, mean recall {mean:.1} %"
            );
            figures = Some(found);
        }
    }
    let figures = match figures {
        Some(figures) => figures,
        None => measure()?,
    };
    let own: Vec<usize> = (0..test.len()).collect();
    let summary = Summary {
        options: options.clone(),
        loss: plan.kind.loss,
        tower: plan.kind.tower,
        views: locked.then_some(plan.views),
        pictures: train.len(),
        parameters: store.count_trainable(),
        figures,
        chance: Recalls::chance(test.len(), &own)?,
    };
    bundle.save(&options.out, &store, &SaveOptions::default().with_dtype(DType::F16))?;
    write_json(&options.out.join("train.json"), &summary)?;
    Ok(Some(summary))
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::emoji::{self, TEST_DOMAIN, TRAIN_DOMAINS};

    fn plan(loss: Loss, tower: Tower, out: &Path, resume: bool) -> Plan {
        let locked = emoji::assets().join("weights/emoji-clip");
        Plan {
            kind: Kind { loss, tower, project: true, locked },
            options: Options {
                epochs: 2,
                batch_size: 12,
                lr: 1e-3,
                weight_decay: 0.1,
                warmup: 2,
                seed: 1,
                workers: 1,
                out: out.to_path_buf(),
                resume,
                evaluate_every: 100,
                progress: false,
            },
            views: 2,
            features: None,
        }
    }

    /// Every kind of model trains on real pictures, and a training that goes on after its first epoch ends with the same bytes.
    #[test]
    fn what_is_stopped_goes_on_to_the_same_weights() {
        let folder = emoji::assets().join("emoji");
        let (mut pictures, _) = emoji::load(&folder, &TRAIN_DOMAINS).unwrap();
        pictures.truncate(36);
        let (test, _) = emoji::load(&folder, &[TEST_DOMAIN]).unwrap();
        for loss in [Loss::Infonce, Loss::Filip] {
            for tower in [Tower::Scratch, Tower::Locked] {
                let out = tempfile::tempdir().unwrap();
                let run = |resume| {
                    let plan = plan(loss, tower, out.path(), resume);
                    let summary = train(&pictures, &test[..8], &plan, &Device::Cpu).unwrap().unwrap();
                    assert!(summary.parameters > 100_000 && summary.figures.mean.is_finite());
                    std::fs::read(out.path().join("model.safetensors")).unwrap()
                };
                let whole = run(false);
                // As if it had been killed before the second epoch ended.
                let checkpoints = out.path().join("checkpoints");
                std::fs::remove_file(checkpoints.join("step-0000000006.safetensors")).unwrap();
                std::fs::write(checkpoints.join("latest"), "step-0000000003.safetensors").unwrap();
                assert!(run(true) == whole, "{loss:?} {tower:?}");
            }
        }
    }
}
