//! Trains a small Chinese dual encoder on the emoji data, in the manner of Wukong (`arXiv:2202.06767`).
//!
//! Drawings in four styles are trained with their Chinese names and keywords, and evaluated on a fifth style by name: R@1, R@5
//! and R@10 in both directions. `--loss filip` compares tokens with tokens (`arXiv:2111.07783`), `--loss infonce` pictures with
//! texts; `--tower locked` trains a text tower beside the image tower of `assets/weights/emoji-clip`, which stays as it is
//! (LiT, `arXiv:2111.07991`) and encodes the pictures once.
//!
//! `cargo run --release --example pretrain_chinese -- --tower locked --loss infonce --out runs/lit` takes some minutes;
//! Ctrl-C stops after the step, `--resume` continues.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Parser;
use sconce_examples::chinese::model::Kind;
use sconce_examples::chinese::train::{Plan, train};
use sconce_examples::chinese::{Loss, Tower};
use sconce_examples::contrastive::Options;
use sconce_examples::emoji::{self, TEST_DOMAIN, TRAIN_DOMAINS};

/// Train a small Chinese dual encoder on drawings of about 1,350 concepts.
#[derive(Debug, Parser)]
struct Arguments {
    /// What is contrasted.
    #[arg(long, value_enum, default_value_t = Loss::Infonce)]
    loss: Loss,
    /// Where the image tower is from.
    #[arg(long, value_enum, default_value_t = Tower::Scratch)]
    tower: Tower,
    /// Folder with the emoji shards.
    #[arg(long, default_value_os_t = emoji::assets().join("emoji"))]
    data: PathBuf,
    /// Folder of the model whose image tower is locked.
    #[arg(long, default_value_os_t = emoji::assets().join("weights/emoji-clip"))]
    locked: PathBuf,
    /// Take the locked embedding as it is, without a projection that is trained (infonce only).
    #[arg(long)]
    no_projection: bool,
    /// Views of each picture that the locked tower encodes beforehand, the picture as it is among them.
    #[arg(long, default_value_t = 4)]
    views: usize,
    /// File for what the locked tower has encoded. [default: features.safetensors in the folder of the training]
    #[arg(long)]
    features: Option<PathBuf>,
    /// Folder for weights, checkpoints and logs.
    #[arg(long, default_value = "runs/emoji-zh")]
    out: PathBuf,
    /// Passes over the pictures.
    #[arg(long, default_value_t = 30)]
    epochs: u64,
    /// Pictures in a step.
    #[arg(long, default_value_t = 128)]
    batch_size: usize,
    /// Highest learning rate.
    #[arg(long, default_value_t = 1e-3)]
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
    let plan = Plan {
        kind: Kind {
            loss: arguments.loss,
            tower: arguments.tower,
            project: !arguments.no_projection,
            locked: arguments.locked.clone(),
        },
        options: Options {
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
        },
        views: arguments.views,
        features: arguments.features.clone(),
    };
    println!("{} pictures to train on, {} of another style to evaluate", pictures.len(), test.len());
    println!("{plan:#?}");
    if let Some(summary) = train(&pictures, &test, &plan, &device)? {
        println!("{}", serde_json::to_string_pretty(&summary)?);
        println!("wrote {}", arguments.out.display());
    }
    Ok(())
}
