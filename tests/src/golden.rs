//! Golden cases: numbers written by reference implementations, and the means to hold ours against them.
//!
//! A golden folder holds one folder per system and in it the cases, in one of two layouts:
//! 1. `<system>/<case>/{weights,io}.safetensors` and `config.json`;
//! 2. `<system>/<case>.safetensors` and/or `<system>/<case>.json`.
//!
//! Nothing of a case is known beforehand: sizes, options and seeds come from its configuration, so that new
//! cases of a known system run without a change here.

mod case;
mod compare;
mod tensors;
mod weights;

pub use case::{Case, discover, folder, small_tier};
pub use compare::{DOUBLE, GRADIENT, OUTPUT, Tolerance, compare, equal};
pub use tensors::Tensors;
pub use weights::{Weights, backward, check_double, check_gradients, check_outputs};

/// What a case can fail with; the message says what was compared and where it differs.
pub type Error = Box<dyn std::error::Error + Send + Sync>;

/// The outcome of one step of a case.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// The function that runs every case of one system.
pub type Run = fn(&Case) -> Result<()>;
