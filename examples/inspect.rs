//! What a model of the registry is made of, and whether a file of weights fits it.
//!
//! - `inspect --list 'swin*'` lists models with their parameters.
//! - `inspect swin_tiny_patch4_window7_224` tells parameters, multiply-accumulates, the shape of every feature map,
//!   preprocessing and provenance. The weights take no memory, so models of any size can be looked at.
//! - `inspect resnet50 --weights resnet50.pth` tells what fits and what does not; with `--strict` a misfit is an error.

use std::io::{ErrorKind, Write};
use std::path::PathBuf;
use std::process::ExitCode;

use clap::Parser;
use sconce::backbones::{Pretrained, ShapeRecorder, list_models, pretrained};
use sconce::candle::{DType, Device, Tensor};
use sconce::nn::{LoadReport, ParamStore};
use sconce::ops::count_macs;
use sconce_examples::numbers::{grouped, peak_memory};
use sconce_examples::{Error, write_json};
use serde::Serialize;
use serde_json::json;

/// Look into any model of the registry.
#[derive(Debug, Parser)]
struct Arguments {
    /// Name of the model.
    #[arg(required_unless_present = "list")]
    model: Option<String>,
    /// List the models whose names match; * stands for any characters.
    #[arg(long, value_name = "PATTERN", conflicts_with = "model")]
    list: Option<String>,
    /// Height and width of the picture, e.g. 384 or 320x256. [default: what the model was made for]
    #[arg(long, value_parser = size)]
    size: Option<(usize, usize)>,
    /// Compare this file's tensors with the model's.
    #[arg(long, requires = "model")]
    weights: Option<PathBuf>,
    /// Fail when the file does not fit in every tensor.
    #[arg(long, requires = "weights")]
    strict: bool,
    /// Write everything to this JSON file too.
    #[arg(long)]
    json: Option<PathBuf>,
}

type Failure = Box<dyn std::error::Error + Send + Sync>;

