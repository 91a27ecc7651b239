//! What is known of one backend.

use crate::Moment;
use crate::breaker::{Breaker, BreakerState};

/// What a backend has done so far.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Tally {
    /// Answers.
    pub answered: u64,
    /// Failures of any kind.
    pub failed: u64,
    /// The cost of the answers whose cost is known; `None` if there is none.
    pub cost: Option<f64>,
    /// Answers whose cost is not known.
    pub without_cost: u64,
}

/// A backend as people see it.
#[derive(Debug, Clone, PartialEq)]
pub struct BackendStatus {
    /// The state of its breaker.
    pub state: BreakerState,
    /// When an open breaker lets a request through.
    pub open_until: Option<Moment>,
    /// Until when it asked to be left alone.
    pub paused_until: Option<Moment>,
    /// Failures since its last success.
    pub consecutive_failures: u32,
    /// Requests that it works on.
    pub in_flight: usize,
    /// What it has done so far.
    pub tally: Tally,
    /// Its last failure, as a word.
    pub last_failure: Option<&'static str>,
}

/// What is known of a backend.
#[derive(Debug, Clone, Default)]
pub(crate) struct State {
    pub(crate) breaker: Breaker,
    pub(crate) in_flight: usize,
    pub(crate) tally: Tally,
    pub(crate) last_failure: Option<&'static str>,
}
