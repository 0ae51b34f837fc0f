//! Event files as TensorBoard reads them, with scalars only.
//!
//! An event file is a sequence of records: length (`u64`), its checksum, the bytes, their checksum; all
//! little-endian, checksums being CRC-32C, rotated and shifted by a constant. The bytes are a protocol
//! buffer `Event { wall_time = 1, step = 2, file_version = 3, summary = 5, session_log = 7 }`.

use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

use super::Log;
use crate::{Error, Result};

/// An event file in a folder that TensorBoard is pointed at. Each run of the process adds a file.
#[derive(Debug)]
pub struct TensorBoardLog {
    path: PathBuf,
    file: File,
}

impl TensorBoardLog {
    /// Starts an event file in a folder, which is made if there is none.
    ///
    /// # Errors
    /// The folder or the file cannot be written.
    pub fn create(folder: impl AsRef<Path>) -> Result<Self> {
        static FILES: AtomicU64 = AtomicU64::new(0);
        let folder = folder.as_ref();
        std::fs::create_dir_all(folder).map_err(Error::io(folder))?;
        let time = since_epoch();
        // TensorBoard reads the files of a folder in the order of their names.
        let name = format!(
            "events.out.tfevents.{:010}.{:09}.sconce.{}.{}",
            time.as_secs(),
            time.subsec_nanos(),
            std::process::id(),
            FILES.fetch_add(1, Ordering::Relaxed)
        );
        let path = folder.join(name);
        let file = File::create_new(&path).map_err(Error::io(&path))?;
        let mut log = Self { path, file };
        let mut version = Vec::new();
        put_bytes(&mut version, 3, b"brain.Event:2");
        log.event(0, &version)?;
        Ok(log)
    }

    /// The event file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    fn event(&mut self, step: u64, what: &[u8]) -> Result<()> {
        let mut event = Vec::with_capacity(what.len() + 24);
        put_tag(&mut event, 1, 1);
        event.extend(since_epoch().as_secs_f64().to_le_bytes());
        put_tag(&mut event, 2, 0);
        put_varint(&mut event, step);
        event.extend(what);
        let mut record = Vec::with_capacity(event.len() + 16);
        let length = (event.len() as u64).to_le_bytes();
        record.extend(length);
        record.extend(masked_crc(&length).to_le_bytes());
        record.extend(&event);
        record.extend(masked_crc(&event).to_le_bytes());
        self.file.write_all(&record).map_err(Error::io(&self.path))
    }
}

impl Log for TensorBoardLog {
    fn write(&mut self, step: u64, values: &[(&str, f64)]) -> Result<()> {
        let mut summary = Vec::new();
        for (name, value) in values {
            let mut scalar = Vec::new();
            put_bytes(&mut scalar, 1, name.as_bytes());
            put_tag(&mut scalar, 2, 5);
            scalar.extend((*value as f32).to_le_bytes());
            put_bytes(&mut summary, 1, &scalar);
        }
        let mut what = Vec::new();
        put_bytes(&mut what, 5, &summary);
        self.event(step, &what)
    }

    /// Files of earlier runs stay as they are: a mark tells TensorBoard to hide their later steps.
    fn rewind(&mut self, step: u64) -> Result<()> {
        const START: [u8; 2] = [1 << 3, 1]; // SessionLog { status = 1: START }
        let mut what = Vec::new();
        put_bytes(&mut what, 7, &START);
        self.event(step.saturating_add(1), &what)
    }
}

/// A scalar read back from an event file.
#[derive(Clone, Debug, PartialEq)]
pub struct Scalar {
    /// Step it was written for.
    pub step: u64,
    /// Its name.
    pub name: String,
    /// Its value.
    pub value: f32,
}

/// The scalars of an event file, in order. A last record that is incomplete is left out.
///
/// # Errors
/// The file cannot be read; a checksum is wrong; a record is not an event.
pub fn read_scalars(path: impl AsRef<Path>) -> Result<Vec<Scalar>> {
    let path = path.as_ref();
    let data = std::fs::read(path).map_err(Error::io(path))?;
    parse(&data).map_err(|reason| Error::Log { path: path.to_owned(), reason: reason.to_owned() })
}

