//! Recall of retrieval.

use candle_core::Tensor;

use crate::rank::{Scores, best_rank};
use crate::{Error, Result, Ties};

/// Ranks of the best positive of each query, and what follows from them.
#[derive(Clone, Debug, PartialEq)]
pub struct Ranks {
    ranks: Vec<usize>,
    positives: Vec<usize>,
    candidates: usize,
}

impl Ranks {
    /// Ranks each query's best positive among all candidates. A query may have several positives; those
    /// beside the best one do not push it back.
    ///
    /// # Shapes
    /// - `similarity` `(Q, N)`: queries by candidates, higher is nearer
    /// - `positives`: for each query the columns that are relevant to it
    ///
    /// # Errors
    /// Other shapes; a column out of range; a query without a positive; a NaN.
    pub fn new<P: AsRef<[usize]>>(similarity: &Tensor, positives: &[P], ties: Ties) -> Result<Self> {
        Self::of_scores(&Scores::read("similarity", similarity)?, positives, ties)
    }

    fn of_scores<P: AsRef<[usize]>>(scores: &Scores, positives: &[P], ties: Ties) -> Result<Self> {
        if positives.len() != scores.rows {
            let expected = format!("({})", scores.rows);
            return Err(Error::Shape { what: "positives", expected, found: vec![positives.len()] });
        }
        let mut ranks = Vec::with_capacity(scores.rows);
        let mut counts = Vec::with_capacity(scores.rows);
        for (query, positives) in positives.iter().enumerate() {
            let mut positives = positives.as_ref().to_vec();
            positives.sort_unstable();
            positives.dedup();
            if let Some(&index) = positives.iter().find(|&&index| index >= scores.columns) {
                return Err(Error::OutOfRange { what: "candidate", index, count: scores.columns });
            }
            let rank = best_rank(scores.row(query), &positives, ties).ok_or(Error::NoPositive { query })?;
            ranks.push(rank);
            counts.push(positives.len());
        }
        Ok(Self { ranks, positives: counts, candidates: scores.columns })
    }

    /// Rank of each query's best positive, from 1.
    pub fn ranks(&self) -> &[usize] {
        &self.ranks
    }

    /// Recall@k: fraction of queries with a positive among the best `k` candidates.
    ///
    /// # Errors
    /// No query; `k` is zero.
    pub fn recall_at(&self, k: usize) -> Result<f64> {
        self.check(k)?;
        let hits = self.ranks.iter().filter(|&&rank| rank <= k).count();
        Ok(hits as f64 / self.ranks.len() as f64)
    }

    /// Recall@k to be expected of a random order of the candidates.
    ///
    /// # Errors
    /// No query; `k` is zero.
    pub fn chance_at(&self, k: usize) -> Result<f64> {
        self.check(k)?;
        let chance = |&positives: &usize| {
            // All of the first k are among the others: a product of fractions, one per place.
            let others = self.candidates - positives;
            let miss: f64 = (0..k.min(self.candidates))
                .map(|place| others.saturating_sub(place) as f64 / (self.candidates - place) as f64)
                .product();
            1. - miss
        };
        Ok(self.positives.iter().map(chance).sum::<f64>() / self.ranks.len() as f64)
    }

    /// Median rank; of an even number the mean of the middle two.
    ///
    /// # Errors
    /// No query.
    pub fn median(&self) -> Result<f64> {
        self.check(1)?;
        let mut sorted = self.ranks.clone();
        sorted.sort_unstable();
        let (upper, lower) = (sorted.len() / 2, (sorted.len() - 1) / 2);
        Ok((sorted[upper] + sorted[lower]) as f64 / 2.)
    }

    fn check(&self, k: usize) -> Result<()> {
        match (self.ranks.len(), k) {
            (0, _) => Err(Error::Empty),
            (_, 0) => Err(Error::ZeroK),
            _ => Ok(()),
        }
    }
}

/// Retrieval between images and texts, in both directions.
#[derive(Clone, Debug, PartialEq)]
pub struct CrossRetrieval {
    /// Images as queries, texts as candidates.
    pub image_to_text: Ranks,
    /// Texts as queries, images as candidates.
    pub text_to_image: Ranks,
}

