//! What spreadsheets need: the mark of UTF-8, and no text that they would run as a formula. The web page
//! does the same in `results.js`.

use std::borrow::Cow;

/// The byte order mark by which spreadsheets recognise UTF-8.
pub(super) const MARK: &str = "\u{feff}";

/// A cell with `text`. If a spreadsheet would take it for a formula, an apostrophe precedes it, and
/// another one if it looks like such a cell already, so that [`unguarded`] is exact.
pub(super) fn guarded(text: &str) -> Cow<'_, str> {
    if is_formula(text) { format!("'{text}").into() } else { text.into() }
}

/// The text of a cell that [`guarded`] wrote.
pub(super) fn unguarded(cell: &str) -> &str {
    cell.strip_prefix('\'').filter(|text| is_formula(text)).unwrap_or(cell)
}

fn is_formula(text: &str) -> bool {
    text.trim_start_matches('\'')
        .starts_with(['=', '+', '-', '@', '\t', '\r', '\n', '＝', '＋', '－', '＠'])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn formulas_are_guarded_and_read_back() {
        for text in ["=1+1", "+1", "-x.jpg", "@a", "\tb", "\rc", "'=1", "''=1", "＝1"] {
            let cell = guarded(text);
            assert!(cell.starts_with('\'') && cell.len() == text.len() + 1, "{cell}");
            assert_eq!(unguarded(&cell), text);
        }
        for text in ["", "a=1", "'", "'a'", "it's =", " =1", "1"] {
            assert_eq!(guarded(text), text);
            assert_eq!(unguarded(text), text);
        }
    }
}
