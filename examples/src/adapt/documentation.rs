//! Q16's way of documenting a data set: two texts become a classifier, a few labelled pictures tune it, and what it flags is
//! listed and described by the words of its captions. The default looks for food.

use std::path::Path;

use sconce::adapt::FitOptions;
use sconce::adapt::protocol::{Score, Shots, shots_per_class};
use sconce::adapt::q16::{DocumentOptions, Item, Q16, Q16Config, class_weights, document, encode_texts, tune};
use sconce::candle::{DType, Tensor};
use sconce::nn::ParamStore;
use sconce::train::{Interrupt, Outcome, Progress, StepError};
use serde::Serialize;

use super::cell::forget;
use super::curves;
use super::embed::{Model, Pictures};
use super::options::{Method, Options, ShotCount};
use super::recipe::Recipe;
use super::task::{Part, Task};
use crate::{Error, write_json};

/// How well the pictures that are looked for are told from the others.
#[derive(Debug, Clone, Serialize)]
pub struct Documented {
    /// The texts of the two classes.
    pub texts: [String; 2],
    /// Pictures labelled of each class, on average.
    pub shots_per_class: f64,
    /// Pictures tested on, and those of them that are looked for.
    pub tested: [usize; 2],
    /// Mean accuracy over both classes by the texts alone.
    pub zero_shot: f64,
    /// The same after tuning.
    pub tuned: f64,
    /// Fraction of all test pictures that are told right after tuning.
    pub accuracy: f64,
    /// Test pictures that were flagged.
    pub flagged: usize,
    /// The most telling words of their captions.
    pub words: Vec<String>,
}

/// Tunes on labelled pictures, and documents the test pictures in `out/documentation`. Nothing when it was interrupted.
///
/// # Errors
/// No class, or every class, is looked for; files that cannot be written; those of training.
pub fn run(
    options: &Options,
    model: &Model,
    task: &Task,
    interrupt: &Interrupt,
) -> Result<Option<Documented>, StepError> {
    let (&[shots], &[seed]) = (options.shots.as_slice(), options.seeds.as_slice()) else {
        return Err(Error::new("q16 takes one number of shots and one seed").into());
    };
    let found: Vec<bool> = task.classes.iter().map(|class| class.starts_with(options.look_for.as_str())).collect();
    if !found.contains(&true) || !found.contains(&false) {
        let message = format!("--look-for {:?} must be how some of the classes begin, and not all", options.look_for);
        return Err(Error::new(message).into());
    }
    let binary = |part: &Part| part.labels.iter().map(|label| u32::from(found[*label as usize])).collect::<Vec<u32>>();
    let pool = binary(&task.pool);
    let drawn = match shots {
        ShotCount::Some(count) => Shots::new(count, seed).sample(&pool)?,
        ShotCount::All => (0..pool.len()).collect(),
    };
    let part = Part { labels: pool, ..task.pool.clone() }.some(&drawn);
    let texts = match options.texts.as_slice() {
        [other, wanted] => [other.clone(), wanted.clone()],
        [] => ["thing".to_owned(), options.look_for.clone()],
        _ => return Err(Error::new("--texts takes two texts: of other pictures, and of those to look for").into()),
    };

    let features = model.features(&part.pictures)?;
    let tested = model.features(&task.test.pictures)?;
    let truth = binary(&task.test);
    let start = encode_texts(&model.bundle.model, &*model.bundle.tokenizer, &texts)?;
    let config = Q16Config::default();
    let plain = ParamStore::new(seed, DType::F32, features.device());
    let zero_shot = Q16::new(&config, &start, plain.vb())?.logits(&tested)?.detach();
    let small = options.data.model.is_none();
    let mut fit = Recipe::new(Method::Q16, part.labels.len() / 2, seed, small, &options.training).fit;
    fit.class_weights = Some(class_weights(&part.labels, 2));
    let settings = FitOptions {
        progress: if options.quiet { Progress::Off } else { Progress::Auto },
        interrupt: interrupt.clone(),
        out: Some(options.out.clone()),
        resume: !options.fresh,
        validation: None,
    };
    let labels = Tensor::new(part.labels.as_slice(), features.device())?;
    let tuned = tune(&config, &start, &features, &labels, &fit, &settings)?;
    if tuned.report.outcome == Outcome::Interrupted {
        return Ok(None);
    }
    tuned.store.save(options.out.join("prompts.safetensors"))?;

    let score = Score::new(&tuned.head.logits(&tested)?.detach(), &truth)?;
    let names = ["other".to_owned(), options.look_for.clone()];
    curves::draw(&options.out, "Q16", &tuned.report.history, &score.confusion, &names)?;
    let flags = tuned.head.flags(&tested, 1, options.threshold)?;
    let written = DocumentOptions { classes: names.to_vec(), ..Default::default() };
    let summary = document(&options.out.join("documentation"), &items(&task.test), &flags, &written)?;
    let documented = Documented {
        texts,
        shots_per_class: shots_per_class(&part.labels),
        tested: [truth.len(), truth.iter().filter(|label| **label == 1).count()],
        zero_shot: Score::new(&zero_shot, &truth)?.mean_class_accuracy,
        tuned: score.mean_class_accuracy,
        accuracy: score.accuracy,
        flagged: summary.flagged,
        words: summary.words.iter().take(10).map(|word| word.word.clone()).collect(),
    };
    write_json(&options.out.join("figures.json"), &documented)?;
    forget(&options.out);
    Ok(Some(documented))
}

/// Pictures with what is said of them: names of drawings, or the lines of a `.txt` file beside a picture.
fn items(part: &Part) -> Vec<Item> {
    let captions = |index: usize| match &part.pictures {
        Pictures::Memory(_) => vec![part.names[index].clone()],
        Pictures::Files(paths) => beside(&paths[index]),
    };
    (0..part.names.len()).map(|i| Item { filename: part.names[i].clone(), captions: captions(i) }).collect()
}

fn beside(picture: &Path) -> Vec<String> {
    // Most pictures have no such file.
    let text = std::fs::read_to_string(picture.with_extension("txt")).unwrap_or_default();
    text.lines().map(str::trim).filter(|line| !line.is_empty()).map(str::to_owned).collect()
}