impl CrossRetrieval {
    /// Ranks both directions of one matrix.
    ///
    /// # Shapes
    /// - `similarity` `(I, T)`: images by texts, higher is nearer
    /// - `image_of_text` `(T)`: the image that each text describes; an image may have several texts
    ///
    /// # Errors
    /// Other shapes; an image out of range or without a text; a NaN.
    ///
    /// ```
    /// # use candle_core::{Device, Tensor};
    /// # use sconce_metrics::{CrossRetrieval, Ties};
    /// # fn main() -> sconce_metrics::Result<()> {
    /// // Two images; the first has two captions.
    /// let similarity = Tensor::new(&[[0.9f32, 0.1, 0.3], [0.2, 0.4, 0.8]], &Device::Cpu)?;
    /// let found = CrossRetrieval::new(&similarity, &[0, 0, 1], Ties::Pessimistic)?;
    /// assert_eq!(found.image_to_text.recall_at(1)?, 1.);
    /// assert_eq!(found.text_to_image.ranks(), [1, 2, 1]);
    /// # Ok(()) }
    /// ```
    pub fn new(similarity: &Tensor, image_of_text: &[usize], ties: Ties) -> Result<Self> {
        let scores = Scores::read("similarity", similarity)?;
        if image_of_text.len() != scores.columns {
            let expected = format!("({})", scores.columns);
            return Err(Error::Shape { what: "image_of_text", expected, found: vec![image_of_text.len()] });
        }
        let mut texts_of_image = vec![Vec::new(); scores.rows];
        for (text, &index) in image_of_text.iter().enumerate() {
            let texts = texts_of_image.get_mut(index);
            texts.ok_or(Error::OutOfRange { what: "image", index, count: scores.rows })?.push(text);
        }
        let images: Vec<[usize; 1]> = image_of_text.iter().map(|&image| [image]).collect();
        Ok(Self {
            image_to_text: Ranks::of_scores(&scores, &texts_of_image, ties)?,
            text_to_image: Ranks::of_scores(&scores.transposed(), &images, ties)?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::Device;

    #[test]
    fn equal_scores_find_nothing_unless_told_otherwise() -> Result<()> {
        let flat = Tensor::ones((3, 3), candle_core::DType::F32, &Device::Cpu)?;
        let positives = [[0], [1], [2]];
        assert_eq!(Ranks::new(&flat, &positives, Ties::Pessimistic)?.ranks(), [3, 3, 3]);
        assert_eq!(Ranks::new(&flat, &positives, Ties::ByIndex)?.ranks(), [1, 2, 3]);
        // Two positives tie with one other candidate only.
        assert_eq!(Ranks::new(&flat, &[[0, 1], [1, 2], [2, 0]], Ties::Pessimistic)?.ranks(), [2, 2, 2]);
        Ok(())
    }

    #[test]
    fn recall_chance_and_median() -> Result<()> {
        let similarity = Tensor::new(&[[4f32, 3., 2., 1.], [4., 3., 2., 1.]], &Device::Cpu)?;
        let ranks = Ranks::new(&similarity, &[vec![1, 3, 3], vec![3]], Ties::Pessimistic)?;
        assert_eq!(ranks.ranks(), [2, 4]);
        let recalls: Vec<f64> = [1, 2, 4, 9].iter().map(|&k| ranks.recall_at(k).unwrap()).collect();
        assert_eq!(recalls, [0., 0.5, 1., 1.]);
        // k = 2: 1 - (2/4)(1/3) for two positives, 2/4 for one.
        assert!((ranks.chance_at(2)? - (5. / 6. + 0.5) / 2.).abs() < 1e-12);
        assert_eq!((ranks.chance_at(1)?, ranks.chance_at(9)?, ranks.median()?), (0.375, 1., 3.));
        Ok(())
    }

    #[test]
    fn wrong_input_is_an_error() -> Result<()> {
        let similarity = Tensor::new(&[[1f32, 2.], [3., 4.]], &Device::Cpu)?;
        let ranks = |positives: &[Vec<usize>]| Ranks::new(&similarity, positives, Ties::ByIndex);
        assert!(matches!(ranks(&[vec![0]]), Err(Error::Shape { .. })));
        assert!(matches!(ranks(&[vec![0], vec![]]), Err(Error::NoPositive { query: 1 })));
        assert!(matches!(ranks(&[vec![0], vec![2]]), Err(Error::OutOfRange { index: 2, .. })));
        assert!(matches!(ranks(&[vec![0], vec![1]])?.recall_at(0), Err(Error::ZeroK)));
        let cross = |images: &[usize]| CrossRetrieval::new(&similarity, images, Ties::ByIndex);
        assert!(matches!(cross(&[0]), Err(Error::Shape { .. })));
        assert!(matches!(cross(&[0, 5]), Err(Error::OutOfRange { what: "image", .. })));
        assert!(matches!(cross(&[0, 0]), Err(Error::NoPositive { query: 1 })));
        let empty = Tensor::zeros((0, 2), candle_core::DType::F32, &Device::Cpu)?;
        assert!(matches!(Ranks::new::<Vec<usize>>(&empty, &[], Ties::ByIndex)?.median(), Err(Error::Empty)));
        Ok(())
    }
}
