//! Full-size CLIP models in the formats in which official weights are published, written by `full_size_clip/make.py`.
//!
//! `tests/full_size_clip.sh` runs both; without its folder the test has nothing to look at and is ignored.

use std::path::{Path, PathBuf};

use candle_core::{DType, Device, Tensor};
use sconce::clip::{Bundle, Format};
use sconce::nn::{Checkpoint, ParamStore};
use sconce_tests::golden::{OUTPUT, Result, Tensors, compare, equal};

/// Features of the reference's pictures, ids and texts.
struct Features {
    images: Tensor,
    ids: Tensor,
    texts: Tensor,
}

/// Loads a file or folder strictly and computes.
fn features(path: &Path, reference: &Tensors) -> Result<Features> {
    let store = ParamStore::new(0, DType::F32, &Device::Cpu);
    let (bundle, report) = Bundle::load_trainable(path, &store)?;
    let left = [report.missing.len(), report.unexpected.len(), report.mismatched.len(), report.resized.len()];
    println!("{}: {} tensors, missing, unexpected, mismatched, resized: {left:?}", path.display(), report.loaded.len());
    if left != [0; 4] || report.loaded.is_empty() {
        return Err(format!("{}: {report}", path.display()).into());
    }
    let ids = reference.get("ids")?.to_dtype(DType::U32)?;
    let texts: Vec<String> = reference.metadata_json("texts")?;
    Ok(Features {
        images: bundle.model.encode_image(reference.get("image")?)?.detach(),
        ids: bundle.model.encode_text(&ids)?.detach(),
        texts: bundle.embed_texts(&texts)?.detach(),
    })
}

/// What lies in the folder of one model, OpenAI's archive first.
fn published(folder: &Path) -> Result<Vec<(PathBuf, Format)>> {
    let names = [
        ("openai.pt", Format::Openai),
        ("state_dict.pt", Format::Openai),
        ("open_clip", Format::Openai),
        ("hugging_face", Format::HuggingFace),
    ];
    let found: Vec<_> = names.into_iter().map(|(name, format)| (folder.join(name), format)).collect();
    let found: Vec<_> = found.into_iter().filter(|(path, _)| path.exists()).collect();
    // transformers has no ModifiedResNet.
    let wanted = if folder.file_name().is_some_and(|name| name.to_string_lossy().starts_with("RN")) { 3 } else { 4 };
    if found.len() != wanted {
        return Err(format!("{}: {} of {wanted} formats", folder.display(), found.len()).into());
    }
    Ok(found)
}

fn check(folder: &Path) -> Result<()> {
    let reference = Tensors::open(&folder.join("reference.safetensors"))?;
    let mut first: Option<Features> = None;
    for (path, format) in published(folder)? {
        if Format::of(&Checkpoint::open(&path)?)? != format {
            return Err(format!("{} was taken for another format", path.display()).into());
        }
        let found = features(&path, &reference)?;
        for (name, reference) in reference.iter() {
            match name.split_once('.') {
                Some((_, "image_features")) => compare(name, &found.images, reference, OUTPUT)?,
                Some((_, "text_features")) => compare(name, &found.ids, reference, OUTPUT)?,
                _ => {}
            }
        }
        let first = first.get_or_insert_with(|| Features {
            images: found.images.clone(),
            ids: found.ids.clone(),
            texts: found.texts.clone(),
        });
        equal("images across formats", &found.images, &first.images)?;
        equal("ids across formats", &found.ids, &first.ids)?;
        equal("texts across formats", &found.texts, &first.texts)?;
    }
    Ok(())
}

#[test]
#[ignore = "needs checkpoints of full size: run tests/full_size_clip.sh"]
fn published_formats_of_full_size_agree() -> Result<()> {
    let root = std::env::var_os("SCONCE_FULL_SIZE_CLIP").ok_or("SCONCE_FULL_SIZE_CLIP names no folder")?;
    let mut folders: Vec<_> =
        std::fs::read_dir(&root)?.map(|entry| Ok(entry?.path())).collect::<std::io::Result<Vec<_>>>()?;
    folders.retain(|path| path.is_dir());
    folders.sort();
    if folders.is_empty() {
        return Err(format!("no model in {}", Path::new(&root).display()).into());
    }
    folders.iter().try_for_each(|folder| check(folder))
}
