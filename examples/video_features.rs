//! Features of a video: a folder of frames to one vector for each clip, by UniFormer.
//!
//! - `video_features FRAMES --weights uniformer_small_k400_16x4.pth` writes `features.safetensors` with `features` (clips, C), and
//!   `features.json` with the frames of each clip.
//! - Weights for pictures are inflated: `--weights uniformer_small.pth` gives features without any video having been seen.
//! - An interrupted run goes on where it was when it is started again in the same way.

use std::collections::BTreeMap;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use clap::Parser;
use indicatif::{ProgressBar, ProgressStyle};
use rayon::prelude::*;
use sconce::backbones::{Backbone, BackboneConfig, Pretrained, list_models, pretrained};
use sconce::candle::{DType, Device, Tensor};
use sconce::data::{Picture, Size, image_files};
use sconce::nn::{Checkpoint, ParamStore, SaveOptions, save_tensors};
use sconce_examples::{Error, write_json};
use serde_json::{Value, json};

/// Between two writes of what is there so far.
const PAUSE: Duration = Duration::from_secs(10);

/// UniFormer features of the clips of a video.
#[derive(Debug, Parser)]
struct Arguments {
    /// Folder with the frames (png, jpeg, webp), in the order of their names.
    frames: PathBuf,
    /// A model for clips.
    #[arg(long, default_value = "uniformer_small_k400_16x4")]
    model: String,
    /// Weights of this model, or of the same model for pictures. [default: untrained]
    #[arg(long)]
    weights: Option<PathBuf>,
    /// From one frame of a clip to the next. [default: the model's, 4 in `16x4`]
    #[arg(long)]
    stride: Option<usize>,
    /// From the first frame of a clip to that of the next. [default: all frames that a clip covers]
    #[arg(long)]
    step: Option<usize>,
    /// Clips that go through the model at once.
    #[arg(long, default_value_t = 4)]
    batch: usize,
    /// Where the features are written; the frames of each clip go to a JSON file beside it.
    #[arg(long, default_value = "features.safetensors")]
    output: PathBuf,
    /// auto, cpu, cuda or cuda:N.
    #[arg(long, default_value = "auto")]
    device: String,
}

type Failure = Box<dyn std::error::Error + Send + Sync>;

