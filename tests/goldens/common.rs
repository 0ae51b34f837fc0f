//! Pillow's resizing and colour arithmetic, and torchvision's on top of it, to the last bit.

use sconce::candle::{Device, Tensor};
use sconce::data::augment::{
    adjust_brightness, adjust_contrast, adjust_hue, adjust_saturation, gaussian_blur, grayscale, hflip, solarize,
};
use sconce::data::crop::crop;
use sconce::data::resize::resize;
use sconce::data::{Filter, PassOrder, Preprocess, ResizeMode, ResizeOptions, Size};
use sconce_tests::golden::{Case, Result, equal};

use image::RgbImage;

pub(crate) fn run(case: &Case) -> Result<()> {
    let json = case.json()?;
    let file = case.tensors()?;
    let options = options(json["pil"].as_str().ok_or("no Pillow version")?)?;
    let steps = json["ops"].as_str().ok_or("no description of the operations")?;
    let image = to_image(file.get("in.img")?)?;
    for (name, reference) in file.with_prefix("out.") {
        if name.starts_with("eval") {
            let side = number(steps, "CenterCrop(")? as u32;
            let preprocess = Preprocess {
                resize: ResizeMode::ShorterSide(number(steps, "short side ")? as u32),
                filter: Filter::Bicubic,
                order: options.order,
                ..Preprocess::imagenet(side, 1.0)
            };
            let found = preprocess.tensor(&image.clone().into(), &Device::Cpu)?;
            equal(name, &found, reference)?;
        } else {
            equal(name, &to_tensor(&operate(name, &image, reference, options, steps)?)?, reference)?;
        }
    }
    Ok(())
}

fn operate(name: &str, image: &RgbImage, reference: &Tensor, options: ResizeOptions, steps: &str) -> Result<RgbImage> {
    let (height, width, _) = reference.dims3()?;
    let size = Size::new(width as u32, height as u32);
    if let Some(filter) = filter(name) {
        return Ok(resize(image, size, ResizeOptions { filter, ..options })?);
    }
    let mut output = image.clone();
    // The operation's name ends where its argument begins.
    let (operation, argument) = name.split_at(name.find(|c: char| c.is_ascii_digit()).unwrap_or(name.len()));
    let argument = argument.parse::<f64>();
    match operation {
        "blur_r" => return Ok(gaussian_blur(image, argument? as f32)),
        "solarize" => solarize(&mut output, argument? as u8),
        "gray" => grayscale(&mut output),
        "brightness" => adjust_brightness(&mut output, argument?),
        "contrast" => adjust_contrast(&mut output, argument?),
        "saturation" => adjust_saturation(&mut output, argument?),
        "hue" => adjust_hue(&mut output, argument?),
        "hflip" => return Ok(hflip(image)),
        "resized_crop" => {
            let [top, left] = [number(steps, "top=")?, number(steps, "left=")?];
            let part = Size::new(number(steps, ",w=")? as u32, number(steps, ",h=")? as u32);
            let part = crop(image, left, top, part, image::Rgb([0; 3]))?;
            return Ok(resize(&part, size, ResizeOptions { filter: Filter::Bicubic, ..options })?);
        }
        _ => return Err(format!("no operation for {name}").into()),
    }
    Ok(output)
}

/// The filter that a tensor's name begins with.
pub(crate) fn filter(name: &str) -> Option<Filter> {
    let filters = [
        ("nearest", Filter::Nearest),
        ("box", Filter::Box),
        ("bilinear", Filter::Bilinear),
        ("hamming", Filter::Hamming),
        ("bicubic", Filter::Bicubic),
        ("lanczos", Filter::Lanczos),
    ];
    filters.iter().find(|(prefix, _)| name.starts_with(prefix)).map(|(_, filter)| *filter)
}

/// The order of passes of the Pillow that wrote a golden.
pub(crate) fn options(version: &str) -> Result<ResizeOptions> {
    let major: u32 = version.split('.').next().unwrap_or_default().parse()?;
    let order = if major >= 13 { PassOrder::Pillow13 } else { PassOrder::HorizontalFirst };
    Ok(ResizeOptions { order, ..ResizeOptions::default() })
}

/// `(H, W, 3)`
pub(crate) fn to_tensor(image: &RgbImage) -> Result<Tensor> {
    let shape = (image.height() as usize, image.width() as usize, 3);
    Ok(Tensor::from_slice(image.as_raw(), shape, &Device::Cpu)?)
}

fn to_image(tensor: &Tensor) -> Result<RgbImage> {
    let (height, width, _) = tensor.dims3()?;
    let bytes = tensor.flatten_all()?.to_vec1::<u8>()?;
    Ok(RgbImage::from_raw(width as u32, height as u32, bytes).ok_or("not an RGB image")?)
}

/// The integer after `key` in a description.
fn number(text: &str, key: &str) -> Result<i64> {
    let rest = text.split_once(key).ok_or_else(|| format!("no `{key}` in `{text}`"))?.1;
    let end = rest.find(|c: char| !c.is_ascii_digit()).unwrap_or(rest.len());
    Ok(rest[..end].parse()?)
}
