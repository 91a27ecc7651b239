//! Messages of `/api/realtime`: a JSON object with the image or its address in it, or one line of JSON with
//! the image behind it.

use std::fmt;

use serde::de::{Deserializer, Error as _, IgnoredAny, MapAccess, Visitor};
use serde_json::value::RawValue;

use super::json::{Fields, address, image, scalar};
use super::names::{ImageCount, Place};
use super::{BodyLimits, ENVELOPE_BYTES, Form, Reader, Transport, malformed, second_image};
use crate::captioner::{Budget, CaptionParams, ParameterFields, Photo, given_twice, shortened};
use crate::config::HttpSettings;
use crate::fetch::URL_FIELD;
use crate::http::body::TooLarge;
use cutline_error::{Error, ErrorKind, Result};

/// The field with the bytes of an image.
const IMAGE_FIELD: &str = "image";

/// The most characters of an id.
const MAX_ID: usize = 128;

/// How a message is written; see [`SYNTAX`].
const SYNTAX: &str = "send a JSON object like {\"type\": \"caption\", \"id\": \"1\", \"image\": \
                      \"<base64>\"}, or in a binary message {\"type\": \"caption\", \"id\": \"1\"}, \
                      a line feed, and the bytes of the image";

/// What a client asks for.
#[derive(Debug)]
pub(in crate::http) enum Command {
    /// A caption.
    Caption(Box<CaptionCommand>),
    /// To drop the request with this id.
    Cancel(String),
    /// A `pong` with this id.
    Ping(Option<String>),
}

/// A caption to make.
#[derive(Debug)]
pub(in crate::http) struct CaptionCommand {
    pub(in crate::http) id: String,
    pub(in crate::http) image: CommandImage,
    pub(in crate::http) params: CaptionParams,
}

/// Where the image of a message is.
#[derive(Debug, PartialEq, Eq)]
pub(in crate::http) enum CommandImage {
    /// It was in the JSON.
    Here(Vec<u8>),
    /// It follows the JSON.
    Behind,
    /// At this address.
    At(String),
}

impl CommandImage {
    /// The field that holds it.
    fn field(&self) -> &'static str {
        match self {
            Self::Here(_) | Self::Behind => IMAGE_FIELD,
            Self::At(_) => URL_FIELD,
        }
    }
}

/// A message that cannot be understood, and its id if that can be.
#[derive(Debug)]
pub(in crate::http) struct BadMessage {
    pub(in crate::http) id: Option<String>,
    pub(in crate::http) error: Error,
}

/// The limits of a text message and of a binary one.
pub(in crate::http) fn message_limits(settings: &HttpSettings, budget: &Budget) -> [BodyLimits; 2] {
    let reader = Reader { settings, budget, count: ImageCount::One, optional: false };
    let binary = reader.limits(Transport::Raw);
    let bytes = binary.bytes.saturating_add(ENVELOPE_BYTES);
    [reader.limits(Transport::Json), BodyLimits { bytes, ..binary }]
}

/// Reads a text message, or the line of a binary one.
///
/// # Errors
/// As for a request to `/caption/generate`.
pub(in crate::http) fn command(
    json: &[u8],
    max_bytes: usize,
    image_follows: bool,
) -> Result<Command, BadMessage> {
    let Fields(fields) = serde_json::from_slice(json).map_err(|error| {
        let at = format!("line {} column {}", error.line(), error.column());
        let detail = format!("the message is not a JSON object as expected here ({at}); {SYNTAX}");
        BadMessage { id: id_in(json), error: malformed(detail).with_source(error) }
    })?;
    let id = match text_field(&fields, "id") {
        Ok(id) => id,
        Err(error) => return Err(BadMessage { id: None, error }),
    };
    let command = || match text_field(&fields, "type")?.as_deref() {
        Some("caption") => caption(id.clone(), &fields, max_bytes, image_follows),
        Some(_) if image_follows => {
            Err(malformed(format!("a binary message must be of the type caption; {SYNTAX}")))
        }
        Some("cancel") => {
            let id = id.clone().ok_or_else(|| no_id("cancel"))?;
            alone(&fields).map(|()| Command::Cancel(id))
        }
        Some("ping") => alone(&fields).map(|()| Command::Ping(id.clone())),
        Some(other) => {
            let shown = shortened(other);
            Err(malformed(format!(
                "there is no message of the type \"{shown}\"; the types are caption, cancel and ping"
            )))
        }
        None => Err(malformed(format!("the message has no type; {SYNTAX}"))),
    };
    command().map_err(|error| BadMessage { id: id.clone(), error })
}

