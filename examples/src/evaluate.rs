//! Zero-shot classification and retrieval of a dual encoder on captioned pictures.

use sconce::candle::{Device, Tensor};
use sconce::clip::Bundle;
use sconce::metrics::{CrossRetrieval, Ties, top_k_accuracy};
use sconce::train::StepError;
use serde::Serialize;

use crate::emoji::{Emoji, subcategory_words};

/// How well a model knows captioned pictures, beside what guessing would give.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Figures {
    /// Pictures, each with a name of its own.
    pub pictures: usize,
    /// Subcategories among them.
    pub classes: usize,
    /// Fraction of pictures whose subcategory is the nearest text.
    pub top1: f64,
    /// The same by guessing.
    pub top1_chance: f64,
    /// Fraction of pictures whose name is the nearest text.
    pub image_to_text_r1: f64,
    /// Its name is among the nearest five.
    pub image_to_text_r5: f64,
    /// Fraction of names whose picture is the nearest.
    pub text_to_image_r1: f64,
    /// Its picture is among the nearest five.
    pub text_to_image_r5: f64,
    /// R@1 by guessing.
    pub r1_chance: f64,
    /// R@5 by guessing.
    pub r5_chance: f64,
}

/// Measures a model on captioned pictures and their features, `(N, E)` at unit length.
///
/// # Errors
/// No picture, and those of the text tower.
pub fn evaluate(bundle: &Bundle, emoji: &[Emoji], images: &Tensor, device: &Device) -> Result<Figures, StepError> {
    let names: Vec<&str> = emoji.iter().map(|e| e.caption.name.as_str()).collect();
    let similarity = images.matmul(&bundle.embed_texts(&names)?.t()?)?; // (N, N)
    let own: Vec<usize> = (0..emoji.len()).collect();
    let found = CrossRetrieval::new(&similarity, &own, Ties::Pessimistic)?;

    let mut classes: Vec<&str> = emoji.iter().map(|e| e.caption.subcategory.as_str()).collect();
    classes.sort_unstable();
    classes.dedup();
    let prompts: Vec<String> = classes.iter().map(|class| subcategory_words(class)).collect();
    let scores = images.matmul(&bundle.embed_texts(&prompts)?.t()?)?; // (N, classes)
    let target = |e: &Emoji| classes.iter().position(|c| *c == e.caption.subcategory).unwrap_or_default() as u32;
    let targets = Tensor::from_iter(emoji.iter().map(target), device)?;
    let top1 = top_k_accuracy(&scores, &targets, &[1])?[0];

    Ok(Figures {
        pictures: emoji.len(),
        classes: classes.len(),
        top1,
        top1_chance: 1.0 / classes.len() as f64,
        image_to_text_r1: found.image_to_text.recall_at(1)?,
        image_to_text_r5: found.image_to_text.recall_at(5)?,
        text_to_image_r1: found.text_to_image.recall_at(1)?,
        text_to_image_r5: found.text_to_image.recall_at(5)?,
        r1_chance: found.image_to_text.chance_at(1)?,
        r5_chance: found.image_to_text.chance_at(5)?,
    })
}