type Parsed<T> = std::result::Result<T, &'static str>;

fn parse(mut data: &[u8]) -> Parsed<Vec<Scalar>> {
    let mut scalars = Vec::new();
    while let Some((head, rest)) = data.split_first_chunk::<12>() {
        let (length, check) = head.split_at(8);
        if masked_crc(length).to_le_bytes() != check {
            return Err("the checksum of a length is wrong");
        }
        let length = length.iter().rev().fold(0u64, |n, &byte| n << 8 | u64::from(byte));
        let Some((event, rest)) = usize::try_from(length).ok().and_then(|n| rest.split_at_checked(n)) else {
            break;
        };
        let Some((check, rest)) = rest.split_first_chunk::<4>() else { break };
        if masked_crc(event).to_le_bytes() != *check {
            return Err("the checksum of a record is wrong");
        }
        parse_event(event, &mut scalars)?;
        data = rest;
    }
    Ok(scalars)
}

fn parse_event(event: &[u8], scalars: &mut Vec<Scalar>) -> Parsed<()> {
    let fields = parse_message(event)?;
    let step = fields.iter().find_map(|field| if let (2, Field::Varint(n)) = field { Some(*n) } else { None });
    for summary in fields.iter().filter_map(|field| if let (5, Field::Bytes(b)) = field { Some(b) } else { None }) {
        for (_, value) in parse_message(summary)?.into_iter().filter(|(number, _)| *number == 1) {
            let Field::Bytes(value) = value else { return Err("a summary is not a message") };
            let (mut name, mut number) = (None, None);
            for field in parse_message(value)? {
                match field {
                    (1, Field::Bytes(bytes)) => name = std::str::from_utf8(bytes).ok(),
                    (2, Field::Fixed32(bits)) => number = Some(f32::from_bits(bits)),
                    _ => {}
                }
            }
            if let (Some(name), Some(value)) = (name, number) {
                scalars.push(Scalar { step: step.unwrap_or(0), name: name.to_owned(), value });
            }
        }
    }
    Ok(())
}

enum Field<'a> {
    Varint(u64),
    Fixed64,
    Bytes(&'a [u8]),
    Fixed32(u32),
}

fn parse_message(mut data: &[u8]) -> Parsed<Vec<(u64, Field<'_>)>> {
    const SHORT: &str = "a message ends early";
    let mut fields = Vec::new();
    while !data.is_empty() {
        let tag = take_varint(&mut data)?;
        let field = match tag & 7 {
            0 => Field::Varint(take_varint(&mut data)?),
            1 => {
                data = data.split_at_checked(8).ok_or(SHORT)?.1;
                Field::Fixed64
            }
            2 => {
                let length = usize::try_from(take_varint(&mut data)?).map_err(|_| SHORT)?;
                let (bytes, rest) = data.split_at_checked(length).ok_or(SHORT)?;
                data = rest;
                Field::Bytes(bytes)
            }
            5 => {
                let (bytes, rest) = data.split_first_chunk::<4>().ok_or(SHORT)?;
                data = rest;
                Field::Fixed32(u32::from_le_bytes(*bytes))
            }
            _ => return Err("a field of unknown type"),
        };
        fields.push((tag >> 3, field));
    }
    Ok(fields)
}

fn take_varint(data: &mut &[u8]) -> Parsed<u64> {
    let mut value = 0u64;
    for shift in (0..64).step_by(7) {
        let (&byte, rest) = data.split_first().ok_or("a number ends early")?;
        *data = rest;
        value |= u64::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            return Ok(value);
        }
    }
    Err("a number has too many digits")
}

