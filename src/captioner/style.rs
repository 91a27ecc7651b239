//! Text styles: captions as the model writes them, or as alternative text.
//!
//! Styles are applied last. Everything before stores the model's raw text, so another style of a cached
//! caption costs nothing.

use super::Choice;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// `caption` for the text as the model writes it, `alt_text` for the alt of a web page. Alternative
/// text follows the practice of WCAG: no "a picture of" at the start, nothing twice in a row, cut at
/// a word.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Style {
    /// As the model writes it.
    #[default]
    Caption,
    /// As the `alt` of a web page, following WCAG and the W3C's tutorial: short, and without saying that
    /// it is an image.
    AltText,
}

/// A style with its options.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct TextStyle {
    /// Caption or alternative text.
    pub style: Style,
    /// The largest number of characters of alternative text; `None` for
    /// [`DEFAULT_MAX_CHARS`](Self::DEFAULT_MAX_CHARS).
    pub max_chars: Option<usize>,
    /// Whether alternative text starts with a capital letter.
    pub capital: bool,
    /// Whether alternative text ends with a full stop.
    pub full_stop: bool,
}

/// Why the fallback text replaces the model's text.
pub(super) const NOTHING_LEFT: &str = "the model wrote nothing that describes the photo";

/// The nouns of introductions that say nothing, such as "a photo of" or "this picture shows".
const PICTURES: [&str; 9] = [
    "image",
    "images",
    "picture",
    "pictures",
    "photo",
    "photos",
    "photograph",
    "photographs",
    "snapshot",
];

/// Words that a shortened caption must not end with.
const DANGLING: [&str; 35] = [
    "a", "an", "the", "and", "or", "but", "of", "in", "on", "at", "to", "by", "for", "from",
    "with", "without", "into", "onto", "over", "under", "above", "below", "near", "behind",
    "beside", "between", "through", "while", "that", "which", "is", "are", "his", "her", "their",
];

impl TextStyle {
    /// Some screen readers pause after this many characters.
    pub const DEFAULT_MAX_CHARS: usize = 125;

    /// Alternative text with the default options.
    #[must_use]
    pub const fn alt_text() -> Self {
        Self { style: Style::AltText, max_chars: None, capital: false, full_stop: false }
    }

    /// The text in this style; empty if no part of it describes the photo.
    #[must_use]
    pub fn apply(&self, text: &str) -> String {
        match self.style {
            Style::Caption => text.to_owned(),
            Style::AltText => self.put(text, self.full_stop),
        }
    }

    /// An unfinished text in this style, without a full stop.
    #[must_use]
    pub fn so_far(&self, text: &str) -> String {
        match self.style {
            Style::Caption => text.to_owned(),
            Style::AltText => self.put(text, false),
        }
    }

    fn put(&self, text: &str, full_stop: bool) -> String {
        let words: Vec<&str> = text.split_whitespace().collect();
        let mut words = without_introductions(&words).to_vec();
        drop_repetitions(&mut words);
        if words.iter().all(|word| one_of(word, &DANGLING)) {
            return String::new();
        }
        let most = self.max_chars.unwrap_or(Self::DEFAULT_MAX_CHARS);
        let mut text = cut(&words, most.saturating_sub(usize::from(full_stop)));
        text.truncate(text.trim_end_matches(is_loose).len());
        if self.capital {
            text = capitalized(&text);
        }
        if full_stop && text.ends_with(char::is_alphanumeric) {
            text.push('.');
        }
        text
    }
}

/// Whether `text` repeats a word or phrase directly, or contains the same three words twice.
#[must_use]
pub fn repeats_itself(text: &str) -> bool {
    let mut words: Vec<&str> = text.split_whitespace().collect();
    let all = words.len();
    drop_repetitions(&mut words);
    let mut seen = std::collections::HashSet::new();
    words.len() < all || words.windows(3).any(|three| !seen.insert(three))
}

/// Marks a caption that does not describe its photo.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
pub struct Fallback {
    /// Always true: the text is the fallback text.
    pub fallback: bool,
    /// Why there is no description.
    pub fallback_reason: String,
}

