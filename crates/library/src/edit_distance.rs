//! How far a text was changed.

/// Words of a text that are compared at most.
const MAX_WORDS: usize = 256;

/// The share of words that change from `a` to `b`, 0–1: the Levenshtein distance in words, divided by
/// the words of the longer one.
pub(crate) fn edit_distance(a: &str, b: &str) -> f64 {
    let words = |text: &'_ str| -> Vec<String> {
        text.split_whitespace().take(MAX_WORDS).map(str::to_lowercase).collect()
    };
    let (a, b) = (words(a), words(b));
    let longer = a.len().max(b.len());
    if longer == 0 {
        return 0.0;
    }
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.iter().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, y) in b.iter().enumerate() {
            let substituted = diagonal + usize::from(x != y);
            diagonal = row[j + 1];
            row[j + 1] = substituted.min(diagonal + 1).min(row[j] + 1);
        }
    }
    // Both are at most 256.
    row[b.len()] as f64 / longer as f64
}

#[cfg(test)]
mod tests {
    use super::edit_distance;

    #[test]
    fn counts_words() {
        for (a, b, expected) in [
            ("", "", 0.0),
            ("a cat", "A  cat", 0.0),
            ("a cat", "a dog", 0.5),
            ("a cat", "", 1.0),
            ("a cat on a sofa", "a black cat on a sofa", 1.0 / 6.0),
        ] {
            assert!((edit_distance(a, b) - expected).abs() < 1e-9, "{a:?} {b:?}");
        }
    }
}
