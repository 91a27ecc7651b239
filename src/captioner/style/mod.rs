//! Text styles: captions as the model writes them, as alternative text, or as a text for another place.
//!
//! Every style but the first is made of the caption's words by rules, and of the photo's colours: the
//! same input gives the same text, and nothing is said that neither caption nor colours say.
//! Styles are applied last. Everything before stores the model's raw text, so another style of a cached
//! caption costs nothing.

mod engaging;
mod keywords;
mod title;

use super::Choice;
use cutline_image::Colors;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// `caption` for the text as the model writes it; `alt_text` for the alt of a web page, without "a picture
/// of" at the start or anything twice in a row, cut at a word; `engaging` for a post, the caption with a
/// warm word about light and colours; `title` for a headline; `keywords` for the words that name
/// something, with commas.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Style {
    /// As the model writes it.
    #[default]
    Caption,
    /// As the `alt` of a web page, following WCAG and the W3C's tutorial: short, and without saying that
    /// it is an image.
    AltText,
    /// As a short, warm post. What it adds to the caption is about light and colours only.
    Engaging,
    /// As a headline.
    Title,
    /// As words that name something, separated by commas.
    Keywords,
}

impl Style {
    /// The name in the interfaces.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Caption => "caption",
            Self::AltText => "alt_text",
            Self::Engaging => "engaging",
            Self::Title => "title",
            Self::Keywords => "keywords",
        }
    }

    /// The style of this name.
    #[must_use]
    pub fn named(name: &str) -> Option<Self> {
        let all = [Self::Caption, Self::AltText, Self::Engaging, Self::Title, Self::Keywords];
        all.into_iter().find(|style| style.as_str() == name)
    }

    /// The most characters of a text in this style, if a request does not say.
    const fn max_chars(self) -> usize {
        match self {
            // What a post may have on the services that allow the least, and room for a link.
            Self::Engaging => 140,
            // What search engines show of a title.
            Self::Title => 60,
            Self::Keywords => 250,
            Self::Caption | Self::AltText => TextStyle::DEFAULT_MAX_CHARS,
        }
    }
}

/// A style with its options.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct TextStyle {
    /// What the text is for.
    pub style: Style,
    /// The largest number of characters; `None` for the style's own.
    pub max_chars: Option<usize>,
    /// Whether a text in the style `engaging` may have emoji.
    pub emoji: bool,
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
        Self {
            style: Style::AltText,
            max_chars: None,
            emoji: false,
            capital: false,
            full_stop: false,
        }
    }

    /// The text in this style; empty if no part of it describes the photo. `colors` are those of the photo,
    /// if they are known.
    #[must_use]
    pub fn apply(&self, text: &str, colors: Option<&Colors>) -> String {
        match self.style {
            Style::Caption => text.to_owned(),
            Style::AltText => self.alternative(text, self.full_stop),
            Style::Engaging => engaging::write(text, self.most(), self.emoji, colors),
            Style::Title => title::write(text, self.most()),
            Style::Keywords => keywords::write(text, self.most()),
        }
    }

    /// An unfinished text in this style, without a full stop and what else follows at the end.
    #[must_use]
    pub fn so_far(&self, text: &str) -> String {
        match self.style {
            Style::AltText => self.alternative(text, false),
            Style::Engaging => engaging::first_sentence(text, self.most()),
            _ => self.apply(text, None),
        }
    }

    /// The style of a text that a model elsewhere wrote, for which the style was a part of the instruction: a
    /// post is not made of it again.
    #[must_use]
    pub(super) fn of_foreign(self) -> Self {
        if self.style != Style::Engaging {
            return self;
        }
        Self { max_chars: Some(self.most()), capital: true, full_stop: true, ..Self::alt_text() }
    }

    /// The most characters of the text.
    #[must_use]
    pub fn most(&self) -> usize {
        self.max_chars.unwrap_or(self.style.max_chars())
    }

    fn alternative(&self, text: &str, full_stop: bool) -> String {
        let Some(words) = describing(text) else { return String::new() };
        let mut text = cut(&words, self.most().saturating_sub(usize::from(full_stop)));
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

/// The words of a text that describe the photo; `None` if there are none.
fn describing(text: &str) -> Option<Vec<&str>> {
    let words: Vec<&str> = text.split_whitespace().collect();
    let mut words = without_introductions(&words).to_vec();
    drop_repetitions(&mut words);
    let none = words.iter().all(|word| one_of(word, &DANGLING));
    (!none).then_some(words)
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
    colors: &Colors,
    fallback: &str,
) -> (Vec<Choice>, Option<Fallback>) {
    if style.style == Style::Caption {
        return (choices.to_vec(), None);
    }
    let put = |choice: &Choice| Choice {
        text: style.apply(&choice.text, Some(colors)),
        ..choice.clone()
    };
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
mod tests;