fn main() -> ExitCode {
    tracing_subscriber::fmt().with_env_filter(tracing_subscriber::EnvFilter::from_default_env()).init();
    let arguments = Arguments::parse();
    let result = match (&arguments.list, &arguments.model) {
        (Some(pattern), _) => list(&arguments, pattern),
        (None, Some(model)) => inspect(&arguments, model),
        (None, None) => Err(Error::new("name a model, or --list '*'").into()),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

fn size(text: &str) -> Result<(usize, usize), String> {
    let side = |text: &str| text.parse::<usize>().ok().filter(|side| (1..=1 << 14).contains(side));
    let (height, width) = text.split_once('x').unwrap_or((text, text));
    side(height).zip(side(width)).ok_or_else(|| format!("`{text}` is neither like 384 nor like 320x256"))
}

fn list(arguments: &Arguments, pattern: &str) -> Result<(), Failure> {
    let names = list_models(pattern);
    if names.is_empty() {
        return Err(Error::new(format!("no model's name matches `{pattern}`")).into());
    }
    let mut rows = Vec::new();
    let (mut out, mut read) = (std::io::stdout().lock(), true);
    for name in names {
        let record = pretrained(name)?;
        let recorder = ShapeRecorder::default();
        record.config.build(recorder.vb())?;
        let line = format!("{name:<40} {:>13} parameters  {}", grouped(recorder.count()), record.paper);
        // A reader that has seen enough, such as `head`, closes the pipe.
        if read && let Err(error) = writeln!(out, "{line}") {
            match error.kind() {
                ErrorKind::BrokenPipe => read = false,
                _ => return Err(error.into()),
            }
        }
        rows.push(json!({ "name": name, "parameters": recorder.count(), "paper": record.paper }));
    }
    if let Some(path) = &arguments.json {
        write_json(path, &rows)?;
    }
    Ok(())
}

/// What a model is made of.
#[derive(Debug, Serialize)]
struct Sheet {
    name: &'static str,
    parameters: usize,
    /// What the official code counts.
    official_parameters: Option<usize>,
    /// For one input.
    macs: u64,
    /// Most that the process has had in memory by the end of that pass, in bytes: maps and the program, hardly any weights.
    peak_memory: Option<u64>,
    input: Vec<usize>,
    maps: Vec<Map>,
    features: Vec<usize>,
    output: Vec<usize>,
    licence: &'static str,
    paper: &'static str,
    source: Option<&'static str>,
    config: serde_json::Value,
    preprocess: serde_json::Value,
}

/// One feature map; shapes are without the batch.
#[derive(Debug, Serialize)]
struct Map {
    module: String,
    channels: usize,
    reduction: usize,
    shape: Vec<usize>,
}

fn inspect(arguments: &Arguments, name: &str) -> Result<(), Failure> {
    let record = pretrained(name)?;
    let sheet = measure(&record, arguments.size)?;
    print(&sheet);
    let report = match &arguments.weights {
        Some(path) => {
            let report = compare(&record, path, arguments.strict)?;
            println!("\nweights    {}\n{report}", path.display());
            Some(report)
        }
        None => None,
    };
    if let Some(path) = &arguments.json {
        let weights = report.map(|report| {
            json!({
                "clean": report.is_clean(),
                "loaded": report.loaded.len(),
                "resized": report.resized,
                "missing": report.missing,
                "unexpected": report.unexpected,
                "mismatched": report.mismatched.iter().map(|m| {
                    json!({ "name": m.name, "expected": m.expected, "found": m.found })
                }).collect::<Vec<_>>(),
            })
        });
        write_json(path, &json!({ "model": sheet, "weights": weights }))?;
    }
    Ok(())
}

fn measure(record: &Pretrained, size: Option<(usize, usize)>) -> Result<Sheet, Failure> {
    let recorder = ShapeRecorder::default();
    let model = record.config.build(recorder.vb())?;
    let mut input = record.config.input_shape();
    if let (Some((height, width)), [.., h, w]) = (size, &mut input[..]) {
        (*h, *w) = (height, width);
    }
    let xs = Tensor::zeros([vec![1], input.clone()].concat(), DType::F32, &Device::Cpu)?;
    let info = model.feature_info();
    let all: Vec<usize> = (0..info.len()).collect();
    // What maps cost beyond the usual pass (norms of a pyramid) does not count.
    let (output, macs) = count_macs(|| model.forward_t(&xs, false));
    let peak_memory = peak_memory();
    let maps = model.forward_intermediates(&xs, &all, false)?;
    let sample = |tensor: &Tensor| tensor.dims()[1..].to_vec();
    let map = |(info, tensor): (sconce::backbones::FeatureInfo, &Tensor)| Map {
        module: info.module,
        channels: info.channels,
        reduction: info.reduction,
        shape: sample(tensor),
    };
    Ok(Sheet {
        name: record.name,
        parameters: recorder.count(),
        official_parameters: record.params,
        macs,
        peak_memory,
        input,
        maps: info.into_iter().zip(&maps.features).map(map).collect(),
        features: sample(&maps.output),
        output: sample(&output?),
        licence: record.licence,
        paper: record.paper,
        source: record.source,
        config: serde_json::to_value(&record.config)?,
        preprocess: serde_json::to_value(&record.preprocess)?,
    })
}

fn print(sheet: &Sheet) {
    let times = |shape: &[usize]| shape.iter().map(usize::to_string).collect::<Vec<_>>().join(" x ");
    let megabytes = sheet.parameters as f64 * 4e-6;
    println!("model      {}", sheet.name);
    println!("parameters {} ({megabytes:.1} MB in f32)", grouped(sheet.parameters));
    println!("MACs       {:.3} G for one input of {}", sheet.macs as f64 / 1e9, times(&sheet.input));
    if let Some(bytes) = sheet.peak_memory {
        println!("memory     {} MiB at most for that, with hardly any weights", bytes >> 20);
    }
    println!("licence    {}", sheet.licence);
    println!("paper      {}", sheet.paper);
    if let Some(source) = sheet.source {
        println!("weights at {source}");
    }
    println!("options    {}", sheet.config);
    println!("pictures   {}", sheet.preprocess);
    println!("\n{:<28} {:>9}  shape", "map", "reduction");
    for map in &sheet.maps {
        println!("{:<28} {:>9}  {}", map.module, map.reduction, times(&map.shape));
    }
    println!("{:<28} {:>9}  {}", "features", "", times(&sheet.features));
    println!("{:<28} {:>9}  {}", "output", "", times(&sheet.output));
}

fn compare(record: &Pretrained, path: &PathBuf, strict: bool) -> Result<LoadReport, Failure> {
    let store = ParamStore::new(0, DType::F32, &Device::Cpu);
    record.config.build(store.vb())?;
    let mut options = record.load_options();
    options.strict = strict;
    let fail = |error: &dyn std::fmt::Display| Error::new(format!("{}: {error}", path.display()));
    let file = record.open(path).map_err(|error| fail(&error))?;
    Ok(store.load(&file, &options).map_err(|error| fail(&error))?)
}
