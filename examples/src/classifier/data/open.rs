//! From a path to labelled pictures.

use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};

use image::RgbImage;
use sconce::data::{Dataset, IdxArray, ImageFolder, Sample, WebDataset};
use serde_json::Value;

use super::{DataOptions, Labelled, Source};
use crate::Error;

/// Where training and test pictures lie.
pub(super) struct Located {
    pub(super) train: PathBuf,
    pub(super) test: Option<PathBuf>,
}

/// Finds the parts of a data set by the usual names.
pub(super) fn locate(path: &Path) -> Result<Located, Error> {
    if !path.exists() {
        return Err(Error::new(format!("{}: there is no such file or folder", path.display())));
    }
    if path.is_file() {
        // An idx file of training pictures has its test pictures beside it.
        let test = path.file_name().and_then(|name| name.to_str()).filter(|name| name.starts_with("train-"));
        let test = test.map(|name| path.with_file_name(name.replacen("train-", "t10k-", 1)));
        return Ok(Located { train: path.into(), test: test.filter(|test| test.is_file()) });
    }
    let first = |names: &[&str]| names.iter().map(|name| path.join(name)).find(|path| path.exists());
    if let Some(train) = first(&["train-images-idx3-ubyte.gz", "train-images-idx3-ubyte"]) {
        return Ok(Located { train, test: first(&["t10k-images-idx3-ubyte.gz", "t10k-images-idx3-ubyte"]) });
    }
    match first(&["train"]) {
        Some(train) => Ok(Located { train, test: first(&["test", "val"]) }),
        None => Ok(Located { train: path.into(), test: None }),
    }
}

/// Labels as the data has them.
enum Labels {
    Numbers(Vec<u32>),
    Names(Vec<String>),
}

/// Opens labelled pictures; `known` are the classes of the training pictures, when these are for testing.
pub(super) fn labelled(
    path: &Path,
    options: &DataOptions,
    known: Option<&[String]>,
) -> Result<(Labelled, Vec<String>), Error> {
    let shards = shards(path)?;
    let (source, labels) = if !shards.is_empty() {
        webdataset(&shards, options.label_key.as_deref())?
    } else if path.is_file() {
        idx(path)?
    } else {
        let folder = ImageFolder::open(path).map_err(plain)?;
        let names = folder.files().iter().map(|(_, label)| folder.classes()[*label as usize].clone()).collect();
        (Source::Folder(folder), Labels::Names(names))
    };
    let (labels, classes) = numbered(labels, options.num_classes, known)
        .map_err(|error| Error::new(format!("{}: {error}", path.display())))?;
    Ok((Labelled { source, labels }, classes))
}

fn plain(error: sconce::data::Error) -> Error {
    Error::new(error.to_string())
}

/// Class numbers below the number of classes, and the names of the classes.
fn numbered(labels: Labels, count: Option<usize>, known: Option<&[String]>) -> Result<(Vec<u32>, Vec<String>), Error> {
    let (numbers, classes) = match labels {
        Labels::Numbers(numbers) => {
            let most = numbers.iter().max().map_or(0, |&most| most as usize + 1);
            let count = known.map(<[String]>::len).or(count).unwrap_or(most);
            if let Some((i, label)) = numbers.iter().enumerate().find(|(_, label)| **label as usize >= count) {
                return Err(Error::new(format!("picture {i} has label {label}, and there are {count} classes")));
            }
            (numbers, (0..count).map(|class| class.to_string()).collect())
        }
        Labels::Names(names) => {
            let mut classes: Vec<String> = match known {
                Some(known) => known.to_vec(),
                None => {
                    let mut classes = names.clone();
                    classes.sort_unstable();
                    classes.dedup();
                    classes
                }
            };
            if known.is_none()
                && let Some(count) = count
            {
                if count < classes.len() {
                    return Err(Error::new(format!("{} classes, more than --num-classes {count}", classes.len())));
                }
                classes.extend((classes.len()..count).map(|class| format!("unused {class}")));
            }
            let numbers: HashMap<&str, u32> = classes.iter().zip(0..).map(|(class, i)| (class.as_str(), i)).collect();
            let number = |name: &String| {
                numbers
                    .get(name.as_str())
                    .copied()
                    .ok_or_else(|| Error::new(format!("the class {name:?} does not occur in the training pictures")))
            };
            (names.iter().map(number).collect::<Result<_, _>>()?, classes)
        }
    };
    Ok((numbers, known.map_or(classes, <[String]>::to_vec)))
}

