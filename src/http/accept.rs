//! What a client accepts: `Accept` with its quality values (RFC 9110, section 12.5.1).

use axum::http::HeaderMap;
use axum::http::header::ACCEPT;

/// Whether the client asks for `offered` and likes it at least as much as `default`. It must name
/// `offered`: `*/*`, which curl and most libraries send, means the default.
pub(super) fn prefers(headers: &HeaderMap, offered: &str, default: &str) -> bool {
    let wanted = quality(headers, &[offered]).unwrap_or(0.0);
    let (group, _) = default.split_once('/').unwrap_or_default();
    let otherwise = quality(headers, &[default, &format!("{group}/*"), "*/*"]).unwrap_or(0.0);
    wanted > 0.0 && wanted >= otherwise
}

/// The quality of the first of `ranges` that the headers contain.
fn quality(headers: &HeaderMap, ranges: &[&str]) -> Option<f32> {
    ranges.iter().find_map(|range| {
        let all = given(headers).filter(|(given, _)| given.eq_ignore_ascii_case(range));
        all.map(|(_, quality)| quality).reduce(f32::max)
    })
}

/// The media ranges that the client names, each with its quality.
fn given(headers: &HeaderMap) -> impl Iterator<Item = (&str, f32)> {
    let lists = headers.get_all(ACCEPT).iter().filter_map(|value| value.to_str().ok());
    lists.flat_map(|list| list.split(',')).map(|range| {
        let mut parts = range.split(';').map(str::trim);
        let range = parts.next().unwrap_or_default();
        let weight = parts.filter_map(|part| part.split_once('=')).find_map(|(name, value)| {
            name.trim().eq_ignore_ascii_case("q").then(|| value.trim().parse::<f32>().ok())
        });
        // A weight that cannot be read refuses the range.
        let quality = weight.map_or(1.0, |quality| quality.unwrap_or(0.0));
        (range, if (0.0..=1.0).contains(&quality) { quality } else { 0.0 })
    })
}

#[cfg(test)]
mod tests {
    use axum::http::HeaderValue;

    use super::*;

    fn lines(accept: &[&'static str]) -> bool {
        let mut headers = HeaderMap::new();
        for value in accept {
            headers.append(ACCEPT, HeaderValue::from_static(value));
        }
        prefers(&headers, "application/x-ndjson", "application/json")
    }

    #[test]
    fn the_default_is_sent_unless_something_else_is_named_and_liked_as_much() {
        for accept in [
            &["application/x-ndjson"][..],
            &["Application/X-NDJSON; charset=utf-8"],
            &["application/x-ndjson;q=0.1"],
            &["application/json;q=0.5, application/x-ndjson; Q = 0.6"],
            &["application/json, application/x-ndjson"],
            &["*/*, application/x-ndjson"],
            &["*/*;q=0.8", "application/x-ndjson;q=0.8"],
            &["application/json;q=0, */*, application/x-ndjson;q=0.2"],
            &["application/x-ndjson;q=0, application/x-ndjson;q=1"],
        ] {
            assert!(lines(accept), "{accept:?}");
        }
        for accept in [
            &[][..],
            &[""],
            &["*/*"],
            &["application/*"],
            &["application/json"],
            &["application/x-ndjson;q=0"],
            &["application/x-ndjson;q=0.000, text/html"],
            &["application/x-ndjson;q=nan"],
            &["application/x-ndjson;q=inf"],
            &["application/x-ndjson;q=-1"],
            &["application/x-ndjson;q="],
            &["application/json, application/x-ndjson;q=0.9"],
            &["application/x-ndjson;q=0.5, */*"],
            &["application/x-ndjson;q=0.5", "application/*;q=0.6"],
            &["application/x-ndjsonx"],
        ] {
            assert!(!lines(accept), "{accept:?}");
        }
    }
}
