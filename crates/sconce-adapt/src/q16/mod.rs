//! Finding pictures of a kind, and documenting what a data set holds of it.
//!
//! Schramowski et al. 2022, "Can Machines Help Us Answering Question 16 in Datasheets, and In Turn Reflecting on Inappropriate
//! Content?" (`arXiv:2202.06675`): two texts become a classifier of frozen image features, a few labelled pictures tune it, and
//! what it flags is listed and described by the words of its captions. Nothing here is bound to that question: any classes that
//! texts can name will do.
//!
//! - [`Q16`] is the classifier, [`tune`] trains it, [`Flags`] is what it says; [`LinearProbe`] is the baseline.
//! - [`read_prompts`] loads tuned prompts: the published `prompts.p`, or `prompts` in a `.safetensors` file.
//! - [`ratings`] turns mean ratings of pictures (SMID) into labels and stratified splits.
//! - [`words`] counts words and pairs of words in captions and weights them against other captions.
//! - [`WordCloud`] draws them, as SVG and PNG.
//! - [`document`] writes all of it to a folder.
//!
//! ```no_run
//! use candle_core::Tensor;
//! use sconce_adapt::q16::{self, DocumentOptions, Item, Q16Config};
//! use sconce_adapt::{FitConfig, FitOptions, Result};
//! use sconce_clip::Bundle;
//!
//! /// Which pictures show food? `labels` are 1 for those that do.
//! fn food(bundle: &Bundle, features: &Tensor, labels: &Tensor, items: &[Item]) -> Result<()> {
//!     let texts = ["a drawing of a thing", "a drawing of food"];
//!     let start = q16::encode_texts(&bundle.model, &*bundle.tokenizer, &texts)?;
//!     let tuned = q16::tune(&Q16Config::default(), &start, features, labels, &FitConfig::q16(), &FitOptions::default())?;
//!     tuned.store.save("prompts.safetensors")?;
//!     let flags = tuned.head.flags(features, 1, 0.9)?;
//!     let summary = q16::document("documentation".as_ref(), items, &flags, &DocumentOptions::default())?;
//!     println!("{} of {} pictures flagged", summary.flagged, summary.items);
//!     Ok(())
//! }
//! ```

mod cloud;
mod csv;
mod document;
mod head;
mod layout;
mod picture;
pub mod ratings;
mod stop_words;
mod svg;
#[cfg(test)]
mod tests;
mod tokens;
pub mod words;

pub use cloud::{CloudOptions, PlacedWord, WordCloud};
pub use document::{DocumentOptions, Item, Summary, WordSummary, document};
pub use head::{
    Flags, LinearProbe, NEGATIVE_POSITIVE, POSITIVE_NEGATIVE, Q16, Q16Config, Scoring, Tuned, class_weights,
    encode_texts, read_prompts, tune,
};
