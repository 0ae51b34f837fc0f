use std::fs;
use std::path::PathBuf;

use proptest::prelude::*;
use tempfile::TempDir;

use super::format::{DATA, Layout, PAGE, Record};
use super::*;
use crate::testing::{draw, naive_top_k, naive_within};
use crate::{Codes, Error, Result, Search};

/// Ids that are no places.
fn ids_of(range: std::ops::Range<usize>) -> Vec<u64> {
    range.map(|i| (i as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15)).collect()
}

/// An index made of appends of these lengths, and its codes.
fn build(folder: &TempDir, options: &IndexOptions, appends: &[usize]) -> Result<(PathBuf, Codes)> {
    let path = folder.path().join("codes");
    let all = draw(1, options.bits, appends.iter().sum(), Some(3));
    let mut writer = IndexWriter::create(&path, options)?;
    let mut start = 0;
    for &len in appends {
        let codes = all.slice(start..start + len)?;
        match options.ids {
            true => writer.append_with_ids(&codes, &ids_of(start..start + len))?,
            false => writer.append(&codes)?,
        }
        start += len;
    }
    assert_eq!((writer.len(), writer.bits(), writer.is_empty()), (start as u64, options.bits, start == 0));
    Ok((path, all))
}

/// Whether an index answers as the codes do; an error if it finds itself damaged.
fn answers(index: Result<Index>, all: &Codes, queries: &Codes, want: &[Vec<crate::Neighbor>]) -> Result<bool> {
    let index = index?;
    let found = index.top_k(queries, all.len() + 1)?;
    let ids = (0..index.len()).map(|i| index.id(i)).collect::<Result<Vec<_>>>()?;
    let ids_are_right = match index.has_ids() {
        true => ids == ids_of(0..all.len()),
        false => ids.into_iter().eq(0..all.len() as u64),
    };
    Ok(index.len() == all.len() && found == want && ids_are_right)
}

/// A file with a full block, a second and a part of a third, and ids if asked for.
fn small(folder: &TempDir, ids: bool) -> (PathBuf, Codes) {
    let options = IndexOptions::new(70).ids(ids).block_codes(4);
    build(folder, &options, &[3, 0, 4, 1, 2]).unwrap()
}

#[test]
fn every_flipped_bit_is_an_error_or_changes_nothing() {
    // 200,000 searches in a few codes: threads would take longer to wake up than to search.
    let pool = rayon::ThreadPoolBuilder::new().num_threads(1).build().unwrap();
    pool.install(|| [false, true].into_iter().for_each(flip_every_bit));
}

fn flip_every_bit(ids: bool) {
    let folder = tempfile::tempdir().unwrap();
    let (path, all) = small(&folder, ids);
    let queries = draw(2, 70, 2, Some(3));
    let want = naive_top_k(&all, &queries, all.len());
    let bytes = fs::read(&path).unwrap();
    let (mut errors, mut harmless) = (0, 0);
    for place in 0..bytes.len() {
        for bit in 0..8 {
            let mut flipped = bytes.clone();
            flipped[place] ^= 1 << bit;
            match answers(Index::from_bytes(flipped), &all, &queries, &want) {
                Ok(right) => {
                    assert!(right, "byte {place}, bit {bit}");
                    harmless += 1;
                }
                Err(error) => {
                    assert!(matches!(error, Error::Corrupt { .. }), "byte {place}, bit {bit}: {error}");
                    errors += 1;
                }
            }
        }
    }
    // The head, ten codes with their ids and the checksums of two blocks: no bit of them is without a guard. The others are
    // copies of the commit records, or zeros.
    let guarded = 28 + 10 * (16 + if ids { 8 } else { 0 }) + 2 * 4;
    assert_eq!((errors, harmless), (8 * guarded, 8 * (bytes.len() - guarded)));
}

#[test]
fn every_truncation_is_an_error() {
    for ids in [false, true] {
        let folder = tempfile::tempdir().unwrap();
        let (path, all) = small(&folder, ids);
        let queries = draw(2, 70, 1, Some(3));
        let want = naive_top_k(&all, &queries, all.len());
        assert!(answers(Index::open(&path), &all, &queries, &want).unwrap());
        let bytes = fs::read(&path).unwrap();
        for len in 0..bytes.len() {
            let error = Index::from_bytes(bytes[..len].to_vec()).unwrap_err();
            assert!(matches!(error, Error::Corrupt { .. }), "{len} bytes: {error}");
        }
        // A map of a file, and a writer, see the same; one length of each kind.
        for len in [0, 7, 100, PAGE + 3, DATA - 1, DATA, DATA + 1, bytes.len() - 1] {
            fs::write(&path, &bytes[..len]).unwrap();
            let error = Index::open(&path).unwrap_err();
            assert!(matches!(error, Error::Corrupt { .. } | Error::Io { .. }), "{len} bytes: {error}");
            let error = IndexWriter::open(&path).unwrap_err();
            assert!(matches!(error, Error::Corrupt { .. } | Error::Io { .. }), "{len} bytes: {error}");
        }
    }
}

