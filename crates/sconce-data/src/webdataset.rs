//! WebDataset shards: tar archives, gzipped or not, whose members of one basename form a sample.
//!
//! `cat/001.jpg` and `cat/001.json` make the sample `cat/001` with the extensions `jpg` and `json`. The members of
//! a sample stand next to each other. Damaged members are left out with a [`ReadReport`], and so are samples in
//! the middle of which a shard breaks off.
//!
//! [`SampleStream`] reads shards of any size in order; [`WebDataset`] gives samples by index.

use crate::folder::EXTENSIONS;
use crate::tar::{Member, TarReader};
use crate::{Dataset, Error, Generator, Picture, ReadReport, ReportHandle, Result};
use flate2::read::MultiGzDecoder;
use serde::de::DeserializeOwned;
use std::collections::VecDeque;
use std::fmt;
use std::fs::File;
use std::io::{BufRead, BufReader, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

/// Limits for reading shards.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct WebDatasetOptions {
    /// Members of more bytes than this are skipped with a report.
    pub max_member: u64,
    /// Most bytes that a [`WebDataset`] keeps in memory for its gzipped shards.
    pub max_memory: u64,
}

impl Default for WebDatasetOptions {
    /// 256 MiB a member, 4 GiB in memory.
    fn default() -> Self {
        Self { max_member: 1 << 28, max_memory: 1 << 32 }
    }
}

/// A sample: the encoded members of one basename.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sample {
    /// Path of the members up to the first dot of the file name.
    pub key: String,
    /// The shard it came from.
    pub shard: Arc<str>,
    /// Extensions, in lower case and in the order of the shard, with the contents.
    pub members: Vec<(String, Arc<[u8]>)>,
}

impl Sample {
    /// The contents of the member with an extension.
    ///
    /// # Errors
    /// [`Error::MissingMember`].
    pub fn bytes(&self, extension: &str) -> Result<&[u8]> {
        match self.members.iter().find(|(name, _)| name == extension) {
            Some((_, bytes)) => Ok(bytes),
            None => Err(self.missing(extension)),
        }
    }

    /// A JSON member, parsed.
    ///
    /// # Errors
    /// [`Error::MissingMember`], or [`Error::Json`] naming shard and member.
    pub fn json<T: DeserializeOwned>(&self, extension: &str) -> Result<T> {
        serde_json::from_slice(self.bytes(extension)?).map_err(|e| self.place(extension, e.into()))
    }

    /// A text member.
    ///
    /// # Errors
    /// [`Error::MissingMember`], or [`Error::Malformed`] where it is not UTF-8.
    pub fn text(&self, extension: &str) -> Result<&str> {
        std::str::from_utf8(self.bytes(extension)?)
            .map_err(|e| self.place(extension, Error::malformed("text", e.to_string())))
    }

    /// The first member with an image's extension, decoded.
    ///
    /// # Errors
    /// [`Error::MissingMember`], or those of [`Picture::decode`] naming shard and member.
    pub fn picture(&self) -> Result<Picture> {
        let member = self.members.iter().find(|(name, _)| EXTENSIONS.contains(&name.as_str()));
        let (extension, bytes) = member.ok_or_else(|| self.missing(&EXTENSIONS.join("|")))?;
        Picture::decode(bytes).map_err(|e| self.place(extension, e))
    }

    fn missing(&self, wanted: &str) -> Error {
        let found = self.members.iter().map(|(name, _)| name.clone()).collect();
        Error::MissingMember { key: self.key.clone(), wanted: wanted.into(), found }.at(&self.shard)
    }

    fn place(&self, extension: &str, error: Error) -> Error {
        error.at(format!("{}: {}.{extension}", self.shard, self.key))
    }
}

/// Basename and extension: the file name is split at its first dot. None for hidden files and those without a dot.
fn split(path: &str) -> Option<(&str, String)> {
    let name = path.rfind('/').map_or(0, |slash| slash + 1);
    let dot = name + path[name..].find('.')?;
    (dot > name && dot + 1 < path.len()).then(|| (&path[..dot], path[dot + 1..].to_lowercase()))
}

/// Members of one basename that follow each other.
type Group<T> = (String, Vec<(String, T)>);

/// Adds a member to the current group; gives the group before it when a new one begins.
fn group<T>(current: &mut Option<Group<T>>, key: &str, extension: String, value: T) -> Option<Group<T>> {
    match current {
        Some((open, members)) if open == key => {
            members.push((extension, value));
            None
        }
        _ => current.replace((key.to_owned(), vec![(extension, value)])),
    }
}

fn has<T>(current: &Option<Group<T>>, key: &str, extension: &str) -> bool {
    current.as_ref().is_some_and(|(open, members)| open == key && members.iter().any(|(e, _)| e == extension))
}

type Stream = Box<dyn Read + Send>;

