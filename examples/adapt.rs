//! Adapts a frozen dual encoder to classes with a few labelled pictures of each.
//!
//! ```text
//! cargo run --release --example adapt                                        # CoOp, 16 shots, the repository's drawings
//! cargo run --release --example adapt -- --table                             # all methods, shots and seeds
//! cargo run --release --example adapt -- --images pictures/ --method tip-adapter-f --shots 4
//! cargo run --release --example adapt -- --split split_zhou_OxfordPets.json --root oxford_pets/images \
//!     --model ViT-B-16.pt --method coop --schedule official --seeds 1,2,3 --template "a photo of a {}, a type of pet."
//! cargo run --release --example adapt -- --method q16 --look-for food            # documents what is food
//! cargo run --release --example adapt -- --method zero-shot,coop,dapl --source fluent-3d --target noto-v1 --shots all
//! ```
//!
//! `--base-to-new` trains on half of the classes and tests on both halves. Ctrl-C stops; the same command goes on. The folder
//! --out has `table.md`, `figures.json`, `shots.svg`, and for each head `head.safetensors` (official names), `result.json`,
//! `curves.svg` and `confusion.svg`.

use std::process::ExitCode;

use clap::Parser;
use sconce_examples::adapt::{self, Done, Options};
use sconce_examples::interrupt;

/// Adapt a dual encoder to classes with a few labelled pictures of each.
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
    let device = sconce::device(&options.device)?;
    match adapt::run(options, &device, &interrupt())? {
        Done::Table(table) => {
            println!("\n{}", table.markdown());
            table.not_above().iter().for_each(|line| println!("{line}"));
            println!("chance {:.1} %; wrote {}", 100.0 * table.chance, options.out.display());
        }
        Done::Documented(found) => {
            let [tested, wanted] = found.tested;
            let percents = [found.zero_shot, found.tuned].map(|x| 100.0 * x);
            println!("tested    {tested} pictures, {wanted} of them {:?}", found.texts[1]);
            println!("mean over both classes: {:.1} % by the texts, {:.1} % tuned", percents[0], percents[1]);
            println!("flagged   {}, by the words {}", found.flagged, found.words.join(", "));
            println!("wrote     {}", options.out.join("documentation").display());
        }
        Done::Interrupted => eprintln!("stopped; the same command goes on from here"),
    }
    Ok(())
}
