//! The elements of a tensor in JSON: strings, flat or nested.

use std::borrow::Cow;
use std::fmt;

use serde::de::{DeserializeSeed, Deserializer, Error as _, SeqAccess, Visitor};
use serde_json::value::RawValue;

use super::tensors::{Element, malformed};
use cutline_error::Result;

/// How deep the elements of a tensor may be nested: rows of one column.
const DEPTH: usize = 2;

/// Reads the `count` texts of the tensor `name`.
///
/// # Errors
/// [`MalformedRequest`](cutline_error::ErrorKind::MalformedRequest): they are not as many, or no texts.
pub(super) fn texts<'a>(data: &'a RawValue, name: &str, count: usize) -> Result<Vec<Element<'a>>> {
    let mut elements = Vec::new();
    let reader = Elements { into: &mut elements, most: count, depth: DEPTH };
    let read = reader.deserialize(&mut serde_json::Deserializer::from_str(data.get()));
    let wrong =
        || format!("the data of {name} must be an array of {count} strings, as its shape says");
    match read {
        Ok(()) if elements.len() == count => Ok(elements),
        Ok(()) => Err(malformed(wrong())),
        Err(error) => Err(malformed(wrong()).with_source(error)),
    }
}

/// Reads strings, flat or in rows, and stops after `most`.
struct Elements<'v, 'a> {
    into: &'v mut Vec<Element<'a>>,
    most: usize,
    depth: usize,
}

impl<'a> Elements<'_, 'a> {
    fn push<E: serde::de::Error>(self, text: Cow<'a, str>) -> Result<(), E> {
        if self.into.len() == self.most {
            return Err(E::custom("too many elements"));
        }
        self.into.push(Element::Text(text));
        Ok(())
    }
}

impl<'de> DeserializeSeed<'de> for Elements<'_, 'de> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Elements<'_, 'de> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("strings, flat or in rows of one")
    }

    fn visit_borrowed_str<E: serde::de::Error>(self, text: &'de str) -> Result<(), E> {
        self.push(Cow::Borrowed(text))
    }

    fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<(), E> {
        self.push(Cow::Owned(text.to_owned()))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<(), A::Error> {
        let Self { into, most, depth } = self;
        let depth = depth.checked_sub(1).ok_or_else(|| A::Error::custom("nested too deep"))?;
        while seq.next_element_seed(Elements { into: &mut *into, most, depth })?.is_some() {}
        Ok(())
    }
}
