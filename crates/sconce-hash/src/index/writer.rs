//! Making and appending.

use std::ffi::OsStr;
use std::fmt;
use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use super::format::{BlockCrc, DATA, Layout, Record};
use crate::{Codes, Error, Index, Result};

/// What an index is to hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct IndexOptions {
    /// Bits of a code.
    pub bits: usize,
    /// Whether each code has an id.
    pub ids: bool,
    /// Codes with a checksum of their own: what is read at least to be sure of one code. 64 KiB unless set.
    pub block_codes: usize,
}

impl IndexOptions {
    /// Codes of a width in bits, without ids.
    pub fn new(bits: usize) -> Self {
        Self { bits, ids: false, block_codes: 8192 / bits.div_ceil(64).clamp(1, 8192) }
    }

    /// Whether each code has an id.
    pub fn ids(self, ids: bool) -> Self {
        Self { ids, ..self }
    }

    /// Codes in a block, at most 2^20.
    pub fn block_codes(self, block_codes: usize) -> Self {
        Self { block_codes, ..self }
    }
}

/// Appends to an index, alone: an advisory lock keeps other writers out while it lives.
///
/// What [`IndexWriter::append`] has returned from is on the disk, and survives the death of this process or of the machine as
/// far as the disk keeps what it was told to sync.
pub struct IndexWriter {
    file: File,
    path: PathBuf,
    layout: Layout,
    record: Record,
    /// Of the last block as far as it is filled.
    tail: BlockCrc,
    /// Whether it is unknown what the last commit left on the disk.
    broken: bool,
}

impl IndexWriter {
    /// Makes an empty index. The file appears at once and whole, or not at all; a process that dies meanwhile may leave a file
    /// named `.<name>.<process>.<number>.new` beside it.
    ///
    /// # Errors
    /// When the options are wrong, a file of this name exists, or the system refuses.
    pub fn create(path: impl AsRef<Path>, options: &IndexOptions) -> Result<Self> {
        let path = path.as_ref().to_owned();
        let layout = Layout::new(options.bits, options.ids, options.block_codes).map_err(Error::Config)?;
        let Some(name) = path.file_name() else {
            return Err(Error::Input(format!("{}: not the name of a file", path.display())));
        };
        let (file, draft) = attempt(&path, || Self::draft(&path, name, layout))?;
        let linked = attempt(&path, || link(&draft, &path));
        // What stays behind does no harm.
        let _ = fs::remove_file(&draft);
        linked?;
        attempt(&path, || sync_folder(&path))?;
        let record = Record { sequence: 0, count: 0, tail_crc: 0 };
        Ok(Self { file, path, layout, record, tail: BlockCrc::new(0), broken: false })
    }

    /// A whole index under another name.
    fn draft(path: &Path, name: &OsStr, layout: Layout) -> io::Result<(File, PathBuf)> {
        let mut file = Err(io::ErrorKind::AlreadyExists.into());
        let mut draft = path.to_owned();
        for number in 0..1000 {
            draft.set_file_name(format!(".{}.{}.{number}.new", name.display(), std::process::id()));
            file = File::options().read(true).write(true).create_new(true).open(&draft);
            if !file.as_ref().is_err_and(|error| error.kind() == io::ErrorKind::AlreadyExists) {
                break;
            }
        }
        let mut file = file?;
        file.lock()?;
        file.write_all(&layout.encode())?;
        let record = Record { sequence: 0, count: 0, tail_crc: 0 };
        file.write_all(&record.encode(&layout))?;
        file.set_len(DATA as u64)?;
        file.sync_all()?;
        Ok((file, draft))
    }

    /// Opens an index to append to it.
    ///
    /// # Errors
    /// When another writer has it open ([`Error::Locked`]), or those of [`Index::open`]; also when the last block is damaged.
    pub fn open(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref().to_owned();
        let mut file = attempt(&path, || OpenOptions::new().read(true).write(true).open(&path))?;
        file.try_lock().map_err(|error| match error {
            TryLockError::WouldBlock => Error::Locked { path: path.clone() },
            TryLockError::Error(source) => Error::Io { path: path.clone(), source },
        })?;
        let corrupt = |what: &str| Error::Corrupt { path: path.clone(), what: what.into() };
        // The same checks as a reader makes; nobody else writes now.
        Index::open(&path)?;
        let mut head = vec![0; DATA];
        attempt(&path, || file.read_exact(&mut head))?;
        let layout = Layout::decode(&head).map_err(|what| corrupt(&what))?;
        let record = Record::newest(&head, &layout).ok_or_else(|| corrupt("no commit record"))?;

        let (block, filled) = (record.count / layout.block as u64, (record.count % layout.block as u64) as usize);
        let mut tail = BlockCrc::new(block);
        if filled > 0 {
            let at = layout.block_at(block).ok_or_else(|| corrupt("too many codes"))?;
            let codes = attempt(&path, || read_at(&mut file, at, filled * layout.code_bytes()))?;
            let ids = if layout.ids { 8 * filled } else { 0 };
            let ids = attempt(&path, || read_at(&mut file, at + layout.ids_at() as u64, ids))?;
            tail.update(&codes, &ids);
            if tail.value() != record.tail_crc {
                return Err(corrupt("the last codes do not match their checksum"));
            }
        }
        Ok(Self { file, path, layout, record, tail, broken: false })
    }