/// Opens a shard: the stream of the tar, and whether it is compressed.
fn open_shard(path: &Path) -> Result<(Stream, bool)> {
    let file = File::open(path).map_err(|e| Error::io(path, e))?;
    let mut reader = BufReader::with_capacity(1 << 17, file);
    let gzip = reader.fill_buf().map_err(|e| Error::io(path, e))?.starts_with(&[0x1f, 0x8b]);
    let stream: Stream =
        if gzip { Box::new(BufReader::with_capacity(1 << 16, MultiGzDecoder::new(reader))) } else { Box::new(reader) };
    Ok((stream, gzip))
}

/// Reads the samples of shards one after the other, holding one sample in memory.
///
/// What cannot be read is left out and told in the report; nothing stops the stream but its end. Decode and batch
/// on worker threads with [`ordered_map`](crate::ordered_map):
///
/// ```no_run
/// use sconce_data::{Generator, SampleStream, batched, ordered_map, shuffle_buffer};
///
/// let stream = SampleStream::open(["train-000.tar", "train-001.tar.gz"], Default::default());
/// let report = stream.report();
/// let samples = shuffle_buffer(stream, 1000, Generator::new(0));
/// for batch in ordered_map(batched(samples, 32), 4, 4, |samples| samples.len())? {
///     println!("{} samples", batch?);
/// }
/// println!("{}", report.get());
/// # Ok::<(), sconce_data::Error>(())
/// ```
pub struct SampleStream {
    pending: VecDeque<PathBuf>,
    current: Option<(TarReader<Stream>, Arc<str>)>,
    open: Option<Group<Arc<[u8]>>>,
    options: WebDatasetOptions,
    report: ReportHandle,
}

impl SampleStream {
    /// A stream over shards, each opened when its turn comes.
    pub fn open<P: Into<PathBuf>>(shards: impl IntoIterator<Item = P>, options: WebDatasetOptions) -> Self {
        let pending = shards.into_iter().map(Into::into).collect();
        Self { pending, current: None, open: None, options, report: ReportHandle::default() }
    }

    /// A stream over one tar read from elsewhere, which `name` stands for in the report. Gzip is not looked for.
    pub fn from_reader(reader: impl Read + Send + 'static, name: &str, options: WebDatasetOptions) -> Self {
        let tar = TarReader::new(Box::new(reader) as Box<_>, name, options.max_member);
        let current = Some((tar, name.into()));
        Self { pending: VecDeque::new(), current, open: None, options, report: ReportHandle::default() }
    }

    /// What has been skipped; the handle stays valid when the stream goes to another thread.
    pub fn report(&self) -> ReportHandle {
        self.report.clone()
    }

    fn fail(&self, place: &str, cause: impl fmt::Display) {
        let mut report = ReadReport::default();
        report.push(place, None, cause);
        self.report.extend(report);
    }
}

impl Iterator for SampleStream {
    type Item = Sample;

    fn next(&mut self) -> Option<Sample> {
        loop {
            let Some((tar, shard)) = &mut self.current else {
                let path = self.pending.pop_front()?;
                let name = path.display().to_string();
                match open_shard(&path) {
                    Ok((stream, _)) => {
                        let tar = TarReader::new(stream, &name, self.options.max_member);
                        self.current = Some((tar, name.into()));
                    }
                    Err(error) => self.fail(&name, error),
                }
                continue;
            };
            let shard = Arc::clone(shard);
            let sample = |(key, members)| Sample { key, shard, members };
            let member = tar.next_member();
            self.report.extend(tar.take_report());
            let Some(Member { path, .. }) = member else {
                self.current = None;
                match self.open.take() {
                    Some(group) => return Some(sample(group)),
                    None => continue,
                }
            };
            let Some((key, extension)) = split(&path) else { continue };
            if has(&self.open, key, &extension) {
                tar.fail(Some(path.clone()), "a second member of this name");
                self.report.extend(tar.take_report());
                continue;
            }
            match tar.contents() {
                Ok(bytes) => {
                    if let Some(done) = group(&mut self.open, key, extension, bytes.into()) {
                        return Some(sample(done));
                    }
                }
                Err(error) => {
                    tar.fail(Some(path.clone()), error);
                    self.report.extend(tar.take_report());
                    // The sample is cut, unless the broken member belongs to the next one.
                    if let Some(group) = self.open.take().filter(|(open, _)| open != key) {
                        return Some(sample(group));
                    }
                }
            }
        }
    }
}

impl fmt::Debug for SampleStream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SampleStream").field("pending", &self.pending).finish_non_exhaustive()
    }
}

/// Where the contents of a member are.
#[derive(Debug, Clone)]
enum Stored {
    Memory(Arc<[u8]>),
    File { offset: u64, size: usize },
}

#[derive(Debug)]
struct Entry {
    shard: usize,
    key: String,
    members: Vec<(String, Stored)>,
}

#[derive(Debug)]
struct Shard {
    name: Arc<str>,
    path: PathBuf,
    file: Mutex<File>,
}

