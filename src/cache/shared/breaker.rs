//! Whether to call a service that may be failing: a state machine without a clock.

use std::time::{Duration, Instant};

/// Failures that open the breaker, if no success comes between them.
const FAILURES: u32 = 5;

/// A failure counts this much, and a success takes 1 back. A service of which a third of the calls fail
/// is therefore left alone as well, even if they are never five in a row.
const WEIGHT: u32 = 2;

/// How long the breaker stays open for the first time; each failed probe doubles it.
const FIRST_PAUSE: Duration = Duration::from_secs(1);

/// The longest pause.
const LONGEST_PAUSE: Duration = Duration::from_secs(30);

/// How long to wait for the report of a probe.
const PROBE: Duration = Duration::from_secs(10);

/// Lets calls through until too many fail; then asks for a probe after each pause.
#[derive(Debug)]
pub(super) struct Breaker {
    state: State,
}

#[derive(Debug, Clone, Copy)]
enum State {
    Closed {
        points: u32,
    },
    Open {
        until: Instant,
        pause: Duration,
    },
    /// A probe is on its way. If it never reports, another is wanted at `until`.
    Probing {
        until: Instant,
        pause: Duration,
    },
}

/// What to do with a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Permit {
    /// Make it, and report its result.
    Call,
    /// Do not make it, but start a probe in the background, and report its result.
    Probe,
    /// Do not make it.
    Refuse,
}

/// What a report changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Change {
    Opened,
    Closed,
    None,
}

impl Breaker {
    pub(super) const fn new() -> Self {
        Self { state: State::Closed { points: 0 } }
    }

    /// What to do with a call now.
    pub(super) fn permit(&mut self, now: Instant) -> Permit {
        match self.state {
            State::Closed { .. } => Permit::Call,
            State::Open { until, pause } | State::Probing { until, pause } if now >= until => {
                self.state = State::Probing { until: now + PROBE, pause };
                Permit::Probe
            }
            State::Open { .. } | State::Probing { .. } => Permit::Refuse,
        }
    }

    /// Whether calls are refused.
    pub(super) fn is_open(&self) -> bool {
        !matches!(self.state, State::Closed { .. })
    }

    /// Reports a call that worked.
    pub(super) fn succeeded(&mut self) -> Change {
        match &mut self.state {
            State::Closed { points } => {
                *points = points.saturating_sub(1);
                Change::None
            }
            State::Probing { .. } => {
                *self = Self::new();
                Change::Closed
            }
            // A call from before the breaker opened: one more probe decides.
            State::Open { .. } => Change::None,
        }
    }

    /// Reports a call that failed or took too long.
    pub(super) fn failed(&mut self, now: Instant) -> Change {
        match self.state {
            State::Closed { points } if points + WEIGHT < FAILURES * WEIGHT => {
                self.state = State::Closed { points: points + WEIGHT };
                Change::None
            }
            State::Closed { .. } => {
                self.state = State::Open { until: now + FIRST_PAUSE, pause: FIRST_PAUSE };
                Change::Opened
            }
            State::Probing { pause, .. } => {
                let pause = (pause * 2).min(LONGEST_PAUSE);
                self.state = State::Open { until: now + pause, pause };
                Change::None
            }
            State::Open { .. } => Change::None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn opened(now: Instant) -> Breaker {
        let mut breaker = Breaker::new();
        for n in 1..=FAILURES {
            assert!(breaker.permit(now) == Permit::Call && !breaker.is_open());
            let change = breaker.failed(now);
            assert_eq!(change == Change::Opened, n == FAILURES);
        }
        assert!(breaker.is_open() && breaker.permit(now) == Permit::Refuse);
        breaker
    }

    #[test]
    fn five_failures_in_a_row_open_it_and_a_probe_closes_it() {
        let now = Instant::now();
        let mut breaker = opened(now);
        assert_eq!(breaker.permit(now + SECOND), Permit::Probe);
        assert_eq!(breaker.permit(now + SECOND), Permit::Refuse, "no other probe");
        assert_eq!(breaker.succeeded(), Change::Closed);
        assert!(breaker.permit(now + SECOND) == Permit::Call && !breaker.is_open());
    }

    #[test]
    fn failed_probes_double_the_pause_up_to_a_limit() {
        let mut now = Instant::now();
        let mut breaker = opened(now);
        for pause in [1, 2, 4, 8, 16, 30, 30] {
            now += SECOND * pause;
            assert_eq!(breaker.permit(now - SECOND / 2), Permit::Refuse, "pause {pause}");
            assert_eq!(breaker.permit(now), Permit::Probe, "pause {pause}");
            breaker.failed(now);
        }
    }

    #[test]
    fn a_probe_that_never_reports_does_not_keep_it_open() {
        let now = Instant::now();
        let mut breaker = opened(now);
        assert_eq!(breaker.permit(now + SECOND), Permit::Probe);
        assert_eq!(breaker.permit(now + 2 * SECOND), Permit::Refuse);
        assert_eq!(breaker.permit(now + SECOND + PROBE), Permit::Probe);
    }

    #[test]
    fn rare_failures_do_not_open_it_and_frequent_ones_do() {
        let now = Instant::now();
        let run = |successes: u32| {
            let mut breaker = Breaker::new();
            for _ in 0..100 {
                breaker.failed(now);
                for _ in 0..successes {
                    breaker.succeeded();
                }
            }
            breaker.is_open()
        };
        assert!(run(1) && !run(2) && !run(50));
    }

    #[test]
    fn late_reports_do_not_close_it() {
        let mut breaker = opened(Instant::now());
        assert_eq!(breaker.succeeded(), Change::None);
        assert!(breaker.is_open());
    }
}
