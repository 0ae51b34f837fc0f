//! The loss of DAPL: labelled pictures, and pictures that the zero-shot prompts label.

use candle_core::{D, DType, Result, Tensor};
use sconce_ops::{cross_entropy, softmax};

use super::{Dapl, Denominator};
use crate::Error;

/// What the zero-shot prompts take pictures for; no gradient flows through it.
#[derive(Clone, Debug)]
pub struct PseudoLabels {
    /// The most probable class, `(B)`, `u32`.
    pub labels: Tensor,
    /// Its probability, `(B)`, at least `f32`.
    pub confidence: Tensor,
    /// Places in the batch that reach the threshold.
    pub confident: Vec<u32>,
}

/// A loss and what it is made of, all scalars.
#[derive(Clone, Debug)]
pub struct DaplLoss {
    /// `labelled + unlabelled_weight * unlabelled`: what to minimise.
    pub total: Tensor,
    /// Cross entropy of the labelled pictures.
    pub labelled: Tensor,
    /// Cross entropy of the confident pictures without labels; 0 when there is none.
    pub unlabelled: Tensor,
    /// What the pictures without labels were taken for.
    pub pseudo: PseudoLabels,
}

impl Dapl {
    /// Labels from the zero-shot part of [`logits`](Self::logits).
    ///
    /// # Shapes
    /// - `logits` `(B, D + 1, K)`
    ///
    /// # Errors
    /// For another shape.
    pub fn pseudo_labels(&self, logits: &Tensor) -> Result<PseudoLabels> {
        let naive = logits.detach().narrow(1, self.domains(), 1)?.squeeze(1)?; // (B, K)
        let wide = if naive.dtype() == DType::F64 { DType::F64 } else { DType::F32 };
        let probabilities = softmax(&(naive.to_dtype(wide)? / self.config.temperature)?, D::Minus1)?;
        let labels = probabilities.argmax(D::Minus1)?;
        let confidence = probabilities.max(D::Minus1)?;
        let reached = confidence.ge(self.config.threshold)?.to_vec1::<u8>()?;
        let confident = (0u32..).zip(reached).filter_map(|(place, reached)| (reached != 0).then_some(place)).collect();
        Ok(PseudoLabels { labels, confidence, confident })
    }

    /// Mean cross entropy of pictures of known domains, by the configured [`Denominator`].
    ///
    /// # Shapes
    /// - `logits` `(B, D + 1, K)` of [`logits`](Self::logits), `labels` and `domains` `(B)`, `u32`
    ///
    /// # Errors
    /// For other shapes, no picture, a label that is no class, and a domain that does not exist.
    pub fn cross_entropy(&self, logits: &Tensor, labels: &Tensor, domains: &Tensor) -> crate::Result<Tensor> {
        let (_, _, classes) = logits.dims3()?;
        match self.config.denominator {
            Denominator::OwnDomain => Ok(cross_entropy(&self.own_domain(logits, domains)?, labels, 0.0)?),
            Denominator::AllDomains => {
                // A label beyond the classes would fall into the next domain.
                if let Some(label) = labels.to_vec1::<u32>()?.into_iter().find(|label| *label as usize >= classes) {
                    return Err(Error::Data(format!("DAPL: label {label} among {classes} classes")));
                }
                self.check_domains(logits, domains)?;
                let logits = logits.narrow(1, 0, self.domains())?.flatten_from(1)?; // (B, D * K)
                let pairs = (domains.affine(classes as f64, 0.0)? + labels)?;
                Ok(cross_entropy(&logits, &pairs, 0.0)?)
            }
        }
    }

    /// Of each picture the logits of its own domain: `(B, D + 1, K)` to `(B, K)`.
    pub(super) fn own_domain(&self, logits: &Tensor, domains: &Tensor) -> crate::Result<Tensor> {
        let rows = logits.dim(1)?;
        let numbers = self.check_domains(logits, domains)?;
        let own = numbers.iter().enumerate().map(|(i, domain)| (i * rows) as u32 + domain);
        Ok(logits.flatten_to(1)?.index_select(&Tensor::from_iter(own, logits.device())?, 0)?)
    }

    fn check_domains(&self, logits: &Tensor, domains: &Tensor) -> crate::Result<Vec<u32>> {
        let (batch, numbers) = (logits.dim(0)?, domains.to_vec1::<u32>()?);
        if numbers.len() != batch {
            return Err(Error::Shape { what: "domains", expected: format!("({batch})"), found: vec![numbers.len()] });
        }
        match numbers.iter().find(|domain| **domain as usize >= self.domains()) {
            Some(domain) => Err(Error::Data(format!("DAPL: domain {domain} of {}", self.domains()))),
            None => Ok(numbers),
        }
    }

    /// The loss of a batch with labels and one without, from their logits.
    ///
    /// Where no pseudo label is confident the second part is 0 (the official code divides 0 by 0 there).
    ///
    /// # Shapes
    /// - `labelled` `(B, D + 1, K)` with `labels` and `domains` `(B)`, `u32`
    /// - `unlabelled` `(B', D + 1, K)` with `unlabelled_domains` `(B')`, `u32`
    ///
    /// # Errors
    /// As [`cross_entropy`](Self::cross_entropy).
    pub fn loss_of_logits(
        &self,
        (labelled, labels, domains): (&Tensor, &Tensor, &Tensor),
        (unlabelled, unlabelled_domains): (&Tensor, &Tensor),
    ) -> crate::Result<DaplLoss> {
        let labelled = self.cross_entropy(labelled, labels, domains)?;
        let pseudo = self.pseudo_labels(unlabelled)?;
        let unlabelled = match pseudo.confident.is_empty() {
            true => labelled.zeros_like()?,
            false => {
                let places = Tensor::new(pseudo.confident.as_slice(), unlabelled.device())?;
                let pick = |xs: &Tensor| xs.index_select(&places, 0);
                let (logits, domains) = (pick(unlabelled)?, pick(unlabelled_domains)?);
                self.cross_entropy(&logits, &pick(&pseudo.labels)?, &domains)?
            }
        };
        let total = (&labelled + (&unlabelled * self.config.unlabelled_weight)?)?;
        Ok(DaplLoss { total, labelled, unlabelled, pseudo })
    }

    /// The loss of a batch of features with labels and one without; both share one pass of the text tower.
    ///
    /// # Shapes
    /// - `labelled` `(B, E)` with `labels` and `domains` `(B)`, `u32`
    /// - `unlabelled` `(B', E)` with `unlabelled_domains` `(B')`, `u32`
    ///
    /// # Errors
    /// As [`cross_entropy`](Self::cross_entropy).
    pub fn loss(
        &self,
        (labelled, labels, domains): (&Tensor, &Tensor, &Tensor),
        (unlabelled, unlabelled_domains): (&Tensor, &Tensor),
    ) -> crate::Result<DaplLoss> {
        let (with, without) = (labelled.dim(0)?, unlabelled.dim(0)?);
        let logits = self.logits(&Tensor::cat(&[labelled, unlabelled], 0)?)?; // (B + B', D + 1, K)
        let (labelled, unlabelled) = (logits.narrow(0, 0, with)?, logits.narrow(0, with, without)?);
        self.loss_of_logits((&labelled, labels, domains), (&unlabelled, unlabelled_domains))
    }
}
