//! An index of binary codes on disk.
//!
//! One file, read through a memory map, so that it may be larger than memory; one writer appends to it while any number of
//! readers search. All numbers are written lowest byte first.
//!
//! | offset | size | what |
//! | ---: | ---: | --- |
//! | 0 | 4096 | head: `SCONCEHX`, version (u32), bits (u32), flags (u32; 1: there are ids), codes in a block (u32), CRC-32 of these; zeros |
//! | 4096 | 4096 | slot 0: a commit record, again at 2048 of the slot; zeros |
//! | 8192 | 4096 | slot 1: likewise |
//! | 12288 | | blocks: codes (packed words), ids (u64 each, if there are any), CRC-32, four zeros |
//!
//! A commit record is a sequence number (u64), the number of codes (u64), the CRC-32 of the last block as far as it is filled
//! (u32; 0 if it is full), the CRC-32 of the head (u32) and the CRC-32 of the record itself (u32). That of a block covers its
//! number (u64), its codes and its ids.
//!
//! **Nothing that is committed is ever written again.** To append, codes, ids and the checksums of full blocks go behind what
//! is committed and are synced; then the record with the next sequence number goes into the slot whose turn it is and is synced
//! too. Whenever the writer dies, the other slot holds the record before; what lies behind the committed codes is ignored
//! ([`Index::uncommitted_bytes`] tells how much) and overwritten by the next append. The valid record with the highest
//! sequence number counts. It stands twice in its slot, so damage to one copy does not bring the record before back.
//!
//! A new index is written under another name and linked to its own when it is whole.

mod format;
mod reader;
#[cfg(test)]
mod tests;
mod writer;

pub use reader::Index;
pub use writer::{IndexOptions, IndexWriter};
