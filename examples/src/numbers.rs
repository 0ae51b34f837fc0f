//! Numbers for people.

/// Digits in groups of three: `4,652,008`.
#[must_use]
pub fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut out = String::new();
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            out.push(',');
        }
        out.push(digit);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn digits_are_grouped_from_the_right() {
        let found: Vec<_> = [0, 12, 999, 1000, 4_652_008].into_iter().map(grouped).collect();
        assert_eq!(found, ["0", "12", "999", "1,000", "4,652,008"]);
    }
}