fn main() -> ExitCode {
    tracing_subscriber::fmt().with_env_filter(tracing_subscriber::EnvFilter::from_default_env()).init();
    match run(&Arguments::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: &Arguments) -> Result<(), Failure> {
    let device = sconce::device(&arguments.device)?;
    let (record, length) = record(&arguments.model)?;
    let stride = arguments.stride.unwrap_or_else(|| usual_stride(&arguments.model));
    let step = arguments.step.unwrap_or(length * stride);
    if stride == 0 || step == 0 || arguments.batch == 0 {
        return Err(Error::new("--stride, --step and --batch must be at least 1").into());
    }
    if let Some(folder) = arguments.output.parent().filter(|p| !p.as_os_str().is_empty() && !p.is_dir()) {
        return Err(Error::new(format!("no folder {} for the output", folder.display())).into());
    }
    let json_path = arguments.output.with_extension("json");
    if json_path == arguments.output {
        return Err(Error::new("--output is the file of features; the JSON file beside it gets its name").into());
    }
    let files = image_files(&arguments.frames)?;
    let clips = clips(files.len(), length, stride, step);
    let settings = settings(arguments, &record, &files, &clips)?;
    let model = model(&record, arguments.weights.as_deref(), &device)?;
    println!("frames    {} in {}", files.len(), arguments.frames.display());
    println!("clips     {} of {length} frames, every {stride}", clips.len());

    let mut features = begun(&arguments.output, &settings, model.num_features());
    let done = features.len();
    if done > 0 {
        println!("found     {done} clips of an earlier run");
    }
    let bar = ProgressBar::new(clips.len() as u64);
    bar.set_style(ProgressStyle::with_template("{bar:30} {pos}/{len} clips, {eta} left")?);
    bar.set_position(done as u64);
    let mut video = Video { files: &files, record: &record, frames: BTreeMap::new(), size: None };
    let mut written = Instant::now();
    for batch in clips[done..].chunks(arguments.batch) {
        let xs = video.clips(batch)?.to_device(&device)?; // (B, C, T, H, W)
        let found = model.forward_head(&model.forward_features(&xs, false)?, true, false)?; // (B, C)
        features.extend(found.to_dtype(DType::F32)?.to_vec2::<f32>()?);
        if features.len() < clips.len() && written.elapsed() > PAUSE {
            write(&arguments.output, &features, &settings)?;
            written = Instant::now();
        }
        bar.inc(batch.len() as u64);
    }
    bar.finish_and_clear();
    write(&arguments.output, &features, &settings)?;
    let name = |file: &PathBuf| file.strip_prefix(&arguments.frames).unwrap_or(file).display().to_string();
    let report = json!({
        "model": record.name,
        "weights": arguments.weights,
        "stride": stride,
        "step": step,
        "files": files.iter().map(name).collect::<Vec<_>>(),
        "clips": clips.iter().map(|frames| json!({ "frames": frames })).collect::<Vec<Value>>(),
    });
    write_json(&json_path, &report)?;
    println!("features  {} x {} in {}", features.len(), model.num_features(), arguments.output.display());
    println!("clips     {}", json_path.display());
    Ok(())
}

/// The record of a model for clips, without its classifier, and the frames that it takes.
fn record(name: &str) -> Result<(Pretrained, usize), Failure> {
    let record = pretrained(name)?;
    let BackboneConfig::Uniformer(config) = &record.config else {
        return Err(not_for_clips(name).into());
    };
    let length = config.frames.ok_or_else(|| not_for_clips(name))?;
    let config = record.config.clone().with_num_classes(0);
    Ok((Pretrained { config, ..record }, length))
}

fn not_for_clips(name: &str) -> Error {
    let takes_clips = |name: &&str| pretrained(name).is_ok_and(|record| record.config.input_shape().len() == 4);
    let others: Vec<_> = list_models("*").into_iter().filter(takes_clips).collect();
    Error::new(format!("{name} is not a UniFormer for clips; those are {}", others.join(", ")))
}

/// What models are called after: `16x4` takes every fourth frame.
fn usual_stride(model: &str) -> usize {
    let tail = model.rsplit('_').next().and_then(|tail| tail.split_once('x'));
    tail.and_then(|(_, stride)| stride.parse().ok()).unwrap_or(1)
}

/// The frames of each clip: as many whole clips as fit, one more that ends with the video where frames are left, and in a video
/// that is too short for one clip the last frame as often as needed.
fn clips(count: usize, length: usize, stride: usize, step: usize) -> Vec<Vec<usize>> {
    let span = (length - 1) * stride + 1;
    let mut starts: Vec<usize> = (0..count).step_by(step).take_while(|start| start + span <= count).collect();
    match starts.last() {
        Some(last) if last + span < count => starts.push(count - span),
        None => starts.push(0),
        Some(_) => {}
    }
    let clip = |start: &usize| (0..length).map(|i| (start + i * stride).min(count - 1)).collect();
    starts.iter().map(clip).collect()
}

/// Everything that decides the features, so that an earlier run can be told from another.
fn settings(
    arguments: &Arguments,
    record: &Pretrained,
    files: &[PathBuf],
    clips: &[Vec<usize>],
) -> Result<String, Failure> {
    let mut hasher = DefaultHasher::new();
    for file in files.iter().chain(&arguments.weights) {
        let about = std::fs::metadata(file).map_err(|e| Error::new(format!("{}: {e}", file.display())))?;
        (file, about.len(), about.modified().ok()).hash(&mut hasher);
    }
    clips.hash(&mut hasher);
    Ok(json!({ "model": record.name, "clips": clips.len(), "inputs": format!("{:016x}", hasher.finish()) }).to_string())
}

/// The model with the weights of a file: all tensors must fit, filters for pictures are inflated.
fn model(record: &Pretrained, weights: Option<&Path>, device: &Device) -> Result<Box<dyn Backbone>, Failure> {
    let store = ParamStore::new(0, DType::F32, device);
    let model = record.config.build(store.vb_fixed())?;
    match weights {
        Some(path) => {
            let report = record.open(path).map_err(Failure::from).and_then(|file| {
                let options = record.load_options();
                store.load(&file, &options).map_err(Failure::from)
            });
            let report = report.map_err(|error| Error::new(format!("{}: {error}", path.display())))?;
            let inflated = match report.resized.len() {
                0 => String::new(),
                n => format!(", {n} filters of them inflated from pictures"),
            };
            println!("weights   {} tensors{inflated}", report.loaded.len());
        }
        None => eprintln!("warning: without --weights the model is untrained, and so are its features"),
    }
    Ok(model)
}

/// The frames of a video, prepared as they are needed.
struct Video<'a> {
    files: &'a [PathBuf],
    record: &'a Pretrained,
    /// `(C, H, W)`, by number.
    frames: BTreeMap<usize, Tensor>,
    /// Of every frame, in pixels.
    size: Option<(usize, Size)>,
}