fn caption(
    id: Option<String>,
    fields: &[(String, &RawValue)],
    max_bytes: usize,
    image_follows: bool,
) -> Result<Command> {
    let id = id.ok_or_else(|| no_id("caption"))?;
    let mut form = Form { params: Some(ParameterFields::default()).into(), count: ImageCount::One };
    let (mut found, mut streams) = (None::<CommandImage>, true);
    for (name, value) in fields.iter().filter(|(name, _)| !is_envelope(name)) {
        match (name.as_str(), &found) {
            (IMAGE_FIELD | URL_FIELD, _) if value.get() == "null" => {}
            (field @ (IMAGE_FIELD | URL_FIELD), _) if image_follows => {
                let detail = format!(
                    "the image of a binary message is behind the line of JSON; leave {field} out"
                );
                return Err(Error::parameter(field.to_owned(), detail));
            }
            (field @ (IMAGE_FIELD | URL_FIELD), Some(first)) => {
                return Err(second_image(first.field(), field));
            }
            (IMAGE_FIELD, None) => found = Some(CommandImage::Here(image(value, max_bytes)?)),
            (URL_FIELD, None) => found = Some(CommandImage::At(address(value)?)),
            _ => {
                form.expect(name, Place::Body)?;
                // Here words are sent unless the client wants none.
                streams &= !(name == "stream" && value.get() == "false");
                match form.add_nested(name, value.get()) {
                    Some(added) => added?,
                    None => form.add(name, scalar(name, value)?)?,
                }
            }
        }
    }
    let image = found.or(image_follows.then_some(CommandImage::Behind));
    let image = image.ok_or_else(|| malformed(format!("there is no image; {SYNTAX}")))?;
    let params = CaptionParams { stream: streams, ..form.finish()?.caption()? };
    Ok(Command::Caption(Box::new(CaptionCommand { id, image, params })))
}

fn is_envelope(name: &str) -> bool {
    matches!(name, "type" | "id")
}

/// Checks that there are no fields but the type and the id.
fn alone(fields: &[(String, &RawValue)]) -> Result<()> {
    match fields.iter().find(|(name, _)| !is_envelope(name)) {
        None => Ok(()),
        Some((name, _)) => {
            let name = shortened(name);
            let detail = format!("this message has a type and an id; leave {name} out");
            Err(Error::parameter(name, detail))
        }
    }
}

/// The text in the field of this name.
fn text_field(fields: &[(String, &RawValue)], name: &str) -> Result<Option<String>> {
    let mut values = fields.iter().filter(|(other, _)| other == name).map(|(_, value)| value);
    let first = values.next();
    if values.next().is_some() {
        return Err(given_twice(name));
    }
    let Some(value) = first.filter(|value| value.get() != "null") else { return Ok(None) };
    let text = serde_json::from_str::<String>(value.get()).ok().filter(|text| is_id(text));
    text.map(Some).ok_or_else(|| {
        let detail = format!("{name} must be a text of 1 to {MAX_ID} characters; shorten it");
        Error::parameter(name.to_owned(), detail)
    })
}

fn is_id(text: &str) -> bool {
    !text.is_empty() && text.chars().nth(MAX_ID).is_none()
}

fn no_id(kind: &str) -> Error {
    let detail = format!(
        "a message of the type {kind} needs an id of 1 to {MAX_ID} characters; answers carry the same \
         id"
    );
    Error::parameter("id", detail)
}

