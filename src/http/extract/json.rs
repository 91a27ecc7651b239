//! `application/json` with images in base64, or their addresses.
//!
//! Fields are borrowed from the body ([`RawValue`]), so that base64 is decoded straight out of it.
//! They are kept in order, because a map would drop duplicates silently. A field that is null counts
//! as not given.

use std::borrow::Cow;
use std::fmt;

use axum::body::Body;
use axum::http::request::Parts;
use serde::de::{
    Deserialize, DeserializeSeed, Deserializer, Error as _, IgnoredAny, MapAccess, SeqAccess,
    Visitor,
};
use serde_json::value::RawValue;
use serde_json::{Map, Value};

use super::names::{ImageCount, Place};
use super::{Form, Images, Transport, encoded, malformed, too_many};
use crate::captioner::given_twice;
use crate::fetch::{MAX_URL_BYTES, URL_FIELD};
use crate::text;
use cutline_error::{Error, Result};

/// Maximum number of fields in a request, far more than there are parameters.
const MAX_FIELDS: usize = 64;

pub(super) async fn read(
    parts: &Parts,
    body: Body,
    images: &mut Images<'_>,
    form: &mut Form,
) -> Result<()> {
    let reader = images.reader;
    let max_bytes = reader.settings.max_image_bytes;
    let body = reader.limited(parts, body, Transport::Json)?;
    let permit = body.permit();
    let bytes = body.collect().await?;
    let json = text::without_mark(&bytes).map_err(|why| malformed(format!("the body {why}")))?;
    let Fields(fields) = serde_json::from_slice(json).map_err(|error| {
        let at = format!("line {} column {}", error.line(), error.column());
        let how = reader.count.instructions();
        malformed(format!("the body is not a JSON object as expected here ({at}); {how}"))
            .with_source(error)
    })?;
    let mut has_images = false;
    for (name, value) in fields {
        let is_null = value.get() == "null";
        if name == URL_FIELD {
            if !is_null {
                images.add_url(address(value)?)?;
            }
            continue;
        }
        if name != reader.count.field() {
            form.expect(&name, Place::Body)?;
            match form.add_nested(&name, value.get()) {
                Some(added) => added?,
                None => form.add(&name, scalar(&name, value)?)?,
            }
            continue;
        }
        match reader.count {
            _ if is_null => {}
            ImageCount::One => {
                images.add(None, Ok(permit.photo(image(value, max_bytes)?)))?;
            }
            ImageCount::Many(_) if has_images => return Err(given_twice("images")),
            ImageCount::Many(limit) => {
                has_images = true;
                let Elements { first, more } = Elements::of(value, limit).map_err(|error| {
                    malformed("images must be an array; send base64 in it, even for one image")
                        .with_source(error)
                })?;
                for value in first {
                    if !value.get().starts_with('{') {
                        images
                            .add(None, image(value, max_bytes).map(|bytes| permit.photo(bytes)))?;
                        continue;
                    }
                    match reference(value) {
                        Ok(url) => images.add_url(url)?,
                        Err(error) => images.add(None, Err(error))?,
                    }
                }
                if more {
                    return Err(too_many(limit));
                }
            }
        }
    }
    Ok(())
}

/// The fields of an object in their order, duplicates included.
#[derive(Debug)]
pub(super) struct Fields<'a>(pub(super) Vec<(String, &'a RawValue)>);

impl<'de> Deserialize<'de> for Fields<'de> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Object;
        impl<'de> Visitor<'de> for Object {
            type Value = Fields<'de>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Fields<'de>, A::Error> {
                let mut fields = Vec::new();
                while let Some(field) = map.next_entry()? {
                    if fields.len() == MAX_FIELDS {
                        return Err(A::Error::custom("too many fields"));
                    }
                    fields.push(field);
                }
                Ok(Fields(fields))
            }
        }
        deserializer.deserialize_map(Object)
    }
}

/// The first elements of an array, and whether there are more.
#[derive(Debug)]
struct Elements<'a> {
    first: Vec<&'a RawValue>,
    more: bool,
}

impl<'a> Elements<'a> {
    fn of(array: &'a RawValue, limit: usize) -> serde_json::Result<Self> {
        AtMost(limit).deserialize(&mut serde_json::Deserializer::from_str(array.get()))
    }
}

/// Reads [`Elements`]: an array of two bytes an element would take eight times its size in memory.
struct AtMost(usize);

impl<'de> DeserializeSeed<'de> for AtMost {
    type Value = Elements<'de>;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Self::Value, D::Error> {
        deserializer.deserialize_seq(self)
    }
}

impl<'de> Visitor<'de> for AtMost {
    type Value = Elements<'de>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an array of base64")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Self::Value, A::Error> {
        let mut elements = Elements { first: Vec::new(), more: false };
        while elements.first.len() < self.0 {
            match seq.next_element()? {
                Some(element) => elements.first.push(element),
                None => return Ok(elements),
            }
        }
        while seq.next_element::<IgnoredAny>()?.is_some() {
            elements.more = true;
        }
        Ok(elements)
    }
}

