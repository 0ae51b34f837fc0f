//! Decoding png, jpeg and webp under limits, in the modes that Pillow would give.
//!
//! Convention (Pillow's):
//! - alpha is dropped when an image becomes RGB, not blended with a background; the colour under a transparent
//!   pixel shows. The transparent colour of a png without an alpha channel (`tRNS`) is ignored likewise;
//! - 16-bit colour keeps its high byte; 16-bit grey (`I;16`) is clipped to 255, not scaled,
//!   and that before any resize (Pillow resizes it in 16 bits);
//! - palette and one-bit images are resized with the nearest neighbour whatever the filter, unless they are
//!   converted to RGB first: see [`RgbConversion`](crate::RgbConversion);
//! - EXIF orientation is not applied.
//!
//! Jpeg decoders differ by a grey level or two from each other; png and lossless webp are exact.

use crate::resize::{Filter, ResizeOptions, Size, Window, resize_window};
use crate::{Error, Result};
use image::{DynamicImage, ImageDecoder, ImageFormat, RgbImage};
use std::io::Cursor;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;

/// Guards against images that are small as files and huge in memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DecodeLimits {
    /// Most pixels of an image. The default is the count at which Pillow refuses to go on.
    pub max_pixels: u64,
    /// Most pixels on a side.
    pub max_side: u32,
    /// Most bytes that decoding may take.
    pub max_bytes: u64,
    /// Most bytes of an encoded file that [`Picture::open`] reads.
    pub max_file: u64,
}

impl Default for DecodeLimits {
    fn default() -> Self {
        Self { max_pixels: 178_956_970, max_side: 1 << 20, max_bytes: 1 << 30, max_file: 1 << 29 }
    }
}

/// A decoded image in one of Pillow's modes.
#[derive(Debug, Clone, PartialEq)]
pub struct Picture {
    /// The pixels: `ImageLuma8`, `ImageLumaA8`, `ImageRgb8` or `ImageRgba8`.
    pixels: DynamicImage,
    /// Whether Pillow would resize it with the nearest neighbour only (modes `P` and `1`).
    nearest_only: bool,
}

impl Picture {
    /// Decodes an image, whose format is told by its first bytes.
    ///
    /// # Errors
    /// [`Error::UnknownFormat`], [`Error::Image`] when broken or truncated, [`Error::TooLarge`] when over the
    /// default limits.
    pub fn decode(bytes: &[u8]) -> Result<Self> {
        Self::decode_with(bytes, &DecodeLimits::default())
    }

    /// [`Self::decode`] with limits of the caller's choice.
    ///
    /// # Errors
    /// As [`Self::decode`].
    pub fn decode_with(bytes: &[u8], limits: &DecodeLimits) -> Result<Self> {
        // The decoders are written not to panic; should one do so all the same, it is the file's fault.
        let decoded = catch_unwind(AssertUnwindSafe(|| Self::decode_inner(bytes, limits)));
        decoded.unwrap_or_else(|_| Err(Error::Image { format: "image", reason: "the decoder panicked".into() }))
    }

    fn decode_inner(bytes: &[u8], limits: &DecodeLimits) -> Result<Self> {
        match image::guess_format(bytes) {
            Ok(ImageFormat::Png) => {
                let kind = png_kind(bytes)?;
                let decoder = image::codecs::png::PngDecoder::with_limits(Cursor::new(bytes), guards(limits));
                let pixels = read("png", decoder.map_err(|e| broken("png", e))?, limits)?;
                Ok(kind.picture(pixels))
            }
            Ok(ImageFormat::Jpeg) => {
                jpeg_is_complete(bytes)?;
                let decoder = image::codecs::jpeg::JpegDecoder::new(Cursor::new(bytes));
                Ok(read("jpeg", decoder.map_err(|e| broken("jpeg", e))?, limits)?.into())
            }
            Ok(ImageFormat::WebP) => {
                // A decoder does not miss the tail of a last chunk that it has no use for.
                let told = bytes.get(4..8).and_then(|size| size.try_into().ok()).map_or(0, u32::from_le_bytes);
                if (bytes.len() as u64) < u64::from(told) + 8 {
                    return Err(Error::Image { format: "webp", reason: "truncated".into() });
                }
                let decoder = image::codecs::webp::WebPDecoder::new(Cursor::new(bytes));
                Ok(read("webp", decoder.map_err(|e| broken("webp", e))?, limits)?.into())
            }
            _ => Err(Error::UnknownFormat { head: bytes[..bytes.len().min(8)].to_vec() }),
        }
    }

