//! The main job on real pictures, without network: classify, retrieve, and look.
//!
//! - `quickstart` loads the small dual encoder in `assets/weights/emoji-clip`, classifies a drawing style it was never trained on
//!   by text, measures retrieval both ways, and writes the best pictures for a query as a contact sheet.
//! - `quickstart --images DIR --classes cat,dog` classifies your own pictures; `--query TEXT` searches them.
//! - `--model DIR` takes an official CLIP checkpoint: a folder as published on a hub, or a file in any of the three formats.

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Instant;

use clap::Parser;
use sconce::candle::{DType, Device, Tensor};
use sconce::clip::zero_shot::{DRAWINGS, PHOTO};
use sconce::clip::{Bundle, ZeroShotClassifier, retrieve};
use sconce::data::{Picture, image_files};
use sconce_examples::contact_sheet::{self, Tile};
use sconce_examples::emoji::{self, Emoji, TEST_DOMAIN};
use sconce_examples::evaluate::{Figures, evaluate};
use sconce_examples::few_shot::{FewShot, few_shot};
use sconce_examples::pictures::{self, shown, warn};
use sconce_examples::{Error, write_json};
use serde_json::{Map, Value, json};

/// Pictures that go through the model at once.
const BATCH: usize = 64;
/// Labelled pictures of each class.
const SHOTS: usize = 4;

/// Zero-shot classification and search of pictures by text.
#[derive(Debug, Parser)]
struct Arguments {
    /// Model: a folder with weights and configuration, or a checkpoint file. [default: the small model of the repository]
    #[arg(long)]
    model: Option<PathBuf>,
    /// Model of a hub, owner/name; it is kept in the hub's local cache.
    #[cfg(feature = "hub")]
    #[arg(long, conflicts_with = "model")]
    hub: Option<String>,
    /// Folder with your own pictures (png, jpeg, webp). [default: the drawings of the repository]
    #[arg(long)]
    images: Option<PathBuf>,
    /// Classes to tell apart in your pictures, separated by commas.
    #[arg(long, value_delimiter = ',', requires = "images")]
    classes: Vec<String>,
    /// Search pictures by this text.
    #[arg(long)]
    query: Option<String>,
    /// Pattern of a class's text with {} for its name; may be given several times.
    #[arg(long)]
    template: Vec<String>,
    /// Pictures on the contact sheet.
    #[arg(long, default_value_t = 12)]
    top: usize,
    /// Where the contact sheet is written.
    #[arg(long, default_value = "quickstart.png")]
    sheet: PathBuf,
    /// Write the figures to this JSON file.
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
    let folder = model_folder(arguments)?;
    let bundle = Bundle::load(&folder, DType::F32, &device)
        .map_err(|error| Error::new(format!("the model {} cannot be loaded: {error}", folder.display())))?;
    println!("model     {}", shown(&folder));
    let figures = match &arguments.images {
        Some(images) => own_pictures(arguments, &bundle, images)?,
        None => drawings(arguments, &bundle, &device)?,
    };
    if let Some(path) = &arguments.json {
        write_json(path, &figures)?;
        println!("figures   {}", path.display());
    }
    println!("time      {:.1} s", started.elapsed().as_secs_f64());
    Ok(())
}

fn model_folder(arguments: &Arguments) -> Result<PathBuf, Failure> {
    #[cfg(feature = "hub")]
    if let Some(repo) = &arguments.hub {
        let hub = sconce::hub::Hub { progress: true, ..Default::default() };
        return Ok(hub.model_folder(repo)?);
    }
    let folder = arguments.model.clone().unwrap_or_else(|| emoji::assets().join("weights/emoji-clip"));
    if !folder.exists() {
        return Err(Error::new(format!("no model at {}", folder.display())).into());
    }
    Ok(folder)
}

