//! Binary codes for pictures: packed codes and their exact search, and the methods that learn them.

mod codes;
mod error;

pub use codes::Codes;
pub use error::{Error, Result};
