//! Trains the small dual encoder of `quickstart` from scratch on the emoji data.
//!
//! Expected: see `assets/weights/emoji-clip/train.json`, written by this program. Run it again as
//! `cargo run --release --example pretrain_clip -- --out runs/emoji-clip`; Ctrl-C stops after the step, `--resume` continues.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Parser;
use sconce_examples::emoji::{self, TEST_DOMAIN, TRAIN_DOMAINS};
use sconce_examples::pretrain::{Options, train};

/// Train a small CLIP from scratch on drawings of about 1,350 concepts.
#[derive(Debug, Parser)]
struct Arguments {
    /// Folder with the emoji shards.
    #[arg(long, default_value_os_t = emoji::assets().join("emoji"))]
    data: PathBuf,
    /// Folder for weights, checkpoints and logs.
    #[arg(long, default_value = "runs/emoji-clip")]
    out: PathBuf,
    /// Passes over the pictures.
    #[arg(long, default_value_t = 50)]
    epochs: u64,
    /// Pictures in a step.
    #[arg(long, default_value_t = 256)]
    batch_size: usize,
    /// Highest learning rate.
    #[arg(long, default_value_t = 2e-3)]
    lr: f64,
    /// Weight decay.
    #[arg(long, default_value_t = 0.1)]
    weight_decay: f64,
    /// Steps of linear warm-up.
    #[arg(long, default_value_t = 100)]
    warmup: u64,
    /// Seed of everything random.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Use only the first pictures of the data, for a quick look.
    #[arg(long)]
    limit: Option<usize>,
    /// Threads that augment pictures.
    #[arg(long, default_value_t = 1)]
    workers: usize,
    /// Evaluate every so many epochs.
    #[arg(long, default_value_t = 5)]
    evaluate_every: u64,
    /// Continue from the latest checkpoint in `out`.
    #[arg(long)]
    resume: bool,
    /// auto, cpu, cuda or cuda:N.
    #[arg(long, default_value = "auto")]
    device: String,
}

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

fn run(arguments: &Arguments) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
    let device = sconce::device(&arguments.device)?;
    let (mut pictures, report) = emoji::load(&arguments.data, &TRAIN_DOMAINS)?;
    let (test, test_report) = emoji::load(&arguments.data, &[TEST_DOMAIN])?;
    for report in [report, test_report].iter().filter(|report| !report.is_empty()) {
        eprintln!("{report}");
    }
    if let Some(limit) = arguments.limit {
        pictures.truncate(limit);
    }
    let options = Options {
        epochs: arguments.epochs,
        batch_size: arguments.batch_size,
        lr: arguments.lr,
        weight_decay: arguments.weight_decay,
        warmup: arguments.warmup,
        seed: arguments.seed,
        workers: arguments.workers,
        out: arguments.out.clone(),
        resume: arguments.resume,
        evaluate_every: arguments.evaluate_every,
        progress: true,
    };
    println!("{} pictures to train on, {} of another style to evaluate", pictures.len(), test.len());
    println!("{options:#?}");
    if let Some(summary) = train(pictures, &test, &options, &device)? {
        println!("{}", serde_json::to_string_pretty(&summary)?);
        println!("wrote {}", arguments.out.display());
    }
    Ok(())
}
