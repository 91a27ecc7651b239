//! What an instruction asks for.
//!
//! Clients of language models write instructions such as "Describe this image in detail". BLIP does not
//! follow instructions: it would continue the sentence. So an instruction only chooses between the
//! texts that the program can write, and never reaches the model.

use crate::captioner::{CaptionParams, Style, tag_params};

/// The kind of text that is wanted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Intent {
    /// The caption as the model writes it.
    Caption,
    /// Alternative text, with its maximum length if one was named.
    AltText { max_chars: Option<usize> },
    /// Words for what is in the image.
    Tags,
}

/// Phrases that ask for alternative text.
const ALT_TEXT: [&str; 6] =
    ["alt text", "alt-text", "alttext", "alternative text", "screen reader", "accessib"];

/// Beginnings of words that ask for tags.
const TAGS: [&str; 4] = ["label", "tag", "keyword", "categor"];

/// Words that turn what follows into its opposite.
const NEGATIONS: [&str; 6] = ["no", "not", "without", "don't", "never", "avoid"];

/// How many words before a word may negate it.
const NEGATION_REACH: usize = 3;

impl Intent {
    /// The intent of an instruction.
    pub(super) fn of(instruction: &str) -> Self {
        let text = instruction.to_lowercase();
        if ALT_TEXT.iter().any(|phrase| text.contains(phrase)) {
            return Self::AltText { max_chars: max_chars(&text) };
        }
        let words: Vec<&str> = words(&text).collect();
        let wants_tags = words.iter().enumerate().any(|(at, word)| {
            let before = &words[at.saturating_sub(NEGATION_REACH)..at];
            TAGS.iter().any(|start| word.starts_with(start))
                && !before.iter().any(|word| NEGATIONS.contains(word))
        });
        if wants_tags { Self::Tags } else { Self::Caption }
    }

    /// Its name in the header.
    pub(super) const fn as_str(self) -> &'static str {
        match self {
            Self::Caption => "caption",
            Self::AltText { .. } => "alt_text",
            Self::Tags => "tags",
        }
    }

    /// `params` for this intent.
    pub(super) fn apply(self, params: CaptionParams) -> CaptionParams {
        match self {
            Self::Caption => params,
            Self::AltText { max_chars } => {
                CaptionParams { style: Style::AltText, max_chars, ..params }
            }
            Self::Tags => tag_params(params),
        }
    }
}

fn words(text: &str) -> impl Iterator<Item = &str> {
    text.split(|c: char| !c.is_alphanumeric() && c != '\'').filter(|word| !word.is_empty())
}

/// The number before "characters", within the range of the parameter.
fn max_chars(text: &str) -> Option<usize> {
    let words: Vec<&str> = words(text).collect();
    let pairs = words.windows(2).filter(|pair| pair[1].starts_with("char"));
    let number = pairs.filter_map(|pair| pair[0].parse::<usize>().ok()).next()?;
    Some(number.clamp(20, 1000))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn instructions_are_intents() {
        for (text, expected) in [
            ("", Intent::Caption),
            ("Describe this image in detail.", Intent::Caption),
            ("What is in the picture? Do not use any hashtags.", Intent::Caption),
            ("Describe the photo without tags", Intent::Caption),
            ("Write alt text for it", Intent::AltText { max_chars: None }),
            (
                "Describe it for a screen reader in at most 80 characters.",
                Intent::AltText { max_chars: Some(80) },
            ),
            ("ALT-TEXT, 5 chars", Intent::AltText { max_chars: Some(20) }),
            ("Return JSON labels for this image", Intent::Tags),
            ("List five keywords", Intent::Tags),
            ("Categorize the photo", Intent::Tags),
            ("Is this a heritage site?", Intent::Caption),
        ] {
            assert_eq!(Intent::of(text), expected, "{text}");
        }
    }

    #[test]
    fn an_intent_changes_the_parameters_and_nothing_else() {
        let given = CaptionParams { max_new_tokens: 7, ..CaptionParams::default() };
        assert_eq!(Intent::Caption.apply(given.clone()), given);
        let alt = Intent::AltText { max_chars: Some(80) }.apply(given.clone());
        assert_eq!((alt.style, alt.max_chars, alt.max_new_tokens), (Style::AltText, Some(80), 7));
        let tags = Intent::Tags.apply(given);
        assert!(tags.num_captions > 1 && tags.num_captions <= tags.num_beams);
        tags.validate().unwrap();
    }
}
