//! Axes: what stands where, and the ticks.

use std::ops::Range;

use plotters::coord::ranged1d::{DefaultFormatting, KeyPointHint, Ranged};

/// An axis.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Axis {
    /// What it shows, with its unit.
    pub label: String,
    /// Whether equal factors have equal lengths.
    pub log: bool,
    /// Values with a tick; chosen when there are none.
    pub ticks: Vec<f64>,
}

impl Axis {
    /// Equal differences have equal lengths.
    pub fn linear(label: impl Into<String>) -> Self {
        Self { label: label.into(), ..Self::default() }
    }

    /// Equal factors have equal lengths.
    pub fn log(label: impl Into<String>) -> Self {
        Self { label: label.into(), log: true, ..Self::default() }
    }

    /// The same with ticks at these values.
    pub fn with_ticks(self, ticks: impl IntoIterator<Item = f64>) -> Self {
        Self { ticks: ticks.into_iter().collect(), ..self }
    }

    /// Where a value stands; none for one that stands nowhere.
    pub(super) fn place(&self, value: f64) -> Option<f64> {
        let place = if self.log { value.log10() } else { value };
        place.is_finite().then_some(place)
    }

    /// The value at a place, as text.
    pub(super) fn text(&self, place: f64) -> String {
        let value = if self.log { 10f64.powf(place) } else { place };
        // Six digits are more than ticks differ by; zeros at the end say nothing.
        let text = match value.abs() {
            0.0 => "0".to_owned(),
            size if (1e-4..1e6).contains(&size) => {
                let decimals = (5 - size.log10().floor() as i32).clamp(0, 9) as usize;
                let text = format!("{value:.decimals$}");
                if text.contains('.') { text.trim_end_matches('0').trim_end_matches('.').to_owned() } else { text }
            }
            _ => format!("{value:e}"),
        };
        if text == "-0" { "0".to_owned() } else { text }
    }

    /// Places with ticks within a range of places.
    pub(super) fn tick_places(&self, range: &Range<f64>) -> Vec<f64> {
        let inside = |place: &f64| *place >= range.start - 1e-9 && *place <= range.end + 1e-9;
        if !self.ticks.is_empty() {
            return self.ticks.iter().filter_map(|tick| self.place(*tick)).filter(inside).collect();
        }
        if self.log {
            // 1, 2 and 5 of every power of ten, or the powers alone where there are many.
            let powers = range.start.floor() as i32..=range.end.ceil() as i32;
            let digits: &[f64] = if range.end - range.start > 3.0 { &[1.0] } else { &[1.0, 2.0, 5.0] };
            let ticks = powers.flat_map(|power| digits.iter().map(move |digit| f64::from(power) + digit.log10()));
            return ticks.filter(inside).collect();
        }
        // The largest of 1, 2 and 5 times a power of ten that gives at least five ticks.
        let length = range.end - range.start;
        let power = 10f64.powf((length / 5.0).log10().floor());
        let step = [5.0, 2.0, 1.0].map(|digit| digit * power).into_iter().find(|step| length / step >= 5.0);
        let step = step.unwrap_or(power);
        let (first, last) = ((range.start / step).ceil() as i64, (range.end / step).floor() as i64);
        (first..=last).map(|i| i as f64 * step).filter(inside).collect()
    }
}

/// Places with ticks, as the drawing library asks for them.
pub(super) struct Places {
    pub(super) range: Range<f64>,
    pub(super) ticks: Vec<f64>,
}

impl Ranged for Places {
    type FormatOption = DefaultFormatting;
    type ValueType = f64;

    fn map(&self, place: &f64, (from, to): (i32, i32)) -> i32 {
        let share = (place - self.range.start) / (self.range.end - self.range.start);
        from + (f64::from(to - from) * share).round() as i32
    }

    fn key_points<Hint: KeyPointHint>(&self, _hint: Hint) -> Vec<f64> {
        self.ticks.clone()
    }

    fn range(&self) -> Range<f64> {
        self.range.clone()
    }
}

/// From the least to the greatest place with some room; around a single one where there is no other.
pub(super) fn range(places: impl Iterator<Item = f64>, room: f64) -> Range<f64> {
    let (low, high) = places.fold((f64::INFINITY, f64::NEG_INFINITY), |(low, high), x| (low.min(x), high.max(x)));
    // Numbers so large that a difference is lost in them have a range of their own size.
    let length = (high - low).max(low.abs().max(high.abs()) * 1e-9);
    let room = if length > 0.0 { length * room } else { 0.5 };
    low - room..high + room
}
