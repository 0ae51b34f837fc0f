//! What can be chosen about DAPL.

use sconce_clip::zero_shot::PHOTO;
use serde::{Deserialize, Serialize};

use crate::{Error, Result};

/// The prompts that share a softmax in the loss.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Denominator {
    /// The classes of the picture's own domain: the released code.
    #[default]
    OwnDomain,
    /// All pairs of domain and class: the paper, whose loss also pushes the domains apart.
    AllDomains,
}

/// Options of a [`Dapl`](crate::Dapl).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct DaplConfig {
    /// Learned tokens that all domains share.
    pub n_ctx: usize,
    /// Learned tokens of each domain.
    pub n_dmx: usize,
    /// Whether each class has a shared context of its own.
    pub class_specific: bool,
    /// Temperature of the zero-shot probabilities that pseudo labels come from.
    pub temperature: f64,
    /// A picture without label counts when its pseudo label is at least this probable.
    pub threshold: f64,
    /// Weight of the pictures without labels in the loss.
    pub unlabelled_weight: f64,
    /// The prompts that share a softmax.
    pub denominator: Denominator,
    /// Templates of the zero-shot classifier that gives the pseudo labels.
    pub naive: Vec<String>,
}

impl Default for DaplConfig {
    /// [`visda17`](Self::visda17).
    fn default() -> Self {
        Self::visda17()
    }
}

impl DaplConfig {
    /// The released settings for VisDA-2017: a context for each class.
    pub fn visda17() -> Self {
        Self { class_specific: true, ..Self::office_home() }
    }

    /// The released settings for Office-Home: one context for all classes.
    pub fn office_home() -> Self {
        Self {
            n_ctx: 16,
            n_dmx: 16,
            class_specific: false,
            temperature: 1.0,
            threshold: 0.5,
            unlabelled_weight: 1.0,
            denominator: Denominator::OwnDomain,
            naive: PHOTO.iter().map(|template| (*template).to_owned()).collect(),
        }
    }

    /// # Errors
    /// [`Error::Config`] names the option that cannot be.
    pub(crate) fn check(&self) -> Result<()> {
        let wrong = match self {
            cfg if cfg.n_ctx == 0 => "n_ctx is 0: the domains would share nothing",
            cfg if cfg.n_dmx == 0 => "n_dmx is 0: the domains could not differ",
            cfg if cfg.temperature <= 0.0 || !cfg.temperature.is_finite() => "the temperature must be above 0",
            cfg if cfg.threshold.is_nan() => "the threshold is not a number",
            cfg if !cfg.unlabelled_weight.is_finite() => "the weight of pictures without labels must be finite",
            cfg if cfg.n_ctx.checked_add(cfg.n_dmx).is_none_or(|n| n > MAX_TOKENS) => "more tokens than any context",
            _ => return Ok(()),
        };
        Err(Error::Config(format!("DAPL: {wrong}")))
    }
}

/// No text tower takes as many: keeps a placeholder from filling the memory.
const MAX_TOKENS: usize = 1 << 16;
