//! Searches pictures by text or by picture, in English or in Chinese.
//!
//! - `retrieve --query "red heart"` and `retrieve --language zh --query 红心` search the drawings of the repository, in a style that
//!   neither model was trained on; `--evaluate` measures how well their names find them and they their names.
//! - `--images DIR` searches a folder of your own; `--captions FILE` (JSON: the name of a picture to its texts) lets it be
//!   measured.
//! - `--model DIR` takes a CLIP checkpoint of any format, or a folder written by `pretrain_chinese`.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Instant;

use clap::{Parser, ValueEnum};
use sconce::clip::wukong::Recalls;
use sconce::data::{Picture, image_files};
use sconce_examples::contact_sheet::{self, Tile};
use sconce_examples::emoji::{self, TEST_DOMAIN};
use sconce_examples::pictures::{self, shown, warn};
use sconce_examples::retrieval::{Model, evaluate, search, whole};
use sconce_examples::{Error, write_json};
use serde_json::{Value, json};

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Language {
    En,
    Zh,
}

/// Find pictures by text or by picture.
#[derive(Debug, Parser)]
struct Arguments {
    /// Which of the repository's small models reads the queries.
    #[arg(long, value_enum, default_value_t = Language::En)]
    language: Language,
    /// Another model: a CLIP checkpoint or a folder written by pretrain_chinese.
    #[arg(long)]
    model: Option<PathBuf>,
    /// Folder with pictures (png, jpeg, webp). [default: the drawings of the repository]
    #[arg(long)]
    images: Option<PathBuf>,
    /// Search by this text; may be given several times.
    #[arg(long)]
    query: Vec<String>,
    /// Search by this picture; may be given several times.
    #[arg(long)]
    picture: Vec<PathBuf>,
    /// Measure how well captions and pictures find each other.
    #[arg(long)]
    evaluate: bool,
    /// Captions of your pictures: JSON from a picture's name in the folder to a list of texts.
    #[arg(long, requires = "images")]
    captions: Option<PathBuf>,
    /// Pictures to show for each query.
    #[arg(long, default_value_t = 12)]
    top: usize,
    /// Keep features of pictures in this folder.
    #[arg(long)]
    cache: Option<PathBuf>,
    /// Where the contact sheet is written.
    #[arg(long, default_value = "retrieve.png")]
    sheet: PathBuf,
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

/// Pictures that are searched, with what is known of them.
struct Gallery {
    pictures: Vec<Picture>,
    /// What a person is told.
    names: Vec<String>,
    /// What the contact sheet can write.
    labels: Vec<String>,
    captions: Vec<String>,
    image_of_caption: Vec<usize>,
}

fn run(arguments: &Arguments) -> Result<(), Failure> {
    let started = Instant::now();
    let device = sconce::device(&arguments.device)?;
    let folder = arguments.model.clone().unwrap_or_else(|| {
        let name = if arguments.language == Language::Zh { "emoji-lit-zh" } else { "emoji-clip" };
        emoji::assets().join("weights").join(name)
    });
    if !folder.exists() {
        return Err(Error::new(format!("no model at {}", folder.display())).into());
    }
    let model = Model::load(&folder, &device)
        .map_err(|error| Error::new(format!("the model {} cannot be loaded: {error}", folder.display())))?;
    println!("model     {} ({})", shown(&folder), model.describe());
    let gallery = match &arguments.images {
        Some(images) => own_pictures(images, arguments.captions.as_deref())?,
        None => drawings(&model)?,
    };
    if arguments.evaluate && gallery.captions.is_empty() {
        return Err(Error::new("--evaluate needs --captions for your own pictures").into());
    }
    let images = model.pictures(&folder, &gallery.pictures, arguments.cache.as_deref())?;

    let queries = queries(arguments, &model);
    let (files, examples) = match arguments.picture.is_empty() {
        true => (vec![], vec![]),
        false => pictures::open(&pictures::files(&arguments.picture)?)?,
    };
    let mut rows = vec![];
    if !queries.is_empty() {
        let best = search(&images, &model.texts(&queries)?, arguments.top.max(1))?;
        rows.extend(queries.iter().cloned().zip(best));
    }
    if !examples.is_empty() {
        let tokens = model.pictures(&folder, &examples, arguments.cache.as_deref())?;
        let best = search(&images, &whole(&tokens)?, arguments.top.max(1))?;
        rows.extend(files.iter().map(|file| shown(file)).zip(best));
    }
    let mut report = json!({ "model": shown(&folder), "pictures": gallery.pictures.len() });
    report["queries"] = rows.iter().map(|(query, best)| told(query, best, &gallery)).collect();
    if !rows.is_empty() {
        contact_sheet::save(&sheet(&rows, &gallery, arguments.top), &arguments.sheet)
            .map_err(|error| Error::new(format!("{}: {error}", arguments.sheet.display())))?;
        println!("sheet     {}", arguments.sheet.display());
    }
    if arguments.evaluate {
        let (found, chance) = evaluate(&model, &images, &gallery.captions, &gallery.image_of_caption)?;
        print_recalls(&gallery, &found, &chance);
        report["evaluation"] = json!({ "captions": gallery.captions.len(), "found": found, "chance": chance });
    }
    if let Some(path) = &arguments.json {
        write_json(path, &report)?;
        println!("figures   {}", path.display());
    }
    println!("time      {:.1} s", started.elapsed().as_secs_f64());
    Ok(())
}

/// Without a question of the user's, one that shows something.
fn queries(arguments: &Arguments, model: &Model) -> Vec<String> {
    let asked = !arguments.query.is_empty() || !arguments.picture.is_empty() || arguments.evaluate;
    match (asked, model.is_chinese()) {
        (true, _) => arguments.query.clone(),
        (false, true) => vec!["红心".into()],
        (false, false) => vec!["red heart".into()],
    }
}

/// The repository's drawings in the style that no model was trained on, with their names.
fn drawings(model: &Model) -> Result<Gallery, Failure> {
    let (emoji, report) = emoji::load(&emoji::assets().join("emoji"), &[TEST_DOMAIN])?;
    warn(&report);
    let caption =
        |e: &emoji::Emoji| if model.is_chinese() { e.caption.name_zh.clone() } else { e.caption.name.clone() };
    println!("pictures  {} drawings in the style {TEST_DOMAIN}, none of it seen in training", emoji.len());
    Ok(Gallery {
        pictures: emoji.iter().map(|e| Picture::from(e.picture.clone())).collect(),
        names: emoji.iter().map(caption).collect(),
        labels: emoji.iter().map(|e| e.caption.name.clone()).collect(),
        captions: emoji.iter().map(caption).collect(),
        image_of_caption: (0..emoji.len()).collect(),
    })
}

fn own_pictures(folder: &Path, captions: Option<&Path>) -> Result<Gallery, Failure> {
    let (files, pictures) = pictures::open(&image_files(folder)?)?;
    println!("pictures  {} in {}", files.len(), folder.display());
    let names: Vec<String> =
        files.iter().map(|file| file.strip_prefix(folder).unwrap_or(file).display().to_string()).collect();
    let (mut texts, mut image_of_caption) = (vec![], vec![]);
    if let Some(path) = captions {
        let fail = |error: &dyn std::fmt::Display| Error::new(format!("{}: {error}", path.display()));
        let bytes = std::fs::read(path).map_err(|error| fail(&error))?;
        let known: BTreeMap<String, Vec<String>> = serde_json::from_slice(&bytes).map_err(|error| fail(&error))?;
        for (index, name) in names.iter().enumerate() {
            let own = known.get(name).filter(|own| !own.is_empty());
            let own = own.ok_or_else(|| fail(&format!("no caption of {name}")))?;
            texts.extend(own.iter().cloned());
            image_of_caption.extend(own.iter().map(|_| index));
        }
    }
    Ok(Gallery { pictures, labels: names.clone(), names, captions: texts, image_of_caption })
}

fn told(query: &str, best: &[(usize, f32)], gallery: &Gallery) -> Value {
    println!("query     {query}");
    for (index, similarity) in best {
        println!("  {similarity:.3}  {}", gallery.names[*index]);
    }
    let row =
        |(index, similarity): &(usize, f32)| json!({ "picture": gallery.names[*index], "similarity": similarity });
    json!({ "query": query, "best": best.iter().map(row).collect::<Vec<_>>() })
}

fn sheet(rows: &[(String, Vec<(usize, f32)>)], gallery: &Gallery, top: usize) -> image::RgbImage {
    let tile = |&(index, similarity): &(usize, f32)| Tile {
        picture: gallery.pictures[index].to_rgb(),
        label: gallery.labels[index].clone(),
        note: format!("{similarity:.3}"),
    };
    let title = match rows {
        // The sheet's letters are Latin.
        [(query, _)] if query.is_ascii() => query.clone(),
        [_] => "best first".into(),
        _ => format!("{} queries, a row each", rows.len()),
    };
    let columns = if rows.len() > 1 { top.clamp(1, 12) } else { 6 };
    let tiles: Vec<Tile> = rows
        .iter()
        .flat_map(|(_, best)| best.iter().take(if rows.len() > 1 { columns } else { top }).map(tile))
        .collect();
    contact_sheet::draw(&title, &tiles, columns as u32)
}

fn print_recalls(gallery: &Gallery, found: &Recalls, chance: &Recalls) {
    println!("\n{} pictures, {} captions", gallery.pictures.len(), gallery.captions.len());
    println!("  {:<16} {:>8} {:>8} {:>8}", "%", "R@1", "R@5", "R@10");
    let line = |what: &str, values: &[f64; 3]| {
        let [one, five, ten] = values.map(|value| 100.0 * value);
        println!("  {what:<16} {one:>8.2} {five:>8.2} {ten:>8.2}");
    };
    line("image to text", &found.image_to_text);
    line("  by chance", &chance.image_to_text);
    line("text to image", &found.text_to_image);
    line("  by chance", &chance.text_to_image);
    println!("  mean recall {:.2}, by chance {:.2}\n", 100.0 * found.mean, 100.0 * chance.mean);
}