    /// Appends codes without ids; on the disk when it returns. Many at a time are faster: each call waits for the disk twice.
    ///
    /// # Errors
    /// When the width differs, the index has ids, or the system refuses; the index holds what it held before then. If the
    /// commit itself fails, that is known only after the index has been opened again, and further appends are refused.
    pub fn append(&mut self, codes: &Codes) -> Result<()> {
        match self.layout.ids {
            false => self.write(codes, &[]),
            true => Err(Error::Input(format!("{}: codes of this index have ids", self.path.display()))),
        }
    }

    /// Appends codes with an id each, as [`IndexWriter::append`]. Ids need not differ.
    ///
    /// # Errors
    /// As there; and when there are not as many ids as codes, or the index has no ids.
    pub fn append_with_ids(&mut self, codes: &Codes, ids: &[u64]) -> Result<()> {
        if !self.layout.ids {
            return Err(Error::Input(format!("{}: codes of this index have no ids", self.path.display())));
        }
        match ids.len() == codes.len() {
            true => self.write(codes, ids),
            false => Err(Error::Input(format!("{} ids for {} codes", ids.len(), codes.len()))),
        }
    }

    fn write(&mut self, codes: &Codes, ids: &[u64]) -> Result<()> {
        if codes.bits() != self.layout.bits {
            let (found, bits) = (codes.bits(), self.layout.bits);
            return Err(Error::Input(format!("codes of {found} bits for an index of {bits} bits")));
        }
        if self.broken {
            return Err(Error::Input(format!("{}: open it again, a commit has failed", self.path.display())));
        }
        let count = self.record.count.checked_add(codes.len() as u64);
        if codes.is_empty() {
            return Ok(());
        }
        let Some(count) = count.filter(|count| self.layout.end(*count).is_some()) else {
            return Err(Error::Input(format!("{}: no file can hold so many codes", self.path.display())));
        };
        let path = self.path.clone();
        let tail = attempt(&path, || self.write_data(codes, ids))?;
        let tail_crc = if count.is_multiple_of(self.layout.block as u64) { 0 } else { tail.value() };
        let record = Record { sequence: self.record.sequence + 1, count, tail_crc };
        self.broken = true;
        attempt(&path, || {
            write_at(&mut self.file, record.slot(), &record.encode(&self.layout))?;
            self.file.sync_data()
        })?;
        (self.record, self.tail, self.broken) = (record, tail, false);
        Ok(())
    }

    /// Writes and syncs codes, ids and checksums behind what is committed.
    fn write_data(&mut self, codes: &Codes, ids: &[u64]) -> io::Result<BlockCrc> {
        let Layout { block: size, words, .. } = self.layout;
        let mut tail = self.tail.clone();
        let mut done = 0;
        while done < codes.len() {
            let count = self.record.count + done as u64;
            let (block, filled) = (count / size as u64, (count % size as u64) as usize);
            if filled == 0 {
                tail = BlockCrc::new(block);
            }
            let at = self.layout.block_at(block).ok_or(io::ErrorKind::FileTooLarge)?;
            let part = done..codes.len().min(done + size - filled);
            let bytes = le_bytes(&codes.words()[part.start * words..part.end * words]);
            write_at(&mut self.file, at + (filled * self.layout.code_bytes()) as u64, &bytes)?;
            let mut id_bytes = vec![];
            if self.layout.ids {
                id_bytes = le_bytes(&ids[part.clone()]);
                write_at(&mut self.file, at + (self.layout.ids_at() + 8 * filled) as u64, &id_bytes)?;
            }
            tail.update(&bytes, &id_bytes);
            if filled + part.len() == size {
                let crc = u64::from(tail.value()).to_le_bytes();
                write_at(&mut self.file, at + self.layout.crc_at() as u64, &crc)?;
            }
            done = part.end;
        }
        self.file.sync_data()?;
        Ok(tail)
    }

    /// Bits of a code.
    pub fn bits(&self) -> usize {
        self.layout.bits
    }

    /// Number of committed codes.
    pub fn len(&self) -> u64 {
        self.record.count
    }

    /// Whether there is no code yet.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

impl fmt::Debug for IndexWriter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { path, layout, record, .. } = self;
        let mut writer = f.debug_struct("IndexWriter");
        writer.field("path", path).field("len", &record.count).field("bits", &layout.bits).finish_non_exhaustive()
    }
}

fn attempt<T>(path: &Path, f: impl FnOnce() -> io::Result<T>) -> Result<T> {
    f().map_err(|source| Error::Io { path: path.to_owned(), source })
}

fn le_bytes(words: &[u64]) -> Vec<u8> {
    words.iter().flat_map(|word| word.to_le_bytes()).collect()
}

fn write_at(file: &mut File, at: u64, bytes: &[u8]) -> io::Result<()> {
    file.seek(SeekFrom::Start(at))?;
    file.write_all(bytes)
}

fn read_at(file: &mut File, at: u64, len: usize) -> io::Result<Vec<u8>> {
    let mut bytes = vec![0; len];
    file.seek(SeekFrom::Start(at))?;
    file.read_exact(&mut bytes)?;
    Ok(bytes)
}

/// Gives a file its name, unless another has it.
fn link(draft: &Path, path: &Path) -> io::Result<()> {
    match fs::hard_link(draft, path) {
        // A renaming would take the place of another file, but not every file system has links.
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists && !path.try_exists()? => fs::rename(draft, path),
        linked => linked,
    }
}

/// Makes sure that the name of a file is on the disk.
fn sync_folder(path: &Path) -> io::Result<()> {
    // Elsewhere folders cannot be opened, and names are synced with their files.
    if cfg!(unix) {
        let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
        File::open(folder)?.sync_all()?;
    }
    Ok(())
}
