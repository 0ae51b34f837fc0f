//! The fixed preprocessing of a pretrained model: resize, crop, normalise.

use crate::crop::{CropOffset, center_crop, pad_to_square};
use crate::resize::{Filter, PassOrder, ResizeOptions, Size, Window, resize, resize_window};
use crate::transform::{self, Normalize};
use crate::{Error, Picture, Result};
use candle_core::{Device, Tensor};
use image::{DynamicImage, RgbImage};
use rayon::prelude::*;
use serde::{Deserialize, Serialize};

/// How the picture is brought to the crop's scale.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ResizeMode {
    /// Not at all.
    None,
    /// The shorter side gets this length and the aspect ratio is kept.
    ShorterSide(u32),
    /// Exactly this size; the aspect ratio is lost ("squash").
    Exact(Size),
    /// The longer side gets this length, then the picture is padded to a square with the mean colour.
    PadToSquare(u32),
}

/// When a picture of another mode becomes RGB. It matters for images with alpha or a palette only.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RgbConversion {
    /// First, as loaders that call `convert("RGB")` on opening do.
    #[default]
    BeforeResize,
    /// After resizing and cropping, as OpenAI's CLIP and open_clip do. Palette images are then resized with the
    /// nearest neighbour, and the colours under transparency weigh less.
    AfterResize,
}

/// Fixed preprocessing from a picture to a normalised `(3, H, W)` tensor, bit-equal to the official pipelines.
///
/// Serialised beside a model's configuration. Start from a preset:
///
/// ```
/// use sconce_data::{Picture, Preprocess};
///
/// let picture = Picture::from(image::RgbImage::new(320, 240));
/// let tensor = Preprocess::clip(224).tensor(&picture, &candle_core::Device::Cpu)?;
/// assert_eq!(tensor.dims(), [3, 224, 224]);
/// # Ok::<(), sconce_data::Error>(())
/// ```
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Preprocess {
    /// Size of the result.
    pub size: Size,
    /// How the picture is scaled before the crop.
    pub resize: ResizeMode,
    /// The filter of the resize.
    pub filter: Filter,
    /// The order of its passes.
    #[serde(default)]
    pub order: PassOrder,
    /// How the centre crop rounds.
    #[serde(default)]
    pub offset: CropOffset,
    /// When the picture becomes RGB.
    #[serde(default)]
    pub conversion: RgbConversion,
    /// Mean and standard deviation.
    #[serde(flatten)]
    pub normalize: Normalize,
}

impl Preprocess {
    /// ImageNet evaluation as in timm: shorter side `floor(side / crop_pct)`, bicubic, centre crop, ImageNet's
    /// statistics. ViT and DeiT have `crop_pct` 0.9, ConvMixer 0.96, timm's ResNet-50 `a1_in1k` 0.95.
    pub fn imagenet(side: u32, crop_pct: f64) -> Self {
        Self {
            size: Size::square(side),
            resize: ResizeMode::ShorterSide((f64::from(side) / crop_pct).floor() as u32),
            filter: Filter::Bicubic,
            order: PassOrder::default(),
            offset: CropOffset::RoundHalfEven,
            conversion: RgbConversion::BeforeResize,
            normalize: transform::IMAGENET,
        }
    }

    /// ImageNet evaluation as in torchvision: shorter side 256, bilinear, centre crop 224, ImageNet's statistics.
    /// Its second generation of weights has shorter side 232.
    pub fn imagenet_torchvision() -> Self {
        Self { resize: ResizeMode::ShorterSide(256), filter: Filter::Bilinear, ..Self::imagenet(224, 1.0) }
    }

    /// DINO's evaluation: shorter side 256, bicubic, centre crop 224, ImageNet's statistics.
    pub fn dino() -> Self {
        Self { resize: ResizeMode::ShorterSide(256), ..Self::imagenet(224, 1.0) }
    }

    /// CLIP as in OpenAI's code and open_clip: shorter side to `side`, bicubic, centre crop, RGB last, CLIP's
    /// statistics.
    pub fn clip(side: u32) -> Self {
        Self { conversion: RgbConversion::AfterResize, normalize: transform::CLIP, ..Self::imagenet(side, 1.0) }
    }

    /// CLIP as in Hugging Face's image processor: RGB first, and a crop that rounds down, so the picture is one
    /// pixel off [`Self::clip`] where the surplus is odd.
    pub fn clip_hf(side: u32) -> Self {
        Self { conversion: RgbConversion::BeforeResize, offset: CropOffset::Floor, ..Self::clip(side) }
    }

