//! Trains several backbones with one recipe and some seeds, and writes a table of accuracy, size, memory and time.
//!
//! ```text
//! cargo run --release --example compare_backbones -- --models vit_tiny_patch4_32,convmixer_tiny_32 --seeds 1,2,3 \
//!     --out runs/compare -- --epochs 60 --batch-size 64 --crop-padding 4 --flip --mixup 0.2 --erasing 0.25
//! ```
//!
//! What follows the second `--` are options of `train_classifier`, the same for every training. Each training is a process of
//! its own and leaves its folder in `--out`; those with a `summary.json` are not done again, and one that was stopped continues
//! from its checkpoint, so the same command finishes what Ctrl-C or a shutdown cut off. `table.md`, `table.json` and `table.svg`
//! are up to date after each training.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};
use sconce_examples::classifier::compare::Comparison;
use sconce_examples::classifier::{Options, train};
use sconce_examples::{Error, interrupt};

/// Compare backbones: the same training for each model and seed.
#[derive(Debug, Parser)]
#[command(subcommand_negates_reqs = true, args_conflicts_with_subcommands = true)]
struct Arguments {
    /// Names in the registry, separated by commas.
    #[arg(long, value_delimiter = ',', required = true)]
    models: Vec<String>,
    /// Seeds, separated by commas.
    #[arg(long, value_delimiter = ',', default_value = "1,2,3")]
    seeds: Vec<u64>,
    /// Folder of the trainings and the table.
    #[arg(long, default_value = "runs/compare")]
    out: PathBuf,
    /// Options of train_classifier.
    #[arg(last = true)]
    training: Vec<String>,
    #[command(subcommand)]
    single: Option<Single>,
}

/// One of the trainings; the program starts itself with it.
#[derive(Debug, Subcommand)]
enum Single {
    /// One training with the options of train_classifier.
    #[command(hide = true)]
    Single(Box<Options>),
}

/// The options of train_classifier by themselves.
#[derive(Debug, Parser)]
#[command(no_binary_name = true)]
struct Training {
    #[command(flatten)]
    options: Options,
}

fn main() -> ExitCode {
    tracing_subscriber::fmt().with_env_filter(tracing_subscriber::EnvFilter::from_default_env()).init();
    let arguments = Arguments::parse();
    let done = match &arguments.single {
        Some(Single::Single(options)) => single(options),
        None => compare(&arguments),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

fn single(options: &Options) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
    let device = sconce::device(&options.run.device)?;
    if let Some(summary) = train(options, &device, &interrupt())? {
        println!("{}: top-1 {:.2} % on the test pictures", summary.model, 100.0 * summary.test.top1);
    }
    Ok(())
}

fn compare(arguments: &Arguments) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
    let Some(first) = arguments.models.first() else {
        return Err(Error::new("no model").into());
    };
    for own in ["--model", "--seed", "--out", "--resume"] {
        if arguments.training.iter().any(|word| word == own || word.starts_with(&format!("{own}="))) {
            return Err(Error::new(format!("{own} is set for each training")).into());
        }
    }
    // A word that no training takes is found before the first.
    let words = ["--model", first].into_iter().map(String::from).chain(arguments.training.iter().cloned());
    let options = Training::try_parse_from(words).map_err(|error| error.exit()).map(|training| training.options)?;
    let comparison = Comparison {
        models: arguments.models.clone(),
        seeds: arguments.seeds.clone(),
        out: arguments.out.clone(),
        options,
        arguments: arguments.training.clone(),
    };
    let program = std::env::current_exe()?;
    let command = [program.to_string_lossy().into_owned(), "single".into()];
    if comparison.run(&command, &interrupt())? {
        println!("{}", std::fs::read_to_string(arguments.out.join("table.md"))?);
    } else {
        eprintln!("stopped; the same command continues");
    }
    Ok(())
}
