//! The messages of both endpoints.

use std::fmt;

use serde::Deserialize;
use serde::de::value::{MapAccessDeserializer, SeqAccessDeserializer};
use serde::de::{Deserializer, Error, MapAccess, SeqAccess, Visitor};

use crate::http::contracts::conversation::{Conversation, Turn};
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

impl<'a> Message<'a> {
    /// A message of the user with one text.
    pub(super) fn of_user(text: Text<'a>) -> Self {
        Self { role: None, content: Some(Content::Text(text)) }
    }

    fn turn(&self) -> Turn<'_> {
        let role = self.role.as_deref().unwrap_or("user");
        let (texts, images) = match &self.content {
            Some(Content::Text(text)) => (vec![&**text], Vec::new()),
            Some(Content::Parts(parts)) => (
                parts.iter().filter_map(|part| part.text.as_deref()).collect(),
                parts
                    .iter()
                    .filter_map(|part| part.image_url.as_ref())
                    .map(|url| &*url.0)
                    .collect(),
            ),
            None => (Vec::new(), Vec::new()),
        };
        Turn { role, texts, images }
    }
}

/// What `messages` ask for.
pub(super) fn conversation<'c>(messages: &'c [Message<'_>]) -> Conversation<'c> {
    Conversation::of(messages.iter().map(Message::turn).collect())
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

    fn asked(messages: &serde_json::Value) -> (Vec<String>, String, Option<String>) {
        let text = messages.to_string();
        let messages: List<Message<'_>, MESSAGES> = serde_json::from_str(&text).unwrap();
        let Conversation { images, instruction, prefill } = conversation(&messages);
        let images = images.into_iter().map(str::to_owned).collect();
        (images, instruction, prefill.map(str::to_owned))
    }

    fn image(url: &str) -> serde_json::Value {
        json!({"type": "image_url", "image_url": {"url": url, "detail": "low"}})
    }

    #[test]
    fn the_images_of_the_last_message_with_images_count() {
        let (images, instruction, prefill) = asked(&json!([
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
        let (images, _, prefill) = asked(&json!([
            {"role": "user", "content": [image("A")]},
            {"role": "assistant", "content": [{"type": "text", "text": "a photo of"}]},
        ]));
        assert_eq!((images, prefill.as_deref()), (vec!["A".to_owned()], Some("a photo of")));
    }

    #[test]
    fn odd_messages_are_no_error() {
        let (images, instruction, _) = asked(&json!([
            {"content": null},
            {"role": "tool", "content": "x", "tool_call_id": "1"},
            {"role": "user", "content": [], "name": "n"},
            {"role": "user", "content": "a\\b"},
        ]));
        assert_eq!((images.len(), instruction.as_str()), (0, "a\\b\n"));
    }
}