/// The error of a binary message without a line of JSON.
pub(in crate::http) fn no_head() -> BadMessage {
    let detail = format!(
        "a binary message must begin with a line of JSON of at most {ENVELOPE_BYTES} bytes; {SYNTAX}"
    );
    BadMessage { id: None, error: Error::new(ErrorKind::MalformedRequest, detail) }
}

/// The length of the line of JSON that a binary message begins with.
pub(in crate::http) fn head_length(message: &[u8]) -> Option<usize> {
    message.iter().take(ENVELOPE_BYTES).position(|byte| *byte == b'\n')
}

/// The id in the start of a message that was refused before its end, if it comes before whatever is
/// cut off.
pub(in crate::http) fn id_in(start: &[u8]) -> Option<String> {
    struct UntilCut<'i>(&'i mut Option<String>);

    impl<'de> Visitor<'de> for UntilCut<'_> {
        type Value = ();

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("an object")
        }

        fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
            while let Some(name) = map.next_key::<String>()? {
                if name != "id" {
                    map.next_value::<IgnoredAny>()?;
                } else if self.0.is_some() {
                    *self.0 = None;
                    return Err(A::Error::custom("given twice"));
                } else {
                    *self.0 = Some(map.next_value()?).filter(|id: &String| is_id(id));
                }
            }
            Ok(())
        }
    }

    let mut id = None;
    // It ends with an error where the message is cut off.
    let _ = serde_json::Deserializer::from_slice(start).deserialize_map(UntilCut(&mut id));
    id
}

