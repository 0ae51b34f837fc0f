//! Few-shot adaptation of a dual encoder: what `examples/adapt.rs` does.
//!
//! [`task`] finds pictures and classes, [`embed`] computes features once, [`recipe`] says how each method is trained, [`head`]
//! trains it, [`cell`] tests it, [`cells`] runs every method, number of shots and seed, and [`table`] puts the results together.

pub mod cell;
pub mod cells;
pub mod curves;
pub mod documentation;
pub mod embed;
pub mod head;
pub mod options;
pub mod recipe;
pub mod table;
pub mod task;

pub use cells::{Done, run};
pub use options::{Method, Options};
