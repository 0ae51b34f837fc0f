//! Random transforms for training, with torchvision's sampling laws and Pillow's arithmetic.
//!
//! The laws are torchvision's; the random numbers are this library's own, so a seed gives other crops here than
//! there.

mod affine;
mod blur;
mod color;
mod erasing;
mod geometry;
mod mixup;
mod operation;
mod presets;
mod rand_augment;
mod tone;
mod trivial;

pub use affine::{Warp, affine, rotate, shear_x, shear_y, translate};
pub use blur::{GaussianBlur, gaussian_blur};
pub use color::{
    ColorJitter, Grayscale, Solarize, adjust_brightness, adjust_contrast, adjust_hue, adjust_saturation, grayscale,
    solarize,
};
pub use erasing::{ErasingMode, RandomErasing};
pub use geometry::{HorizontalFlip, RandomCrop, RandomResizedCrop, hflip};
pub use mixup::{MixMode, Mixup};
pub use operation::Operation;
pub use presets::DinoCrops;
pub use rand_augment::RandAugment;
pub use tone::{adjust_sharpness, autocontrast, equalize, invert, posterize, solarize_add};
pub use trivial::{RandAugmentBins, TrivialAugmentWide};
