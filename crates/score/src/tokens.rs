//! A caption as the words that scores count, as pycocoevalcap has them from the Penn Treebank
//! tokenizer of Stanford CoreNLP 3.4.1: in small letters, "don't" as "do" and "n't", and without
//! most punctuation.
//!
//! Written from the behaviour of that tokenizer on captions. What rarely stands in captions (addresses,
//! fractions as one sign, emoticons) may be cut otherwise.

/// Abbreviations that keep their full stop.
const ABBREVIATIONS: [&str; 24] = [
    "mr", "mrs", "ms", "dr", "st", "jr", "sr", "vs", "etc", "no", "inc", "co", "corp", "ltd",
    "ave", "blvd", "mt", "ft", "prof", "gen", "sgt", "capt", "rev", "gov",
];

/// Words that are written as one and counted as two, with the length of the first.
const JOINED: [(&str, usize); 8] = [
    ("cannot", 3),
    ("gonna", 3),
    ("gotta", 3),
    ("wanna", 3),
    ("lemme", 3),
    ("gimme", 3),
    ("'tis", 2),
    ("'twas", 2),
];

/// What is cut off the end of a word.
const ENDINGS: [&str; 7] = ["n't", "'s", "'m", "'d", "'re", "'ve", "'ll"];

/// The words of `text`.
#[must_use]
pub fn tokens(text: &str) -> Vec<String> {
    let text: String = text.to_lowercase().chars().map(plain).collect();
    let mut words = Vec::new();
    for chunk in text.split_whitespace() {
        let mut rest = chunk;
        while !rest.is_empty() {
            let length = match word(rest) {
                0 => mark(rest, &mut words),
                length => {
                    cut(&rest[..length], &rest[length..], &mut words);
                    length
                }
            };
            rest = &rest[length..];
        }
    }
    words
}

/// Typographic quotation marks and dashes as typewriters have them.
fn plain(c: char) -> char {
    match c {
        '‘' | '’' | '´' => '\'',
        '“' | '”' => '"',
        '–' | '—' => '—',
        c => c,
    }
}

/// Bytes of the word that `text` starts with.
fn word(text: &str) -> usize {
    let mut end = 0;
    let mut letters = text.char_indices().peekable();
    while let Some((at, letter)) = letters.next() {
        if letter.is_alphanumeric() {
            end = at + letter.len_utf8();
            continue;
        }
        let next = letters.peek().map(|(_, next)| *next);
        let before = text[..at].chars().next_back();
        if !joins(letter, before, next) {
            break;
        }
    }
    end
}

/// Whether `letter` holds what is before and behind it together.
fn joins(letter: char, before: Option<char>, next: Option<char>) -> bool {
    let (Some(before), Some(next)) = (before, next) else { return false };
    if !next.is_alphanumeric() {
        return false;
    }
    match letter {
        // A dash of two strokes is none.
        '-' | '/' | '\'' | '.' | '_' | '@' => before.is_alphanumeric(),
        '&' => before.is_alphabetic() && next.is_alphabetic(),
        ',' | ':' => before.is_ascii_digit() && next.is_ascii_digit(),
        _ => false,
    }
}

/// Puts the words that `word` is into `words`. `behind` is what follows it.
fn cut(word: &str, behind: &str, words: &mut Vec<String>) {
    if let Some((_, first)) = JOINED.iter().find(|(joined, _)| *joined == word) {
        words.extend([word[..*first].to_owned(), word[*first..].to_owned()]);
        return;
    }
    // The stop of an abbreviation is its own: "a.m.", "mr."
    let initials = word.split('.').all(|part| part.chars().count() == 1);
    let abbreviation = ABBREVIATIONS.contains(&word) || (word.contains('.') && initials);
    if abbreviation && behind.starts_with('.') {
        words.push(format!("{word}."));
        return;
    }
    let ending =
        ENDINGS.iter().find(|ending| word.len() > ending.len() && word.ends_with(**ending));
    match ending {
        Some(ending) => {
            let (first, last) = word.split_at(word.len() - ending.len());
            words.extend([first.to_owned(), last.to_owned()]);
        }
        None => words.push(word.to_owned()),
    }
}

/// Takes the mark that `text` starts with, and puts it into `words` if scores count it.
fn mark(text: &str, words: &mut Vec<String>) -> usize {
    let mut letters = text.chars();
    let Some(first) = letters.next() else { return 0 };
    let name = match first {
        '.' | ',' | ';' | ':' | '!' | '?' | '"' | '`' | '-' | '—' | '…' => None,
        '\'' => return apostrophe(text, words),
        '(' => Some("-lrb-"),
        ')' => Some("-rrb-"),
        '[' => Some("-lsb-"),
        ']' => Some("-rsb-"),
        '{' => Some("-lcb-"),
        '}' => Some("-rcb-"),
        _ => Some(&text[..first.len_utf8()]),
    };
    words.extend(name.map(str::to_owned));
    first.len_utf8()
}

/// "'90s" and "'em" are words; other apostrophes at the start are quotation marks.
fn apostrophe(text: &str, words: &mut Vec<String>) -> usize {
    let behind = &text[1..];
    let length = word(behind);
    let decade = behind.as_bytes().first().is_some_and(u8::is_ascii_digit)
        && behind[..length].ends_with('s');
    if decade || matches!(&behind[..length], "em" | "til" | "s" | "m" | "d" | "re" | "ve" | "ll") {
        words.push(text[..=length].to_owned());
        return 1 + length;
    }
    1
}
