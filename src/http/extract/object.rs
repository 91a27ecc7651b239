//! A flat JSON object with its fields in order, none dropped, and bounded memory.

use serde::de::{Deserialize, Deserializer, Error as _, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Value};

/// More fields than this are no request; the names that exist are far fewer.
const MAX_FIELDS: usize = 64;

/// The fields of an object. A map would drop doubles silently.
pub(super) struct Object(pub(super) Vec<(String, Value)>);

impl<'de> Deserialize<'de> for Object {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(ObjectVisitor)
    }
}

struct ObjectVisitor;

impl<'de> Visitor<'de> for ObjectVisitor {
    type Value = Object;

    fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Object, A::Error> {
        let mut fields = Vec::new();
        while let Some((name, Scalar(value))) = map.next_entry()? {
            if fields.len() == MAX_FIELDS {
                return Err(A::Error::custom("too many fields"));
            }
            fields.push((name, value));
        }
        Ok(Object(fields))
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

    fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
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

    #[test]
    fn fields_keep_order_doubles_and_types() {
        let text = r#"{"b": 1, "a": -2, "b": 0.5, "c": "x", "d": null, "e": true}"#;
        let Object(fields) = serde_json::from_str(text).unwrap();
        let names: String = fields.iter().map(|(name, _)| name.as_str()).collect();
        assert_eq!(names, "babcde");
        let values: Vec<Value> = fields.into_iter().map(|(_, value)| value).collect();
        assert_eq!(values, [json!(1), json!(-2), json!(0.5), json!("x"), json!(null), json!(true)]);
    }

    #[test]
    fn nested_values_are_hollow_and_crowds_are_refused() {
        let Object(fields) = serde_json::from_str(r#"{"a": [[1], {}], "b": {"c": []}}"#).unwrap();
        assert_eq!(fields[0].1, json!([]));
        assert_eq!(fields[1].1, json!({}));
        let crowd: Vec<String> = (0..65).map(|i| format!("\"{i}\": 0")).collect();
        assert!(serde_json::from_str::<Object>(&format!("{{{}}}", crowd.join(","))).is_err());
        assert!(serde_json::from_str::<Object>("[1]").is_err());
    }
}