impl Fallback {
    /// A fallback for this reason.
    #[must_use]
    pub fn because(reason: impl Into<String>) -> Self {
        Self { fallback: true, fallback_reason: reason.into() }
    }
}

/// `choices` in `style`. Choices whose text becomes empty are left out. If all become empty, the best one
/// gets the text `fallback`.
pub(super) fn styled(
    choices: &[Choice],
    style: TextStyle,
    fallback: &str,
) -> (Vec<Choice>, Option<Fallback>) {
    if style.style == Style::Caption {
        return (choices.to_vec(), None);
    }
    let put = |choice: &Choice| Choice { text: style.apply(&choice.text), ..choice.clone() };
    let mut all: Vec<Choice> = choices.iter().map(put).collect();
    if all.iter().any(|choice| !choice.text.is_empty()) {
        all.retain(|choice| !choice.text.is_empty());
        return (all, None);
    }
    all.truncate(1);
    all.iter_mut().for_each(|choice| fallback.clone_into(&mut choice.text));
    (all, Some(Fallback::because(NOTHING_LEFT)))
}

/// The words after all introductions like "a photo of".
fn without_introductions<'w, 't>(mut words: &'w [&'t str]) -> &'w [&'t str] {
    loop {
        match introduction(words) {
            0 => return words,
            length => words = &words[length..],
        }
    }
}

/// The number of leading words that only say that this is a picture.
fn introduction(words: &[&str]) -> usize {
    let is = |at: usize, any: &[&str]| words.get(at).is_some_and(|word| one_of(word, any));
    let mut at = 0;
    if is(0, &["this", "there", "it", "here"]) && is(1, &["is"]) {
        at += 2;
    }
    if is(at, &["a", "an", "the", "this"]) {
        at += 1;
    }
    if !is(at, &PICTURES) {
        return 0;
    }
    at += 1;
    if is(at, &["that", "which"]) && is(at + 1, &["shows", "depicts"]) {
        return at + 2;
    }
    if is(at, &["of", "showing", "shows", "depicting", "depicts"]) { at + 1 } else { 0 }
}

fn one_of(word: &str, any: &[&str]) -> bool {
    any.iter().any(|one| one.eq_ignore_ascii_case(word))
}

/// Removes words and phrases that repeat directly.
fn drop_repetitions(words: &mut Vec<&str>) {
    let same = |one: &str, two: &str| {
        let bare = |word: &str| word.trim_matches([',', ';', '.']).to_lowercase();
        bare(one) == bare(two)
    };
    let mut length = 1;
    while 2 * length <= words.len() {
        let mut at = 0;
        while at + 2 * length <= words.len() {
            let (one, two) = (&words[at..at + length], &words[at + length..at + 2 * length]);
            if one.iter().zip(two).all(|(one, two)| same(one, two)) {
                // The first copy is removed: punctuation after the last one belongs to it.
                words.drain(at..at + length);
            } else {
                at += 1;
            }
        }
        length += 1;
    }
}

/// As many words as fit into `most` characters. A shortened text does not end with a dangling word.
fn cut(words: &[&str], most: usize) -> String {
    let mut used = 0;
    let fitting = words.iter().take_while(|word| {
        used += usize::from(used > 0) + word.chars().count();
        used <= most
    });
    let mut fitting = fitting.count();
    if fitting == 0 {
        return words.first().map(|word| word.chars().take(most).collect()).unwrap_or_default();
    }
    if fitting < words.len() {
        while fitting > 1 && one_of(words[fitting - 1], &DANGLING) {
            fitting -= 1;
        }
    }
    words[..fitting].join(" ")
}

/// Characters that are removed from the end of a text.
fn is_loose(last: char) -> bool {
    last.is_whitespace() || matches!(last, '.' | ',' | ';' | ':' | '-')
}