/// Pictures and labels from two arrays, of which the second has `labels-idx1` where the first has `images-idx3`.
fn idx(path: &Path) -> Result<(Source, Labels), Error> {
    let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
    if !name.contains("images-idx3") {
        let message = "neither a tar nor an idx file of pictures, whose name has `images-idx3` in it";
        return Err(Error::new(format!("{}: {message}", path.display())));
    }
    let labels_path = path.with_file_name(name.replacen("images-idx3", "labels-idx1", 1));
    let (pictures, labels) = (IdxArray::open(path).map_err(plain)?, IdxArray::open(&labels_path).map_err(plain)?);
    let wrong = |path: &Path, what: String| Error::new(format!("{}: {what}", path.display()));
    let &[count, height, width] = pictures.shape() else {
        return Err(wrong(path, format!("shape {:?}, not (pictures, rows, columns)", pictures.shape())));
    };
    if labels.shape() != [count] {
        return Err(wrong(&labels_path, format!("shape {:?} for {count} pictures", labels.shape())));
    }
    if height == 0 || width == 0 || height.max(width) > 1 << 16 {
        return Err(wrong(path, format!("pictures of {height} x {width} pixels")));
    }
    let labels = labels.as_u8().map_err(|e| wrong(&labels_path, e.to_string()))?;
    let bytes = pictures.as_u8().map_err(|e| wrong(path, e.to_string()))?;
    let picture = |grey: &[u8]| {
        let rgb = grey.iter().flat_map(|&value| [value; 3]).collect();
        RgbImage::from_raw(width as u32, height as u32, rgb).unwrap_or_default()
    };
    let pictures = bytes.chunks_exact(height * width).map(picture).collect();
    Ok((Source::Memory(pictures), Labels::Numbers(labels.iter().copied().map(u32::from).collect())))
}

/// The shards that a path stands for; none when it is something else.
fn shards(path: &Path) -> Result<Vec<PathBuf>, Error> {
    let is_shard = |path: &Path| {
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default().to_lowercase();
        [".tar", ".tar.gz", ".tgz"].iter().any(|end| name.ends_with(end))
    };
    if path.is_file() {
        return Ok(if is_shard(path) { vec![path.into()] } else { Vec::new() });
    }
    let fail = |error: std::io::Error| Error::new(format!("{}: {error}", path.display()));
    let mut found = Vec::new();
    for entry in fs::read_dir(path).map_err(fail)? {
        let path = entry.map_err(fail)?.path();
        if path.is_file() && is_shard(&path) {
            found.push(path);
        }
    }
    found.sort();
    Ok(found)
}

fn webdataset(shards: &[PathBuf], key: Option<&str>) -> Result<(Source, Labels), Error> {
    let (dataset, report) = WebDataset::open(shards, Default::default()).map_err(plain)?;
    if !report.is_empty() {
        eprintln!("skipped: {report}");
    }
    let mut labels = if key.is_some() { Labels::Names(Vec::new()) } else { Labels::Numbers(Vec::new()) };
    for index in 0..dataset.len() {
        let sample = dataset.sample(index).map_err(plain)?;
        match (&mut labels, key) {
            (Labels::Names(names), Some(key)) => names.push(named(&sample, key)?),
            (Labels::Numbers(numbers), _) => numbers.push(number(&sample)?),
            (Labels::Names(_), None) => {}
        }
    }
    Ok((Source::Shards(dataset), labels))
}

/// The class in a field of the sample's json.
fn named(sample: &Sample, key: &str) -> Result<String, Error> {
    let json: Value = sample.json("json").map_err(plain)?;
    match json.get(key) {
        Some(Value::String(text)) => Ok(text.clone()),
        Some(Value::Number(number)) => Ok(number.to_string()),
        _ => Err(Error::new(format!("{}: {}.json has no text or number in {key:?}", sample.shard, sample.key))),
    }
}

/// The class number in the member `cls`.
fn number(sample: &Sample) -> Result<u32, Error> {
    let text = sample
        .text("cls")
        .map_err(|error| Error::new(format!("{error}; --label-key FIELD takes the class from the json")))?;
    let wrong = |_| Error::new(format!("{}: {}.cls holds {text:?}, not a number", sample.shard, sample.key));
    text.trim().parse().map_err(wrong)
}
