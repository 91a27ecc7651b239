//! The index of words: a `tsvector` for each photo, with weights A to D for captions, alternative texts,
//! tags and names.
//!
//! The words are made here, as SQLite's FTS5 makes them with `porter unicode61`, and not by the server:
//! its parser takes paths and addresses for one word, its languages leave out words such as "a", and it
//! cannot mark phrases. So both stores find and mark the same.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::ops::Range;

use unicode_normalization::UnicodeNormalization as _;
use unicode_normalization::char::is_combining_mark;

use super::stem::stem;
use crate::query::{Column, Expression, Term};
use crate::sql::derived::Words;
use crate::sql::find::{BETWEEN, MARKS};
use crate::types::Field;

/// Words of a photo that are in the index. A `tsvector` has places for 16,383.
const MAX_WORDS: usize = 16_000;
/// Bytes of all these words. A `tsvector` may have 1 MiB.
const MAX_BYTES: usize = 600 << 10;
/// Places of one word. A `tsvector` keeps no more.
const MAX_PLACES: usize = 255;
/// Bytes of a word in the index.
const MAX_WORD: usize = 500;
/// The weights of captions, alternative texts, tags and names.
const WEIGHTS: [char; 4] = ['A', 'B', 'C', 'D'];

/// A word of a text.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Token {
    /// Its stem.
    stem: String,
    /// Where it is.
    range: Range<usize>,
}

/// The words of a text.
fn tokens(text: &str) -> impl Iterator<Item = Token> + '_ {
    let mut at = 0;
    std::iter::from_fn(move || {
        loop {
            let start = at + text[at..].find(char::is_alphanumeric)?;
            let inside = |c: char| c.is_alphanumeric() || is_combining_mark(c);
            let length = text[start..].find(|c| !inside(c)).unwrap_or(text.len() - start);
            at = start + length;
            let stem = folded(&text[start..at]);
            if !stem.is_empty() {
                return Some(Token { stem, range: start..at });
            }
        }
    })
}

/// The stem of a word without marks on its letters. It has nothing that means something
/// to `tsvector`.
fn folded(word: &str) -> String {
    // Marks of other scripts make other letters.
    let mut latin = false;
    let stays = |c: &char| match c {
        '\u{300}'..='\u{36f}' => !latin,
        c => {
            latin = *c < '\u{300}';
            true
        }
    };
    let letters = word.nfd().filter(stays).nfc().flat_map(char::to_lowercase);
    let mut stem =
        stem(&letters.filter(|c| c.is_alphanumeric() || is_combining_mark(*c)).collect::<String>());
    let end = (0..=MAX_WORD.min(stem.len())).rev().find(|end| stem.is_char_boundary(*end));
    stem.truncate(end.unwrap_or(0));
    stem
}

/// Where each word of a photo stands.
type Places = BTreeMap<String, Vec<(usize, char)>>;

fn places(words: &Words) -> Places {
    let mut places = Places::new();
    let (mut place, mut bytes) = (0, 0);
    for (text, weight) in words.iter().zip(WEIGHTS) {
        // A gap, so that no phrase begins in one text and ends in the next.
        place += 1;
        for token in tokens(text.as_deref().unwrap_or_default()) {
            place += 1;
            bytes += token.stem.len();
            if place > MAX_WORDS || bytes > MAX_BYTES {
                return places;
            }
            let all = places.entry(token.stem).or_default();
            if all.len() < MAX_PLACES {
                all.push((place, weight));
            }
        }
    }
    places
}

/// The words of a photo as a `tsvector`.
pub(super) fn vector(words: &Words) -> String {
    let mut vector = String::new();
    for (stem, places) in places(words) {
        // Stems are letters and digits, so nothing in them has a meaning.
        let _ = write!(vector, "'{stem}':");
        for (index, (place, weight)) in places.iter().enumerate() {
            let comma = if index > 0 { "," } else { "" };
            let _ = write!(vector, "{comma}{place}{weight}");
        }
        vector.push(' ');
    }
    vector
}

