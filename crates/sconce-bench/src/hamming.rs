//! Exact search in binary codes against plain code on the same threads and, where there is one, against FAISS.

use std::error::Error;
use std::fmt;
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::Instant;

use rayon::prelude::*;
use sconce_hash::{Codes, Neighbor, Search};
use sconce_ops::hamming::{Instructions, Lanes, nearer_than};
use serde::Serialize;

use crate::measure::Times;

type Result<T> = std::result::Result<T, Box<dyn Error>>;
type Found = Vec<Vec<Neighbor>>;

/// What to search for, in how many codes.
#[derive(clap::Args)]
pub(crate) struct Options {
    /// Codes in the database
    #[arg(long, default_value_t = 1_000_000)]
    codes: usize,
    /// Queries, searched for together
    #[arg(long, default_value_t = 1000)]
    queries: usize,
    /// Widths of the codes
    #[arg(long, value_delimiter = ',', default_value = "64,128,256")]
    bits: Vec<usize>,
    /// Numbers of neighbours
    #[arg(short, value_delimiter = ',', default_value = "10,100")]
    k: Vec<usize>,
    /// Threads of every contender
    #[arg(long, default_value_t = 2)]
    threads: usize,
    /// Timed rounds; each runs every contender once
    #[arg(long, default_value_t = 7, value_parser = clap::value_parser!(u32).range(1..))]
    rounds: u32,
    /// A Python that has faiss-cpu
    #[arg(long, value_name = "PYTHON")]
    faiss: Option<PathBuf>,
    /// Write the figures to this file as well
    #[arg(long, value_name = "FILE")]
    pub(crate) json: Option<PathBuf>,
}

/// One width and number of neighbours.
#[derive(Serialize)]
pub(crate) struct Row {
    bits: usize,
    k: usize,
    codes: usize,
    queries: usize,
    threads: usize,
    instructions: &'static str,
    ours: Times,
    plain: Times,
    faiss: Option<Times>,
    faiss_version: Option<String>,
    to_plain: f64,
    to_faiss: Option<f64>,
    /// Words compared in a second, over what the kernel alone does with codes in the nearest cache and no hits.
    share_of_kernel: f64,
    /// Bytes of codes that the queries went through in a second, in GB.
    gigabytes_per_second: f64,
}

pub(crate) const HEADER: &str = "| bits | k | ours, ms | spread | plain, ms | spread | FAISS, ms | spread | to plain | to FAISS | share of kernel |\n\
    | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |";

impl fmt::Display for Row {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let times = |times: &Times| format!("{:.1} | {:.0} %", times.median_ms, times.spread * 100.);
        let Self { bits, k, ours, plain, faiss, to_plain, to_faiss, share_of_kernel, .. } = self;
        let faiss = faiss.as_ref().map_or("- | -".into(), times);
        let to_faiss = to_faiss.map_or("-".into(), |ratio| format!("{ratio:.3}"));
        let (ours, plain) = (times(ours), times(plain));
        write!(f, "| {bits} | {k} | {ours} | {plain} | {faiss} | {to_plain:.3} | {to_faiss} | {share_of_kernel:.2} |")
    }
}

