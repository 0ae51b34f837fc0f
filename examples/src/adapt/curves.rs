//! Drawings of a training and its result; nothing without the feature `plot`.

use std::path::Path;

use sconce::adapt::EpochStats;
use sconce::metrics::Confusion;
use sconce::train::StepError;

/// Loss and accuracy on the labelled pictures over the epochs, and which class was taken for which.
///
/// # Errors
/// Files that cannot be written.
#[cfg(feature = "plot")]
pub fn draw(
    folder: &Path,
    title: &str,
    history: &[EpochStats],
    confusion: &Confusion,
    classes: &[String],
) -> Result<(), StepError> {
    use sconce::plot::{Axis, Chart, Series};
    let epochs = |value: fn(&EpochStats) -> Option<f64>| {
        history.iter().filter_map(move |stats| Some((stats.epoch as f64, value(stats)?)))
    };
    if !history.is_empty() {
        let loss = Series::new("loss", epochs(|stats| Some(stats.loss)));
        let accuracy = Series::new("accuracy", epochs(|stats| stats.accuracy));
        let series = [loss, accuracy].into_iter().filter(|series| !series.points.is_empty()).collect();
        let y = Axis::linear("of the labelled pictures");
        Chart { title: title.to_owned(), x: Axis::linear("epoch"), y, series }
            .svg()?
            .write(folder.join("curves.svg"))?;
    }
    sconce::plot::confusion(title, confusion, classes)?.write(folder.join("confusion.svg"))?;
    Ok(())
}

/// Draws nothing.
///
/// # Errors
/// Never.
#[cfg(not(feature = "plot"))]
pub fn draw(_: &Path, _: &str, _: &[EpochStats], _: &Confusion, _: &[String]) -> Result<(), StepError> {
    Ok(())
}
