//! A streaming tar reader that survives damage.
//!
//! Reads the ustar, GNU (long names, base-256 sizes) and pax (path, size) formats. A header that fails its
//! checksum is reported, and reading goes on at the next block that is a valid header; the sizes in headers are
//! never trusted with memory.

use crate::{Error, ReadReport, Result};
use std::io::{ErrorKind, Read};

const BLOCK: usize = 512;

/// A regular file in a tar stream.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Member {
    /// Path within the archive, without a leading `./`.
    pub path: String,
    /// Where the contents begin, in bytes from the start of the stream.
    pub offset: u64,
    /// Length of the contents in bytes.
    pub size: u64,
}

/// Reads the members of a tar stream one after the other.
#[derive(Debug)]
pub struct TarReader<R> {
    reader: R,
    place: String,
    max_member: u64,
    position: u64,
    /// Bytes of the current member that have not been read, and its padding.
    unread: u64,
    padding: u64,
    ended: bool,
    report: ReadReport,
}

impl<R: Read> TarReader<R> {
    /// A reader of a stream. `place` names it in the report; members of more than `max_member` bytes are skipped
    /// with a report.
    pub fn new(reader: R, place: impl Into<String>, max_member: u64) -> Self {
        Self {
            reader,
            place: place.into(),
            max_member,
            position: 0,
            unread: 0,
            padding: 0,
            ended: false,
            report: ReadReport::default(),
        }
    }

    /// What was skipped so far.
    pub fn report(&self) -> &ReadReport {
        &self.report
    }

    /// Ends reading and gives the report.
    pub fn into_report(self) -> ReadReport {
        self.report
    }

    pub(crate) fn take_report(&mut self) -> ReadReport {
        std::mem::take(&mut self.report)
    }

    pub(crate) fn fail(&mut self, member: Option<String>, cause: impl std::fmt::Display) {
        self.report.push(self.place.clone(), member, cause);
    }

    /// The next regular file, none at the end. Folders, links and devices are passed over.
    pub fn next_member(&mut self) -> Option<Member> {
        // Set by an extension header for the member after it.
        let mut long_path: Option<String> = None;
        let mut long_size: Option<u64> = None;
        let mut damaged = false;
        while !self.ended {
            self.skip_contents()?;
            let mut block = [0u8; BLOCK];
            let read = match self.fill(&mut block) {
                Ok(read) => read,
                Err(error) => return self.end(None, error),
            };
            if read == 0 {
                return self.end(None, "ends without its end mark: members may be missing");
            }
            if block.iter().all(|&byte| byte == 0) {
                // Two such blocks are written; one is enough for every reader.
                self.ended = true;
                self.drain();
                return None;
            }
            if read < BLOCK {
                return self.end(None, "ends within a header");
            }
            let Some(header) = Header::parse(&block) else {
                if !damaged {
                    self.fail(None, format!("no header at byte {}", self.position - BLOCK as u64));
                }
                damaged = true;
                (long_path, long_size) = (None, None);
                continue;
            };
            damaged = false;
            let size = long_size.take().unwrap_or(header.size);
            self.unread = size;
            self.padding = (BLOCK as u64 - size % BLOCK as u64) % BLOCK as u64;
            match header.kind {
                b'L' => match self.extension() {
                    Some(bytes) => long_path = Some(text(&bytes)),
                    None => continue,
                },
                b'x' => {
                    let Some(bytes) = self.extension() else { continue };
                    for (key, value) in pax_records(&bytes) {
                        match key {
                            b"path" => long_path = Some(text(value)),
                            b"size" => long_size = std::str::from_utf8(value).ok().and_then(|v| v.parse().ok()),
                            _ => {}
                        }
                    }
                }
                b'0' | b'\0' | b'7' => {
                    let path = long_path.take().unwrap_or(header.path);
                    let path = path.strip_prefix("./").unwrap_or(&path).to_owned();
                    if path.ends_with('/') {
                        continue;
                    }
                    if size > self.max_member {
                        let error = Error::TooLarge { what: "the member (bytes)", size, limit: self.max_member };
                        self.fail(Some(path), error);
                        continue;
                    }
                    return Some(Member { path, offset: self.position, size });
                }
                // Links, folders, devices, global pax headers and whatever else.
                _ => (long_path, long_size) = (None, None),
            }
        }
        None
    }

    /// The contents of the member that [`Self::next_member`] gave last.
    ///
    /// # Errors
    /// [`Error::Malformed`] where the stream ends early, [`Error::Stream`] where it cannot be read.
    pub fn contents(&mut self) -> Result<Vec<u8>> {
        let size = self.unread;
        let mut bytes = Vec::new();
        let read = self.reader.by_ref().take(size).read_to_end(&mut bytes);
        self.position += bytes.len() as u64;
        self.unread -= bytes.len() as u64;
        if let Err(error) = read {
            self.ended = true;
            return Err(Error::Stream(error));
        }
        if (bytes.len() as u64) < size {
            self.ended = true;
            return Err(Error::malformed("tar", format!("ends after {} of {size} bytes", bytes.len())));
        }
        Ok(bytes)
    }