/// Times all contenders by turns and hands each row to `each`. An error if they find different neighbours.
pub(crate) fn run(options: &Options, mut each: impl FnMut(&Row)) -> Result<Vec<Row>> {
    let pool = rayon::ThreadPoolBuilder::new().num_threads(options.threads).build()?;
    let mut rows = vec![];
    for &bits in &options.bits {
        let (codes, queries) = (draw(1, bits, options.codes)?, draw(2, bits, options.queries)?);
        let mut faiss = match &options.faiss {
            Some(python) => Some(Faiss::start(python, &codes, &queries, options.threads)?),
            None => None,
        };
        let peak = kernel_words_per_second(&codes, options.threads);
        for &k in &options.k {
            // The first round warms up and is compared.
            let found = pool.install(|| codes.top_k(&queries, k))?;
            if pool.install(|| plain(&codes, &queries, k)) != found {
                return Err(format!("{bits} bits, k = {k}: plain code finds other neighbours").into());
            }
            if let Some(faiss) = &mut faiss {
                faiss.compare(&found, k)?;
            }
            let (mut ours, mut base, mut theirs) = (vec![], vec![], vec![]);
            for _ in 0..options.rounds {
                let start = Instant::now();
                pool.install(|| codes.top_k(&queries, k))?;
                ours.push(start.elapsed().as_secs_f64() * 1e3);
                if let Some(faiss) = &mut faiss {
                    theirs.push(faiss.search(k, None)? * 1e3);
                }
                let start = Instant::now();
                pool.install(|| plain(&codes, &queries, k));
                base.push(start.elapsed().as_secs_f64() * 1e3);
            }
            let (ours, plain) = (Times::new(ours), Times::new(base));
            let theirs = (!theirs.is_empty()).then(|| Times::new(theirs));
            let words_per_second = (codes.words().len() * queries.len()) as f64 / (ours.median_ms / 1e3);
            let row = Row {
                bits,
                k,
                codes: codes.len(),
                queries: queries.len(),
                threads: options.threads,
                instructions: Instructions::best().name(),
                to_plain: ours.median_ms / plain.median_ms,
                to_faiss: theirs.as_ref().map(|theirs| ours.median_ms / theirs.median_ms),
                share_of_kernel: words_per_second / peak,
                gigabytes_per_second: words_per_second * 8e-9,
                faiss_version: faiss.as_ref().map(|faiss| faiss.version.clone()),
                ours,
                plain,
                faiss: theirs,
            };
            each(&row);
            rows.push(row);
        }
    }
    Ok(rows)
}

