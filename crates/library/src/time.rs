//! Times: milliseconds since 1970, and their texts.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use cutline_error::{Error, Result};

/// Milliseconds of a day.
pub(crate) const DAY: i64 = 86_400_000;

/// The first times of the month that `time` is in, and of the month after it.
pub(crate) fn month(time: i64) -> (i64, i64) {
    // 31 days after its first, every month is over, and the next is not.
    let begin = |time: i64| {
        let text = format_time(time);
        text.get(..7).and_then(|month| parse_time(month).ok()).unwrap_or(0)
    };
    let first = begin(time);
    (first, begin(first + 31 * DAY))
}

/// The present time, in milliseconds since 1970.
#[must_use]
pub fn now() -> i64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, milliseconds)
}

fn milliseconds(since: Duration) -> i64 {
    i64::try_from(since.as_millis()).unwrap_or(i64::MAX)
}

/// Reads `2026`, `2026-11`, `2026-11-27` or `2026-11-27T12:00:00Z`, in UTC.
///
/// # Errors
/// [`InvalidParameter`](cutline_error::ErrorKind::InvalidParameter): it is none of these.
pub fn parse_time(text: &str) -> Result<i64> {
    let text = text.trim();
    let digits =
        |part: &str, count: usize| part.len() == count && part.bytes().all(|b| b.is_ascii_digit());
    let mut parts = text.split('-');
    let (year, month, day) = (parts.next(), parts.next(), parts.next());
    let full = match (year, month, day) {
        (Some(year), None, None) if digits(year, 4) => format!("{year}-01-01T00:00:00Z"),
        (Some(year), Some(month), None) if digits(year, 4) && digits(month, 2) => {
            format!("{text}-01T00:00:00Z")
        }
        (Some(_), Some(_), Some(day)) if digits(day, 2) => format!("{text}T00:00:00Z"),
        _ => text.to_owned(),
    };
    humantime::parse_rfc3339(&full)
        .ok()
        .and_then(|time| time.duration_since(UNIX_EPOCH).ok())
        .map(milliseconds)
        .ok_or_else(|| {
            Error::parameter(
                "time",
                "a time is written 2026, 2026-11, 2026-11-27 or 2026-11-27T12:00:00Z, from 1970 on; \
                 correct it",
            )
        })
}

/// Writes a time as `2026-11-27T12:00:00Z`.
#[must_use]
pub fn format_time(time: i64) -> String {
    let since = Duration::from_millis(u64::try_from(time).unwrap_or(0));
    match UNIX_EPOCH.checked_add(since) {
        // The library cannot write years of five digits.
        Some(time) if since.as_secs() < 253_402_300_800 => {
            humantime::format_rfc3339_seconds(time).to_string()
        }
        _ => "9999-12-31T23:59:59Z".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_read_in_four_precisions() {
        let day = 86_400_000;
        assert_eq!(parse_time("1970").unwrap(), 0);
        assert_eq!(parse_time("1970-02").unwrap(), 31 * day);
        assert_eq!(parse_time("1970-01-03").unwrap(), 2 * day);
        assert_eq!(parse_time("1970-01-03T00:00:01Z").unwrap(), 2 * day + 1000);
        for wrong in ["", "yesterday", "1970-13", "19700101", "1960", "1970-1-1", "é-é-é"] {
            assert!(parse_time(wrong).is_err(), "{wrong:?}");
        }
        assert_eq!(format_time(2 * day + 1000), "1970-01-03T00:00:01Z");
        assert_eq!(format_time(i64::MAX), "9999-12-31T23:59:59Z");
    }
}
