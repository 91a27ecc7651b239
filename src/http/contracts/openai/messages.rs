//! Conversations: which images, which instruction, and which beginning of the answer.

use std::fmt;

use serde::Deserialize;
use serde::de::value::{MapAccessDeserializer, SeqAccessDeserializer};
use serde::de::{Deserializer, Error, MapAccess, SeqAccess, Visitor};

use crate::http::contracts::json::{List, Text};

/// The most messages, and parts of a message.
pub(super) const MESSAGES: usize = 1024;
const PARTS: usize = 128;

#[derive(Debug, Deserialize)]
pub(super) struct Message<'a> {
    #[serde(borrow)]
    role: Option<Text<'a>>,
    #[serde(borrow)]
    content: Option<Content<'a>>,
}

/// What a message says: one text, or parts.
#[derive(Debug)]
enum Content<'a> {
    Text(Text<'a>),
    Parts(List<Part<'a>, PARTS>),
}

/// A text or an image. The type is not looked at: the field that is present decides.
#[derive(Debug, Deserialize)]
struct Part<'a> {
    #[serde(borrow)]
    text: Option<Text<'a>>,
    #[serde(borrow)]
    image_url: Option<ImageUrl<'a>>,
}

/// The address of an image, alone or in an object.
#[derive(Debug)]
struct ImageUrl<'a>(Text<'a>);

/// What a conversation asks for.
#[derive(Debug, Default)]
pub(super) struct Conversation<'c> {
    /// The images of the last message of the user that has any.
    pub(super) images: Vec<&'c str>,
    /// The texts of the system, and of the user since that message.
    pub(super) instruction: String,
    /// The last message if the assistant's: the beginning of the answer.
    pub(super) prefill: Option<&'c str>,
}

impl<'a> Message<'a> {
    /// A message of the user with one text.
    pub(super) fn of_user(text: Text<'a>) -> Self {
        Self { role: None, content: Some(Content::Text(text)) }
    }

    fn role(&self) -> &str {
        self.role.as_deref().unwrap_or("user")
    }

    fn images(&self) -> impl Iterator<Item = &str> {
        let parts = match &self.content {
            Some(Content::Parts(parts)) => &**parts,
            _ => &[],
        };
        parts.iter().filter_map(|part| part.image_url.as_ref().map(|url| &*url.0))
    }

    fn texts(&self) -> Vec<&str> {
        match &self.content {
            Some(Content::Text(text)) => vec![text],
            Some(Content::Parts(parts)) => {
                parts.iter().filter_map(|part| part.text.as_deref()).collect()
            }
            None => Vec::new(),
        }
    }
}

impl<'c> Conversation<'c> {
    pub(super) fn of(messages: &'c [Message<'_>]) -> Self {
        let by_user = |message: &Message<'_>| message.role() == "user";
        let last = messages.iter().rposition(|m| by_user(m) && m.images().next().is_some());
        let images = last.map_or(Vec::new(), |at| messages[at].images().collect());
        let mut instruction = String::new();
        for (at, message) in messages.iter().enumerate() {
            let counts = match message.role() {
                "system" | "developer" => true,
                "user" => last.is_none_or(|last| at >= last),
                _ => false,
            };
            for text in message.texts().into_iter().filter(|_| counts) {
                instruction.push_str(text);
                instruction.push('\n');
            }
        }
        let prefill = messages.last().filter(|message| message.role() == "assistant");
        let prefill = prefill.and_then(|message| message.texts().first().copied());
        Self { images, instruction, prefill: prefill.filter(|text| !text.trim().is_empty()) }
    }
}

impl<'de: 'a, 'a> Deserialize<'de> for Content<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct TextOrParts;
        impl<'de> Visitor<'de> for TextOrParts {
            type Value = Content<'de>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a string or an array of parts")
            }

            fn visit_borrowed_str<E: Error>(self, text: &'de str) -> Result<Self::Value, E> {
                Ok(Content::Text(Text(text.into())))
            }

            fn visit_str<E: Error>(self, text: &str) -> Result<Self::Value, E> {
                Ok(Content::Text(Text(text.to_owned().into())))
            }

            fn visit_seq<A: SeqAccess<'de>>(self, seq: A) -> Result<Self::Value, A::Error> {
                List::deserialize(SeqAccessDeserializer::new(seq)).map(Content::Parts)
            }
        }
        deserializer.deserialize_any(TextOrParts)
    }
}

impl<'de: 'a, 'a> Deserialize<'de> for ImageUrl<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        struct Object<'a> {
            #[serde(borrow)]
            url: Text<'a>,
        }
        struct Address;
        impl<'de> Visitor<'de> for Address {
            type Value = ImageUrl<'de>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("the address of an image, or an object with a field url")
            }

            fn visit_borrowed_str<E: Error>(self, text: &'de str) -> Result<Self::Value, E> {
                Ok(ImageUrl(Text(text.into())))
            }

            fn visit_str<E: Error>(self, text: &str) -> Result<Self::Value, E> {
                Ok(ImageUrl(Text(text.to_owned().into())))
            }

            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Self::Value, A::Error> {
                let object = Object::deserialize(MapAccessDeserializer::new(map))?;
                Ok(ImageUrl(object.url))
            }
        }
        deserializer.deserialize_any(Address)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn conversation(messages: &serde_json::Value) -> (Vec<String>, String, Option<String>) {
        let text = messages.to_string();
        let messages: List<Message<'_>, MESSAGES> = serde_json::from_str(&text).unwrap();
        let Conversation { images, instruction, prefill } = Conversation::of(&messages);
        let images = images.into_iter().map(str::to_owned).collect();
        (images, instruction, prefill.map(str::to_owned))
    }

    fn image(url: &str) -> serde_json::Value {
        json!({"type": "image_url", "image_url": {"url": url, "detail": "low"}})
    }

    #[test]
    fn the_images_of_the_last_message_with_images_count() {
        let (images, instruction, prefill) = conversation(&json!([
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": [{"type": "text", "text": "old"}, image("A")]},
            {"role": "assistant", "content": "a dog"},
            {"role": "user", "content": [
                {"type": "text", "text": "and these?"}, image("B"),
                {"type": "input_image", "image_url": "C"},
            ]},
            {"role": "user", "content": "as tags"},
        ]));
        assert_eq!(images, ["B", "C"]);
        assert_eq!(instruction, "Be brief.\nand these?\nas tags\n");
        assert_eq!(prefill, None);
    }

    #[test]
    fn the_last_message_of_the_assistant_begins_the_answer() {
        let (images, _, prefill) = conversation(&json!([
            {"role": "user", "content": [image("A")]},
            {"role": "assistant", "content": [{"type": "text", "text": "a photo of"}]},
        ]));
        assert_eq!((images, prefill.as_deref()), (vec!["A".to_owned()], Some("a photo of")));
    }

    #[test]
    fn odd_messages_are_no_error() {
        let (images, instruction, _) = conversation(&json!([
            {"content": null},
            {"role": "tool", "content": "x", "tool_call_id": "1"},
            {"role": "user", "content": [], "name": "n"},
            {"role": "user", "content": "a\\b"},
        ]));
        assert_eq!((images.len(), instruction.as_str()), (0, "a\\b\n"));
    }
}