/// Codes that follow from a seed, every bit even.
fn draw(seed: u64, bits: usize, len: usize) -> Result<Codes> {
    if !bits.is_multiple_of(64) {
        return Err(format!("{bits} bits are no whole words").into());
    }
    let mut state = seed << 40;
    let mut next = || {
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (state ^ (state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    };
    Ok(Codes::from_words(bits, (0..bits / 64 * len).map(|_| next()).collect())?)
}

/// What one would write: a query at a time, every distance, the nearest by selection and a sort.
fn plain(codes: &Codes, queries: &Codes, k: usize) -> Found {
    let rows: Vec<&[u64]> = queries.rows().collect();
    let nearest = |query: &&[u64]| {
        let distance = |code: &[u64]| code.iter().zip(*query).map(|(x, q)| (x ^ q).count_ones()).sum();
        let neighbors = codes.rows().enumerate().map(|(index, code)| Neighbor { distance: distance(code), index });
        let mut all: Vec<Neighbor> = neighbors.collect();
        if (1..all.len()).contains(&k) {
            all.select_nth_unstable(k);
        }
        all.truncate(k);
        all.sort_unstable();
        all
    };
    rows.par_iter().map(nearest).collect()
}

/// Words that the kernel compares in a second on all threads, when the codes lie in the nearest cache and none is near.
fn kernel_words_per_second(codes: &Codes, threads: usize) -> f64 {
    const WORDS: usize = 2048;
    const ROUNDS: usize = 20_000;
    let words = codes.words_per_code();
    let part = &codes.words()[..codes.words().len().min(WORDS / words * words)];
    let one = || {
        let mut lanes = Lanes::new(words);
        lanes.load(part);
        let (query, mut hits) = (vec![u64::MAX / 3; words], vec![]);
        let start = Instant::now();
        for _ in 0..ROUNDS {
            let lanes = std::hint::black_box(&lanes);
            nearer_than(&query, lanes, 0..lanes.blocks(), 1, &mut hits, Instructions::best());
        }
        (part.len() * ROUNDS) as f64 / start.elapsed().as_secs_f64()
    };
    std::thread::scope(|scope| {
        let running: Vec<_> = (0..threads).map(|_| scope.spawn(one)).collect();
        running.into_iter().map(|thread| thread.join().unwrap_or(f64::NAN)).sum()
    })
}

/// FAISS in a process of its own, which waits while others are timed.
struct Faiss {
    child: Child,
    asks: ChildStdin,
    answers: BufReader<ChildStdout>,
    folder: PathBuf,
    queries: usize,
    version: String,
}

impl Faiss {
    fn start(python: &Path, codes: &Codes, queries: &Codes, threads: usize) -> Result<Self> {
        let folder = std::env::temp_dir().join(format!("sconce-bench-{}", std::process::id()));
        std::fs::create_dir_all(&folder)?;
        let [script, database, asked] = ["hamming.py", "codes", "queries"].map(|name| folder.join(name));
        std::fs::write(&script, include_str!("hamming.py"))?;
        std::fs::write(&database, codes.to_bytes())?;
        std::fs::write(&asked, queries.to_bytes())?;
        let mut command = Command::new(python);
        command.args([script, database, asked]).arg(codes.bits().to_string()).arg(threads.to_string());
        // Threads that wait by spinning would take the processors from the others.
        command.env("OMP_WAIT_POLICY", "passive").stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = command.spawn()?;
        let pipes = child.stdin.take().zip(child.stdout.take());
        let (asks, answers) = pipes.ok_or("the process has no pipes")?;
        let queries = queries.len();
        let mut faiss = Self { child, asks, answers: BufReader::new(answers), folder, queries, version: String::new() };
        faiss.version = faiss.line()?;
        Ok(faiss)
    }

    fn line(&mut self) -> Result<String> {
        let mut line = String::new();
        match self.answers.read_line(&mut line)? {
            0 => Err("FAISS has ended".into()),
            _ => Ok(line.trim().to_owned()),
        }
    }

    /// Searches once; returns the seconds that FAISS itself measured.
    fn search(&mut self, k: usize, results: Option<&Path>) -> Result<f64> {
        let results = results.map_or("-".into(), |path| path.display().to_string());
        writeln!(self.asks, "{k} {results}")?;
        self.asks.flush()?;
        Ok(self.line()?.parse()?)
    }

    /// An error unless it finds the same: every distance, and the neighbours nearer than the last one, among which FAISS leaves
    /// the order of equal distances open.
    fn compare(&mut self, found: &Found, k: usize) -> Result<()> {
        let path = self.folder.join("results");
        self.search(k, Some(&path))?;
        let bytes = std::fs::read(&path)?;
        let (distances, neighbors) = bytes.split_at_checked(4 * self.queries * k).ok_or("too few results")?;
        let distances: Vec<_> = distances.as_chunks().0.iter().map(|&d| i32::from_le_bytes(d)).collect();
        let neighbors: Vec<_> = neighbors.as_chunks().0.iter().map(|&n| i64::from_le_bytes(n)).collect();
        for (query, ours) in found.iter().enumerate() {
            let places = query * k..query * k + ours.len();
            let theirs = distances[places.clone()].iter().zip(&neighbors[places]);
            let theirs = theirs.map(|(&distance, &index)| (distance as u32, index as usize));
            let mut theirs: Vec<_> = theirs.map(|(distance, index)| Neighbor { distance, index }).collect();
            theirs.sort_unstable();
            let last = ours.last().map_or(0, |last| last.distance);
            let same =
                ours.iter().zip(&theirs).all(|(a, b)| a.distance == b.distance && (a == b || a.distance == last));
            if !same || ours.len() != theirs.len() {
                return Err(format!("query {query}, k = {k}: FAISS finds other neighbours").into());
            }
        }
        Ok(())
    }
}

impl Drop for Faiss {
    fn drop(&mut self) {
        // Nothing can be done about a process that has ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
        let _ = std::fs::remove_dir_all(&self.folder);
    }
}
