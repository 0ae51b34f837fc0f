//! What models and pictures are known by.

use std::fmt;
use std::io::Read;
use std::path::Path;

use candle_core::Device;
use safetensors::View;
use sconce_clip::Bundle;
use sconce_data::{DecodeLimits, Picture};
use sconce_nn::Checkpoint;
use sha2::{Digest as _, Sha256};

use super::Source;
use crate::{Error, Result};

/// SHA-256 of what something consists of.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Digest(pub [u8; 32]);

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Digest({})", self.hex())
    }
}

impl Digest {
    /// Of several pieces, each with its length, so that no other pieces make the same.
    pub fn of(pieces: &[&[u8]]) -> Self {
        let mut hash = Sha256::new();
        pieces.iter().for_each(|piece| absorb(&mut hash, piece));
        Self(hash.finalize().into())
    }

    /// Of a loaded model: its sizes, the type that it computes in, and every tensor of the checkpoint that it was loaded from.
    /// The format of the file, its path, and the device do not matter.
    ///
    /// # Errors
    /// When the checkpoint cannot be read.
    pub fn of_model(bundle: &Bundle, checkpoint: impl AsRef<Path>) -> Result<Self> {
        let checkpoint = Checkpoint::open(checkpoint)?;
        let mut hash = Sha256::new();
        absorb(&mut hash, super::json(&bundle.pretrained.model)?.as_bytes());
        absorb(&mut hash, bundle.model.logit_scale.dtype().as_str().as_bytes());
        for name in checkpoint.names() {
            let tensor = checkpoint.tensor(name, &Device::Cpu)?;
            absorb(&mut hash, name.as_bytes());
            absorb(&mut hash, format!("{:?} {:?}", tensor.dtype(), tensor.dims()).as_bytes());
            absorb(&mut hash, &View::data(&tensor));
        }
        Ok(Self(hash.finalize().into()))
    }

    /// Of a picture in memory: its mode, its size and its pixels.
    pub fn of_picture(picture: &Picture) -> Self {
        let (size, pixels) = (picture.size(), picture.pixels());
        let kind = format!("{:?} {}x{} {}", pixels.color(), size.width, size.height, picture.nearest_only());
        Self::of(&[b"picture", kind.as_bytes(), pixels.as_bytes()])
    }

    /// Of a file's bytes.
    ///
    /// # Errors
    /// [`Error::Io`]; [`Error::Pictures`] for one that is larger than any picture may be.
    pub fn of_file(path: impl AsRef<Path>) -> Result<Self> {
        Ok(Self::of(&[&read(path.as_ref())?]))
    }

    pub(super) fn of_source(source: &Source) -> Result<Self> {
        match source {
            Source::File(path) => Self::of_file(path),
            Source::Picture(picture) => Ok(Self::of_picture(picture)),
        }
    }

    /// 64 hexadecimal digits.
    pub fn hex(&self) -> String {
        self.0.iter().map(|byte| format!("{byte:02x}")).collect()
    }
}

fn absorb(hash: &mut Sha256, piece: &[u8]) {
    hash.update((piece.len() as u64).to_le_bytes());
    hash.update(piece);
}

/// Decodes a picture that has this digest.
pub(super) fn open(source: &Source, digest: &Digest) -> Result<Picture> {
    match *source {
        Source::Picture(picture) => Ok(picture.clone()),
        Source::File(path) => {
            let bytes = read(path)?;
            if Digest::of(&[&bytes]) != *digest {
                return Err(Error::Data(format!("{} was changed while it was being read", path.display())));
            }
            Ok(Picture::decode(&bytes).map_err(|error| error.at(path.display()))?)
        }
    }
}

/// The bytes of a file, under the limit for pictures.
fn read(path: &Path) -> Result<Vec<u8>> {
    let io = |source| Error::Io { path: path.to_owned(), source };
    let limit = DecodeLimits::default().max_file;
    let mut bytes = Vec::new();
    std::fs::File::open(path).map_err(io)?.take(limit + 1).read_to_end(&mut bytes).map_err(io)?;
    if bytes.len() as u64 > limit {
        let error = sconce_data::Error::TooLarge { what: "the file (bytes)", size: bytes.len() as u64, limit };
        return Err(error.at(path.display()).into());
    }
    Ok(bytes)
}