#[test]
fn an_append_that_was_cut_short_is_ignored_and_overwritten() {
    for ids in [false, true] {
        let folder = tempfile::tempdir().unwrap();
        let options = IndexOptions::new(70).ids(ids).block_codes(4);
        let (path, all) = build(&folder, &options, &[6, 9]).unwrap();
        let queries = draw(2, 70, 2, Some(3));
        let after = fs::read(&path).unwrap();
        let layout = Layout::new(70, ids, 4).unwrap();
        let before = {
            let folder = tempfile::tempdir().unwrap();
            fs::read(build(&folder, &options, &[6]).unwrap().0).unwrap()
        };
        let first = all.slice(0..6).unwrap();
        let want = naive_top_k(&first, &queries, 6);
        // All that the second append writes before its commit, cut anywhere.
        for len in before.len()..=after.len() {
            let mut torn = before.clone();
            torn.extend_from_slice(&after[before.len()..len]);
            fs::write(&path, &torn).unwrap();
            assert!(answers(Index::open(&path), &first, &queries, &want).unwrap(), "{len} bytes");
            let index = Index::open(&path).unwrap();
            assert_eq!(index.uncommitted_bytes(), (len - before.len()) as u64);
            // Other codes than those that were cut.
            let mut writer = IndexWriter::open(&path).unwrap();
            let others = draw(9, 70, 7, None);
            match ids {
                true => writer.append_with_ids(&others, &ids_of(6..13)).unwrap(),
                false => writer.append(&others).unwrap(),
            }
            let mut all = first.clone();
            all.extend(&others).unwrap();
            assert!(answers(Index::open(&path), &all, &queries, &naive_top_k(&all, &queries, 13)).unwrap());
        }
        // A commit that was cut: its slot holds anything, the record before counts.
        let slot = Record { sequence: 2, count: 0, tail_crc: 0 }.slot() as usize;
        let mut torn = after.clone();
        torn[slot..slot + PAGE].fill(0xa5);
        fs::write(&path, &torn).unwrap();
        assert!(answers(Index::open(&path), &first, &queries, &want).unwrap());
        assert_eq!(Index::open(&path).unwrap().uncommitted_bytes(), layout.end(15).unwrap() - layout.end(6).unwrap());
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn an_index_answers_as_its_codes_do(
        bits in prop_oneof![1usize..20, Just(64), 60usize..200, Just(1024)],
        block in prop_oneof![1usize..40, Just(1000)],
        appends in prop::collection::vec(0usize..90, 0..5),
        ids: bool,
        k in 0usize..40,
        radius in 0u32..30,
    ) {
        let folder = tempfile::tempdir().unwrap();
        let options = IndexOptions::new(bits).ids(ids).block_codes(block);
        let (path, all) = build(&folder, &options, &appends).unwrap();
        let queries = draw(2, bits, 4, Some(3));
        let index = Index::open(&path).unwrap();
        prop_assert_eq!((index.bits(), index.len(), index.has_ids()), (bits, all.len(), ids));
        prop_assert_eq!(index.uncommitted_bytes(), 0);
        prop_assert_eq!(index.top_k(&queries, k).unwrap(), naive_top_k(&all, &queries, k));
        prop_assert_eq!(index.within(&queries, radius).unwrap(), naive_within(&all, &queries, radius));
        prop_assert_eq!(&index.codes(0..all.len()).unwrap(), &all);
        let (start, end) = (all.len() / 3, all.len() - all.len() / 4);
        prop_assert_eq!(index.codes(start..end).unwrap(), all.slice(start..end).unwrap());
        index.verify().unwrap();
    }
}

#[test]
fn readers_search_while_a_writer_appends() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("codes");
    let all = draw(1, 64, 600, Some(3));
    let mut writer = IndexWriter::create(&path, &IndexOptions::new(64).ids(true).block_codes(16)).unwrap();
    let mut index = Index::open(&path).unwrap();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            for start in (0..600).step_by(5) {
                writer.append_with_ids(&all.slice(start..start + 5).unwrap(), &ids_of(start..start + 5)).unwrap();
            }
        });
        while index.len() < 600 {
            let len = index.len();
            let grown = index.refresh().unwrap();
            assert_eq!(grown, index.len() > len);
            // What was opened is whole, whatever is appended meanwhile.
            let fresh = Index::open(&path).unwrap();
            for index in [&index, &fresh] {
                let len = index.len();
                assert_eq!(index.codes(0..len).unwrap(), all.slice(0..len).unwrap());
                assert!(len == 0 || index.id(len - 1).unwrap() == ids_of(len - 1..len)[0]);
            }
        }
    });
    assert!(!index.refresh().unwrap());
}

