//! Which class was taken for which.

use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, Pos, VPos};
use sconce_metrics::Confusion;

use super::{PlotError, Svg, draw, shown};

/// Letters of a class name; the margin has room for them.
const LETTERS: usize = 22;
/// Pixels that all cells together may have on a side, and what one has at least and at most.
const SIDE: usize = 800;
const CELL: (usize, usize) = (5, 40);
/// Cells from this size on hold their number.
const NUMBERED: usize = 20;

/// A row for each class and a column for each answer, darker the larger a part of its row a cell is: blue for right answers,
/// red for wrong ones. Cells large enough hold the percentage; rows without a picture are empty.
///
/// # Errors
/// [`PlotError::Names`] for another number of names than of classes, [`PlotError::Empty`] when nothing was counted.
pub fn confusion<S: AsRef<str>>(title: &str, confusion: &Confusion, classes: &[S]) -> Result<Svg, PlotError> {
    let count = confusion.classes();
    if classes.len() != count {
        return Err(PlotError::Names { names: classes.len(), classes: count });
    }
    if confusion.total() == 0 {
        return Err(PlotError::Empty { what: format!("the confusion matrix `{title}`") });
    }
    let cell = (SIDE / count).clamp(CELL.0, CELL.1) as i32;
    let letter = (cell * 4 / 5).clamp(4, 13);
    let margin = letter * LETTERS as i32 * 3 / 5 + 10;
    let top = 34;
    let side = count as i32 * cell;
    // A title needs room also over two cells.
    let size = ((margin + side + 12).max(420) as u32, (top + margin + side + 12) as u32);

    let mut text = String::new();
    let root = SVGBackend::with_string(&mut text, size).into_drawing_area();
    root.fill(&WHITE).map_err(draw)?;
    let font = |size: i32| ("sans-serif", f64::from(size)).into_font();
    let style = |size: i32, h_pos, v_pos| font(size).color(&BLACK).pos(Pos::new(h_pos, v_pos));
    root.draw(&Text::new(shown(title, 80), (10, 8), style(17, HPos::Left, VPos::Top))).map_err(draw)?;
    let corner = (margin, top + margin);
    let frame = [corner, (corner.0 + side, corner.1 + side)];
    root.draw(&Rectangle::new(frame, BLACK.mix(0.4))).map_err(draw)?;
    for (row, name) in classes.iter().enumerate() {
        let name = shown(name.as_ref(), LETTERS);
        let at = row as i32 * cell + cell / 2;
        let left = style(letter, HPos::Right, VPos::Center);
        root.draw(&Text::new(name.clone(), (corner.0 - 5, corner.1 + at), left)).map_err(draw)?;
        let above = font(letter).transform(FontTransform::Rotate270).color(&BLACK);
        let above = above.pos(Pos::new(HPos::Left, VPos::Center));
        root.draw(&Text::new(name, (corner.0 + at, corner.1 - 5), above)).map_err(draw)?;

        let total: u64 = (0..count).map(|column| confusion.count(row, column)).sum();
        for column in (0..count).filter(|column| confusion.count(row, *column) > 0) {
            let share = confusion.count(row, column) as f64 / total as f64;
            let colour = if row == column { RGBColor(0, 114, 178) } else { RGBColor(213, 94, 0) };
            let (x, y) = (corner.0 + column as i32 * cell, corner.1 + row as i32 * cell);
            root.draw(&Rectangle::new([(x, y), (x + cell, y + cell)], colour.mix(share).filled())).map_err(draw)?;
            if cell >= NUMBERED as i32 {
                let colour = if share > 0.6 { &WHITE } else { &BLACK };
                let middle = font(letter.min(11)).color(colour).pos(Pos::new(HPos::Center, VPos::Center));
                let percent = format!("{:.0}", 100.0 * share);
                root.draw(&Text::new(percent, (x + cell / 2, y + cell / 2), middle)).map_err(draw)?;
            }
        }
    }
    root.present().map_err(draw)?;
    drop(root);
    Ok(Svg(text))
}
