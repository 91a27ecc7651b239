//! Whole numbers in JSON, which programs without integers write as `1.0`.

use std::fmt;

use serde::de::{Deserializer, Error, Unexpected, Visitor};

/// Up to here every whole number has its own floating-point number.
const LIMIT: f64 = (1_u64 << 53) as f64;

struct Whole;

impl<'de> Visitor<'de> for Whole {
    type Value = Option<i64>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a whole number")
    }

    fn visit_i64<E: Error>(self, number: i64) -> Result<Self::Value, E> {
        Ok(Some(number))
    }

    fn visit_u64<E: Error>(self, number: u64) -> Result<Self::Value, E> {
        let wrong = |_| E::invalid_value(Unexpected::Unsigned(number), &self);
        i64::try_from(number).map(Some).map_err(wrong)
    }

    fn visit_f64<E: Error>(self, number: f64) -> Result<Self::Value, E> {
        if number.fract() == 0.0 && number.abs() <= LIMIT {
            #[expect(clippy::cast_possible_truncation, reason = "it is whole and within range")]
            return Ok(Some(number as i64));
        }
        Err(E::invalid_value(Unexpected::Float(number), &self))
    }

    fn visit_unit<E: Error>(self) -> Result<Self::Value, E> {
        Ok(None)
    }
}

/// Reads a whole number, or `null`.
///
/// # Errors
/// It is something else, or does not fit.
pub fn or_null<'de, T: TryFrom<i64>, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<Option<T>, D::Error> {
    let fits = |number: i64| {
        let wrong = |_| D::Error::invalid_value(Unexpected::Signed(number), &Whole);
        T::try_from(number).map_err(wrong)
    };
    deserializer.deserialize_any(Whole)?.map(fits).transpose()
}

/// Reads a whole number.
///
/// # Errors
/// It is something else, or does not fit.
pub fn number<'de, T: TryFrom<i64>, D: Deserializer<'de>>(deserializer: D) -> Result<T, D::Error> {
    let missing = || D::Error::invalid_type(Unexpected::Unit, &Whole);
    or_null(deserializer)?.ok_or_else(missing)
}

#[cfg(test)]
mod tests {
    use crate::change::TextAction;
    use crate::prompts::Variant;

    #[test]
    fn whole_numbers_must_fit() {
        let read = |number: &str| {
            let json = format!(r#"{{"version": {number}, "weight": 1.0}}"#);
            serde_json::from_str(&json).ok()
        };
        assert_eq!(read("7.0"), Some(Variant { version: 7, weight: 1 }));
        for wrong in ["-1", "-1.0", "4294967296", "4294967296.0", "7.5", "null"] {
            assert_eq!(read(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn whole_numbers_may_have_a_point() {
        let read = |number: &str| {
            let json = format!(r#"{{"action": "revert", "revision": {number}}}"#);
            serde_json::from_str(&json).ok()
        };
        for (number, revision) in [("7", 7), ("7.0", 7), ("7e2", 700), ("-1.0", -1)] {
            assert_eq!(read(number), Some(TextAction::Revert { revision }), "{number}");
        }
        for wrong in ["7.5", "1e300", "null", "\"7\"", "18446744073709551615", "[7]", "true"] {
            assert_eq!(read(wrong), None, "{wrong}");
        }
    }
}