    /// Reads and decodes a file.
    ///
    /// # Errors
    /// As [`Self::decode`], naming the path, and [`Error::Io`].
    pub fn open(path: impl AsRef<Path>) -> Result<Self> {
        Self::open_with(path, &DecodeLimits::default())
    }

    /// [`Self::open`] with limits of the caller's choice.
    ///
    /// # Errors
    /// As [`Self::open`].
    pub fn open_with(path: impl AsRef<Path>, limits: &DecodeLimits) -> Result<Self> {
        let path = path.as_ref();
        let size = std::fs::metadata(path).map_err(|e| Error::io(path, e))?.len();
        if size > limits.max_file {
            let error = Error::TooLarge { what: "the file (bytes)", size, limit: limits.max_file };
            return Err(error.at(path.display()));
        }
        let bytes = std::fs::read(path).map_err(|e| Error::io(path, e))?;
        Self::decode_with(&bytes, limits).map_err(|e| e.at(path.display()))
    }

    /// The size in pixels.
    pub fn size(&self) -> Size {
        Size::new(self.pixels.width(), self.pixels.height())
    }

    /// The pixels: `ImageLuma8`, `ImageLumaA8`, `ImageRgb8` or `ImageRgba8`.
    pub fn pixels(&self) -> &DynamicImage {
        &self.pixels
    }

    /// Whether Pillow would resize this image with the nearest neighbour only: it has a palette or one bit a pixel.
    pub fn nearest_only(&self) -> bool {
        self.nearest_only
    }

    /// The image as RGB, as Pillow's `convert("RGB")`: alpha is dropped, grey is repeated.
    pub fn to_rgb(&self) -> RgbImage {
        // `image` drops alpha and repeats grey in these conversions too.
        self.pixels.to_rgb8()
    }

    /// [`Self::to_rgb`] without a copy where it is RGB already.
    pub fn into_rgb(self) -> RgbImage {
        self.pixels.into_rgb8()
    }

    /// Resizes as `PIL.Image.resize` does in the image's own mode: colours are multiplied by alpha for the
    /// filter, and palette or one-bit images take the nearest neighbour.
    ///
    /// # Errors
    /// As [`resize`](crate::resize::resize).
    pub fn resize(&self, size: Size, options: impl Into<ResizeOptions>) -> Result<Self> {
        self.resize_window(size, options.into(), &Window::all(size))
    }

    /// A window of what [`Self::resize`] would give.
    pub(crate) fn resize_window(&self, size: Size, mut options: ResizeOptions, window: &Window) -> Result<Self> {
        if self.nearest_only {
            options.filter = Filter::Nearest;
        }
        let premultiply = options.filter != Filter::Nearest && self.size() != size;
        let pixels = match &self.pixels {
            DynamicImage::ImageLuma8(image) => resize_window(image, size, &options, window)?.into(),
            DynamicImage::ImageRgb8(image) => resize_window(image, size, &options, window)?.into(),
            DynamicImage::ImageLumaA8(image) if premultiply => {
                let mut image = image.clone();
                image.pixels_mut().for_each(|pixel| multiply(&mut pixel.0));
                let mut image = resize_window(&image, size, &options, window)?;
                image.pixels_mut().for_each(|pixel| divide(&mut pixel.0));
                image.into()
            }
            DynamicImage::ImageLumaA8(image) => resize_window(image, size, &options, window)?.into(),
            other => {
                let mut image = other.to_rgba8();
                if premultiply {
                    image.pixels_mut().for_each(|pixel| multiply(&mut pixel.0));
                }
                let mut image = resize_window(&image, size, &options, window)?;
                if premultiply {
                    image.pixels_mut().for_each(|pixel| divide(&mut pixel.0));
                }
                image.into()
            }
        };
        Ok(Self { pixels, nearest_only: self.nearest_only })
    }
}

