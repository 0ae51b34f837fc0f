//! Reading and searching.

use std::fmt;
use std::ops::{Deref, Range};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

use memmap2::Mmap;
use rayon::prelude::*;
use sconce_ops::hamming::Lanes;
use sconce_ops::map_file;

use super::format::{BlockCrc, DATA, Layout, Record, u32_at, u64_at};
use crate::search::{Source, top_k, within};
use crate::{Codes, Error, Neighbor, Result, Search};

/// The codes that an index file held when it was opened, through a memory map.
///
/// Opening reads the head alone. The checksum of a block is compared when the block is read for the first time, so damage
/// shows as an error of the search that meets it; [`Index::verify`] reads everything. A writer may append meanwhile:
/// [`Index::refresh`] shows what it has committed. The file must not be shortened or replaced in place while it is open, as
/// with every memory map.
pub struct Index {
    path: PathBuf,
    file: Bytes,
    layout: Layout,
    len: usize,
    tail_crc: u32,
    /// Blocks whose checksum has been compared.
    checked: Vec<AtomicBool>,
}

enum Bytes {
    Map(Mmap),
    Memory(Vec<u8>),
}

impl Deref for Bytes {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        match self {
            Self::Map(map) => map,
            Self::Memory(bytes) => bytes,
        }
    }
}

/// What is wrong with a head.
struct Fault {
    what: String,
    /// Whether the file ends before what is committed.
    too_short: bool,
}

impl Fault {
    fn new(what: impl Into<String>) -> Self {
        Self { what: what.into(), too_short: false }
    }

    fn of(self, path: &Path) -> Error {
        Error::Corrupt { path: path.to_owned(), what: self.what }
    }
}

impl Index {
    /// Opens an index.
    ///
    /// # Errors
    /// When the file cannot be read, is no index, is of a newer version, is shorter than what was committed to it, or its head
    /// is damaged.
    pub fn open(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        let mut before = 0;
        loop {
            let file = map_file(path).map_err(|source| Error::Io { path: path.to_owned(), source })?;
            let len = file.len();
            match Self::new(path, Bytes::Map(file)) {
                // Perhaps a writer has committed since the length of the map was taken: the file has grown then.
                Err(fault) if fault.too_short && len > before => before = len,
                outcome => return outcome.map_err(|fault| fault.of(path)),
            }
        }
    }

    /// An index whose file has been read into memory.
    ///
    /// # Errors
    /// As [`Index::open`].
    pub fn from_bytes(bytes: Vec<u8>) -> Result<Self> {
        let path = Path::new("(memory)");
        Self::new(path, Bytes::Memory(bytes)).map_err(|fault| fault.of(path))
    }

    fn new(path: &Path, file: Bytes) -> std::result::Result<Self, Fault> {
        let layout = Layout::decode(&file).map_err(Fault::new)?;
        let record = Record::newest(&file, &layout);
        let record = record.ok_or_else(|| Fault::new("no commit record matches its checksum"))?;
        let (count, end) = (record.count, layout.end(record.count));
        if end.is_none_or(|end| end > file.len() as u64) {
            let need = end.map_or("more than a file can have".into(), |end| format!("{end} bytes"));
            let what = format!("{} bytes, but {count} codes are committed, which take {need}", file.len());
            return Err(Fault { what, too_short: true });
        }
        let len = usize::try_from(count).map_err(|_| Fault::new(format!("{count} codes")))?;
        let checked = (0..len.div_ceil(layout.block)).map(|_| AtomicBool::new(false)).collect();
        Ok(Self { path: path.to_owned(), file, layout, len, tail_crc: record.tail_crc, checked })
    }

    /// Looks at what has been committed since the index was opened; returns whether there is anything. An index in memory
    /// never changes.
    ///
    /// # Errors
    /// Those of [`Index::open`]; the index stays as it is then.
    pub fn refresh(&mut self) -> Result<bool> {
        let Bytes::Map(_) = &self.file else { return Ok(false) };
        let mut newer = Self::open(&self.path)?;
        if newer.layout != self.layout || newer.len < self.len {
            return Err(self.corrupt("another index has taken the place of the one that was opened".into()));
        }
        let full = self.len / self.layout.block;
        newer.checked.splice(..full, self.checked.drain(..full));
        let grown = newer.len > self.len;
        *self = newer;
        Ok(grown)
    }

    /// Reads all blocks that no search has read yet and compares their checksums.
    ///
    /// # Errors
    /// When a block is damaged.
    pub fn verify(&self) -> Result<()> {
        (0..self.checked.len()).into_par_iter().try_for_each(|block| self.check(block))
    }

    /// Bytes behind the committed codes: what an append left that did not come to its end, or one that is at work.
    pub fn uncommitted_bytes(&self) -> u64 {
        let end = self.layout.end(self.len as u64).unwrap_or(0);
        (self.file.len() as u64).saturating_sub(end)
    }

