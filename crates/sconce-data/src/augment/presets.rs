//! Training pipelines of published recipes.

use super::{ColorJitter, GaussianBlur, Grayscale, HorizontalFlip, RandomResizedCrop, Solarize};
use crate::{Compose, Filter, Generator, Pipeline, RandomApply, Result, transform};
use candle_core::Tensor;
use image::RgbImage;

impl Pipeline {
    /// The common ImageNet recipe: random resized crop, flip, ImageNet's statistics.
    pub fn imagenet_train(side: u32, filter: Filter) -> Self {
        let crop = RandomResizedCrop::new(side, filter);
        Self::new(Compose::new().then(crop).then(HorizontalFlip::default()), transform::IMAGENET)
    }

    /// CLIP's pre-training recipe as in open_clip: a crop of 0.9 to 1 of the area, bicubic, no flip (captions
    /// may tell left from right), CLIP's statistics.
    pub fn clip_train(side: u32) -> Self {
        let crop = RandomResizedCrop::new(side, Filter::Bicubic).with_scale(0.9, 1.0);
        Self::new(Compose::new().then(crop), transform::CLIP)
    }
}

/// DINO's multi-crop augmentation (Caron et al. 2021): two global views with different blur and solarisation,
/// and a number of small local views.
#[derive(Debug)]
pub struct DinoCrops {
    /// First global view: always blurred.
    pub global1: Pipeline,
    /// Second global view: seldom blurred, sometimes solarised.
    pub global2: Pipeline,
    /// Local views.
    pub local: Pipeline,
    /// Number of local views.
    pub locals: usize,
}

impl DinoCrops {
    /// The published recipe: global views of 0.4 to 1 of the area at 224 pixels, local ones of 0.05 to 0.4 at 96.
    pub fn new(locals: usize) -> Self {
        Self::with_sizes(224, 96, locals)
    }

    /// The recipe at other sizes.
    pub fn with_sizes(global: u32, local: u32, locals: usize) -> Self {
        let view = |side, lo, hi, blur| {
            let crop = RandomResizedCrop::new(side, Filter::Bicubic).with_scale(lo, hi);
            Compose::new()
                .then(crop)
                .then(HorizontalFlip::default())
                .then(RandomApply { probability: 0.8, transform: ColorJitter::new(0.4, 0.4, 0.2, 0.1) })
                .then(RandomApply { probability: 0.2, transform: Grayscale })
                .then(RandomApply { probability: blur, transform: GaussianBlur::default() })
        };
        let solarize = RandomApply { probability: 0.2, transform: Solarize::default() };
        Self {
            global1: Pipeline::new(view(global, 0.4, 1.0, 1.0), transform::IMAGENET),
            global2: Pipeline::new(view(global, 0.4, 1.0, 0.1).then(solarize), transform::IMAGENET),
            local: Pipeline::new(view(local, 0.05, 0.4, 0.5), transform::IMAGENET),
            locals,
        }
    }

    /// The views of an image: the two global ones first.
    ///
    /// # Shapes
    /// - outputs `(3, G, G)` twice, then `(3, L, L)` for each local view
    ///
    /// # Errors
    /// Those of the transforms.
    pub fn apply(&self, image: &RgbImage, generator: &Generator) -> Result<Vec<Tensor>> {
        let globals = [&self.global1, &self.global2];
        let locals = std::iter::repeat_n(&self.local, self.locals);
        globals.into_iter().chain(locals).map(|view| view.apply(image.clone(), generator)).collect()
    }
}
