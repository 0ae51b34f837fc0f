//! Accuracy over parameters, as SVG.

use super::table::Row;
use crate::numbers::grouped;

const WIDTH: f64 = 720.0;
const HEIGHT: f64 = 420.0;
const LEFT: f64 = 70.0;
const RIGHT: f64 = 20.0;
const TOP: f64 = 20.0;
const BOTTOM: f64 = 50.0;

/// A point for every model, at the mean of its seeds, with a bar from the worst to the best.
pub(super) fn svg(rows: &[Row]) -> String {
    let mut body = String::new();
    let logs: Vec<f64> = rows.iter().map(|row| (row.parameters.max(1) as f64).log10()).collect();
    let ends = |values: &mut dyn Iterator<Item = f64>| {
        values.fold((f64::INFINITY, f64::NEG_INFINITY), |(low, high), x| (low.min(x), high.max(x)))
    };
    let (x0, x1) = ends(&mut logs.iter().copied());
    let (y0, y1) = ends(&mut rows.iter().flat_map(|row| row.top1.iter().map(|top1| 100.0 * top1)));
    // Room on all sides, whole percents above and below.
    let (x0, x1) = (x0 - 0.15, x1 + 0.35);
    let (y0, y1) = ((y0 - 0.5).floor(), (y1 + 0.5).ceil());
    let x = |log: f64| LEFT + (log - x0) / (x1 - x0) * (WIDTH - LEFT - RIGHT);
    let y = |percent: f64| HEIGHT - BOTTOM - (percent - y0) / (y1 - y0) * (HEIGHT - TOP - BOTTOM);
    if !rows.is_empty() {
        let step = ((y1 - y0) / 8.0).ceil().max(1.0);
        let mut percent = y0;
        while percent <= y1 {
            let at = y(percent);
            body += &format!("<line x1='{LEFT}' x2='{}' y1='{at:.1}' y2='{at:.1}' stroke='#ddd'/>\n", WIDTH - RIGHT);
            body += &format!("<text x='{}' y='{:.1}' text-anchor='end'>{percent}</text>\n", LEFT - 8.0, at + 4.0);
            percent += step;
        }
        for (exponent, factor) in (3..10).flat_map(|e| [1usize, 2, 5].map(|f| (e, f))) {
            let count = factor * 10usize.pow(exponent);
            let log = (count as f64).log10();
            if log > x0 && log < x1 {
                let at = x(log);
                let (foot, label) = (HEIGHT - BOTTOM, HEIGHT - BOTTOM + 18.0);
                body += &format!("<line x1='{at:.1}' x2='{at:.1}' y1='{TOP}' y2='{foot}' stroke='#eee'/>\n");
                body += &format!("<text x='{at:.1}' y='{label}' text-anchor='middle'>{}</text>\n", grouped(count));
            }
        }
    }
    for (row, &log) in rows.iter().zip(&logs) {
        let (at, mean) = (x(log), y(100.0 * row.top1_mean));
        let (low, high) = ends(&mut row.top1.iter().map(|top1| y(100.0 * top1)));
        body +=
            &format!("<line x1='{at:.1}' x2='{at:.1}' y1='{low:.1}' y2='{high:.1}' stroke='#36c' stroke-width='2'/>\n");
        body += &format!("<circle cx='{at:.1}' cy='{mean:.1}' r='4' fill='#36c'/>\n");
        body += &format!("<text x='{:.1}' y='{:.1}'>{}</text>\n", at + 8.0, mean + 4.0, row.model);
    }
    let middle = LEFT + (WIDTH - LEFT - RIGHT) / 2.0;
    let centre = TOP + (HEIGHT - TOP - BOTTOM) / 2.0;
    format!(
        "<svg xmlns='http://www.w3.org/2000/svg' width='{WIDTH}' height='{HEIGHT}' font-family='sans-serif' \
         font-size='12'>\n<rect width='100%' height='100%' fill='white'/>\n{body}\
         <text x='{middle}' y='{}' text-anchor='middle'>parameters</text>\n\
         <text transform='translate(18 {centre}) rotate(-90)' text-anchor='middle'>top-1 (%)</text>\n</svg>\n",
        HEIGHT - 10.0
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_model_has_its_point_inside_the_frame() {
        let row = |model: &str, parameters, top1: &[f64]| Row {
            model: model.into(),
            parameters,
            macs: 0,
            top1: top1.to_vec(),
            top1_mean: top1.iter().sum::<f64>() / top1.len() as f64,
            top1_half_range: 0.0,
            top5_mean: 1.0,
            peak_memory: None,
            seconds_per_epoch: None,
            epochs: vec![1],
        };
        let text = svg(&[row("a", 1_000_000, &[0.8, 0.9]), row("b", 4_000_000, &[0.7])]);
        let number = |circle: &str, key: &str| {
            let rest = circle.split(&format!("{key}='")).nth(1).unwrap();
            rest.split('\'').next().unwrap().parse::<f64>().unwrap()
        };
        let circles: Vec<&str> = text.lines().filter(|line| line.starts_with("<circle")).collect();
        assert_eq!(circles.len(), 2);
        for circle in circles {
            assert!((LEFT..WIDTH - RIGHT).contains(&number(circle, "cx")), "{circle}");
            assert!((TOP..HEIGHT - BOTTOM).contains(&number(circle, "cy")), "{circle}");
        }
        assert!(text.contains(">a</text>") && text.contains(">1,000,000</text>"));
        // Without a result there is a frame and no nonsense.
        assert!(!svg(&[]).contains("NaN") && !svg(&[]).contains("inf"));
    }
}