/// The repository's job: a drawing style that the small model has never seen.
fn drawings(arguments: &Arguments, bundle: &Bundle, device: &Device) -> Result<Map<String, Value>, Failure> {
    let (emoji, report) = emoji::load(&emoji::assets().join("emoji"), &[TEST_DOMAIN])?;
    warn(&report);
    let pictures: Vec<Picture> = emoji.iter().map(|e| Picture::from(e.picture.clone())).collect();
    let images = embed(bundle, &pictures)?;
    let found = evaluate(bundle, &emoji, &images, device)?;
    println!("pictures  {} drawings in the style {TEST_DOMAIN}, none of it seen in training", found.pictures);
    print_figures(&found);
    let adapted = few_shot(bundle, &emoji, &images, SHOTS, 1)?;
    print_few_shot(&adapted);

    let query = arguments.query.as_deref().unwrap_or("red heart");
    let labels = emoji.iter().map(|e: &Emoji| e.caption.name.clone()).collect::<Vec<_>>();
    let best = search(arguments, bundle, query, &images, &pictures, &labels)?;
    println!("\nYour own pictures: --images DIR --classes cat,dog,car   or   --images DIR --query \"a red car\"");
    println!("A larger model:    --model DIR with a CLIP checkpoint (OpenAI, open_clip or Hugging Face)\n");

    let mut figures = Map::new();
    figures.insert("zero_shot".into(), serde_json::to_value(&found)?);
    figures.insert("few_shot".into(), serde_json::to_value(&adapted)?);
    figures.insert("query".into(), json!({ "text": query, "best": best }));
    Ok(figures)
}

fn print_figures(found: &Figures) {
    let line = |what: &str, value: f64, chance: f64| {
        println!("  {what:<38} {:>6.2} %   chance {:.2} %", 100.0 * value, 100.0 * chance);
    };
    println!();
    line(&format!("top-1 over {} subcategories, zero-shot", found.classes), found.top1, found.top1_chance);
    line("image to text R@1", found.image_to_text_r1, found.r1_chance);
    line("image to text R@5", found.image_to_text_r5, found.r5_chance);
    line("text to image R@1", found.text_to_image_r1, found.r1_chance);
    line("text to image R@5", found.text_to_image_r5, found.r5_chance);
    let times = |value: f64| value / found.r1_chance;
    println!(
        "  R@1 over chance: image to text {:.0} times, text to image {:.0} times\n",
        times(found.image_to_text_r1),
        times(found.text_to_image_r1)
    );
}

fn print_few_shot(found: &FewShot) {
    println!(
        "few shots {} labelled pictures of each of {} subcategories; tested on {} others",
        found.shots, found.classes, found.tested
    );
    println!();
    let line = |what: &str, value: f64| {
        println!("  {what:<38} {:>6.2} %   chance {:.2} %", 100.0 * value, 100.0 * found.chance)
    };
    line("top-1, zero-shot", found.zero_shot);
    line("Tip-Adapter, nothing trained", found.tip_adapter);
    line("Tip-Adapter-F", found.tip_adapter_f);
    println!();
}

/// A folder of the user's: classified, searched, or both.
fn own_pictures(arguments: &Arguments, bundle: &Bundle, folder: &Path) -> Result<Map<String, Value>, Failure> {
    let classes: Vec<&str> = arguments.classes.iter().map(|c| c.trim()).filter(|c| !c.is_empty()).collect();
    if classes.is_empty() && arguments.query.is_none() {
        return Err(Error::new("say what to look for: --classes a,b,c or --query TEXT").into());
    }
    let files = image_files(folder)?;
    let (files, pictures) = pictures::open(&files)?;
    println!("pictures  {} in {}", files.len(), folder.display());
    let images = embed(bundle, &pictures)?;
    let names: Vec<String> = files.iter().map(|file| shown(file.strip_prefix(folder).unwrap_or(file))).collect();

    let mut figures = Map::new();
    if !classes.is_empty() {
        figures.insert("classified".into(), classify(arguments, bundle, &classes, &images, &pictures, &names)?);
    }
    if let Some(query) = &arguments.query {
        let best = search(arguments, bundle, query, &images, &pictures, &names)?;
        figures.insert("query".into(), json!({ "text": query, "best": best }));
    }
    Ok(figures)
}

