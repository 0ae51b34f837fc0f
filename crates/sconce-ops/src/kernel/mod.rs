//! The tools that the CPU kernels of this crate are made of, open to anyone who writes another.
//!
//! A kernel has three layers: [`parallel::fill`] cuts the result into blocks and hands them to threads, [`simd::dispatch`]
//! compiles the code of a block for the widest vectors that the machine has, and plain loops over slices do the work.
//! [`rows`] reads tensors of any strides.

pub mod coefficients;
pub mod element;
pub mod elementwise;
pub mod parallel;
pub mod rows;
pub mod simd;
pub mod uninit;

pub use element::{Element, Real};
pub use parallel::{fill, fill_once, fill_rows};
pub use rows::{Rows, Scratch, contiguous, cpu_slice, wide_vec};
pub use simd::{Math, dispatch};
pub use uninit::Uninit;
