//! Benchmarks of sconce: `cargo run --release -p sconce-bench -- ops` (or `mixers`, `hamming`).

mod hamming;
mod measure;
mod mixers;
mod ops;

use std::{
    error::Error,
    fs::File,
    io::BufWriter,
    path::{Path, PathBuf},
};

use clap::{Parser, Subcommand};

#[derive(Parser)]
#[command(version, about)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Time the operations of sconce-ops against the same done with candle's own
    Ops(Options),
    /// Time mixers that are linear in the number of tokens against global attention
    Mixers(Options),
    /// Time exact search in binary codes against plain code, and against FAISS
    Hamming(hamming::Options),
}

/// How to measure.
#[derive(clap::Args)]
struct Options {
    /// Run only the cases whose name contains this
    #[arg(long, default_value = "")]
    filter: String,
    /// Timed rounds; each runs every contender once
    #[arg(long, default_value_t = 9, value_parser = clap::value_parser!(u32).range(7..))]
    rounds: u32,
    /// Write the figures to this file as well
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

fn main() -> Result<(), Box<dyn Error>> {
    match Arguments::parse().command {
        Command::Ops(options) => ops(&options),
        Command::Mixers(options) => mixers(&options),
        Command::Hamming(options) => hamming(&options),
    }
}

fn ops(options: &Options) -> Result<(), Box<dyn Error>> {
    conditions(options);
    println!("ratio = ours / candle; spread = (third quartile - first quartile) / median\n");
    println!("{}", measure::HEADER);
    let mut rows = Vec::new();
    for case in ops::cases()? {
        if case.name().contains(&options.filter) {
            let row = case.run(options.rounds)?;
            println!("{row}");
            rows.push(row);
        }
    }
    options.write(&rows)
}

fn mixers(options: &Options) -> Result<(), Box<dyn Error>> {
    conditions(options);
    println!("ratio = to global attention on the same tokens; spread = (third quartile - first quartile) / median\n");
    println!("{}", mixers::HEADER);
    let rows = mixers::run(&options.filter, options.rounds, |row| println!("{row}"))?;
    options.write(&rows)
}

fn hamming(options: &hamming::Options) -> Result<(), Box<dyn Error>> {
    println!("ratio = ours / theirs; spread = (third quartile - first quartile) / median\n");
    println!("{}", hamming::HEADER);
    let rows = hamming::run(options, |row| println!("{row}"))?;
    write(options.json.as_deref(), &rows)
}

fn conditions(options: &Options) {
    println!("{} threads, {} rounds, f32, times in milliseconds", rayon::current_num_threads(), options.rounds);
}

impl Options {
    fn write(&self, rows: &impl serde::Serialize) -> Result<(), Box<dyn Error>> {
        write(self.json.as_deref(), rows)
    }
}

fn write(path: Option<&Path>, rows: &impl serde::Serialize) -> Result<(), Box<dyn Error>> {
    if let Some(path) = path {
        serde_json::to_writer_pretty(BufWriter::new(File::create(path)?), rows)?;
    }
    Ok(())
}
