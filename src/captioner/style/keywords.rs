//! The style `keywords`: the words that name something.

use super::describing;
use crate::captioner::tags::content_words;

/// The most words.
const MOST: usize = 10;

/// The words that name something, in their order, separated by commas, in at most `most` characters; empty
/// if there are none.
pub(super) fn write(text: &str, most: usize) -> String {
    let Some(words) = describing(text) else { return String::new() };
    let mut found: Vec<String> = Vec::new();
    let mut used = 0;
    for word in content_words(&words.join(" ")) {
        if found.contains(&word) {
            continue;
        }
        let length = word.chars().count() + if found.is_empty() { 0 } else { 2 };
        if found.len() < MOST && used + length <= most {
            used += length;
            found.push(word);
        }
    }
    found.join(", ")
}
