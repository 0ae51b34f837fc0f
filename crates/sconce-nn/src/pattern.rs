/// True when `name` matches `pattern` as a whole: `*` stands for any run of characters, dots included, everything else for itself.
///
/// `blocks.*.attn.*` matches every attention weight, `*.bias` every bias, `head*` both `head.weight` and `head_dist.weight`.
///
/// ```
/// use sconce_nn::matches;
/// assert!(matches("blocks.*.weight", "blocks.0.attn.qkv.weight"));
/// assert!(!matches("head", "head.weight"));
/// ```
pub fn matches(pattern: &str, name: &str) -> bool {
    let mut parts = pattern.split('*');
    let first = parts.next().unwrap_or("");
    let Some(mut rest) = name.strip_prefix(first) else { return false };
    let Some(last) = pattern.contains('*').then(|| parts.next_back().unwrap_or("")) else {
        return rest.is_empty();
    };
    // Leftmost match of every middle part leaves the most room for the ones after it.
    for part in parts {
        match rest.find(part) {
            Some(at) => rest = &rest[at + part.len()..],
            None => return false,
        }
    }
    rest.ends_with(last)
}

#[cfg(test)]
mod tests {
    use super::matches;

    #[test]
    fn stars_span_dots_and_the_whole_name_counts() {
        assert!(matches("*", ""));
        assert!(matches("*", "a.b"));
        assert!(matches("a*b*c", "aXbbYc"));
        assert!(matches("*.bias", "blocks.0.norm1.bias"));
        assert!(matches("a**c", "abc"));
        assert!(!matches("a*a", "a"));
        assert!(!matches("*.bias", "bias"));
        assert!(!matches("", "a"));
        assert!(matches("", ""));
        assert!(!matches("head", "head.weight"));
    }
}
