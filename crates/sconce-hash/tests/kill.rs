//! A process that appends to an index is killed again and again: what it has acknowledged stays.
#![cfg(unix)]

use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use sconce_hash::{Codes, Index, IndexOptions, IndexWriter, Result, Search};

const FILE: &str = "SCONCE_TEST_KILL_FILE";
const KILLS: u64 = 50;
const BITS: usize = 100;

/// The code and the id that stand at a place.
fn item(place: u64) -> ([u64; 2], u64) {
    let word = |x: u64| (x ^ x >> 29).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    ([word(place + 1), word(place + 7) >> 28], word(place + 13))
}

fn items(places: std::ops::Range<u64>) -> Result<(Codes, Vec<u64>)> {
    let words = places.clone().flat_map(|place| item(place).0).collect();
    Ok((Codes::from_words(BITS, words)?, places.map(|place| item(place).1).collect()))
}

/// What the child process does: it makes the index if there is none, and appends until it is killed.
#[test]
#[ignore = "the body of a child process"]
fn child() -> Result<()> {
    let Some(path) = std::env::var_os(FILE) else { return Ok(()) };
    let mut writer = match Path::new(&path).exists() {
        true => IndexWriter::open(&path)?,
        false => IndexWriter::create(&path, &IndexOptions::new(BITS).ids(true).block_codes(16))?,
    };
    let mut out = std::io::stdout();
    // Batches of all sizes, about a block, whatever number of them a life lasts for.
    for count in (1..24).cycle().skip(writer.len() as usize % 23) {
        let (codes, ids) = items(writer.len()..writer.len() + count)?;
        writer.append_with_ids(&codes, &ids)?;
        // The first word ends what the test harness has begun.
        let line = format!("\nhas {}\n", writer.len());
        out.write_all(line.as_bytes()).and_then(|()| out.flush()).expect("the parent listens");
    }
    Ok(())
}

#[test]
fn kills_at_any_moment_leave_every_acknowledged_item() -> Result<()> {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("codes");
    let (mut acknowledged, mut interrupted, mut torn) = (0, 0, 0);
    for kill in 0..KILLS {
        let mut command = Command::new(std::env::current_exe().unwrap());
        command.args(["--exact", "child", "--ignored", "--nocapture"]).env(FILE, &path);
        let mut child = command.stdout(Stdio::piped()).spawn().unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines().map_while(|line| line.ok());
        let mut told = lines.filter_map(|line| line.strip_prefix("has ")?.parse::<u64>().ok());
        // Most die while they append, some while they start.
        if kill % 8 != 0 {
            acknowledged = told.next().unwrap();
        }
        std::thread::sleep(Duration::from_micros(kill.wrapping_mul(7919) % 15_000));
        child.kill().unwrap();
        assert!(!child.wait().unwrap().success());
        acknowledged = told.last().unwrap_or(acknowledged);

        if !path.exists() {
            assert_eq!(acknowledged, 0);
            continue;
        }
        let index = Index::open(&path)?;
        let len = index.len() as u64;
        assert!(len >= acknowledged, "kill {kill}: {len} items, {acknowledged} acknowledged");
        interrupted += u64::from(len > acknowledged);
        torn += u64::from(index.uncommitted_bytes() > 0);
        acknowledged = len;
        index.verify()?;
        let (codes, ids) = items(0..len)?;
        assert!(index.codes(0..index.len())? == codes, "kill {kill}");
        for (place, id) in ids.into_iter().enumerate() {
            assert_eq!(index.id(place)?, id, "kill {kill}");
        }
    }
    println!("{acknowledged} items; {torn} torn tails, {interrupted} commits that were not acknowledged");
    assert!(acknowledged > KILLS);
    Ok(())
}
