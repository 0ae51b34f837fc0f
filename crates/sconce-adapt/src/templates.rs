//! The texts that published results on the usual data sets were made with, and classifiers of texts.

use candle_core::Tensor;
use sconce_clip::{Clip, Tokenize, ZeroShotClassifier};

use crate::Result;

pub use sconce_clip::zero_shot::{BEST_SEVEN as IMAGENET, PHOTO};

/// The template of Oxford-IIIT Pets.
pub const OXFORD_PETS: &str = "a photo of a {}, a type of pet.";
/// The template of Oxford Flowers 102.
pub const OXFORD_FLOWERS: &str = "a photo of a {}, a type of flower.";
/// The template of FGVC-Aircraft.
pub const FGVC_AIRCRAFT: &str = "a photo of a {}, a type of aircraft.";
/// The template of the Describable Textures Dataset.
pub const DESCRIBABLE_TEXTURES: &str = "{} texture.";
/// The template of EuroSAT.
pub const EURO_SAT: &str = "a centered satellite photo of {}.";
/// The template of Food-101.
pub const FOOD_101: &str = "a photo of {}, a type of food.";
/// The template of UCF101.
pub const UCF_101: &str = "a photo of a person doing {}.";

/// The data sets under the names of CoOp's code with the template that CoOp, CLIP-Adapter and Tip-Adapter have for each.
/// Tip-Adapter has [`IMAGENET`], an ensemble of seven, for `ImageNet`.
pub const HAND_TEMPLATES: [(&str, &str); 15] = [
    ("OxfordPets", OXFORD_PETS),
    ("OxfordFlowers", OXFORD_FLOWERS),
    ("FGVCAircraft", FGVC_AIRCRAFT),
    ("DescribableTextures", DESCRIBABLE_TEXTURES),
    ("EuroSAT", EURO_SAT),
    ("StanfordCars", PHOTO[0]),
    ("Food101", FOOD_101),
    ("SUN397", PHOTO[0]),
    ("Caltech101", PHOTO[0]),
    ("UCF101", UCF_101),
    ("ImageNet", PHOTO[0]),
    ("ImageNetSketch", PHOTO[0]),
    ("ImageNetV2", PHOTO[0]),
    ("ImageNetA", PHOTO[0]),
    ("ImageNetR", PHOTO[0]),
];

/// The hand-written template of a data set, under its name in [`HAND_TEMPLATES`] in any case.
#[must_use]
pub fn hand_template(data_set: &str) -> Option<&'static str> {
    HAND_TEMPLATES.iter().find(|(name, _)| name.eq_ignore_ascii_case(data_set)).map(|(_, template)| *template)
}

/// The weights of a classifier of texts: for each class the normalised mean of its normalised texts, as
/// [`ZeroShotClassifier`] has them, with spaces for the underscores in names.
///
/// # Shapes
/// - output `(K, E)`, at unit length
///
/// # Errors
/// Without classes or templates, for texts that the tokenizer refuses.
pub fn class_weights<C: AsRef<str>, T: AsRef<str>>(
    model: &Clip,
    tokenizer: &dyn Tokenize,
    classes: &[C],
    templates: &[T],
) -> Result<Tensor> {
    let names: Vec<String> = classes.iter().map(|class| class.as_ref().replace('_', " ")).collect();
    Ok(ZeroShotClassifier::new(model, tokenizer, &names, templates)?.weights.detach())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn templates_by_name() {
        assert_eq!(hand_template("oxfordpets"), Some("a photo of a {}, a type of pet."));
        assert_eq!(hand_template("ImageNetV2"), Some("a photo of a {}."));
        assert_eq!(hand_template("MNIST"), None);
        let all = HAND_TEMPLATES.iter().map(|(_, template)| *template).chain(IMAGENET.iter().copied());
        assert!(all.into_iter().all(|template| template.matches("{}").count() == 1 && template.ends_with('.')));
        assert_eq!(IMAGENET.len(), 7);
    }
}