fn capitalized(text: &str) -> String {
    let mut rest = text.chars();
    rest.next().map_or_else(String::new, |first| first.to_uppercase().chain(rest).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::captioner::TokenSequence;
    use crate::engine::FinishReason;

    fn alt(text: &str) -> String {
        TextStyle::alt_text().apply(text)
    }

    #[test]
    fn introductions_are_removed() {
        for (text, expected) in [
            ("a picture of a cat", "a cat"),
            ("An image of two dogs", "two dogs"),
            ("this is a photo of a picture of the moon", "the moon"),
            ("the photograph shows a bridge", "a bridge"),
            ("there is an image that shows a boat", "a boat"),
            ("photos of cakes", "cakes"),
            ("a picture frame on a wall", "a picture frame on a wall"),
            ("a black and white photo of a man", "a black and white photo of a man"),
            ("a man taking a picture of a dog", "a man taking a picture of a dog"),
            ("there is a cat", "there is a cat"),
            ("a picture of", ""),
            ("an image of the", ""),
            ("  ", ""),
        ] {
            assert_eq!(alt(text), expected, "{text}");
        }
    }

    #[test]
    fn direct_repetitions_are_removed() {
        for (text, expected) in [
            ("a cat cat sitting", "a cat sitting"),
            ("a man and a man and a man in a hat", "a man and a man in a hat"),
            ("a red, red, Red ball", "a Red ball"),
            ("on the left on the left on the left", "on the left"),
            ("a dog and a cat and a dog", "a dog and a cat and a dog"),
            ("no no no no", "no"),
        ] {
            assert_eq!(alt(text), expected, "{text}");
        }
        assert!(repeats_itself("a cat cat") && repeats_itself("a red hat on a red hat on it"));
        assert!(!repeats_itself("a cat and a cat") && !repeats_itself(""));
    }

    #[test]
    fn a_shortened_text_does_not_end_with_a_dangling_word() {
        let style = TextStyle { max_chars: Some(20), ..TextStyle::alt_text() };
        assert_eq!(style.apply("a dog on the sofa in"), "a dog on the sofa in", "20 characters");
        assert_eq!(style.apply("a dog on the sofa in a room"), "a dog on the sofa");
        assert_eq!(style.apply("äöü äöü1 äöü2 äöü3 äö"), "äöü äöü1 äöü2 äöü3", "not bytes");
        assert_eq!(style.apply(&"x".repeat(30)), "x".repeat(20));
        let stop = TextStyle { full_stop: true, ..style };
        assert_eq!(stop.apply("a dog on the sofa ok"), "a dog on the sofa.");
        let long = (0..60).map(|n| n.to_string()).collect::<Vec<_>>().join(" ");
        let said = alt(&long);
        assert!((120..=125).contains(&said.len()) && long.starts_with(&said), "{said}");
    }

    #[test]
    fn capital_letter_and_full_stop_are_optional() {
        assert_eq!(alt("a cat ."), "a cat");
        let both = TextStyle { capital: true, full_stop: true, ..TextStyle::alt_text() };
        assert_eq!(both.apply("élan and a cat"), "Élan and a cat.");
        assert_eq!(both.apply("a cat!"), "A cat!");
        assert_eq!(both.apply("a photo of"), "");
        assert_eq!(both.so_far("a cat"), "A cat");
        let plain = TextStyle::default();
        assert_eq!(plain.apply("a photo of a cat ."), "a photo of a cat .");
    }

    #[test]
    fn empty_texts_become_the_fallback() {
        let choice = |text: &str| Choice {
            text: text.into(),
            confidence: 0.5,
            tokens: 3,
            finish_reason: FinishReason::Stop,
            sequence: TokenSequence::default(),
        };
        let texts = |choices: &[Choice]| -> Vec<String> {
            choices.iter().map(|choice| choice.text.clone()).collect()
        };
        let alt = TextStyle::alt_text();
        let (some, fallback) = styled(&[choice("a photo of"), choice("a dog")], alt, "none");
        assert_eq!((texts(&some), fallback), (vec!["a dog".to_owned()], None));
        let (none, fallback) = styled(&[choice("a photo of"), choice("")], alt, "none");
        assert_eq!(texts(&none), ["none"]);
        assert!(fallback.unwrap().fallback);
        let (same, fallback) = styled(&[choice("")], TextStyle::default(), "none");
        assert_eq!((texts(&same), fallback), (vec![String::new()], None));
    }
}
