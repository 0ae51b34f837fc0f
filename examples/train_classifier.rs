//! Trains any registered backbone as a classifier: class folders, idx arrays (the repository's Fashion-MNIST by default) or
//! WebDataset shards.
//!
//! ```text
//! cargo run --release --example train_classifier -- --model vit_tiny_patch16_224 --data pictures/ --random-resized-crop 0.35 \
//!     --flip --mixup 0.8 --cutmix 1.0 --erasing 0.25 --drop-path 0.1 --epochs 100 --out runs/pictures
//! ```
//!
//! `--schedule dual --validation 0.1 --patience 20` trains with AdamW until the validation pictures bring no new best, then with
//! SGD from the best weights. Ctrl-C stops after the step; the same command with `--resume` continues, to the same bits.
//! The folder has `model.safetensors`, `summary.json`, checkpoints, and logs as CSV, JSON lines and TensorBoard events.
//! `compare_backbones` does the same for several models and seeds and writes a table.

use std::process::ExitCode;

use clap::Parser;
use sconce_examples::classifier::{Options, train};
use sconce_examples::interrupt;

/// Train any registered backbone as an image classifier.
#[derive(Debug, Parser)]
struct Arguments {
    #[command(flatten)]
    options: Options,
}

fn main() -> ExitCode {
    tracing_subscriber::fmt().with_env_filter(tracing_subscriber::EnvFilter::from_default_env()).init();
    match run(&Arguments::parse().options) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run(options: &Options) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
    println!("{}", serde_json::to_string_pretty(options)?);
    let device = sconce::device(&options.run.device)?;
    if let Some(summary) = train(options, &device, &interrupt())? {
        println!("{}", serde_json::to_string_pretty(&summary)?);
        println!("wrote {}", options.run.out.display());
    }
    Ok(())
}