    /// The resized, cropped RGB image, before normalisation.
    ///
    /// # Errors
    /// [`Error::Invalid`] for sizes of zero or beyond memory.
    pub fn image(&self, picture: &Picture) -> Result<RgbImage> {
        if self.conversion == RgbConversion::BeforeResize {
            return match picture.pixels() {
                DynamicImage::ImageRgb8(image) => self.rgb(image),
                _ => self.rgb(&picture.to_rgb()),
            };
        }
        match self.plan(picture.size())? {
            Plan::Window(size, window) => Ok(picture.resize_window(size, self.options(), &window)?.into_rgb()),
            // Cropping and padding copy pixels, so they can as well come after the conversion.
            Plan::Whole(size) => self.framed(picture.resize(size, self.options())?.into_rgb()),
        }
    }

    /// [`Self::image`] for a picture that is RGB already.
    ///
    /// # Errors
    /// As [`Self::image`].
    pub fn rgb(&self, image: &RgbImage) -> Result<RgbImage> {
        match self.plan(Size::of(image))? {
            Plan::Window(size, window) => resize_window(image, size, &self.options(), &window),
            Plan::Whole(size) => self.framed(resize(image, size, self.options())?),
        }
    }

    /// The preprocessed picture.
    ///
    /// # Shapes
    /// - output `(3, H, W)`, `f32`
    ///
    /// # Errors
    /// As [`Self::image`], and those of the tensor's creation.
    pub fn tensor(&self, picture: &Picture, device: &Device) -> Result<Tensor> {
        self.normalize.tensor(&self.image(picture)?, device)
    }

    /// Several pictures as one batch, prepared in parallel.
    ///
    /// # Shapes
    /// - output `(B, 3, H, W)`, `f32`
    ///
    /// # Errors
    /// As [`Self::tensor`], and [`Error::Invalid`] without pictures.
    pub fn batch(&self, pictures: &[Picture], device: &Device) -> Result<Tensor> {
        if pictures.is_empty() {
            return Err(Error::invalid("pictures", "an empty batch"));
        }
        let (height, width) = (self.size.height as usize, self.size.width as usize);
        let mut planes = vec![0f32; pictures.len() * 3 * height * width];
        planes.par_chunks_mut((3 * height * width).max(1)).zip(pictures).try_for_each(|(planes, picture)| {
            self.normalize.planes_into(&self.image(picture)?, planes);
            Ok::<(), Error>(())
        })?;
        Ok(Tensor::from_vec(planes, (pictures.len(), 3, height, width), device)?)
    }

    fn options(&self) -> ResizeOptions {
        ResizeOptions { filter: self.filter, order: self.order, region: None }
    }

    /// What to resize to, and which part of it to compute.
    fn plan(&self, from: Size) -> Result<Plan> {
        let to = match self.resize {
            ResizeMode::None => from,
            ResizeMode::ShorterSide(side) => from.with_shorter_side(side),
            ResizeMode::Exact(size) => size,
            ResizeMode::PadToSquare(side) => from.with_longer_side(side),
        };
        let (size, limit) = (to.width.max(to.height).into(), 1 << 26);
        if size > limit {
            return Err(Error::TooLarge { what: "the resized image (pixels on a side)", size, limit });
        }
        let inside = self.size.width <= to.width && self.size.height <= to.height;
        if !inside || matches!(self.resize, ResizeMode::PadToSquare(_)) {
            return Ok(Plan::Whole(to));
        }
        let range = |len: u32, crop: u32| {
            let start = self.offset.offset(len, crop) as u32; // not negative, as the crop is inside
            start..start + crop
        };
        let window = Window { columns: range(to.width, self.size.width), rows: range(to.height, self.size.height) };
        Ok(Plan::Window(to, window))
    }

    /// Pads and crops a resized image.
    fn framed(&self, image: RgbImage) -> Result<RgbImage> {
        let image = match self.resize {
            ResizeMode::PadToSquare(_) => {
                pad_to_square(&image, self.normalize.mean.map(|mean| (mean * 255.0).round() as u8))?
            }
            _ => image,
        };
        center_crop(&image, self.size, self.offset)
    }
}

/// What is to be computed of a resized picture.
enum Plan {
    /// The crop alone, which lies within the resized picture.
    Window(Size, Window),
    /// Everything: it is padded or smaller than the crop.
    Whole(Size),
}
