//! Charts as SVG (feature `plot`): learning curves, accuracy over shots, confusion matrices.
//!
//! A chart is data with public fields; [`Chart::svg`] and [`confusion`] give an [`Svg`], which is text and is written whole or
//! not at all. The same data give the same bytes. Names are escaped; what cannot be drawn (no point, a NaN, a zero on a
//! logarithmic axis) is a [`PlotError`].
//!
//! ```
//! use sconce::plot::{Axis, Chart, Series};
//!
//! # fn main() -> Result<(), sconce::plot::PlotError> {
//! let loss = Series::new("loss", [(1.0, 2.3), (2.0, 1.1), (3.0, 0.7)]);
//! let chart = Chart { title: "training".into(), x: Axis::linear("epoch"), y: Axis::log("loss"), series: vec![loss] };
//! assert!(chart.svg()?.as_str().starts_with("<svg"));
//! # Ok(())
//! # }
//! ```

mod axis;
mod chart;
mod heat_map;

use std::path::{Path, PathBuf};

pub use axis::Axis;
pub use chart::{Chart, Point, Series};
pub use heat_map::confusion;

/// Why a chart cannot be drawn or written.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PlotError {
    /// Nothing to draw.
    #[error("there is nothing to draw in {what}")]
    Empty {
        /// The chart or the series.
        what: String,
    },
    /// A value that has no place on its axis: not finite, or not positive on a logarithmic one.
    #[error("{value} at point {index} of `{series}` has no place on the axis")]
    Value {
        /// The series.
        series: String,
        /// Which point.
        index: usize,
        /// The value.
        value: f64,
    },
    /// Another number of names than of classes.
    #[error("{names} names for {classes} classes")]
    Names {
        /// Names given.
        names: usize,
        /// Classes counted.
        classes: usize,
    },
    /// The file cannot be written.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// The drawing library refused.
    #[error("drawing: {0}")]
    Draw(String),
}

/// A drawing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Svg(String);

impl Svg {
    /// The text of the file.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Writes the file, whole or not at all.
    ///
    /// # Errors
    /// [`PlotError::Io`].
    pub fn write(&self, path: impl AsRef<Path>) -> Result<(), PlotError> {
        let path = path.as_ref();
        sconce_nn::fs::write_atomic(path, |out| out.write_all(self.0.as_bytes()))
            .map_err(|source| PlotError::Io { path: path.to_owned(), source })
    }
}

fn draw(error: impl std::fmt::Display) -> PlotError {
    PlotError::Draw(error.to_string())
}

/// A name without what no XML may hold, cut to a length. Escaping is the backend's.
fn shown(name: &str, longest: usize) -> String {
    let name: Vec<char> = name.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
    match name.len() > longest {
        true => name[..longest.saturating_sub(1)].iter().chain(&['…']).collect(),
        false => name.into_iter().collect(),
    }
}

#[cfg(test)]
mod tests;
