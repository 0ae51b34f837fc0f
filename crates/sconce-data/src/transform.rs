//! Random and fixed operations on RGB images, and the last step to a tensor.

use crate::augment::RandomErasing;
use crate::{Error, Generator, Result, Size};
use candle_core::{Device, Tensor};
use image::RgbImage;
use serde::{Deserialize, Serialize};
use std::fmt::Debug;

/// An operation on an RGB image. All randomness comes from the generator it is handed.
pub trait Transform: Debug + Send + Sync {
    /// Applies the operation.
    ///
    /// # Errors
    /// Where the operation has no meaning for the image, for example a crop larger than it.
    fn apply(&self, image: RgbImage, generator: &Generator) -> Result<RgbImage>;
}

impl Transform for Box<dyn Transform> {
    fn apply(&self, image: RgbImage, generator: &Generator) -> Result<RgbImage> {
        (**self).apply(image, generator)
    }
}

/// Transforms one after the other.
#[derive(Debug, Default)]
pub struct Compose(pub Vec<Box<dyn Transform>>);

impl Compose {
    /// No transform yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a transform at the end.
    pub fn then(mut self, transform: impl Transform + 'static) -> Self {
        self.0.push(Box::new(transform));
        self
    }
}

impl Transform for Compose {
    fn apply(&self, image: RgbImage, generator: &Generator) -> Result<RgbImage> {
        self.0.iter().try_fold(image, |image, transform| transform.apply(image, generator))
    }
}

/// A transform applied with a probability.
#[derive(Debug, Clone)]
pub struct RandomApply<T> {
    /// Probability in `[0, 1]`.
    pub probability: f64,
    /// The transform.
    pub transform: T,
}

impl<T: Transform> Transform for RandomApply<T> {
    fn apply(&self, image: RgbImage, generator: &Generator) -> Result<RgbImage> {
        if generator.f64() < self.probability { self.transform.apply(image, generator) } else { Ok(image) }
    }
}

/// Channel mean and standard deviation of ImageNet, for values in `[0, 1]`.
pub const IMAGENET: Normalize = Normalize { mean: [0.485, 0.456, 0.406], std: [0.229, 0.224, 0.225] };
#[allow(clippy::excessive_precision, reason = "the digits as published")]
/// Channel mean and standard deviation of CLIP's training set.
pub const CLIP: Normalize =
    Normalize { mean: [0.48145466, 0.4578275, 0.40821073], std: [0.26862954, 0.26130258, 0.27577711] };
/// Maps `[0, 255]` to `[-1, 1]`.
pub const HALF: Normalize = Normalize { mean: [0.5; 3], std: [0.5; 3] };

/// `(x / 255 - mean) / std` for each channel, computed in `f32` in this order as torchvision's `ToTensor` and
/// `Normalize` do, so the bits agree.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Normalize {
    /// Mean of red, green and blue, for values in `[0, 1]`.
    pub mean: [f32; 3],
    /// Standard deviation of red, green and blue.
    pub std: [f32; 3],
}

impl Default for Normalize {
    /// ImageNet's statistics.
    fn default() -> Self {
        IMAGENET
    }
}

impl Normalize {
    /// The normalised planes, red first: `C * H * W` values.
    pub fn planes(&self, image: &RgbImage) -> Vec<f32> {
        let mut planes = vec![0f32; image.as_raw().len()];
        self.planes_into(image, &mut planes);
        planes
    }

    /// [`Self::planes`] into a buffer of `C * H * W` values.
    pub(crate) fn planes_into(&self, image: &RgbImage, planes: &mut [f32]) {
        let area = image.width() as usize * image.height() as usize;
        if area == 0 {
            return;
        }
        for (channel, plane) in planes.chunks_exact_mut(area).enumerate().take(3) {
            let table: [f32; 256] =
                std::array::from_fn(|value| (value as f32 / 255.0 - self.mean[channel]) / self.std[channel]);
            for (out, pixel) in plane.iter_mut().zip(image.as_raw().as_chunks::<3>().0) {
                *out = table[usize::from(pixel[channel])];
            }
        }
    }

    /// The image as a tensor.
    ///
    /// # Shapes
    /// - output `(3, H, W)`, `f32`
    ///
    /// # Errors
    /// Those of the tensor's creation on `device`.
    pub fn tensor(&self, image: &RgbImage, device: &Device) -> Result<Tensor> {
        let shape = (3, image.height() as usize, image.width() as usize);
        Ok(Tensor::from_vec(self.planes(image), shape, device)?)
    }

    /// The picture that a normalised tensor shows, clamped and rounded to 8 bits: the inverse of [`Self::tensor`].
    ///
    /// # Shapes
    /// - input `(3, H, W)`
    ///
    /// # Errors
    /// [`Error::Tensor`] for another shape.
    pub fn image(&self, tensor: &Tensor) -> Result<RgbImage> {
        let (channels, height, width) = tensor.dims3()?;
        if channels != 3 {
            return Err(Error::invalid("tensor", format!("{channels} channels, not 3")));
        }
        let values = tensor.to_dtype(candle_core::DType::F32)?.flatten_all()?.to_vec1::<f32>()?;
        let area = height * width;
        Ok(RgbImage::from_fn(width as u32, height as u32, |x, y| {
            let at = y as usize * width + x as usize;
            image::Rgb(std::array::from_fn(|c| {
                // A cast from float clamps.
                ((values[c * area + at] * self.std[c] + self.mean[c]) * 255.0).round() as u8
            }))
        }))
    }
}

/// A training pipeline: transforms, normalisation, and erasing on the normalised planes.
#[derive(Debug, Default)]
pub struct Pipeline {
    /// Applied to the image.
    pub transforms: Compose,
    /// Turns the image into planes.
    pub normalize: Normalize,
    /// Applied to the planes.
    pub erasing: Option<RandomErasing>,
}

impl Pipeline {
    /// A pipeline from its transforms and normalisation.
    pub fn new(transforms: Compose, normalize: Normalize) -> Self {
        Self { transforms, normalize, erasing: None }
    }

    /// Applies the pipeline; the tensor is on the CPU.
    ///
    /// # Shapes
    /// - output `(3, H, W)`, `f32`, of the size that the transforms leave
    ///
    /// # Errors
    /// Those of the transforms.
    pub fn apply(&self, image: RgbImage, generator: &Generator) -> Result<Tensor> {
        let image = self.transforms.apply(image, generator)?;
        let size = Size::of(&image);
        let mut planes = self.normalize.planes(&image);
        if let Some(erasing) = &self.erasing {
            erasing.apply(&mut planes, size, generator);
        }
        Ok(Tensor::from_vec(planes, (3, size.height as usize, size.width as usize), &Device::Cpu)?)
    }
}