/// The samples of shards by index. Plain shards are indexed and read from the file when asked for; gzipped ones
/// are kept in memory, decompressed, since gzip cannot be entered in the middle.
#[derive(Debug)]
pub struct WebDataset {
    shards: Vec<Shard>,
    entries: Vec<Entry>,
}

impl WebDataset {
    /// Indexes shards. The report names what was left out; [`ReadReport::into_result`] makes it an error.
    ///
    /// # Errors
    /// [`Error::Io`] for a shard that cannot be opened, [`Error::Empty`] when there is not a single sample,
    /// [`Error::TooLarge`] when gzipped shards exceed the memory allowed for them (then [`SampleStream`] is the
    /// way to read them).
    pub fn open<P: AsRef<Path>>(
        shards: impl IntoIterator<Item = P>,
        options: WebDatasetOptions,
    ) -> Result<(Self, ReadReport)> {
        let mut dataset = Self { shards: Vec::new(), entries: Vec::new() };
        let mut report = ReadReport::default();
        let mut memory = 0u64;
        for path in shards {
            report.extend(dataset.index(path.as_ref(), &options, &mut memory)?);
        }
        if dataset.entries.is_empty() {
            let path = dataset.shards.first().map(|shard| shard.path.clone()).unwrap_or_default();
            return Err(Error::Empty { path, reason: format!("no sample ({report})") });
        }
        Ok((dataset, report))
    }

    fn index(&mut self, path: &Path, options: &WebDatasetOptions, memory: &mut u64) -> Result<ReadReport> {
        let (stream, gzip) = open_shard(path)?;
        let file = File::open(path).map_err(|e| Error::io(path, e))?;
        let length = file.metadata().map_err(|e| Error::io(path, e))?.len();
        let name: Arc<str> = path.display().to_string().into();
        let shard = self.shards.len();
        let mut tar = TarReader::new(stream, &*name, options.max_member);
        let mut open: Option<Group<Stored>> = None;
        while let Some(Member { path: member, offset, size }) = tar.next_member() {
            let Some((key, extension)) = split(&member) else { continue };
            if has(&open, key, &extension) {
                tar.fail(Some(member.clone()), "a second member of this name");
                continue;
            }
            let stored = if gzip {
                *memory = memory.saturating_add(size);
                if *memory > options.max_memory {
                    let limit = options.max_memory;
                    let error = Error::TooLarge { what: "a gzipped data set (bytes)", size: *memory, limit };
                    return Err(error.at(&name));
                }
                tar.contents().map(|bytes| Stored::Memory(bytes.into()))
            } else if offset.saturating_add(size) > length {
                Err(Error::malformed("tar", "ends within the member"))
            } else {
                Ok(Stored::File { offset, size: size as usize })
            };
            match stored {
                Ok(stored) => {
                    if let Some((key, members)) = group(&mut open, key, extension, stored) {
                        self.entries.push(Entry { shard, key, members });
                    }
                }
                Err(error) => {
                    tar.fail(Some(member.clone()), error);
                    open = open.filter(|(open, _)| open != key);
                }
            }
        }
        if let Some((key, members)) = open {
            self.entries.push(Entry { shard, key, members });
        }
        self.shards.push(Shard { name, path: path.to_path_buf(), file: Mutex::new(file) });
        Ok(tar.into_report())
    }

    /// The keys of the samples, in order.
    pub fn keys(&self) -> impl ExactSizeIterator<Item = &str> {
        self.entries.iter().map(|entry| entry.key.as_str())
    }

    /// The sample at `index`.
    ///
    /// # Errors
    /// [`Error::OutOfRange`], or [`Error::Io`] for a shard that changed since it was indexed.
    pub fn sample(&self, index: usize) -> Result<Sample> {
        let entry = self.entries.get(index).ok_or(Error::OutOfRange { index, len: self.entries.len() })?;
        let shard = &self.shards[entry.shard];
        let read = |stored: &Stored| -> Result<Arc<[u8]>> {
            match stored {
                Stored::Memory(bytes) => Ok(Arc::clone(bytes)),
                Stored::File { offset, size } => {
                    let mut bytes = vec![0; *size];
                    let mut file = shard.file.lock().unwrap_or_else(PoisonError::into_inner);
                    file.seek(SeekFrom::Start(*offset))
                        .and_then(|_| file.read_exact(&mut bytes))
                        .map_err(|e| Error::io(&shard.path, e))?;
                    Ok(bytes.into())
                }
            }
        };
        let members = entry.members.iter().map(|(extension, stored)| Ok((extension.clone(), read(stored)?)));
        Ok(Sample { key: entry.key.clone(), shard: Arc::clone(&shard.name), members: members.collect::<Result<_>>()? })
    }
}

impl Dataset for WebDataset {
    type Item = Sample;

    fn len(&self) -> usize {
        self.entries.len()
    }

    fn get(&self, index: usize, _generator: &Generator) -> Result<Sample> {
        self.sample(index)
    }
}