fn put_varint(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

fn put_tag(out: &mut Vec<u8>, field: u64, wire_type: u64) {
    put_varint(out, field << 3 | wire_type);
}

fn put_bytes(out: &mut Vec<u8>, field: u64, bytes: &[u8]) {
    put_tag(out, field, 2);
    put_varint(out, bytes.len() as u64);
    out.extend(bytes);
}

fn since_epoch() -> std::time::Duration {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default()
}

fn masked_crc(data: &[u8]) -> u32 {
    crc32c(data).rotate_right(15).wrapping_add(0xa282_ead8)
}

/// CRC-32 with Castagnoli's polynomial, reflected.
fn crc32c(data: &[u8]) -> u32 {
    const TABLE: [u32; 256] = {
        let mut table = [0; 256];
        let mut index = 0;
        while index < 256 {
            let (mut crc, mut bit) = (index as u32, 0);
            while bit < 8 {
                crc = if crc & 1 == 1 { crc >> 1 ^ 0x82f6_3b78 } else { crc >> 1 };
                bit += 1;
            }
            table[index] = crc;
            index += 1;
        }
        table
    };
    !data.iter().fold(!0, |crc, &byte| crc >> 8 ^ TABLE[(crc as u8 ^ byte) as usize])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn checksums_equal_the_published_ones() {
        // RFC 3720, B.4
        assert_eq!(crc32c(&[0; 32]), 0x8a91_36aa);
        assert_eq!(crc32c(&[0xff; 32]), 0x62a8_ab43);
        assert_eq!(crc32c(b"123456789"), 0xe306_9283);
    }

    #[test]
    fn what_is_written_is_read() -> Result<()> {
        let folder = tempfile::tempdir().unwrap();
        let mut log = TensorBoardLog::create(folder.path().join("run"))?;
        log.write(3, &[("loss", 0.5), ("müller/lr", 1e-3)])?;
        log.rewind(200)?;
        log.write(u64::from(u32::MAX) + 5, &[("loss", f64::NAN)])?;
        let read = read_scalars(log.path())?;
        let (first, last) = (&read[..2], &read[2]);
        assert_eq!(first[0], Scalar { step: 3, name: "loss".to_owned(), value: 0.5 });
        assert_eq!(first[1], Scalar { step: 3, name: "müller/lr".to_owned(), value: 1e-3 });
        assert_eq!((last.step, last.name.as_str()), (4_294_967_300, "loss"));
        assert!(last.value.is_nan() && read.len() == 3);
        // A second file in the same folder, in the same instant, has a name of its own.
        assert_ne!(TensorBoardLog::create(folder.path().join("run"))?.path(), log.path());
        Ok(())
    }

    #[test]
    fn the_first_record_has_the_layout_that_tensorboard_expects() -> Result<()> {
        let folder = tempfile::tempdir().unwrap();
        let log = TensorBoardLog::create(folder.path())?;
        let bytes = std::fs::read(log.path()).unwrap();
        let event = 9 + 2 + 15; // wall_time, step, file_version
        assert_eq!(bytes.len(), 8 + 4 + event + 4);
        assert_eq!(bytes[..8], (event as u64).to_le_bytes());
        assert_eq!((bytes[12], &bytes[21..23], bytes[23]), (0x09, &[0x10, 0][..], 0x1a));
        assert_eq!(&bytes[24..38], b"\x0dbrain.Event:2");
        Ok(())
    }

    #[test]
    fn altered_files_are_noticed() -> Result<()> {
        let folder = tempfile::tempdir().unwrap();
        let mut log = TensorBoardLog::create(folder.path())?;
        log.write(1, &[("loss", 0.5)])?;
        let intact = std::fs::read(log.path()).unwrap();
        for bit in 0..intact.len() * 8 {
            let mut altered = intact.clone();
            altered[bit / 8] ^= 1 << (bit % 8);
            assert!(parse(&altered).is_err(), "bit {bit}");
        }
        for length in 0..intact.len() {
            assert_eq!(parse(&intact[..length]).unwrap(), [], "{length} bytes");
        }
        Ok(())
    }
}
