//! The style `title`: a headline.

use super::{capitalized, cut, describing, is_loose, one_of};

/// Words that are written small inside a headline: articles, conjunctions and short prepositions.
const SMALL: [&str; 23] = [
    "a", "an", "the", "and", "but", "or", "nor", "as", "at", "by", "for", "from", "in", "into",
    "of", "off", "on", "onto", "over", "per", "to", "up", "with",
];

/// The text as a headline of at most `most` characters; empty if it describes nothing.
pub(super) fn write(text: &str, most: usize) -> String {
    let Some(words) = describing(text) else { return String::new() };
    // A headline begins with the thing itself.
    let article = usize::from(words.len() > 1 && one_of(words[0], &["a", "an", "the"]));
    let text = cut(&words[article..], most);
    let text = text.trim_end_matches(is_loose);
    let last = text.split(' ').count().saturating_sub(1);
    let word = |(at, word): (usize, &str)| {
        // A name keeps its capitals. A letter may become several when it is a capital.
        let small = one_of(word, &SMALL) && at > 0 && at < last;
        if small { word.to_lowercase() } else { capitalized(word) }
    };
    let title: Vec<String> = text.split(' ').enumerate().map(word).collect();
    let mut title: String = title.join(" ").chars().take(most).collect();
    title.truncate(title.trim_end().len());
    title
}
