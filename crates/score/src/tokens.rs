//! Tokenizes captions as pycocoevalcap does with the Penn Treebank tokenizer of Stanford CoreNLP
//! 3.4.1: in lower case, "don't" as "do" and "n't", and without most punctuation.
//!
//! This reproduces the behaviour of that tokenizer on captions. What is rare in captions (addresses,
//! fractions as one character, emoticons) may be split differently.

/// Abbreviations that keep their period.
const ABBREVIATIONS: [&str; 24] = [
    "mr", "mrs", "ms", "dr", "st", "jr", "sr", "vs", "etc", "no", "inc", "co", "corp", "ltd",
    "ave", "blvd", "mt", "ft", "prof", "gen", "sgt", "capt", "rev", "gov",
];

/// Words that are split in two, with the length of the first part.
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

/// Endings that are split off.
const ENDINGS: [&str; 7] = ["n't", "'s", "'m", "'d", "'re", "'ve", "'ll"];

/// The tokens of `text`.
#[must_use]
pub fn tokens(text: &str) -> Vec<String> {
    let text: String = text.to_lowercase().chars().map(normalize).collect();
    let mut words = Vec::new();
    for chunk in text.split_whitespace() {
        let mut rest = chunk;
        while !rest.is_empty() {
            let length = match word_length(rest) {
                0 => punctuation(rest, &mut words),
                length => {
                    split(&rest[..length], &rest[length..], &mut words);
                    length
                }
            };
            rest = &rest[length..];
        }
    }
    words
}

/// Replaces typographic quotation marks and dashes with plain ones.
fn normalize(c: char) -> char {
    match c {
        '‘' | '’' | '´' => '\'',
        '“' | '”' => '"',
        '–' | '—' => '—',
        c => c,
    }
}

/// The length in bytes of the word that `text` starts with.
fn word_length(text: &str) -> usize {
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

/// Whether `letter` joins the characters before and after it into one word.
fn joins(letter: char, before: Option<char>, next: Option<char>) -> bool {
    let (Some(before), Some(next)) = (before, next) else { return false };
    if !next.is_alphanumeric() {
        return false;
    }
    match letter {
        // Two hyphens are a dash and separate words.
        '-' | '/' | '\'' | '.' | '_' | '@' => before.is_alphanumeric(),
        '&' => before.is_alphabetic() && next.is_alphabetic(),
        ',' | ':' => before.is_ascii_digit() && next.is_ascii_digit(),
        _ => false,
    }
}

/// Appends the tokens of `word` to `words`. `after` is the text that follows.
fn split(word: &str, after: &str, words: &mut Vec<String>) {
    if let Some((_, first)) = JOINED.iter().find(|(joined, _)| *joined == word) {
        words.extend([word[..*first].to_owned(), word[*first..].to_owned()]);
        return;
    }
    // The period belongs to an abbreviation: "a.m.", "mr."
    let initials = word.split('.').all(|part| part.chars().count() == 1);
    let abbreviation = ABBREVIATIONS.contains(&word) || (word.contains('.') && initials);
    if abbreviation && after.starts_with('.') {
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

/// Consumes the punctuation character that `text` starts with, and appends it to `words` unless it is
/// ignored. Returns its length in bytes.
fn punctuation(text: &str, words: &mut Vec<String>) -> usize {
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
    let after = &text[1..];
    let length = word_length(after);
    let decade =
        after.as_bytes().first().is_some_and(u8::is_ascii_digit) && after[..length].ends_with('s');
    if decade || matches!(&after[..length], "em" | "til" | "s" | "m" | "d" | "re" | "ve" | "ll") {
        words.push(text[..=length].to_owned());
        return 1 + length;
    }
    1
}
