//! `application/json` with base64 in it.

use axum::body::Body;
use axum::http::request::Parts;
use serde::de::DeserializeSeed;
use serde_json::Value;

use super::form::Form;
use super::object::{Fields, ImageArray, Object};
use super::{Count, Images, Transport, base64, malformed, too_many, twice};
use cutline_error::Result;

pub(super) async fn read(
    parts: &Parts,
    body: Body,
    images: &mut Images<'_>,
    form: &mut Form,
) -> Result<()> {
    let reader = images.reader;
    let max_bytes = reader.settings.max_image_bytes;
    let incoming = reader.incoming(parts, body, Transport::Json)?;
    let claim = incoming.claim();
    let bytes = incoming.collect().await?;
    let array = match reader.count {
        Count::One => None,
        Count::Many(limit) => Some(ImageArray { limit, max_bytes }),
    };
    let Fields { fields, images: found } = parse(&bytes, array).map_err(|error| {
        let at = format!("line {} column {}", error.line(), error.column());
        let detail = format!("the body is not such a JSON object ({at}); {}", reader.count.ways());
        malformed(detail).with_source(error)
    })?;
    drop(bytes);
    for found in found.into_iter().flatten() {
        let Some(found) = found else { return Err(too_many(reader.count.most())) };
        images.add(None, found.map(|bytes| claim.photo(bytes)))?;
    }
    for (name, value) in fields {
        match (reader.count, name.as_str(), value) {
            (Count::One, "image", _) if !images.items.is_empty() => return Err(twice("image")),
            (Count::One, "image", Value::String(text)) => {
                let bytes = base64::decode(&text, max_bytes)?;
                images.add(None, Ok(claim.photo(bytes)))?;
            }
            (Count::One, "image", _) => {
                return Err(malformed("image must be a string of base64"));
            }
            (_, _, value) => form.set(&name, &value)?,
        }
    }
    Ok(())
}

fn parse(bytes: &[u8], images: Option<ImageArray>) -> serde_json::Result<Fields> {
    let mut deserializer = serde_json::Deserializer::from_slice(bytes);
    let fields = Object { images }.deserialize(&mut deserializer)?;
    deserializer.end()?;
    Ok(fields)
}