/// Whether a stored `tsvector` has the words of a photo.
pub(super) fn is_vector_of(stored: &str, words: &Words) -> bool {
    let read = |text: &str| -> Option<(String, Vec<(usize, char)>)> {
        let (stem, all) = text.strip_prefix('\'')?.split_once("':")?;
        let place = |text: &str| match text.strip_suffix(WEIGHTS) {
            Some(number) => Some((number.parse().ok()?, text.chars().last()?)),
            // It does not write the last weight.
            None => Some((text.parse().ok()?, 'D')),
        };
        Some((stem.to_owned(), all.split(',').map(place).collect::<Option<_>>()?))
    };
    stored.split_whitespace().map(read).collect::<Option<Places>>() == Some(places(words))
}

/// The words of a query as a `tsquery`; `None` if no word is asked for.
pub(super) fn query(expression: &Expression) -> Option<String> {
    let all: Vec<String> = expression.all.iter().filter_map(|terms| any_of(terms)).collect();
    if all.is_empty() {
        return None;
    }
    let all = all.join(" & ");
    Some(match any_of(&expression.none) {
        Some(none) => format!("{all} & !{none}"),
        None => all,
    })
}

/// A `tsquery` that one of the terms satisfies.
pub(super) fn any_of(terms: &[Term]) -> Option<String> {
    let terms: Vec<String> = terms.iter().filter_map(phrase).collect();
    (!terms.is_empty()).then(|| format!("({})", terms.join(" | ")))
}

/// A term: words in a row.
fn phrase(term: &Term) -> Option<String> {
    let weight = column(term.column).map_or(String::new(), |column| WEIGHTS[column].to_string());
    let stems: Vec<String> = tokens(&term.words).map(|token| token.stem).collect();
    let last = stems.len().checked_sub(1)?;
    let words = stems.iter().enumerate().map(|(index, stem)| {
        let star = if index == last && term.is_prefix() { "*" } else { "" };
        match (star, weight.as_str()) {
            ("", "") => format!("'{stem}'"),
            _ => format!("'{stem}':{star}{weight}"),
        }
    });
    Some(format!("({})", words.collect::<Vec<_>>().join(" <-> ")))
}

fn column(column: Option<Column>) -> Option<usize> {
    match column? {
        Column::Text(Field::Caption) => Some(0),
        Column::Text(Field::AltText) => Some(1),
        Column::Text(Field::Tags) => Some(2),
        Column::Names => Some(3),
        // They are not searched.
        Column::Text(Field::Title | Field::Engaging) => None,
    }
}

/// Marks the words of a query in the four texts of a photo.
pub(super) fn mark(expression: &Expression, texts: &str) -> String {
    let terms: Vec<(&Term, Vec<String>)> = expression
        .all
        .iter()
        .flatten()
        .map(|term| (term, tokens(&term.words).map(|token| token.stem).collect()))
        .collect();
    let marked = texts.split(BETWEEN).enumerate().map(|(number, text)| {
        let tokens: Vec<Token> = tokens(text).collect();
        let mut found: Vec<Range<usize>> = Vec::new();
        for (term, stems) in &terms {
            if column(term.column).is_none_or(|column| column == number) {
                found.extend(matches(term, stems, &tokens));
            }
        }
        with_marks(text, found)
    });
    marked.collect::<Vec<_>>().join(&BETWEEN.to_string())
}

/// Where the words of a term stand in a row.
fn matches<'a>(
    term: &'a Term,
    stems: &'a [String],
    tokens: &'a [Token],
) -> impl Iterator<Item = Range<usize>> + 'a {
    let fits = move |window: &&[Token]| {
        window.iter().zip(stems).enumerate().all(|(index, (token, stem))| {
            let open = term.is_prefix() && index + 1 == stems.len();
            if open { token.stem.starts_with(stem) } else { token.stem == *stem }
        })
    };
    let size = stems.len().max(1);
    let windows = tokens.windows(size).filter(move |_| !stems.is_empty()).filter(fits);
    windows.map(move |window| window[0].range.start..window[size - 1].range.end)
}

