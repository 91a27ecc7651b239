//! Which failures are worth another attempt, and when.

use std::time::Duration;

use serde::Deserialize;

use crate::Moment;

/// How an attempt failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Failure {
    /// There was no connection.
    Connect,
    /// There was no answer in time.
    Timeout,
    /// The backend answered with a status other than 200, perhaps with how long to wait.
    Status(u16, Option<Duration>),
    /// The answer could not be used: broken off, too long, or not what was agreed.
    BadAnswer,
    /// The model in this process failed.
    Model,
    /// The queue of the model in this process is full.
    QueueFull,
    /// The request itself is at fault, such as an image that cannot be decoded.
    Request,
}

/// What follows from a failure.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// Any backend may be tried, this one again after a pause. Counts against the backend.
    Again,
    /// As [`Again`](Self::Again), but not this backend. Counts against it.
    Elsewhere,
    /// This backend must be left alone for a while. That is no illness.
    Limited,
    /// The backend refuses this program. Only its operator can help, so it rests for some minutes.
    Denied,
    /// The queue is full; the route says whether others are asked.
    Full,
    /// Every backend would refuse this request.
    Final,
}

impl Failure {
    /// What follows.
    #[must_use]
    pub const fn verdict(self) -> Verdict {
        match self {
            Self::Connect | Self::Timeout | Self::BadAnswer => Verdict::Again,
            Self::Status(408 | 500 | 502 | 503 | 504, _) => Verdict::Again,
            Self::Status(429, _) => Verdict::Limited,
            // Redirects are not followed: the address in the file is wrong.
            Self::Status(300..=399 | 401 | 402 | 403 | 404 | 407, _) => Verdict::Denied,
            Self::Status(400..=499, _) | Self::Request => Verdict::Final,
            Self::Status(..) | Self::Model => Verdict::Elsewhere,
            Self::QueueFull => Verdict::Full,
        }
    }

    /// How long the backend asked to be left alone.
    #[must_use]
    pub const fn retry_after(self) -> Option<Duration> {
        match self {
            Self::Status(_, after) => after,
            _ => None,
        }
    }

    /// A word for metrics and logs.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Connect => "connect",
            Self::Timeout => "timeout",
            Self::Status(429, _) => "rate_limited",
            Self::Status(500.., _) => "server_error",
            Self::Status(300..=399 | 401 | 402 | 403 | 404 | 407, _) => "denied",
            Self::Status(..) => "refused",
            Self::BadAnswer => "bad_answer",
            Self::Model => "model_error",
            Self::QueueFull => "queue_full",
            Self::Request => "bad_request",
        }
    }
}

/// When a backend gets a request again that it has failed.
#[derive(Debug, Clone, Copy, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Retry {
    /// How often one request may be sent to one backend.
    pub attempts: u32,
    /// The longest pause before the second attempt, in milliseconds. It doubles with each one.
    pub base_ms: u64,
    /// The longest pause of all.
    pub cap_ms: u64,
    /// How many of such attempts there may be for each request, on average, so that a busy server does
    /// not double the load on a backend that is ill. Attempts on other backends do not count.
    pub budget: f64,
}

impl Default for Retry {
    fn default() -> Self {
        Self { attempts: 2, base_ms: 250, cap_ms: 4000, budget: 0.1 }
    }
}

impl Retry {
    /// The pause after the attempt with this number, from 1: full jitter, so `random` of
    /// min(cap, base · 2ⁿ⁻¹).
    #[must_use]
    pub fn pause(&self, attempt: u32, random: f64) -> Duration {
        let doubled = self.base_ms.saturating_mul(1 << attempt.saturating_sub(1).min(20));
        Duration::from_millis(doubled.min(self.cap_ms)).mul_f64(random.clamp(0.0, 1.0))
    }
}

/// The most attempts that can be saved up.
const SAVED: f64 = 10.0;

/// Attempts on the same backend that a route may still make.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Budget {
    left: f64,
    share: f64,
}

impl Budget {
    pub(crate) fn new(share: f64) -> Self {
        Self { left: SAVED, share }
    }

    /// A request has arrived.
    pub(crate) fn earn(&mut self) {
        self.left = (self.left + self.share).min(SAVED);
    }

    /// Whether there is one more attempt.
    pub(crate) fn spend(&mut self) -> bool {
        let enough = self.left >= 1.0;
        if enough {
            self.left -= 1.0;
        }
        enough
    }
}

/// When a pause of a backend's own choice ends. It cannot lock itself out for longer than an hour.
pub(crate) fn pause_end(now: Moment, asked: Option<Duration>, usual: Duration) -> Moment {
    now + asked.unwrap_or(usual).min(Duration::from_secs(3600))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_failures_that_may_pass_are_tried_again() {
        for status in [408, 500, 502, 503, 504] {
            assert_eq!(Failure::Status(status, None).verdict(), Verdict::Again, "{status}");
        }
        for status in [400, 405, 409, 413, 415, 422] {
            assert_eq!(Failure::Status(status, None).verdict(), Verdict::Final, "{status}");
        }
        for status in [301, 307, 401, 403, 404] {
            assert_eq!(Failure::Status(status, None).verdict(), Verdict::Denied, "{status}");
        }
        assert_eq!(Failure::Status(429, None).verdict(), Verdict::Limited);
        assert_eq!(Failure::Status(501, None).verdict(), Verdict::Elsewhere);
        assert_eq!(Failure::Connect.verdict(), Verdict::Again);
        assert_eq!(Failure::Request.verdict(), Verdict::Final);
    }

    #[test]
    fn pauses_double_up_to_their_cap_and_jitter_is_full() {
        let retry = Retry::default();
        let most: Vec<u128> = (1..=7).map(|n| retry.pause(n, 1.0).as_millis()).collect();
        assert_eq!(most, [250, 500, 1000, 2000, 4000, 4000, 4000]);
        assert_eq!(retry.pause(3, 0.0), Duration::ZERO);
        assert_eq!(retry.pause(3, 0.5).as_millis(), 500);
        assert_eq!(retry.pause(u32::MAX, 1.0).as_millis(), 4000);
    }

    #[test]
    fn retries_are_a_share_of_the_requests() {
        let mut budget = Budget::new(0.1);
        let mut spent = 0;
        for _ in 0..1000 {
            budget.earn();
            spent += u32::from(budget.spend());
        }
        assert!((100..=110).contains(&spent), "{spent}");
    }
}