    /// The contents of an extension header, which are small in any honest archive.
    fn extension(&mut self) -> Option<Vec<u8>> {
        const LIMIT: u64 = 1 << 20;
        if self.unread > LIMIT {
            self.fail(None, format!("an extension header of {} bytes", self.unread));
            return None;
        }
        self.contents().map_err(|error| self.fail(None, error)).ok()
    }

    /// Reads what follows the end mark, as a compressed stream checks its sum only at its end.
    fn drain(&mut self) {
        const LIMIT: u64 = 1 << 24;
        if let Err(error) = std::io::copy(&mut self.reader.by_ref().take(LIMIT), &mut std::io::sink()) {
            self.fail(None, format!("after the last member, any of which may be damaged: {error}"));
        }
    }

    fn end(&mut self, member: Option<String>, cause: impl std::fmt::Display) -> Option<Member> {
        self.ended = true;
        self.fail(member, cause);
        None
    }

    fn skip_contents(&mut self) -> Option<()> {
        let rest = self.unread.saturating_add(self.padding);
        (self.unread, self.padding) = (0, 0);
        match std::io::copy(&mut self.reader.by_ref().take(rest), &mut std::io::sink()) {
            Ok(skipped) => {
                self.position += skipped;
                if skipped < rest {
                    self.end(None, "ends within a member")?;
                }
                Some(())
            }
            Err(error) => {
                self.end(None, error)?;
                None
            }
        }
    }

    fn fill(&mut self, block: &mut [u8]) -> std::io::Result<usize> {
        let mut read = 0;
        while read < block.len() {
            match self.reader.read(&mut block[read..]) {
                Ok(0) => break,
                Ok(count) => read += count,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        self.position += read as u64;
        Ok(read)
    }
}

struct Header {
    path: String,
    size: u64,
    kind: u8,
}

impl Header {
    /// None where the checksum or a number is wrong.
    fn parse(block: &[u8; BLOCK]) -> Option<Self> {
        let sum = number(&block[148..156])?;
        // The checksum is taken with its own field as spaces; some old writers added signed bytes.
        let bytes = || block.iter().enumerate().map(|(at, &b)| if (148..156).contains(&at) { b' ' } else { b });
        let unsigned: u64 = bytes().map(u64::from).sum();
        let signed: i64 = bytes().map(|b| i64::from(b as i8)).sum();
        if sum != unsigned && i64::try_from(sum) != Ok(signed) {
            return None;
        }
        let size = number(&block[124..136])?;
        let mut path = text(&block[..100]);
        if &block[257..263] == b"ustar\0" {
            let prefix = text(&block[345..500]);
            if !prefix.is_empty() {
                path = format!("{prefix}/{path}");
            }
        }
        Some(Self { path, size, kind: block[156] })
    }
}

/// Octal digits ended by a space or a zero, or base 256 where the first bit is set.
fn number(field: &[u8]) -> Option<u64> {
    if field[0] & 0x80 != 0 {
        let first = u64::from(field[0] & 0x7f);
        return field[1..].iter().try_fold(first, |sum, &byte| sum.checked_mul(256)?.checked_add(byte.into()));
    }
    let digits = field.iter().copied().skip_while(|&b| b == b' ').take_while(|&b| b != b' ' && b != 0);
    let mut sum = 0u64;
    for digit in digits {
        let digit = digit.checked_sub(b'0').filter(|&digit| digit < 8)?;
        sum = sum.checked_mul(8)?.checked_add(digit.into())?;
    }
    Some(sum)
}

fn text(bytes: &[u8]) -> String {
    let end = bytes.iter().position(|&byte| byte == 0).unwrap_or(bytes.len());
    String::from_utf8_lossy(&bytes[..end]).into_owned()
}

/// Records of the form `LENGTH KEY=VALUE\n`, the length counting itself; ends at the first malformed one.
fn pax_records(mut bytes: &[u8]) -> Vec<(&[u8], &[u8])> {
    let mut records = Vec::new();
    while let Some(space) = bytes.iter().position(|&b| b == b' ') {
        let length = std::str::from_utf8(&bytes[..space]).ok().and_then(|digits| digits.parse::<usize>().ok());
        let Some(record) = length.and_then(|length| bytes.get(space + 1..length)) else { break };
        let record = record.strip_suffix(b"\n").unwrap_or(record);
        let Some(equals) = record.iter().position(|&b| b == b'=') else { break };
        records.push((&record[..equals], &record[equals + 1..]));
        bytes = &bytes[length.unwrap_or(bytes.len())..];
    }
    records
}
