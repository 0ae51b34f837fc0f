//! CLIP's image preprocessing: Pillow's resize, torchvision's crop, normalisation, to the last bit.

use sconce::candle::Device;
use sconce::data::resize::resize;
use sconce::data::{
    CropOffset, Normalize, PassOrder, Picture, Preprocess, ResizeMode, ResizeOptions, RgbConversion, Size,
};
use sconce_tests::golden::{Case, Result, equal};

use crate::common::{filter, options, to_tensor};

/// Grey levels by which Hugging Face's fast resize differs from Pillow's: it works on tensors in 16-bit fixed point.
const FAST: f64 = 2.0;

pub(crate) fn run(case: &Case) -> Result<()> {
    let file = case.tensors()?;
    let picture = Picture::open(case.path(file.metadata("png").ok_or("no name of the picture")?))?;
    let options = options(file.metadata("pillow").ok_or("no Pillow version")?)?;
    let normalize = Normalize { mean: file.metadata_json("mean")?, std: file.metadata_json("std")? };
    let [width, height]: [u32; 2] = file.metadata_json("size_wh")?;
    if picture.size() != Size::new(width, height) {
        return Err(format!("the picture has {:?}, not {width} x {height}", picture.size()).into());
    }
    for (name, reference) in file.iter() {
        let dims = reference.dims();
        let preprocess = |side: usize| Preprocess { normalize, order: options.order, ..Preprocess::clip(side as u32) };
        if name == "resized_wh" {
            let side = file.get("clip_normalized_64_chw")?.dim(1)? as u32;
            let size = picture.size().with_shorter_side(side);
            let found = reference.to_vec1::<i64>()?;
            if found != [i64::from(size.width), i64::from(size.height)] {
                return Err(format!("resized to {size:?}, not {found:?}").into());
            }
        } else if name.starts_with("clip_normalized") {
            equal(name, &preprocess(dims[1]).tensor(&picture, &Device::Cpu)?, reference)?;
        } else if name.starts_with("hf_fast_normalized") {
            // The passes of a tensor's resize are always in this order.
            let order = PassOrder::HorizontalFirst;
            let preprocess = Preprocess { offset: CropOffset::Floor, order, ..preprocess(dims[1]) };
            let found = preprocess.tensor(&picture, &Device::Cpu)?;
            let allowed = FAST / 255.0 / f64::from(normalize.std.iter().copied().fold(f32::INFINITY, f32::min));
            let far = (found - reference)?.abs()?.flatten_all()?.max(0)?.to_scalar::<f32>()?;
            if f64::from(far) > allowed {
                return Err(format!("{name} is off by {far}, more than {FAST} grey levels").into());
            }
        } else if name.contains("_direct_") {
            let filter = filter(name).ok_or_else(|| format!("no filter for {name}"))?;
            let size = Size::new(dims[1] as u32, dims[0] as u32);
            let found = resize(&picture.to_rgb(), size, ResizeOptions { filter, ..options })?;
            equal(name, &to_tensor(&found)?, reference)?;
        } else {
            let (conversion, filtered) = match name.strip_prefix("rgbfirst_") {
                Some(rest) => (RgbConversion::BeforeResize, rest),
                None => (RgbConversion::AfterResize, name),
            };
            let filter = filter(filtered).ok_or_else(|| format!("no operation for {name}"))?;
            let side = dims[0] as u32;
            let resize = ResizeMode::ShorterSide(side);
            let preprocess = Preprocess { filter, conversion, resize, ..preprocess(dims[0]) };
            equal(name, &to_tensor(&preprocess.image(&picture)?)?, reference)?;
        }
    }
    Ok(())
}
