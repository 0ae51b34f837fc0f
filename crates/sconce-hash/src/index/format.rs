//! The bytes of the head and of the commit records; where blocks lie. No input or output.

use crc32fast::Hasher;

use crate::codes::{spare_mask, words_for};

/// What one write of a disk may tear.
pub(super) const PAGE: usize = 4096;

/// Where the second copy of a record stands in its slot.
const COPY: usize = PAGE / 2;

/// Head and slots.
pub(super) const DATA: usize = 3 * PAGE;

const MAGIC: &[u8; 8] = b"SCONCEHX";
const VERSION: u32 = 1;
const WITH_IDS: u32 = 1;

/// The most codes that a block may hold.
pub(super) const MAX_BLOCK: usize = 1 << 20;

/// How the codes of a file are laid out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Layout {
    pub(super) bits: usize,
    pub(super) words: usize,
    pub(super) ids: bool,
    /// Codes in a block.
    pub(super) block: usize,
}

impl Layout {
    /// # Errors
    /// What is wrong with the numbers.
    pub(super) fn new(bits: usize, ids: bool, block: usize) -> Result<Self, String> {
        let words = words_for(bits).map_err(|error| error.to_string())?;
        match (1..=MAX_BLOCK).contains(&block) {
            true => Ok(Self { bits, words, ids, block }),
            false => Err(format!("a block holds 1 to {MAX_BLOCK} codes, not {block}")),
        }
    }

    pub(super) fn encode(&self) -> [u8; PAGE] {
        let mut page = [0; PAGE];
        page[..8].copy_from_slice(MAGIC);
        let numbers = [VERSION, self.bits as u32, if self.ids { WITH_IDS } else { 0 }, self.block as u32];
        for (place, number) in page[8..24].as_chunks_mut().0.iter_mut().zip(numbers) {
            *place = number.to_le_bytes();
        }
        let crc = crc32fast::hash(&page[..24]);
        page[24..28].copy_from_slice(&crc.to_le_bytes());
        page
    }

    /// # Errors
    /// What is wrong with the head of a file.
    pub(super) fn decode(file: &[u8]) -> Result<Self, String> {
        if !file.starts_with(MAGIC) {
            return Err("no index of binary codes".into());
        }
        if file.len() < DATA {
            return Err(format!("{} bytes are no whole head", file.len()));
        }
        let [version, bits, flags, block] = [8, 12, 16, 20].map(|at| u32_at(file, at));
        if crc32fast::hash(&file[..24]) != u32_at(file, 24) {
            return Err("the head does not match its checksum".into());
        }
        if version != VERSION {
            return Err(format!("format version {version}, this program reads {VERSION}"));
        }
        if flags & !WITH_IDS != 0 {
            return Err(format!("unknown flags {flags:#x}"));
        }
        Self::new(bits as usize, flags & WITH_IDS != 0, block as usize)
    }

    /// What ties a commit record to its head.
    pub(super) fn crc(&self) -> u32 {
        u32_at(&self.encode(), 24)
    }

    /// Bytes of a code.
    pub(super) fn code_bytes(&self) -> usize {
        8 * self.words
    }

    /// Where in a block its ids begin.
    pub(super) fn ids_at(&self) -> usize {
        self.block * self.code_bytes()
    }

    /// Where in a block its checksum stands.
    pub(super) fn crc_at(&self) -> usize {
        self.ids_at() + if self.ids { 8 * self.block } else { 0 }
    }

    /// Bytes of a block.
    fn block_bytes(&self) -> usize {
        self.crc_at() + 8
    }

    /// Where a block begins.
    pub(super) fn block_at(&self, number: u64) -> Option<u64> {
        number.checked_mul(self.block_bytes() as u64)?.checked_add(DATA as u64)
    }

    /// Bytes that a file of so many codes has.
    pub(super) fn end(&self, count: u64) -> Option<u64> {
        let (full, filled) = (count / self.block as u64, (count % self.block as u64) as usize);
        let tail = match (filled, self.ids) {
            (0, _) => 0,
            (_, true) => self.ids_at() + 8 * filled,
            (_, false) => filled * self.code_bytes(),
        };
        self.block_at(full)?.checked_add(tail as u64)
    }

    /// The bits of the last word of a code that must be zero.
    pub(super) fn spare(&self) -> u64 {
        spare_mask(self.bits)
    }
}

/// What is committed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Record {
    pub(super) sequence: u64,
    /// Codes.
    pub(super) count: u64,
    /// Of the last block as far as it is filled; 0 if it is full.
    pub(super) tail_crc: u32,
}

impl Record {
    const LEN: usize = 28;

    /// Where its slot begins.
    pub(super) fn slot(&self) -> u64 {
        PAGE as u64 * (1 + self.sequence % 2)
    }

    /// Its slot.
    pub(super) fn encode(&self, layout: &Layout) -> [u8; PAGE] {
        let mut record = [0; Self::LEN];
        record[..8].copy_from_slice(&self.sequence.to_le_bytes());
        record[8..16].copy_from_slice(&self.count.to_le_bytes());
        record[16..20].copy_from_slice(&self.tail_crc.to_le_bytes());
        record[20..24].copy_from_slice(&layout.crc().to_le_bytes());
        let crc = crc32fast::hash(&record[..24]);
        record[24..].copy_from_slice(&crc.to_le_bytes());
        let mut page = [0; PAGE];
        for at in [0, COPY] {
            page[at..at + Self::LEN].copy_from_slice(&record);
        }
        page
    }

    fn decode(record: &[u8], layout: &Layout) -> Option<Self> {
        let valid = crc32fast::hash(&record[..24]) == u32_at(record, 24) && u32_at(record, 20) == layout.crc();
        valid.then(|| Self { sequence: u64_at(record, 0), count: u64_at(record, 8), tail_crc: u32_at(record, 16) })
    }

    /// The newest that is valid in a file at least as long as its head.
    pub(super) fn newest(file: &[u8], layout: &Layout) -> Option<Self> {
        let places = [PAGE, 2 * PAGE].into_iter().flat_map(|slot| [slot, slot + COPY]);
        let records = places.filter_map(|at| Self::decode(&file[at..at + Self::LEN], layout));
        records.max_by_key(|record| record.sequence)
    }
}

/// Checksum of a block in the making. Codes and ids come in turns but are covered one after the other.
#[derive(Debug, Clone)]
pub(super) struct BlockCrc {
    codes: Hasher,
    ids: Hasher,
}

impl BlockCrc {
    pub(super) fn new(block: u64) -> Self {
        let mut codes = Hasher::new();
        codes.update(&block.to_le_bytes());
        Self { codes, ids: Hasher::new() }
    }

    pub(super) fn update(&mut self, codes: &[u8], ids: &[u8]) {
        self.codes.update(codes);
        self.ids.update(ids);
    }

    pub(super) fn value(&self) -> u32 {
        let mut whole = self.codes.clone();
        whole.combine(&self.ids);
        whole.finalize()
    }
}

pub(super) fn u32_at(bytes: &[u8], at: usize) -> u32 {
    let mut number = [0; 4];
    number.copy_from_slice(&bytes[at..at + 4]);
    u32::from_le_bytes(number)
}

pub(super) fn u64_at(bytes: &[u8], at: usize) -> u64 {
    let mut number = [0; 8];
    number.copy_from_slice(&bytes[at..at + 8]);
    u64::from_le_bytes(number)
}