fn with_marks(text: &str, mut ranges: Vec<Range<usize>>) -> String {
    ranges.sort_unstable_by_key(|range| (range.start, range.end));
    let mut marked = String::with_capacity(text.len() + 6 * ranges.len());
    let mut at = 0;
    let mut ranges = ranges.into_iter().peekable();
    while let Some(mut range) = ranges.next() {
        while let Some(next) = ranges.next_if(|next| next.start < range.end) {
            range.end = range.end.max(next.end);
        }
        marked.push_str(&text[at..range.start]);
        marked.push(MARKS[0]);
        marked.push_str(&text[range.clone()]);
        marked.push(MARKS[1]);
        at = range.end;
    }
    marked.push_str(&text[at..]);
    marked
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use rusqlite::Connection;

    use super::*;
    use crate::query::parse;

    /// The words that FTS5 makes of a text, sorted.
    fn of_sqlite(text: &str) -> Vec<String> {
        let db = Connection::open_in_memory().unwrap();
        db.execute_batch(
            "CREATE VIRTUAL TABLE t USING fts5(x, tokenize = 'porter unicode61 remove_diacritics 2'); \
             CREATE VIRTUAL TABLE v USING fts5vocab(t, instance);",
        )
        .unwrap();
        db.execute("INSERT INTO t(x) VALUES(?)", [text]).unwrap();
        let mut read = db.prepare("SELECT term FROM v ORDER BY term").unwrap();
        read.query_map([], |row| row.get(0)).unwrap().collect::<Result<_, _>>().unwrap()
    }

    fn of_ours(text: &str) -> Vec<String> {
        let mut words: Vec<String> = tokens(text).map(|token| token.stem).collect();
        words.sort_unstable();
        words
    }

    #[test]
    fn words_are_those_of_sqlite() {
        for text in [
            "two dogs running through ponies' meadows, hopping and hoped",
            "a relational conditional rational valency hesitancy digitizer conformably radically",
            "differently vilely analogously vietnamization predication operator feudalism decisiveness",
            "hopefulness callousness formality sensitivity sensibility triplicate formative formalize",
            "electricity electrical hopeful goodness revival allowance inference airliner gyroscopic",
            "adjustable defensible irritant replacement adjustment dependent adoption homologous",
            "communism activate angularity effective bowdlerize probate rate cease controlling rolled",
            "caresses caress cats feed agreed plastered bled motoring sing conflated troubled sized",
            "tanned falling hissing fizzed failing filing happy sky y by yes say toying apology skis",
            "Café CAFÉ cafe\u{301} naïve Ærø Straße ÅNGSTRÖM øre \u{130}stanbul",
            "Holiday/IMG_0003.jpg 100% (really) don't a-b http://example.org/x?y=1 3d 1e5 é",
            "собака на пляже 犬とビーチ",
            "Việt Nam ǖ ṩ й ё ά ώ 한국어",
            "logical biology mathematically generalizations oscillators s es ed ing ied eed ion",
        ] {
            assert_eq!(of_ours(text), of_sqlite(text), "{text}");
        }
    }

    proptest! {
        #[test]
        fn any_words_are_those_of_sqlite(
            words in prop::collection::vec(
                "[a-z]{1,7}(s|ed|ing|eed|y|ies|ness|ful|ation|ational|izer|bli|ement|ion|ive|ll|e|)", 1..20,
            )
        ) {
            let text = words.join(" ");
            prop_assert_eq!(of_ours(&text), of_sqlite(&text));
        }
    }

    #[test]
    fn queries_and_marks() {
        let expression = parse("alt:dogs \"on a beach\" OR run* -cat", false).unwrap();
        assert_eq!(
            query(&expression).unwrap(),
            "(('dog':B)) & (('on' <-> 'a' <-> 'beach') | ('run':*)) & !(('cat'))"
        );
        let texts = "a dog on a beach\u{1f}Dogs running\u{1f}dog\u{1f}";
        assert_eq!(
            mark(&expression, texts),
            "a dog \u{e000}on a beach\u{e001}\u{1f}\u{e000}Dogs\u{e001} \u{e000}running\u{e001}\u{1f}dog\u{1f}"
        );
        assert_eq!(query(&parse("-cat", false).unwrap()), None);
    }

    #[test]
    fn vectors_are_bounded() {
        let words = [Some("dog ".repeat(40_000)), None, Some("x".repeat(9000)), None];
        let long = vector(&words);
        assert!(long.len() < 2000 && long.contains("'dog':2A,3A"), "{}", long.len());
        let few = [Some("Dogs, a dog".into()), None, Some("dog".into()), Some("a.jpg".into())];
        assert_eq!(vector(&few).trim(), "'a':3A,9D 'dog':2A,4A,7C 'jpg':10D");
        assert!(is_vector_of("'a':3A,9 'dog':2A,4A,7C 'jpg':10", &few));
        assert!(!is_vector_of("'a':3A,9 'dog':2A,4A 'jpg':10", &few));
    }
}
