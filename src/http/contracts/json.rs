//! JSON that takes no more memory than its bytes: texts that are borrowed from the body, because they may
//! be images, and arrays whose length is bounded, because an element of two bytes may take a hundred.

use std::borrow::Cow;
use std::fmt;
use std::marker::PhantomData;
use std::ops::Deref;

use serde::de::{Deserialize, Deserializer, Error, SeqAccess, Visitor};
use serde_json::value::RawValue;
use serde_json::{Map, Value};

use crate::captioner::ParameterFields;

/// A text; a copy only if it has escapes.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Text<'a>(pub(super) Cow<'a, str>);

impl Deref for Text<'_> {
    type Target = str;

    fn deref(&self) -> &str {
        &self.0
    }
}

impl<'de: 'a, 'a> Deserialize<'de> for Text<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Str;
        impl<'de> Visitor<'de> for Str {
            type Value = Text<'de>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a string")
            }

            fn visit_borrowed_str<E: Error>(self, text: &'de str) -> Result<Text<'de>, E> {
                Ok(Text(Cow::Borrowed(text)))
            }

            fn visit_str<E: Error>(self, text: &str) -> Result<Text<'de>, E> {
                Ok(Text(Cow::Owned(text.to_owned())))
            }
        }
        deserializer.deserialize_str(Str)
    }
}

/// Adds the native parameters in an object of a request to `fields`.
///
/// # Errors
/// [`InvalidParameter`](cutline_error::ErrorKind::InvalidParameter): one of them is unknown or wrong, or
/// it is no object.
pub(super) fn native_parameters(
    object: &RawValue,
    fields: &mut ParameterFields,
) -> cutline_error::Result<()> {
    let object = parameters(object, "cutline")?;
    object.into_iter().try_for_each(|(name, value)| fields.add(&name, value))
}

/// The parameters in an object of a request, which is its field `name`.
///
/// # Errors
/// [`InvalidParameter`](cutline_error::ErrorKind::InvalidParameter): it is no object, or too long for
/// one.
pub(super) fn parameters(
    object: &RawValue,
    name: &'static str,
) -> cutline_error::Result<Map<String, Value>> {
    let wrong = |detail: String| cutline_error::Error::parameter(name, detail);
    if object.get().len() > ParameterFields::MAX_BYTES {
        return Err(wrong(format!("{name} is too long; shorten the prompt in it")));
    }
    serde_json::from_str(object.get()).map_err(|error| {
        wrong(format!("{name} must be an object, such as {{\"num_beams\": 3}}")).with_source(error)
    })
}

/// At most `N` elements; more are an error.
#[derive(Debug)]
pub(super) struct List<T, const N: usize>(pub(super) Vec<T>);

impl<T, const N: usize> Default for List<T, N> {
    fn default() -> Self {
        Self(Vec::new())
    }
}

impl<T, const N: usize> Deref for List<T, N> {
    type Target = [T];

    fn deref(&self) -> &[T] {
        &self.0
    }
}

impl<'de, T: Deserialize<'de>, const N: usize> Deserialize<'de> for List<T, N> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Elements<T, const N: usize>(PhantomData<T>);
        impl<'de, T: Deserialize<'de>, const N: usize> Visitor<'de> for Elements<T, N> {
            type Value = List<T, N>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "an array of at most {N} elements")
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Self::Value, A::Error> {
                let mut elements = Vec::new();
                while let Some(element) = seq.next_element()? {
                    if elements.len() == N {
                        return Err(A::Error::invalid_length(N + 1, &self));
                    }
                    elements.push(element);
                }
                Ok(List(elements))
            }

            /// Null counts as empty.
            fn visit_unit<E: Error>(self) -> Result<Self::Value, E> {
                Ok(List::default())
            }
        }
        deserializer.deserialize_any(Elements(PhantomData))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_text_is_borrowed_if_it_can_be() {
        let borrowed: Text = serde_json::from_str(r#""aGVsbG8=""#).unwrap();
        assert!(matches!(borrowed.0, Cow::Borrowed("aGVsbG8=")));
        let escaped: Text = serde_json::from_str(r#""a\/b""#).unwrap();
        assert!(matches!(&escaped.0, Cow::Owned(text) if text == "a/b"));
        let optional: Option<Text> = serde_json::from_str(r#""x""#).unwrap();
        assert!(matches!(optional, Some(Text(Cow::Borrowed("x")))));
        assert!(serde_json::from_str::<Text>("1").is_err());
    }

    #[test]
    fn native_parameters_are_strict() {
        let add = |text: &str| {
            let mut fields = ParameterFields::default();
            native_parameters(serde_json::from_str(text).unwrap(), &mut fields)?;
            fields.finish()
        };
        assert_eq!(add(r#"{"num_beams": 3}"#).unwrap().num_beams, 3);
        assert_eq!(add(r#"{"beams": 3}"#).unwrap_err().field(), Some("beams"));
        assert_eq!(add("[]").unwrap_err().field(), Some("cutline"));
        let long = json!({"prompt": "a".repeat(ParameterFields::MAX_BYTES)}).to_string();
        assert_eq!(add(&long).unwrap_err().field(), Some("cutline"));
    }

    #[test]
    fn a_long_array_is_refused_before_it_is_stored() {
        let list: List<u8, 3> = serde_json::from_str("[1, 2, 3]").unwrap();
        assert_eq!(*list, [1, 2, 3]);
        let error = serde_json::from_str::<List<u8, 3>>("[1, 2, 3, 4]").unwrap_err();
        assert!(error.to_string().contains("at most 3"), "{error}");
        assert!(serde_json::from_str::<List<u8, 3>>("null").unwrap().is_empty());
        assert!(serde_json::from_str::<List<u8, 3>>("{}").is_err());
    }
}
