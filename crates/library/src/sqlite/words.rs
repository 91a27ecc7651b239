//! The index of words: FTS5.

use crate::query::{Column, Expression, Term};
use crate::sql::{Matching, Value};
use crate::types::Field;

/// Removes the old words of a photo.
pub(super) const DELETE: &str = "INSERT INTO words(words, rowid, caption, alt_text, tags, names) \
     VALUES('delete', ?, ?, ?, ?, ?)";
/// Adds the new ones.
pub(super) const INSERT: &str =
    "INSERT INTO words(rowid, caption, alt_text, tags, names) VALUES(?, ?, ?, ?, ?)";

/// All columns with marks around the words that match. See `find::MARKS` and `find::BETWEEN`.
const TEXTS: &str = "coalesce(highlight(words, 0, char(57344), char(57345)), '') || char(31) || \
     coalesce(highlight(words, 1, char(57344), char(57345)), '') || char(31) || \
     coalesce(highlight(words, 2, char(57344), char(57345)), '') || char(31) || \
     coalesce(highlight(words, 3, char(57344), char(57345)), '')";

pub(super) fn matching(expression: &Expression) -> Option<Matching> {
    Some(Matching {
        from: "FROM words",
        from_assets: "FROM words CROSS JOIN assets s ON s.id = words.rowid",
        id: "words.rowid",
        condition: "words MATCH ?",
        value: match_words(expression)?.into(),
        texts: TEXTS,
    })
}

pub(super) fn lacking(none: &[Term]) -> Option<(&'static str, Value<'static>)> {
    let condition = "s.id NOT IN (SELECT rowid FROM words WHERE words MATCH ?)";
    Some((condition, any_of(none)?.into()))
}

/// The query in the language of the index; `None` if no word is asked for.
fn match_words(expression: &Expression) -> Option<String> {
    // Phrases last: the index looks at the places of their words only where it has found all before them.
    let mut all: Vec<_> = expression.all.iter().collect();
    let is_phrase = |term: &Term| term.words.trim().contains(char::is_whitespace);
    all.sort_by_key(|terms| terms.iter().any(is_phrase));
    let all: Vec<String> = all.into_iter().filter_map(|terms| any_of(terms)).collect();
    if all.is_empty() {
        return None;
    }
    let all = all.join(" AND ");
    Some(match any_of(&expression.none) {
        Some(none) => format!("({all}) NOT {none}"),
        None => all,
    })
}

fn any_of(terms: &[Term]) -> Option<String> {
    let terms: Vec<String> = terms.iter().map(word).collect();
    (!terms.is_empty()).then(|| format!("({})", terms.join(" OR ")))
}

/// A term, quoted so that nothing in it has a meaning for the index.
fn word(term: &Term) -> String {
    let column = match term.column {
        // Titles and posts are not searched.
        None | Some(Column::Text(Field::Title | Field::Engaging)) => "",
        Some(Column::Text(Field::Caption)) => "caption : ",
        Some(Column::Text(Field::AltText)) => "alt_text : ",
        Some(Column::Text(Field::Tags)) => "tags : ",
        Some(Column::Names) => "names : ",
    };
    let words = term.words.replace('"', "\"\"");
    let star = if term.is_prefix() { " *" } else { "" };
    format!("{column}\"{words}\"{star}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::query::parse;

    #[test]
    fn phrases_come_last_and_quotes_mean_nothing() {
        let query = |text: &str| match_words(&parse(text, false).unwrap());
        assert_eq!(
            query("\"a dog\" OR cat alt:beach do* -mouse").unwrap(),
            "((alt_text : \"beach\") AND (\"do \" *) AND (\"a dog\" OR \"cat\")) NOT (\"mouse\")"
        );
        assert_eq!(query("NEAR(").unwrap(), "(\"NEAR(\")");
        assert_eq!(query("-mouse"), None);
    }
}
