//! Binary codes for pictures: packed codes and their exact search, and the methods that learn them.

mod codes;
mod error;
mod index;
mod multi_index;
mod search;
#[cfg(test)]
mod testing;

pub use codes::Codes;
pub use error::{Error, Result};
pub use index::{Index, IndexOptions, IndexWriter};
pub use multi_index::MultiIndex;
pub use search::{Neighbor, Search};
