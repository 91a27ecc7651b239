//! A flat JSON object with its fields in order, none dropped, and bounded memory.

use std::fmt;

use serde::de::{
    Deserialize, DeserializeSeed, Deserializer, Error as _, IgnoredAny, MapAccess, SeqAccess,
    Visitor,
};
use serde_json::{Map, Value};

use super::{base64, malformed};
use cutline_error::Result as Outcome;

/// More fields than this are no request; the names that exist are far fewer.
const MAX_FIELDS: usize = 64;

/// Reads [`Fields`].
pub(super) struct Object {
    /// What the array `images` may be; without it there is no such array.
    pub(super) images: Option<ImageArray>,
}

/// The fields of an object. A map would drop doubles silently.
#[derive(Debug, Default)]
pub(super) struct Fields {
    pub(super) fields: Vec<(String, Value)>,
    /// One entry for each element of the array `images`; `None` at the end if there were more than
    /// the limit.
    pub(super) images: Option<Vec<Option<Outcome<Vec<u8>>>>>,
}

impl<'de> DeserializeSeed<'de> for Object {
    type Value = Fields;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Fields, D::Error> {
        deserializer.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for Object {
    type Value = Fields;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Fields, A::Error> {
        let mut found = Fields::default();
        while let Some(name) = map.next_key::<String>()? {
            match self.images {
                Some(_) if name == "images" && found.images.is_some() => {
                    return Err(A::Error::custom("images is there twice"));
                }
                Some(array) if name == "images" => {
                    found.images = Some(map.next_value_seed(array)?);
                }
                _ if found.fields.len() == MAX_FIELDS => {
                    return Err(A::Error::custom("too many fields"));
                }
                _ => {
                    let Scalar(value) = map.next_value()?;
                    found.fields.push((name, value));
                }
            }
        }
        Ok(found)
    }
}

/// Reads an array of base64, each element decoded at once, so that there is no copy of its text.
#[derive(Debug, Clone, Copy)]
pub(super) struct ImageArray {
    /// Elements that are read; the others are only seen to be there.
    pub(super) limit: usize,
    /// Bytes of one image.
    pub(super) max_bytes: usize,
}

impl<'de> DeserializeSeed<'de> for ImageArray {
    type Value = Vec<Option<Outcome<Vec<u8>>>>;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Self::Value, D::Error> {
        deserializer.deserialize_seq(self)
    }
}

impl<'de> Visitor<'de> for ImageArray {
    type Value = Vec<Option<Outcome<Vec<u8>>>>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an array of base64")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Self::Value, A::Error> {
        let mut images = Vec::new();
        while images.len() < self.limit {
            match seq.next_element_seed(Image { max_bytes: self.max_bytes })? {
                Some(image) => images.push(Some(image)),
                None => return Ok(images),
            }
        }
        let mut more = false;
        while seq.next_element::<IgnoredAny>()?.is_some() {
            more = true;
        }
        images.extend(more.then_some(None));
        Ok(images)
    }
}

/// One element of [`ImageArray`]. What is no base64 is an error of this image, not of the others.
struct Image {
    max_bytes: usize,
}

impl<'de> DeserializeSeed<'de> for Image {
    type Value = Outcome<Vec<u8>>;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Self::Value, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl Image {
    fn none<E>() -> Result<Outcome<Vec<u8>>, E> {
        Ok(Err(malformed("an image must be a string of base64")))
    }
}

impl<'de> Visitor<'de> for Image {
    type Value = Outcome<Vec<u8>>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("base64")
    }

    fn visit_str<E>(self, text: &str) -> Result<Self::Value, E> {
        Ok(base64::decode(text, self.max_bytes))
    }

    fn visit_unit<E>(self) -> Result<Self::Value, E> {
        Self::none()
    }

    fn visit_bool<E>(self, _: bool) -> Result<Self::Value, E> {
        Self::none()
    }

    fn visit_i64<E>(self, _: i64) -> Result<Self::Value, E> {
        Self::none()
    }

