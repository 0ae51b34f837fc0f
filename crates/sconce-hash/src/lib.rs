//! Binary codes for pictures: packed codes and their exact search, and the methods that learn them.

mod error;

pub use error::{Error, Result};