impl From<RgbImage> for Picture {
    fn from(image: RgbImage) -> Self {
        Self { pixels: image.into(), nearest_only: false }
    }
}

impl From<DynamicImage> for Picture {
    fn from(pixels: DynamicImage) -> Self {
        let pixels = match pixels {
            DynamicImage::ImageLuma8(_)
            | DynamicImage::ImageLumaA8(_)
            | DynamicImage::ImageRgb8(_)
            | DynamicImage::ImageRgba8(_) => pixels,
            DynamicImage::ImageLuma16(grey) => {
                let bytes = grey.iter().map(|&value| value.min(255) as u8).collect();
                let grey = image::GrayImage::from_raw(grey.width(), grey.height(), bytes);
                DynamicImage::ImageLuma8(grey.unwrap_or_default())
            }
            DynamicImage::ImageLumaA16(image) => {
                DynamicImage::ImageLumaA8(high_bytes(image.width(), image.height(), &image))
            }
            DynamicImage::ImageRgb16(image) => {
                DynamicImage::ImageRgb8(high_bytes(image.width(), image.height(), &image))
            }
            DynamicImage::ImageRgba16(image) => {
                DynamicImage::ImageRgba8(high_bytes(image.width(), image.height(), &image))
            }
            float => DynamicImage::ImageRgb8(float.to_rgb8()),
        };
        Self { pixels, nearest_only: false }
    }
}

fn high_bytes<P: image::Pixel<Subpixel = u8>>(
    width: u32,
    height: u32,
    samples: &[u16],
) -> image::ImageBuffer<P, Vec<u8>> {
    let bytes = samples.iter().map(|value| (value >> 8) as u8).collect();
    image::ImageBuffer::from_raw(width, height, bytes).unwrap_or_else(|| image::ImageBuffer::new(0, 0))
}

/// Colours times alpha, rounded; the last sample is alpha.
fn multiply(pixel: &mut [u8]) {
    if let [colours @ .., alpha] = pixel {
        for colour in colours {
            let product = u32::from(*colour) * u32::from(*alpha) + 128;
            *colour = (((product >> 8) + product) >> 8) as u8;
        }
    }
}

/// The inverse of [`multiply`], cut to an integer.
fn divide(pixel: &mut [u8]) {
    if let [colours @ .., alpha] = pixel
        && !matches!(alpha, 0 | 255)
    {
        for colour in colours {
            *colour = (255 * u32::from(*colour) / u32::from(*alpha)).min(255) as u8;
        }
    }
}

fn broken(format: &'static str, error: image::ImageError) -> Error {
    Error::Image { format, reason: error.to_string() }
}

fn guards(limits: &DecodeLimits) -> image::Limits {
    let mut guards = image::Limits::default();
    guards.max_alloc = Some(limits.max_bytes);
    guards
}

fn read(format: &'static str, mut decoder: impl ImageDecoder, limits: &DecodeLimits) -> Result<DynamicImage> {
    let (width, height) = decoder.dimensions();
    let size = u64::from(width) * u64::from(height);
    if size > limits.max_pixels {
        return Err(Error::TooLarge { what: "the image (pixels)", size, limit: limits.max_pixels });
    }
    if width.max(height) > limits.max_side {
        let (size, limit) = (width.max(height).into(), limits.max_side.into());
        return Err(Error::TooLarge { what: "the image (pixels on a side)", size, limit });
    }
    if decoder.total_bytes() > limits.max_bytes {
        let size = decoder.total_bytes();
        return Err(Error::TooLarge { what: "the image (bytes)", size, limit: limits.max_bytes });
    }
    if size == 0 {
        return Err(Error::Image { format, reason: format!("{width} x {height} pixels") });
    }
    decoder.set_limits(guards(limits)).map_err(|e| broken(format, e))?;
    DynamicImage::from_decoder(decoder).map_err(|e| broken(format, e))
}