/// The value of a parameter. Arrays and objects become empty ones: no parameter has such a value,
/// and a few bytes of nested brackets would grow tenfold in memory. So do numbers beyond the range of
/// floating-point numbers, which no parameter accepts either.
///
/// # Errors
/// [`InvalidParameter`](cutline_error::ErrorKind::InvalidParameter): the value is not Unicode.
pub(super) fn scalar(name: &str, value: &RawValue) -> Result<Value> {
    match value.get().as_bytes().first() {
        Some(b'[') => Ok(Value::Array(Vec::new())),
        Some(b'{') => Ok(Value::Object(Map::new())),
        Some(b'"') => serde_json::from_str(value.get()).map_err(|error| {
            let detail = format!("{name} has half of a surrogate pair; send valid Unicode text");
            Error::parameter(name.to_owned(), detail).with_source(error)
        }),
        _ => Ok(serde_json::from_str(value.get()).unwrap_or_else(|_| Value::Array(Vec::new()))),
    }
}

/// The most characters of JSON that an address takes: six for each, and the rest of an object.
const MAX_REFERENCE: usize = 6 * MAX_URL_BYTES + 64;

/// The value of `image_url`.
///
/// # Errors
/// [`InvalidParameter`](cutline_error::ErrorKind::InvalidParameter).
pub(super) fn address(value: &RawValue) -> Result<String> {
    let text = Some(value.get()).filter(|text| text.len() <= MAX_REFERENCE);
    text.and_then(|text| serde_json::from_str(text).ok()).ok_or_else(|| {
        let detail = format!(
            "{URL_FIELD} must be the address of an image, such as https://example.com/cat.jpg"
        );
        Error::parameter(URL_FIELD, detail)
    })
}

/// The address in an element such as `{"image_url": "https://…"}`.
///
/// # Errors
/// [`MalformedRequest`](cutline_error::ErrorKind::MalformedRequest).
fn reference(value: &RawValue) -> Result<String> {
    #[derive(serde::Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Reference {
        image_url: String,
    }
    let text = Some(value.get()).filter(|text| text.len() <= MAX_REFERENCE);
    let reference = text.and_then(|text| serde_json::from_str(text).ok());
    reference.map(|Reference { image_url }| image_url).ok_or_else(|| {
        malformed("an image must be a string of base64, or an object with the one field image_url")
    })
}

/// The bytes of an image, at most `max_bytes`.
///
/// # Errors
/// [`MalformedRequest`](cutline_error::ErrorKind::MalformedRequest) or
/// [`ImageTooLarge`](cutline_error::ErrorKind::ImageTooLarge).
pub(super) fn image(value: &RawValue, max_bytes: usize) -> Result<Vec<u8>> {
    let quoted = value.get().strip_prefix('"').and_then(|text| text.strip_suffix('"'));
    let Some(quoted) = quoted else {
        return Err(malformed("an image must be a string of base64"));
    };
    let text = if quoted.contains('\\') {
        let text = serde_json::from_str::<String>(value.get()).map_err(|error| {
            malformed("an image is not a valid JSON string; send base64").with_source(error)
        })?;
        Cow::Owned(text)
    } else {
        Cow::Borrowed(quoted)
    };
    encoded::image(&text, max_bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn parse(text: &str) -> serde_json::Result<Vec<(String, &RawValue)>> {
        serde_json::from_str(text).map(|Fields(fields)| fields)
    }

    #[test]
    fn fields_keep_order_duplicates_and_types() {
        let text = r#"{"b": 1, "a": -2, "b": 0.5, "c": "x", "d": null, "e": true}"#;
        let fields = parse(text).unwrap();
        let names: String = fields.iter().map(|(name, _)| name.as_str()).collect();
        assert_eq!(names, "babcde");
        let values: Vec<Value> =
            fields.into_iter().map(|(_, value)| scalar("a", value).unwrap()).collect();
        assert_eq!(values, [json!(1), json!(-2), json!(0.5), json!("x"), json!(null), json!(true)]);
    }

    #[test]
    fn nested_values_are_emptied_and_many_fields_are_refused() {
        let deep =
            format!(r#"{{"a": {}1{}, "b": {{"c": []}}}}"#, "[".repeat(9999), "]".repeat(9999));
        let fields = parse(&deep).unwrap();
        assert_eq!(scalar("a", fields[0].1).unwrap(), json!([]));
        assert_eq!(scalar("a", fields[1].1).unwrap(), json!({}));
        let many: Vec<String> = (0..65).map(|i| format!("\"{i}\": 0")).collect();
        assert!(parse(&format!("{{{}}}", many.join(","))).is_err());
        assert!(parse("[1]").is_err());
    }

    #[test]
    fn images_are_decoded_one_by_one_and_a_bad_one_does_not_affect_the_others() {
        let text = r#"["aGVsbG8=", 5, "%", "aGVs\/w=="]"#;
        let array: &RawValue = serde_json::from_str(text).unwrap();
        let Elements { first, more } = Elements::of(array, 4).unwrap();
        assert!(first.len() == 4 && !more);
        let bytes = |n: usize| image(first[n], 5).ok();
        assert_eq!(bytes(0).unwrap(), b"hello");
        assert_eq!((bytes(1), bytes(2)), (None, None));
        assert_eq!(bytes(3).unwrap(), [b'h', b'e', b'l', 0xFF], "an escaped slash is read");
        let Elements { first, more } = Elements::of(array, 3).unwrap();
        assert!(first.len() == 3 && more);
        let string: &RawValue = serde_json::from_str(r#""aGVsbG8=""#).unwrap();
        assert!(Elements::of(string, 3).is_err());
    }
}