fn classify(
    arguments: &Arguments,
    bundle: &Bundle,
    classes: &[&str],
    images: &Tensor,
    pictures: &[Picture],
    names: &[String],
) -> Result<Value, Failure> {
    let defaults = if arguments.model.is_some() { PHOTO } else { DRAWINGS };
    let templates: Vec<&str> = match arguments.template.as_slice() {
        [] => defaults.to_vec(),
        own => own.iter().map(String::as_str).collect(),
    };
    if let Some(template) = templates.iter().find(|template| !template.contains("{}")) {
        return Err(Error::new(format!("the template {template:?} has no {{}} for the class")).into());
    }
    let classifier = ZeroShotClassifier::new(&bundle.model, &*bundle.tokenizer, classes, &templates)?;
    let ranked = classifier.classify(images, classes.len().min(3))?;
    println!();
    for (name, row) in names.iter().zip(&ranked) {
        let row: Vec<String> = row.iter().map(|(class, p)| format!("{class} {:.0} %", 100.0 * p)).collect();
        println!("  {name:<32} {}", row.join(", "));
    }
    let tile = |((picture, name), row): ((&Picture, &String), &Vec<(&str, f32)>)| Tile {
        picture: picture.to_rgb(),
        label: row.first().map_or(String::new(), |(class, p)| format!("{class} {:.0} %", 100.0 * p)),
        note: name.clone(),
    };
    let tiles: Vec<Tile> = pictures.iter().zip(names).zip(&ranked).take(arguments.top).map(tile).collect();
    if arguments.query.is_none() {
        write_sheet(arguments, "classified", &tiles)?;
    }
    let rows = names.iter().zip(&ranked).map(|(name, row)| {
        let row: Vec<Value> = row.iter().map(|(class, p)| json!({ "class": class, "probability": p })).collect();
        json!({ "picture": name, "classes": row })
    });
    Ok(rows.collect())
}

/// The pictures nearest to a text, on a contact sheet.
fn search(
    arguments: &Arguments,
    bundle: &Bundle,
    query: &str,
    images: &Tensor,
    pictures: &[Picture],
    labels: &[String],
) -> Result<Vec<Value>, Failure> {
    let text = bundle.embed_texts(&[query])?; // (1, E)
    let best = retrieve(&text, images, arguments.top.max(1))?.into_iter().next().unwrap_or_default();
    println!(
        "query     {query:?}: {}",
        best.iter().take(6).map(|(i, _)| labels[*i].as_str()).collect::<Vec<_>>().join(", ")
    );
    let tile = |&(index, cosine): &(usize, f32)| Tile {
        picture: pictures[index].to_rgb(),
        label: labels[index].clone(),
        note: format!("{cosine:.3}"),
    };
    write_sheet(arguments, query, &best.iter().map(tile).collect::<Vec<_>>())?;
    Ok(best.iter().map(|(index, cosine)| json!({ "picture": labels[*index], "cosine": cosine })).collect())
}

fn write_sheet(arguments: &Arguments, title: &str, tiles: &[Tile]) -> Result<(), Failure> {
    contact_sheet::save(&contact_sheet::draw(title, tiles, 6), &arguments.sheet)
        .map_err(|error| Error::new(format!("{}: {error}", arguments.sheet.display())))?;
    println!("sheet     {}", arguments.sheet.display());
    Ok(())
}

fn embed(bundle: &Bundle, pictures: &[Picture]) -> Result<Tensor, Failure> {
    let parts = pictures.chunks(BATCH).map(|batch| bundle.embed_pictures(batch)).collect::<Result<Vec<_>, _>>()?;
    Ok(Tensor::cat(&parts, 0)?)
}