/// What a png's header says and the decoder's output no longer does.
struct PngKind {
    nearest_only: bool,
    alpha_channel: bool,
}

impl PngKind {
    fn picture(&self, pixels: DynamicImage) -> Picture {
        let mut picture = Picture::from(pixels);
        if !self.alpha_channel {
            picture.pixels = match picture.pixels {
                DynamicImage::ImageLumaA8(image) => DynamicImage::ImageLumaA8(image).into_luma8().into(),
                DynamicImage::ImageRgba8(image) => DynamicImage::ImageRgba8(image).into_rgb8().into(),
                other => other,
            };
        }
        picture.nearest_only = self.nearest_only;
        picture
    }
}

/// Walks the chunks: a decoder stops once it has its pixels, and so misses a cut or damaged tail.
fn png_kind(bytes: &[u8]) -> Result<PngKind> {
    let cut = || Error::Image { format: "png", reason: "truncated".into() };
    let mut rest = bytes.get(8..).ok_or_else(cut)?;
    let mut kind = None;
    loop {
        let (length, tail) = rest.split_first_chunk::<4>().ok_or_else(cut)?;
        let length = u32::from_be_bytes(*length) as usize;
        let end = length.checked_add(4).ok_or_else(cut)?;
        let (body, tail) = tail.split_at_checked(end).ok_or_else(cut)?;
        let (sum, tail) = tail.split_first_chunk::<4>().ok_or_else(cut)?;
        if crc32fast::hash(body) != u32::from_be_bytes(*sum) {
            let name = String::from_utf8_lossy(&body[..4]).into_owned();
            return Err(Error::Image { format: "png", reason: format!("checksum of chunk {name:?}") });
        }
        match (&body[..4], kind.is_some()) {
            (b"IHDR", false) if body.len() == 17 => {
                let (depth, colour) = (body[12], body[13]);
                kind = Some(PngKind {
                    nearest_only: colour == 3 || (colour == 0 && depth == 1),
                    alpha_channel: colour & 4 != 0,
                });
            }
            (_, false) => {
                return Err(Error::Image { format: "png", reason: "does not begin with a header".into() });
            }
            (b"IEND", true) => break,
            _ => {}
        }
        rest = tail;
    }
    kind.ok_or_else(cut)
}

/// A jpeg that ends early decodes to grey below the cut; this makes it an error, as Pillow does.
///
/// Within a scan a marker never occurs by chance, so an end marker after the first scan begins is the real one.
fn jpeg_is_complete(bytes: &[u8]) -> Result<()> {
    let broken = |reason: &str| Error::Image { format: "jpeg", reason: reason.into() };
    let mut at = 2;
    loop {
        match *bytes.get(at..).ok_or_else(|| broken("truncated"))? {
            // Padding before a marker, and markers without a length.
            [0xff, 0xff, ..] => at += 1,
            [0xff, 0x01 | 0xd0..=0xd8, ..] => at += 2,
            [0xff, 0xd9, ..] => return Err(broken("ends before its first scan")),
            [0xff, marker, high, low, ..] => {
                let length = usize::from(u16::from_be_bytes([high, low]));
                if length < 2 {
                    return Err(broken("a segment without a length"));
                }
                at += 2 + length;
                if marker == 0xda {
                    break;
                }
            }
            // Stray bytes between segments are skipped, as by libjpeg.
            [_, _, _, _, ..] => at += 1,
            _ => return Err(broken("truncated")),
        }
    }
    let scan = bytes.get(at..).unwrap_or_default();
    // From the end, where it nearly always is.
    if scan.windows(2).rev().any(|pair| pair == [0xff, 0xd9]) { Ok(()) } else { Err(broken("truncated")) }
}
