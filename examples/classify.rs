//! Tells what is in pictures, with any model of the registry that has a classifier.
//!
//! - `examples/fetch_efficientnet_lite0.sh`, once, puts ImageNet weights to `weights/`.
//! - `classify assets/photos/daisy.jpg FOLDER` takes files and folders.
//! - `--model resnet50 --weights resnet50.pth` takes another model with its official file; `--classes FILE` names the
//!   classes of a model trained on other ones.

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Instant;

use clap::Parser;
use sconce::backbones::{Backbone, Pretrained, pretrained};
use sconce::candle::{DType, Device, Tensor};
use sconce::data::Picture;
use sconce::ops::softmax;
use sconce_examples::contact_sheet::{self, Tile};
use sconce_examples::emoji::assets;
use sconce_examples::pictures::{self, shown};
use sconce_examples::{Error, write_json};
use serde_json::{Value, json};

/// Pictures that go through the model at once.
const BATCH: usize = 16;

/// The model whose weights a script of the repository fetches.
const DEFAULT: &str = "tf_efficientnet_lite0";

/// Classify pictures with any model of the registry.
#[derive(Debug, Parser)]
struct Arguments {
    /// Pictures (png, jpeg, webp), or folders of them.
    #[arg(required = true)]
    images: Vec<PathBuf>,
    /// Name of the model; the example `inspect --list '*'` tells them all.
    #[arg(long, default_value = DEFAULT)]
    model: String,
    /// Its weights, .safetensors or PyTorch. [default: weights/efficientnet_lite0.pth, for the default model]
    #[arg(long)]
    weights: Option<PathBuf>,
    /// Names of the classes, one a line. [default: ImageNet's for 1000 classes, else numbers]
    #[arg(long)]
    classes: Option<PathBuf>,
    /// Classes to show for each picture.
    #[arg(long, default_value_t = 5)]
    top_k: usize,
    /// Write the pictures with their classes to this PNG.
    #[arg(long)]
    sheet: Option<PathBuf>,
    /// Write everything to this JSON file.
    #[arg(long)]
    json: Option<PathBuf>,
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
    let started = Instant::now();
    let device = sconce::device(&arguments.device)?;
    let mut record = pretrained(&arguments.model)?;
    if record.config.input_shape().len() != 3 {
        return Err(Error::new(format!("{} looks at clips, not at pictures", record.name)).into());
    }
    let own = arguments.classes.as_deref().map(lines).transpose()?;
    if let Some(own) = &own {
        record.config = record.config.with_num_classes(own.len());
    }
    let names = match (own, record.config.num_classes()) {
        (Some(own), _) => own,
        (None, 0) => return Err(Error::new(format!("{} has no classifier", record.name)).into()),
        (None, 1000) => lines(&assets().join("imagenet/classes.txt"))?,
        (None, classes) => (0..classes).map(|i| i.to_string()).collect(),
    };
    let weights = weights(arguments)?;
    let files = pictures::files(&arguments.images)?;
    let model = record
        .load(&weights, DType::F32, &device)
        .map_err(|error| Error::new(format!("{}: {error}", shown(&weights))))?;
    println!("model     {} ({})", record.name, shown(&weights));

    let (files, pictures) = pictures::open(&files)?;
    let ranked = classify(&*model, &record, &pictures, arguments.top_k.max(1), &device)?;
    println!("pictures  {}\n", files.len());
    for (file, row) in files.iter().zip(&ranked) {
        let row: Vec<String> = row.iter().map(|(class, p)| format!("{} {:.0} %", names[*class], 100.0 * p)).collect();
        println!("  {:<32} {}", shown(file), row.join(", "));
    }
    println!();
    if let Some(path) = &arguments.sheet {
        sheet(path, record.name, &files, &pictures, &ranked, &names)?;
        println!("sheet     {}", path.display());
    }
    if let Some(path) = &arguments.json {
        let class = |(class, p): &(usize, f32)| json!({ "index": class, "class": names[*class], "probability": p });
        let rows = files.iter().zip(&ranked).map(
            |(file, row)| json!({ "picture": shown(file), "classes": row.iter().map(class).collect::<Vec<Value>>() }),
        );
        let rows: Vec<Value> = rows.collect();
        write_json(path, &json!({ "model": record.name, "weights": shown(&weights), "pictures": rows }))?;
        println!("figures   {}", path.display());
    }
    println!("time      {:.1} s", started.elapsed().as_secs_f64());
    Ok(())
}

fn weights(arguments: &Arguments) -> Result<PathBuf, Error> {
    let path = match &arguments.weights {
        Some(path) => path.clone(),
        None if arguments.model == DEFAULT => assets().join("../weights/efficientnet_lite0.pth"),
        None => return Err(Error::new(format!("where are the weights of {}? --weights FILE", arguments.model))),
    };
    match path.exists() {
        true => Ok(path),
        false if arguments.weights.is_none() => {
            Err(Error::new("there are no weights yet: examples/fetch_efficientnet_lite0.sh fetches them"))
        }
        false => Err(Error::new(format!("no weights at {}", path.display()))),
    }
}

fn lines(path: &Path) -> Result<Vec<String>, Error> {
    let text = std::fs::read_to_string(path).map_err(|error| Error::new(format!("{}: {error}", path.display())))?;
    let lines: Vec<String> = text.lines().map(str::trim).filter(|line| !line.is_empty()).map(str::to_owned).collect();
    match lines.is_empty() {
        true => Err(Error::new(format!("{} names no class", path.display()))),
        false => Ok(lines),
    }
}

/// The likeliest classes of each picture with their probabilities, best first.
fn classify(
    model: &dyn Backbone,
    record: &Pretrained,
    pictures: &[Picture],
    top_k: usize,
    device: &Device,
) -> Result<Vec<Vec<(usize, f32)>>, Failure> {
    let mut ranked = Vec::new();
    for batch in pictures.chunks(BATCH) {
        let xs = record.preprocess.batch(batch, device)?; // (B, 3, H, W)
        let logits: Tensor = model.forward_t(&xs, false)?; // (B, classes)
        for row in softmax(&logits, 1)?.to_vec2::<f32>()? {
            let mut row: Vec<(usize, f32)> = row.into_iter().enumerate().collect();
            row.sort_by(|a, b| b.1.total_cmp(&a.1));
            row.truncate(top_k);
            ranked.push(row);
        }
    }
    Ok(ranked)
}

fn sheet(
    path: &Path,
    title: &str,
    files: &[PathBuf],
    pictures: &[Picture],
    ranked: &[Vec<(usize, f32)>],
    names: &[String],
) -> Result<(), Error> {
    let tile = |((file, picture), row): ((&PathBuf, &Picture), &Vec<(usize, f32)>)| Tile {
        picture: picture.to_rgb(),
        label: row.first().map_or(String::new(), |(class, p)| format!("{} {:.0} %", names[*class], 100.0 * p)),
        note: file.file_name().map_or(String::new(), |name| name.to_string_lossy().into_owned()),
    };
    let tiles: Vec<Tile> = files.iter().zip(pictures).zip(ranked).map(tile).collect();
    contact_sheet::save(&contact_sheet::draw(title, &tiles, 6), path)
        .map_err(|error| Error::new(format!("{}: {error}", path.display())))
}
