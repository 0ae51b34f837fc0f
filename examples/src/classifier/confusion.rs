//! Which class was taken for which, as SVG.

use sconce::metrics::Confusion;

const CELL: usize = 34;
/// Room for class names, left and above.
const MARGIN: usize = 130;

/// A row for every class and a column for every answer; a cell holds the percentage of its row, darker the higher. Columns
/// follow the rows' order.
pub(super) fn svg(confusion: &Confusion, classes: &[String]) -> String {
    let side = MARGIN + classes.len() * CELL + 10;
    let mut body = String::new();
    for (row, class) in classes.iter().enumerate() {
        let total: u64 = (0..classes.len()).map(|column| confusion.count(row, column)).sum();
        let (name, middle) = (escaped(class), MARGIN + row * CELL + CELL / 2);
        body += &format!("<text x='{}' y='{}' text-anchor='end'>{name}</text>\n", MARGIN - 6, middle + 4);
        body += &format!("<text transform='translate({} {}) rotate(-90)'>{name}</text>\n", middle + 4, MARGIN - 6);
        for column in 0..classes.len() {
            let share = confusion.count(row, column) as f64 / total.max(1) as f64;
            let (x, y) = (MARGIN + column * CELL, MARGIN + row * CELL);
            let colour = if row == column { "51,102,204" } else { "204,51,51" };
            body +=
                &format!("<rect x='{x}' y='{y}' width='{CELL}' height='{CELL}' fill='rgba({colour},{share:.3})'/>\n");
            let percent = (100.0 * share).round();
            if percent >= 1.0 {
                let (x, y) = (x + CELL / 2, y + CELL / 2 + 4);
                body += &format!("<text x='{x}' y='{y}' text-anchor='middle'>{percent}</text>\n");
            }
        }
    }
    format!(
        "<svg xmlns='http://www.w3.org/2000/svg' width='{side}' height='{side}' font-family='sans-serif' \
         font-size='11'>\n<rect width='100%' height='100%' fill='white'/>\n{body}</svg>\n"
    )
}

/// A name cut to the margin, without the letters that mean something to XML.
fn escaped(name: &str) -> String {
    let cut = if name.chars().count() > 18 { name.chars().take(17).chain(['…']).collect() } else { name.to_owned() };
    cut.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cells_hold_the_percentages_of_their_rows() {
        let mut confusion = Confusion::new(2);
        for (target, predicted) in [(0, 0), (0, 1), (0, 1), (0, 1), (1, 1)] {
            confusion.add(target, predicted).unwrap();
        }
        let text = svg(&confusion, &["a<b".into(), "c".into()]);
        let numbers: Vec<&str> = text
            .lines()
            .filter(|line| line.contains("'middle'"))
            .map(|line| line.split('>').nth(1).unwrap().trim_end_matches("</text"))
            .collect();
        assert_eq!(numbers, ["25", "75", "100"]);
        assert!(text.contains("a&lt;b") && !text.contains("a<b"));
        assert_eq!(text.matches("<rect x=").count(), 4);
    }
}
