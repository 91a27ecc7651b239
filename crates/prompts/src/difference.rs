//! The differences between two texts.

use std::time::Duration;

use serde::Serialize;
use similar::{Algorithm, ChangeTag, TextDiff};
use utoipa::ToSchema;

/// A part of two texts.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
pub struct Part {
    /// Which of the texts has it.
    pub kind: PartKind,
    /// The part.
    pub text: String,
}

/// Which of two texts has a part.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum PartKind {
    /// Both.
    Same,
    /// Only the first.
    Removed,
    /// Only the second.
    Added,
}

/// The parts of two texts in their order, cut between words.
#[must_use]
pub fn difference(one: &str, two: &str) -> Vec<Part> {
    let diff = TextDiff::configure()
        .algorithm(Algorithm::Myers)
        // Beyond this the answer is coarser, not wrong.
        .timeout(Duration::from_millis(200))
        .diff_words(one, two);
    let mut parts: Vec<Part> = Vec::new();
    for change in diff.iter_all_changes() {
        let kind = match change.tag() {
            ChangeTag::Equal => PartKind::Same,
            ChangeTag::Delete => PartKind::Removed,
            ChangeTag::Insert => PartKind::Added,
        };
        match parts.last_mut() {
            Some(last) if last.kind == kind => last.text.push_str(change.value()),
            _ => parts.push(Part { kind, text: change.value().to_owned() }),
        }
    }
    parts
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn words_are_compared() {
        let parts = difference("a photo of a dog", "a photo of a cat");
        let kinds: Vec<(PartKind, &str)> =
            parts.iter().map(|part| (part.kind, part.text.as_str())).collect();
        assert_eq!(
            kinds,
            [
                (PartKind::Same, "a photo of a "),
                (PartKind::Removed, "dog"),
                (PartKind::Added, "cat")
            ]
        );
    }

    proptest! {
        #[test]
        fn both_texts_can_be_read_from_the_parts(one in "[ab \\n]{0,40}", two in "[ab \\n]{0,40}") {
            let parts = difference(&one, &two);
            let without = |kind: PartKind| -> String {
                parts.iter().filter(|part| part.kind != kind).map(|part| part.text.as_str()).collect()
            };
            prop_assert_eq!(without(PartKind::Added), one);
            prop_assert_eq!(without(PartKind::Removed), two);
        }
    }
}
