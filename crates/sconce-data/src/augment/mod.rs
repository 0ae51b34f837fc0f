//! Random transforms for training, with torchvision's sampling laws and Pillow's arithmetic.
//!
//! The laws are torchvision's; the random numbers are this library's own, so a seed gives other crops here than
//! there.

mod blur;
mod color;
mod erasing;
mod geometry;
mod mixup;
mod presets;

pub use blur::{GaussianBlur, gaussian_blur};
pub use color::{
    ColorJitter, Grayscale, Solarize, adjust_brightness, adjust_contrast, adjust_hue, adjust_saturation, grayscale,
    solarize,
};
pub use erasing::RandomErasing;
pub use geometry::{HorizontalFlip, RandomCrop, RandomResizedCrop, hflip};
pub use mixup::{MixMode, Mixup};
pub use presets::DinoCrops;