    fn visit_u64<E>(self, _: u64) -> Result<Self::Value, E> {
        Self::none()
    }

    fn visit_f64<E>(self, _: f64) -> Result<Self::Value, E> {
        Self::none()
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Self::Value, A::Error> {
        while seq.next_element::<IgnoredAny>()?.is_some() {}
        Self::none()
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        while map.next_entry::<IgnoredAny, IgnoredAny>()?.is_some() {}
        Self::none()
    }
}

/// A value of which arrays and objects keep only that they are one: no parameter is either, and a
/// few bytes of nested brackets would otherwise grow tenfold in memory.
struct Scalar(Value);

impl<'de> Deserialize<'de> for Scalar {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(ScalarVisitor).map(Scalar)
    }
}

struct ScalarVisitor;

impl<'de> Visitor<'de> for ScalarVisitor {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a value")
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_bool<E>(self, value: bool) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_i64<E>(self, value: i64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_u64<E>(self, value: u64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_f64<E>(self, value: f64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_str<E>(self, value: &str) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_string<E>(self, value: String) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Value, A::Error> {
        while seq.next_element::<IgnoredAny>()?.is_some() {}
        Ok(Value::Array(Vec::new()))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Value, A::Error> {
        while map.next_entry::<IgnoredAny, IgnoredAny>()?.is_some() {}
        Ok(Value::Object(Map::new()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn parse(text: &str, images: Option<ImageArray>) -> serde_json::Result<Fields> {
        Object { images }.deserialize(&mut serde_json::Deserializer::from_str(text))
    }

    #[test]
    fn fields_keep_order_doubles_and_types() {
        let text = r#"{"b": 1, "a": -2, "b": 0.5, "c": "x", "d": null, "e": true}"#;
        let fields = parse(text, None).unwrap().fields;
        let names: String = fields.iter().map(|(name, _)| name.as_str()).collect();
        assert_eq!(names, "babcde");
        let values: Vec<Value> = fields.into_iter().map(|(_, value)| value).collect();
        assert_eq!(values, [json!(1), json!(-2), json!(0.5), json!("x"), json!(null), json!(true)]);
    }

    #[test]
    fn nested_values_are_hollow_and_crowds_are_refused() {
        let text = r#"{"a": [[1], {}], "b": {"c": []}, "images": ["aGVsbG8="]}"#;
        let found = parse(text, None).unwrap();
        assert_eq!(found.fields[0].1, json!([]));
        assert_eq!(found.fields[1].1, json!({}));
        assert!(found.images.is_none(), "there is no such array where one image is asked for");
        let crowd: Vec<String> = (0..65).map(|i| format!("\"{i}\": 0")).collect();
        assert!(parse(&format!("{{{}}}", crowd.join(",")), None).is_err());
        assert!(parse("[1]", None).is_err());
    }

    #[test]
    fn images_are_read_one_by_one_and_a_bad_one_spoils_no_other() {
        let array = Some(ImageArray { limit: 4, max_bytes: 5 });
        let text = r#"{"seed": 1, "images": ["aGVsbG8=", 5, "%", "aGVs\/w=="], "top_k": 2}"#;
        let found = parse(text, array).unwrap();
        assert_eq!(found.fields.len(), 2);
        let images = found.images.unwrap();
        let bytes = |n: usize| images[n].as_ref().unwrap().as_ref().ok().cloned();
        assert_eq!(bytes(0).unwrap(), b"hello");
        assert_eq!((bytes(1), bytes(2)), (None, None));
        assert_eq!(bytes(3).unwrap(), [b'h', b'e', b'l', 0xFF], "an escaped stroke is read");

        let text = r#"{"images": ["", "", "", "", "", ""]}"#;
        let images = parse(text, array).unwrap().images.unwrap();
        assert!(images.len() == 5 && images[4].is_none(), "that there are more is known");
        assert!(parse(r#"{"images": "aGVsbG8="}"#, array).is_err());
        assert!(parse(r#"{"images": [], "images": []}"#, array).is_err());
    }
}
