//! Lines through points, with bars for the spread.

use plotters::coord::Shift;
use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, Pos, VPos};

use super::axis::{Places, range};
use super::{Axis, PlotError, Svg, draw, shown};

/// Okabe and Ito's colours, which colour-blind people tell apart, without yellow.
const COLOURS: [RGBColor; 7] = [
    RGBColor(0, 114, 178),
    RGBColor(213, 94, 0),
    RGBColor(0, 158, 115),
    RGBColor(204, 121, 167),
    RGBColor(86, 180, 233),
    RGBColor(230, 159, 0),
    RGBColor(0, 0, 0),
];
const SIZE: (u32, u32) = (960, 520);
/// Pixels beside the chart for the legend, and the letters of a name that have room there.
const LEGEND: u32 = 190;
const LETTERS: usize = 20;
/// Points of longer lines have no marks of their own.
const MARKED: usize = 40;
/// Half the width of the ends of a bar, in pixels.
const CAP: i32 = 4;

/// A point of a series.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Point {
    /// Place on the horizontal axis.
    pub x: f64,
    /// Place on the vertical axis.
    pub y: f64,
    /// A bar reaches this far up and down; none at 0.
    pub spread: f64,
}

impl From<(f64, f64)> for Point {
    fn from((x, y): (f64, f64)) -> Self {
        Self { x, y, spread: 0.0 }
    }
}

impl From<(f64, f64, f64)> for Point {
    fn from((x, y, spread): (f64, f64, f64)) -> Self {
        Self { x, y, spread }
    }
}

/// A line with a name.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Series {
    /// Its name in the legend.
    pub name: String,
    /// Its points, in the order of the line.
    pub points: Vec<Point>,
}

impl Series {
    /// A series of points `(x, y)` or `(x, y, spread)`.
    pub fn new<P: Into<Point>>(name: impl Into<String>, points: impl IntoIterator<Item = P>) -> Self {
        Self { name: name.into(), points: points.into_iter().map(Into::into).collect() }
    }
}

/// Several series over the same axes, with a legend.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Chart {
    /// Above the chart.
    pub title: String,
    /// The horizontal axis.
    pub x: Axis,
    /// The vertical axis.
    pub y: Axis,
    /// The lines, in the order of the legend.
    pub series: Vec<Series>,
}

/// A point on the paper: the mark, and the ends of its bar.
struct Placed {
    x: f64,
    y: f64,
    bar: Option<(f64, f64)>,
}

impl Chart {
    /// Draws the chart.
    ///
    /// # Errors
    /// [`PlotError::Empty`] without series and for one without points, [`PlotError::Value`].
    pub fn svg(&self) -> Result<Svg, PlotError> {
        let placed = self.series.iter().map(|series| self.place(series)).collect::<Result<Vec<_>, _>>()?;
        if placed.is_empty() {
            return Err(PlotError::Empty { what: format!("the chart `{}`", self.title) });
        }
        let all = || placed.iter().flatten();
        let ends = |point: &Placed| point.bar.map_or([point.y; 2], |(low, high)| [low, high]);
        let (x, y) = (range(all().map(|point| point.x), 0.03), range(all().flat_map(ends), 0.06));
        let x = Places { ticks: self.x.tick_places(&x), range: x };
        let y = Places { ticks: self.y.tick_places(&y), range: y };

        // A legend of many names needs a taller sheet.
        let size = (SIZE.0, SIZE.1.max(80 + 20 * self.series.len() as u32));
        let mut text = String::new();
        let root = SVGBackend::with_string(&mut text, size).into_drawing_area();
        root.fill(&WHITE).map_err(draw)?;
        let mut chart = ChartBuilder::on(&root)
            .caption(shown(&self.title, 90), ("sans-serif", 20))
            .margin(12)
            .margin_right(LEGEND)
            .x_label_area_size(48)
            .y_label_area_size(64)
            .build_cartesian_2d(x, y)
            .map_err(draw)?;
        chart
            .configure_mesh()
            .light_line_style(TRANSPARENT)
            .bold_line_style(BLACK.mix(0.12))
            .x_label_formatter(&|place| self.x.text(*place))
            .y_label_formatter(&|place| self.y.text(*place))
            .x_desc(shown(&self.x.label, 90))
            .y_desc(shown(&self.y.label, 60))
            .label_style(("sans-serif", 14))
            .axis_desc_style(("sans-serif", 16))
            .draw()
            .map_err(draw)?;
        for (points, colour) in placed.iter().zip(COLOURS.iter().cycle()) {
            let line = points.iter().map(|point| (point.x, point.y));
            chart.draw_series(LineSeries::new(line, colour.stroke_width(2))).map_err(draw)?;
            if points.len() <= MARKED {
                let marks = points.iter().map(|point| Circle::new((point.x, point.y), 3, colour.filled()));
                chart.draw_series(marks).map_err(draw)?;
            }
            let bars = points.iter().filter_map(|point| Some((point.x, point.bar?)));
            for (x, (low, high)) in bars {
                let bar = PathElement::new(vec![(x, low), (x, high)], colour.stroke_width(1));
                chart.draw_series([bar]).map_err(draw)?;
                let cap =
                    |y| EmptyElement::at((x, y)) + PathElement::new(vec![(-CAP, 0), (CAP, 0)], colour.stroke_width(1));
                chart.draw_series([cap(low), cap(high)]).map_err(draw)?;
            }
        }
        drop(chart);
        self.legend(&root)?;
        root.present().map_err(draw)?;
        drop(root);
        Ok(Svg(text))
    }

    /// Names beside the lines, where they hide none of them.
    fn legend(&self, root: &DrawingArea<SVGBackend, Shift>) -> Result<(), PlotError> {
        let left = SIZE.0 as i32 - LEGEND as i32 + 8;
        let style = ("sans-serif", 14).into_font().color(&BLACK).pos(Pos::new(HPos::Left, VPos::Center));
        for ((series, colour), y) in self.series.iter().zip(COLOURS.iter().cycle()).zip((60..).step_by(20)) {
            let line = PathElement::new(vec![(left, y), (left + 18, y)], colour.stroke_width(2));
            root.draw(&line).map_err(draw)?;
            let name = Text::new(shown(&series.name, LETTERS), (left + 24, y), style.clone());
            root.draw(&name).map_err(draw)?;
        }
        Ok(())
    }

    fn place(&self, series: &Series) -> Result<Vec<Placed>, PlotError> {
        if series.points.is_empty() {
            return Err(PlotError::Empty { what: format!("the series `{}`", series.name) });
        }
        let place = |(index, point): (usize, &Point)| {
            let nowhere = |value| PlotError::Value { series: series.name.clone(), index, value };
            let x = self.x.place(point.x).ok_or_else(|| nowhere(point.x))?;
            let y = self.y.place(point.y).ok_or_else(|| nowhere(point.y))?;
            if !(point.spread.is_finite() && point.spread >= 0.0) {
                return Err(nowhere(point.spread));
            }
            let bar = (point.spread > 0.0).then(|| {
                // The lower end of a bar may leave a logarithmic axis: it then ends at its point.
                let end = |value| self.y.place(value).unwrap_or(y);
                (end(point.y - point.spread), end(point.y + point.spread))
            });
            Ok(Placed { x, y, bar })
        };
        series.points.iter().enumerate().map(place).collect()
    }
}
