//! Tables of comma-separated values.

/// The rows of a table. Cells in quotes may hold commas, line ends and doubled quotes.
///
/// # Errors
/// The line where a quote that was opened is never closed.
pub(super) fn parse(text: &str) -> Result<Vec<Vec<String>>, String> {
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    let (mut rows, mut row, mut cell) = (vec![], vec![], String::new());
    let (mut line, mut opened) = (1, None);
    let mut letters = text.chars().peekable();
    while let Some(letter) = letters.next() {
        line += usize::from(letter == '\n');
        match (letter, opened) {
            ('"', Some(_)) if letters.next_if_eq(&'"').is_some() => cell.push('"'),
            ('"', Some(_)) => opened = None,
            (letter, Some(_)) => cell.push(letter),
            ('"', None) if cell.is_empty() => opened = Some(line),
            (',', None) => row.push(std::mem::take(&mut cell)),
            ('\r', None) if letters.peek() == Some(&'\n') => {}
            ('\n', None) => {
                row.push(std::mem::take(&mut cell));
                rows.push(std::mem::take(&mut row));
            }
            (letter, None) => cell.push(letter),
        }
    }
    if let Some(line) = opened {
        return Err(format!("the quote of line {line} is never closed"));
    }
    if !cell.is_empty() || !row.is_empty() {
        row.push(cell);
        rows.push(row);
    }
    rows.retain(|row| row.iter().any(|cell| !cell.is_empty()));
    Ok(rows)
}

/// A cell, in quotes where it needs them.
pub(super) fn cell(text: &str) -> String {
    match text.contains(['"', ',', '\n', '\r']) {
        true => format!("\"{}\"", text.replace('"', "\"\"")),
        false => text.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read() {
        let cells = ["plain", "a,b", "say \"hi\"", "two\nlines", "", "\r"];
        let line = cells.map(cell).join(",");
        assert_eq!(parse(&format!("{line}\n{line}")).unwrap(), [cells, cells]);
    }

    #[test]
    fn ends_of_lines_and_of_files() {
        let rows = [["a", "b"], ["1", "2"]];
        for text in ["a,b\n1,2\n", "a,b\r\n1,2\r\n", "\u{feff}a,b\n\n1,2", "a,b\n\"1\",\"2\""] {
            assert_eq!(parse(text).unwrap(), rows, "{text:?}");
        }
        assert_eq!(parse("a\nb,\"c\nd").unwrap_err(), "the quote of line 2 is never closed");
        assert!(parse("").unwrap().is_empty());
    }
}
