//! Training an image classifier: any registered backbone on any labelled pictures.
//!
//! [`train`] does one training and leaves weights, logs and a [`Summary`] in a folder; [`compare`] does one for every model and
//! seed, each in a process of its own, and writes a table.

pub mod augment;
pub mod compare;
mod confusion;
pub mod data;
pub mod evaluate;
mod model;
pub mod options;
mod progress;
mod session;
mod summary;
#[cfg(test)]
mod tests;
mod train;

pub use options::Options;
pub use summary::Summary;
pub use train::train;