impl Video<'_> {
    /// A batch of clips, `(B, C, T, H, W)`. Later batches begin no earlier.
    fn clips(&mut self, clips: &[Vec<usize>]) -> Result<Tensor, Failure> {
        let first = clips.iter().filter_map(|clip| clip.first()).min().copied().unwrap_or(0);
        self.frames.retain(|number, _| *number >= first);
        let mut wanted: Vec<usize> = clips.concat();
        wanted.sort_unstable();
        wanted.dedup();
        wanted.retain(|number| !self.frames.contains_key(number));
        let opened: Vec<_> = wanted.par_iter().map(|number| Picture::open(&self.files[*number])).collect();
        let mut pictures = Vec::with_capacity(wanted.len());
        for (number, picture) in wanted.iter().zip(opened) {
            // A frame that is left out would move all after it.
            let picture = picture?;
            self.same_size(*number, picture.size())?;
            pictures.push(picture);
        }
        if !pictures.is_empty() {
            let prepared = self.record.preprocess.batch(&pictures, &Device::Cpu)?; // (N, C, H, W)
            for (at, number) in wanted.into_iter().enumerate() {
                self.frames.insert(number, prepared.get(at)?);
            }
        }
        let clip = |clip: &Vec<usize>| Tensor::stack(&clip.iter().map(|n| &self.frames[n]).collect::<Vec<_>>(), 1);
        let clips = clips.iter().map(clip).collect::<Result<Vec<_>, _>>()?; // each (C, T, H, W)
        Ok(Tensor::stack(&clips, 0)?)
    }

    fn same_size(&mut self, number: usize, size: Size) -> Result<(), Error> {
        let (first, expected) = *self.size.get_or_insert((number, size));
        if size == expected {
            return Ok(());
        }
        Err(Error::new(format!(
            "{}: a frame of {} x {} pixels in a video of {} x {} ({})",
            self.files[number].display(),
            size.width,
            size.height,
            expected.width,
            expected.height,
            self.files[first].display()
        )))
    }
}

/// Features of an earlier run with the same settings; none when there is no such file.
fn begun(path: &Path, settings: &str, width: usize) -> Vec<Vec<f32>> {
    let read = || {
        let file = Checkpoint::open(path).ok()?;
        if file.metadata().get("settings")? != settings {
            return None;
        }
        let features = file.tensor("features", &Device::Cpu).ok()?.to_vec2::<f32>().ok()?;
        features.iter().all(|row| row.len() == width).then_some(features)
    };
    read().unwrap_or_default()
}

fn write(path: &Path, features: &[Vec<f32>], settings: &str) -> Result<(), Failure> {
    let width = features.first().map_or(0, Vec::len);
    let features = Tensor::from_vec(features.concat(), (features.len(), width), &Device::Cpu)?; // (clips, C)
    let options = SaveOptions::default().with_metadata("settings", settings);
    Ok(save_tensors(path, [("features".to_string(), features)], &options)?)
}
