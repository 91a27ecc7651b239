//! The headers that tell a client what is left of its key's limits.
//!
//! Names and durations are OpenAI's, so that its clients understand them; `budget` is ours.

use std::fmt::Display;
use std::time::Duration;

use axum::http::{HeaderMap, HeaderName, HeaderValue};
use cutline_library::BudgetUnit;

use crate::accounts::{BudgetStanding, Standings};

/// Set once more than the soft limit of a budget is used.
const WARNING: HeaderName = HeaderName::from_static("x-cutline-budget-warning");

/// Limit, what is left of it, and when all of it is there again.
type Names = [HeaderName; 3];

const REQUESTS: Names = [
    HeaderName::from_static("x-ratelimit-limit-requests"),
    HeaderName::from_static("x-ratelimit-remaining-requests"),
    HeaderName::from_static("x-ratelimit-reset-requests"),
];
const IMAGES: Names = [
    HeaderName::from_static("x-ratelimit-limit-images"),
    HeaderName::from_static("x-ratelimit-remaining-images"),
    HeaderName::from_static("x-ratelimit-reset-images"),
];
const BUDGET: Names = [
    HeaderName::from_static("x-ratelimit-limit-budget"),
    HeaderName::from_static("x-ratelimit-remaining-budget"),
    HeaderName::from_static("x-ratelimit-reset-budget"),
];

/// Headers that pages of other origins may read.
pub(super) fn names() -> impl Iterator<Item = HeaderName> {
    [REQUESTS, IMAGES, BUDGET].into_iter().flatten().chain([WARNING])
}

/// Sets the headers of the limits that there are.
pub(super) fn insert(headers: &mut HeaderMap, standings: &Standings) {
    let Standings { requests, images, budget } = standings;
    for (names, standing) in [(REQUESTS, requests), (IMAGES, images)] {
        if let Some(standing) = standing {
            three(headers, names, standing.limit, standing.remaining, standing.reset);
        }
    }
    let Some(BudgetStanding { unit, limit, remaining, reset, warning }) = *budget else { return };
    three(headers, BUDGET, limit, remaining, reset);
    if warning {
        let unit = match unit {
            BudgetUnit::Images => "images",
            BudgetUnit::Tokens => "tokens",
        };
        set(headers, WARNING, format!("{remaining} of {limit} {unit} are left"));
    }
}

fn three(headers: &mut HeaderMap, names: Names, limit: u64, remaining: u64, reset: Duration) {
    let [limit_name, remaining_name, reset_name] = names;
    set(headers, limit_name, limit);
    set(headers, remaining_name, remaining);
    set(headers, reset_name, duration(reset));
}

fn set(headers: &mut HeaderMap, name: HeaderName, value: impl Display) {
    // Visible ASCII.
    if let Ok(value) = HeaderValue::from_str(&value.to_string()) {
        headers.insert(name, value);
    }
}

/// A duration as OpenAI writes it: `12ms`, `1.5s`, `6m0s`, `1h0m0s`.
fn duration(time: Duration) -> String {
    // Rounded up: after that time, it is certain.
    let millis = time.as_nanos().div_ceil(1_000_000);
    let (seconds, rest) = (millis / 1000, millis % 1000);
    if seconds == 0 {
        return format!("{rest}ms");
    }
    let part = if rest == 0 { String::new() } else { format!(".{rest:03}") };
    let part = part.trim_end_matches('0');
    let (minutes, left) = (seconds / 60, seconds % 60);
    match (minutes / 60, minutes % 60) {
        (0, 0) => format!("{left}{part}s"),
        (0, minutes) => format!("{minutes}m{left}{part}s"),
        (hours, minutes) => format!("{hours}h{minutes}m{left}{part}s"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_written_as_openai_writes_them() {
        for (millis, text) in [
            (0, "0ms"),
            (12, "12ms"),
            (1000, "1s"),
            (1500, "1.5s"),
            (59_999, "59.999s"),
            (360_000, "6m0s"),
            (90_950, "1m30.95s"),
            (3_600_000, "1h0m0s"),
            (90_061_000, "25h1m1s"),
        ] {
            assert_eq!(duration(Duration::from_millis(millis)), text);
        }
        assert_eq!(duration(Duration::from_micros(11_001)), "12ms");
    }
}
