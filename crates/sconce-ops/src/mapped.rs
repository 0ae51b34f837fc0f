//! Files as memory.

use std::{fs::File, io, path::Path};

use memmap2::Mmap;

/// Maps a file into memory, read-only: pages are read when they are touched.
///
/// The file must stay as it is while the map lives. A reader of ours checks every offset against the length of the map, but a
/// file that another process shortens meanwhile ends this process with a bus error, as with every memory map.
///
/// # Errors
/// Whatever the operating system says about opening or mapping the file.
pub fn map_file(path: impl AsRef<Path>) -> io::Result<Mmap> {
    let file = File::open(path)?;
    #[expect(unsafe_code, reason = "a map of a file cannot be made by safe means")]
    // SAFETY: the map is read-only, and its bytes carry no invariant; changes by other processes are the caller's
    // concern, as documented.
    unsafe {
        Mmap::map(&file)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn maps_the_bytes_of_a_file() -> io::Result<()> {
        let dir = tempfile::tempdir()?;
        let path = dir.path().join("x");
        std::fs::write(&path, b"sconce")?;
        assert_eq!(&map_file(&path)?[..], b"sconce");
        assert!(map_file(dir.path().join("none")).is_err());
        Ok(())
    }
}