#[test]
fn one_writer_at_a_time_and_no_file_is_overwritten() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("codes");
    let options = IndexOptions::new(64);
    let writer = IndexWriter::create(&path, &options).unwrap();
    assert!(matches!(IndexWriter::open(&path), Err(Error::Locked { .. })));
    assert!(matches!(IndexWriter::create(&path, &options), Err(Error::Io { .. })));
    assert!(Index::open(&path).unwrap().is_empty());
    drop(writer);
    assert!(IndexWriter::open(&path).is_ok());
    fs::write(&path, "something else").unwrap();
    assert!(IndexWriter::create(&path, &options).is_err());
    assert_eq!(fs::read(&path).unwrap(), b"something else");
    // Nothing is left of the attempts.
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
    assert!(matches!(IndexWriter::open(&path), Err(Error::Corrupt { .. })));
    assert!(matches!(Index::open(folder.path().join("none")), Err(Error::Io { .. })));
    assert!(matches!(IndexWriter::open(folder.path().join("none")), Err(Error::Io { .. })));
    assert!(IndexWriter::create(folder.path().join(".."), &options).is_err());
}

#[test]
fn wrong_arguments_are_refused_and_leave_the_index_as_it_was() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("codes");
    for options in [IndexOptions::new(0), IndexOptions::new(1025), IndexOptions::new(64).block_codes(0)] {
        assert!(matches!(IndexWriter::create(&path, &options), Err(Error::Config(_))));
    }
    let codes = draw(1, 70, 3, None);
    let mut writer = IndexWriter::create(&path, &IndexOptions::new(70).ids(true)).unwrap();
    assert!(writer.append(&codes).is_err());
    assert!(writer.append_with_ids(&codes, &[1, 2]).is_err());
    assert!(writer.append_with_ids(&draw(1, 71, 2, None), &[1, 2]).is_err());
    writer.append_with_ids(&codes, &[5, 5, u64::MAX]).unwrap();
    let index = Index::open(&path).unwrap();
    assert_eq!(index.len(), 3);
    assert_eq!([0, 1, 2].map(|i| index.id(i).unwrap()), [5, 5, u64::MAX]);
    assert!(matches!(index.id(3), Err(Error::Input(_))));
    assert!(matches!(index.codes(2..4), Err(Error::Input(_))));
    assert!(matches!(index.top_k(&draw(1, 64, 1, None), 1), Err(Error::Input(_))));
    let other = folder.path().join("other");
    let mut writer = IndexWriter::create(other, &IndexOptions::new(70)).unwrap();
    assert!(writer.append_with_ids(&codes, &[1, 2, 3]).is_err());
}

#[test]
fn heads_that_lie_with_a_right_checksum_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("codes");
    let write = |layout: Layout, record: Record, data: &[u8]| {
        let pages = [layout.encode(), record.encode(&layout), [0; PAGE]];
        fs::write(&path, [pages.as_flattened(), data].concat()).unwrap();
        Index::open(&path)
    };
    let layout = Layout::new(70, true, 4).unwrap();
    let record = |count| Record { sequence: 0, count, tail_crc: 0 };
    assert!(write(layout, record(0), &[]).is_ok());
    for wrong in [
        Layout { bits: 0, ..layout },
        Layout { bits: 1025, ..layout },
        Layout { block: 0, ..layout },
        Layout { block: 1 << 21, ..layout },
    ] {
        assert!(matches!(write(wrong, record(0), &[]), Err(Error::Corrupt { .. })), "{wrong:?}");
    }
    for count in [1, 4, 1 << 40, u64::MAX / 4, u64::MAX] {
        assert!(matches!(write(layout, record(count), &[0; 20]), Err(Error::Corrupt { .. })), "{count}");
    }
    let mut head = fs::read(&path).unwrap();
    head[8] = 2;
    let crc = crc32fast::hash(&head[..24]);
    head[24..28].copy_from_slice(&crc.to_le_bytes());
    fs::write(&path, &head).unwrap();
    assert!(Index::open(&path).unwrap_err().to_string().contains("version 2"));

    // A one above the width, under a checksum that knows it.
    let layout = Layout::new(70, false, 4).unwrap();
    let mut crc = crc32fast::Hasher::new();
    let mut code = [0; 16];
    code[8] = 0x40;
    crc.update(&[0; 8]);
    crc.update(&code);
    let index = write(layout, Record { sequence: 0, count: 1, tail_crc: crc.finalize() }, &code).unwrap();
    assert!(matches!(index.top_k(&draw(1, 70, 1, None), 1), Err(Error::Corrupt { .. })));
    assert_eq!(fs::metadata(&path).unwrap().len(), (DATA + 16) as u64);
}
