//! How well pictures and texts find each other.

use super::Similarity;
use crate::{Error, Result};
use candle_core::Tensor;
use sconce_metrics::{CrossRetrieval, Ranks, Ties};
use serde::Serialize;

/// Recall at 1, 5 and 10 in both directions, as fractions.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Recalls {
    /// Pictures with one of their texts among the best 1, 5 and 10.
    pub image_to_text: [f64; 3],
    /// Texts with their picture among the best 1, 5 and 10.
    pub text_to_image: [f64; 3],
    /// The mean of the six.
    pub mean: f64,
}

impl Recalls {
    /// The ranks that are counted.
    pub const AT: [usize; 3] = [1, 5, 10];

    /// Measures both directions, each by its own similarity. Equal similarities count against the model.
    ///
    /// # Shapes
    /// Both similarities `(I, T)`; `image_of_text` `(T)` is the picture that each text describes, of which one may have several.
    ///
    /// # Errors
    /// [`Error::Input`] for other shapes, for a picture without a text, and for similarities that are not numbers.
    pub fn new(similarity: &Similarity, image_of_text: &[usize]) -> Result<Self> {
        let ranked = |scores: &Tensor| CrossRetrieval::new(scores, image_of_text, Ties::Pessimistic).map_err(input);
        let image_to_text = ranked(&similarity.image_to_text)?.image_to_text;
        let text_to_image = ranked(&similarity.text_to_image)?.text_to_image;
        Self::of([&image_to_text, &text_to_image], Ranks::recall_at)
    }

    /// What guessing gives for as many pictures and texts.
    ///
    /// # Errors
    /// [`Error::Input`] for a picture without a text.
    pub fn chance(images: usize, image_of_text: &[usize]) -> Result<Self> {
        let blank = Tensor::zeros((images, image_of_text.len()), candle_core::DType::F32, &candle_core::Device::Cpu)?;
        let blank = CrossRetrieval::new(&blank, image_of_text, Ties::Pessimistic).map_err(input)?;
        Self::of([&blank.image_to_text, &blank.text_to_image], Ranks::chance_at)
    }

    fn of(
        directions: [&Ranks; 2],
        recall: impl Fn(&Ranks, usize) -> std::result::Result<f64, sconce_metrics::Error>,
    ) -> Result<Self> {
        let mut found = [[0.0; 3]; 2];
        for (row, ranks) in found.iter_mut().zip(directions) {
            for (value, k) in row.iter_mut().zip(Self::AT) {
                *value = recall(ranks, k).map_err(input)?;
            }
        }
        let [image_to_text, text_to_image] = found;
        Ok(Self { image_to_text, text_to_image, mean: found.iter().flatten().sum::<f64>() / 6.0 })
    }
}

fn input(error: sconce_metrics::Error) -> Error {
    Error::Input(error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::Device;

    #[test]
    fn each_direction_has_its_own_similarity() -> Result<()> {
        let right = Tensor::new(&[[0.9f32, 0.8, 0.1], [0.2, 0.1, 0.7]], &Device::Cpu)?;
        let wrong = Tensor::new(&[[0.1f32, 0.2, 0.9], [0.8, 0.9, 0.1]], &Device::Cpu)?;
        let similarity = Similarity { image_to_text: right, text_to_image: wrong };
        let found = Recalls::new(&similarity, &[0, 0, 1])?;
        assert_eq!((found.image_to_text, found.text_to_image), ([1.0; 3], [0.0, 1.0, 1.0]));
        assert!((found.mean - 5.0 / 6.0).abs() < 1e-12);
        let chance = Recalls::chance(2, &[0, 0, 1])?;
        assert!((chance.image_to_text[0] - 0.5).abs() < 1e-12 && (chance.text_to_image[0] - 0.5).abs() < 1e-12);
        assert!(matches!(Recalls::new(&similarity, &[0, 0, 0]), Err(Error::Input(_))));
        assert!(matches!(Recalls::new(&similarity, &[0, 1]), Err(Error::Input(_))));
        Ok(())
    }
}