    /// Whether the codes have ids.
    pub fn has_ids(&self) -> bool {
        self.layout.ids
    }

    /// The id of the code at a place; the place itself where codes have none.
    ///
    /// # Errors
    /// When there is no such code, or its block is damaged.
    pub fn id(&self, index: usize) -> Result<u64> {
        if index >= self.len {
            return Err(Error::Input(format!("code {index} of {}", self.len)));
        }
        if !self.layout.ids {
            return Ok(index as u64);
        }
        let (block, inside) = (index / self.layout.block, index % self.layout.block);
        self.check(block)?;
        Ok(u64_at(&self.file, self.block_at(block) + self.layout.ids_at() + 8 * inside))
    }

    /// A copy of consecutive codes.
    ///
    /// # Errors
    /// When the range does not lie within the index, or a block is damaged.
    pub fn codes(&self, range: Range<usize>) -> Result<Codes> {
        if range.start > range.end || range.end > self.len {
            return Err(Error::Input(format!("codes {range:?} of {}", self.len)));
        }
        let mut words = Vec::with_capacity(range.len() * self.layout.words);
        let mut start = range.start;
        while start < range.end {
            let bytes = self.read(start, range.end - start)?;
            words.extend(bytes.as_chunks().0.iter().map(|word| u64::from_le_bytes(*word)));
            start += bytes.len() / self.layout.code_bytes();
        }
        Codes::from_words(self.layout.bits, words)
    }

    /// Up to `count` codes from `start` on, as far as the block reaches.
    fn read(&self, start: usize, count: usize) -> Result<&[u8]> {
        let (block, inside) = (start / self.layout.block, start % self.layout.block);
        self.check(block)?;
        let count = count.min(self.layout.block - inside);
        let at = self.block_at(block) + inside * self.layout.code_bytes();
        Ok(&self.file[at..at + count * self.layout.code_bytes()])
    }

    /// Where a committed block begins: within the map, as was checked when it was made.
    fn block_at(&self, block: usize) -> usize {
        self.layout.block_at(block as u64).map_or(DATA, |at| at as usize)
    }

    /// Compares the checksum of a block, once.
    fn check(&self, block: usize) -> Result<()> {
        if self.checked[block].load(Ordering::Relaxed) {
            return Ok(());
        }
        let Layout { block: size, words, .. } = self.layout;
        let at = self.block_at(block);
        let count = size.min(self.len - block * size);
        let codes = &self.file[at..at + count * self.layout.code_bytes()];
        let ids = match self.layout.ids {
            true => &self.file[at + self.layout.ids_at()..][..8 * count],
            false => &[],
        };
        let mut crc = BlockCrc::new(block as u64);
        crc.update(codes, ids);
        let want = if count == size { u32_at(&self.file, at + self.layout.crc_at()) } else { self.tail_crc };
        let damaged = |what| self.corrupt(format!("codes {} to {} {what}", block * size, block * size + count - 1));
        if crc.value() != want {
            return Err(damaged("do not match their checksum"));
        }
        // Whoever wrote the checksum may still have written what is no code.
        let mut last = codes.as_chunks().0.iter().skip(words - 1).step_by(words);
        if last.any(|word| u64::from_le_bytes(*word) & self.layout.spare() != 0) {
            return Err(damaged("have ones above their width"));
        }
        self.checked[block].store(true, Ordering::Relaxed);
        Ok(())
    }

    fn corrupt(&self, what: String) -> Error {
        Error::Corrupt { path: self.path.clone(), what }
    }
}

impl Source for Index {
    fn bits(&self) -> usize {
        self.layout.bits
    }

    fn len(&self) -> usize {
        self.len
    }

    fn load(&self, start: usize, count: usize, lanes: &mut Lanes) -> Result<usize> {
        let bytes = self.read(start, count)?;
        lanes.load_le_bytes(bytes);
        Ok(bytes.len() / self.layout.code_bytes())
    }
}

/// The cost is linear in the number of codes, which are read once for all queries together; memory is needed for the results
/// alone.
impl Search for Index {
    fn bits(&self) -> usize {
        self.layout.bits
    }

    fn len(&self) -> usize {
        self.len
    }

    fn top_k(&self, queries: &Codes, k: usize) -> Result<Vec<Vec<Neighbor>>> {
        top_k(self, queries, k)
    }

    fn within(&self, queries: &Codes, radius: u32) -> Result<Vec<Vec<Neighbor>>> {
        within(self, queries, radius)
    }
}

impl fmt::Debug for Index {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { path, layout, len, .. } = self;
        f.debug_struct("Index")
            .field("path", path)
            .field("len", len)
            .field("bits", &layout.bits)
            .finish_non_exhaustive()
    }
}