/// The limit on the image itself, which a limit on the whole message cannot express exactly.
///
/// # Errors
/// [`ImageTooLarge`](ErrorKind::ImageTooLarge).
pub(in crate::http) fn within(photo: &Photo, max_bytes: usize) -> Result<()> {
    if photo.len() > max_bytes { Err(TooLarge::Image(max_bytes).error()) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(json: &str) -> Result<Command, BadMessage> {
        command(json.as_bytes(), 5, false)
    }

    fn refused(json: &str) -> (Option<String>, ErrorKind) {
        let BadMessage { id, error } = read(json).unwrap_err();
        (id, error.kind())
    }

    #[test]
    fn the_three_types_are_read() {
        let json = r#"{"image": "aGVsbG8=", "num_beams": 3, "id": "ä/1", "type": "caption"}"#;
        let Ok(Command::Caption(caption)) = read(json) else { panic!("{json}") };
        assert_eq!((caption.id.as_str(), caption.params.num_beams), ("ä/1", 3));
        assert_eq!(caption.image, CommandImage::Here(b"hello".to_vec()));
        assert!(caption.params.stream, "words are sent");
        let json = r#"{"type": "caption", "id": "1", "image": "aGk=", "stream": false}"#;
        let Ok(Command::Caption(caption)) = read(json) else { panic!("{json}") };
        assert!(!caption.params.stream);
        let head = br#"{"type": "caption", "id": "1", "image": null}"#;
        let Ok(Command::Caption(caption)) = command(head, 5, true) else { panic!() };
        assert_eq!(caption.image, CommandImage::Behind);
        let url =
            r#"{"type": "caption", "id": "1", "image": null, "image_url": "http:\/\/a.example"}"#;
        let Ok(Command::Caption(caption)) = read(url) else { panic!("{url}") };
        assert_eq!(caption.image, CommandImage::At("http://a.example".to_owned()));
        assert!(
            matches!(read(r#"{"type": "cancel", "id": "a"}"#), Ok(Command::Cancel(id)) if id == "a")
        );
        assert!(
            matches!(read(r#"{"type": "ping", "id": "a"}"#), Ok(Command::Ping(Some(id))) if id == "a")
        );
        assert!(matches!(read(r#"{"type": "ping"}"#), Ok(Command::Ping(None))));
    }

    #[test]
    fn refusals_carry_the_id_wherever_it_is() {
        use ErrorKind::{ImageTooLarge, InvalidParameter, MalformedRequest};
        let long = "x".repeat(129);
        for (json, id, kind) in [
            (r#"{"id": "a"}"#, Some("a"), MalformedRequest),
            (r#"{"id": "a", "type": "sing"}"#, Some("a"), MalformedRequest),
            (r#"{"id": "a", "type": 5}"#, Some("a"), InvalidParameter),
            (
                r#"{"type": "caption", "image": "", "id": "a", "beams": 2}"#,
                Some("a"),
                InvalidParameter,
            ),
            (r#"{"type": "caption", "id": "a"}"#, Some("a"), MalformedRequest),
            (r#"{"type": "caption", "id": "a", "image": "%"}"#, Some("a"), MalformedRequest),
            (r#"{"type": "caption", "id": "a", "image": "aGVsbG8h"}"#, Some("a"), ImageTooLarge),
            (
                r#"{"type": "caption", "id": "a", "image": "", "image": ""}"#,
                Some("a"),
                InvalidParameter,
            ),
            (
                r#"{"type": "caption", "id": "a", "image": "", "num_beams": 99}"#,
                Some("a"),
                InvalidParameter,
            ),
            (
                r#"{"type": "caption", "id": "a", "image_url": "x", "image_url": "x"}"#,
                Some("a"),
                InvalidParameter,
            ),
            (
                r#"{"type": "caption", "id": "a", "image_url": "x", "image": "aGk="}"#,
                Some("a"),
                InvalidParameter,
            ),
            (r#"{"type": "caption", "id": "a", "image_url": ["x"]}"#, Some("a"), InvalidParameter),
            (r#"{"type": "caption", "id": "a", "image_url": null}"#, Some("a"), MalformedRequest),
            (r#"{"type": "cancel", "id": "a", "image": ""}"#, Some("a"), InvalidParameter),
            (r#"{"type": "cancel", "id": "a", "image_url": ""}"#, Some("a"), InvalidParameter),
            (r#"{"type": "caption", "image": ""}"#, None, InvalidParameter),
            (r#"{"type": "cancel"}"#, None, InvalidParameter),
            (r#"{"type": "ping", "id": 5}"#, None, InvalidParameter),
            (r#"{"type": "ping", "id": ""}"#, None, InvalidParameter),
            (r#"{"type": "ping", "id": "a", "id": "b"}"#, None, InvalidParameter),
            (&format!(r#"{{"type": "ping", "id": "{long}"}}"#), None, InvalidParameter),
            (r#"{"type": "ping", "id": "a", nonsense"#, Some("a"), MalformedRequest),
            ("[1]", None, MalformedRequest),
            ("", None, MalformedRequest),
        ] {
            assert_eq!(refused(json), (id.map(str::to_owned), kind), "{json}");
        }
        let head = br#"{"type": "cancel", "id": "a"}"#;
        assert!(command(head, 5, true).is_err(), "a binary message is an image");
        for head in [
            &br#"{"type": "caption", "id": "a", "image": "aGk="}"#[..],
            br#"{"type": "caption", "id": "a", "image_url": "http://a.example"}"#,
        ] {
            let BadMessage { error, .. } = command(head, 5, true).unwrap_err();
            assert!(error.detail().contains("behind the line of JSON"), "two images: {error}");
        }
    }

    #[test]
    fn an_id_is_found_before_the_place_where_a_message_is_cut_off() {
        let found = |start: &str| id_in(start.as_bytes());
        assert_eq!(found(r#"{"type": "caption", "id": "a", "image": "aGVs"#).as_deref(), Some("a"));
        assert_eq!(found("{\"id\": \"a\"}\n\u{fffd}").as_deref(), Some("a"));
        assert_eq!(found(r#"{"image": "aGVs"#), None);
        assert_eq!(found(r#"{"id": "a", "id": "b", "image": "a"#), None);
        assert_eq!(found(r#"{"id": "a"#), None);
        let deep = format!("{{\"a\": {}", "[".repeat(100_000));
        assert_eq!(found(&deep), None);
    }

    #[test]
    fn the_line_of_json_is_bounded() {
        assert_eq!(head_length(b"{}\nimage\n"), Some(2));
        assert_eq!(head_length(b"{}"), None);
        let long = [vec![b' '; ENVELOPE_BYTES], b"\n".to_vec()].concat();
        assert_eq!(head_length(&long), None);
    }
}
