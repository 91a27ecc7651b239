//! Keeps requests away from a backend that fails, and finds out when it is well again.

use std::time::Duration;

use crate::Moment;
use crate::retry::pause_end;

/// Failures in a row that open the breaker.
const CONSECUTIVE: u32 = 5;
/// Seconds that are looked back at.
const WINDOW: usize = 60;
/// Attempts within them that are enough to judge.
const ENOUGH: u32 = 10;
/// The first time that the breaker stays open. It doubles each time.
const FIRST_OPEN: Duration = Duration::from_secs(5);
/// The longest time.
const LONGEST_OPEN: Duration = Duration::from_secs(300);
/// The pause after a status 429 that names none.
const USUAL_PAUSE: Duration = Duration::from_secs(5);

/// Whether a backend gets requests.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BreakerState {
    /// It does.
    Closed,
    /// It gets one, to see whether it is well again.
    HalfOpen,
    /// It does not.
    Open,
}

impl BreakerState {
    /// The name in metrics, logs and answers.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Closed => "closed",
            Self::HalfOpen => "half_open",
            Self::Open => "open",
        }
    }
}

/// A breaker has changed its state.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Change {
    /// Before.
    pub from: BreakerState,
    /// Now.
    pub to: BreakerState,
}

/// The breaker of one backend. It is closed at first.
#[derive(Debug, Clone)]
pub struct Breaker {
    state: BreakerState,
    /// While open: until when.
    until: Moment,
    /// While half open: whether the one request is on its way.
    probing: bool,
    /// How often it opened since it was last closed.
    openings: u32,
    consecutive: u32,
    window: Window,
    /// Open because the backend refuses this program: it is alive, and that does not help.
    denied: bool,
    /// Asked to be left alone until then. Kept apart: a limited rate is no illness.
    paused: Option<Moment>,
}

impl Default for Breaker {
    fn default() -> Self {
        Self {
            state: BreakerState::Closed,
            until: Moment::ZERO,
            probing: false,
            openings: 0,
            consecutive: 0,
            window: Window::default(),
            denied: false,
            paused: None,
        }
    }
}

impl Breaker {
    /// The state. An open breaker whose time is over stays open until a request is admitted.
    #[must_use]
    pub fn state(&self) -> BreakerState {
        self.state
    }

    /// When an open breaker lets a request through.
    #[must_use]
    pub fn open_until(&self) -> Option<Moment> {
        (self.state == BreakerState::Open).then_some(self.until)
    }

    /// Until when the backend asked to be left alone, if that is later than `now`.
    #[must_use]
    pub fn paused_until(&self, now: Moment) -> Option<Moment> {
        self.paused.filter(|until| *until > now)
    }

    /// Failures since the last success.
    #[must_use]
    pub fn consecutive_failures(&self) -> u32 {
        self.consecutive
    }

    /// Whether a request may be sent, pauses aside.
    #[must_use]
    pub fn admits(&self, now: Moment) -> bool {
        match self.state {
            BreakerState::Closed => true,
            BreakerState::HalfOpen => !self.probing,
            BreakerState::Open => self.until <= now,
        }
    }

    /// A request is sent. The result says whether it is the one that decides.
    pub(crate) fn begin(&mut self, now: Moment) -> (bool, Option<Change>) {
        if self.state == BreakerState::Closed || !self.admits(now) {
            return (false, None);
        }
        let change = self.become_(BreakerState::HalfOpen);
        self.probing = true;
        (true, change)
    }

    /// The backend has answered.
    pub(crate) fn succeeded(&mut self, now: Moment, probe: bool) -> Option<Change> {
        self.window.add(now, true);
        self.consecutive = 0;
        // An answer to an old request says little about a backend that has failed since.
        if !probe || self.state != BreakerState::HalfOpen {
            return None;
        }
        self.close()
    }

    /// The backend has failed. Without `may_open` it is the last one that is usable, and stays so.
    pub(crate) fn failed(
        &mut self,
        now: Moment,
        probe: bool,
        may_open: bool,
        retry_after: Option<Duration>,
        random: f64,
    ) -> Option<Change> {
        self.window.add(now, false);
        self.consecutive = self.consecutive.saturating_add(1);
        let ill = self.consecutive >= CONSECUTIVE || self.window.is_bad(now);
        match self.state {
            BreakerState::HalfOpen if probe && !may_open => return self.close(),
            BreakerState::HalfOpen if probe => {}
            BreakerState::Closed if ill && may_open => {}
            _ => return None,
        }
        let length = self.next_length(random);
        self.open(pause_end(now, retry_after, length))
    }

    /// The backend refuses this program.
    pub(crate) fn denied(&mut self, now: Moment, probe: bool, may_open: bool) -> Option<Change> {
        self.consecutive = self.consecutive.saturating_add(1);
        if may_open {
            // Nothing but its operator makes it well, so the length does not double.
            let change = self.open(now + LONGEST_OPEN);
            self.denied = true;
            return change;
        }
        if probe { self.close() } else { None }
    }

    /// The backend asked to be left alone. That proves that it lives.
    pub(crate) fn limited(
        &mut self,
        now: Moment,
        probe: bool,
        retry_after: Option<Duration>,
    ) -> Option<Change> {
        let until = pause_end(now, retry_after, USUAL_PAUSE);
        self.paused = Some(self.paused.map_or(until, |known| known.max(until)));
        self.succeeded(now, probe)
    }

    /// A request has ended without a result, because its client left.
    pub(crate) fn released(&mut self, probe: bool) {
        if probe && self.state == BreakerState::HalfOpen {
            self.probing = false;
        }
    }

    /// Whether it helps to ask the backend if it is there.
    pub(crate) fn wants_sign(&self) -> bool {
        self.state == BreakerState::Open && !self.denied
    }

    /// Someone asked the backend whether it is there, and it is.
    pub(crate) fn seen_alive(&mut self) -> Option<Change> {
        if !self.wants_sign() {
            return None;
        }
        self.probing = false;
        self.become_(BreakerState::HalfOpen)
    }

    fn next_length(&mut self, random: f64) -> Duration {
        let doubled = FIRST_OPEN.saturating_mul(1 << self.openings.min(6));
        self.openings = self.openings.saturating_add(1);
        // Servers that saw the same outage do not all come back at once.
        doubled.mul_f64(1.0 + 0.1 * random.clamp(0.0, 1.0)).min(LONGEST_OPEN)
    }

    fn open(&mut self, until: Moment) -> Option<Change> {
        self.until = until;
        self.denied = false;
        self.probing = false;
        self.become_(BreakerState::Open)
    }

    fn close(&mut self) -> Option<Change> {
        self.openings = 0;
        self.consecutive = 0;
        self.probing = false;
        self.window = Window::default();
        self.become_(BreakerState::Closed)
    }

    fn become_(&mut self, to: BreakerState) -> Option<Change> {
        let from = std::mem::replace(&mut self.state, to);
        (from != to).then_some(Change { from, to })
    }
}

/// Successes and failures of the last minute, by the second.
#[derive(Debug, Clone)]
struct Window([Second; WINDOW]);

#[derive(Debug, Clone, Copy, Default)]
struct Second {
    second: u64,
    good: u32,
    bad: u32,
}

impl Default for Window {
    fn default() -> Self {
        Self([Second::default(); WINDOW])
    }
}

impl Window {
    fn add(&mut self, now: Moment, good: bool) {
        let second = now.as_secs();
        let slot = &mut self.0[second as usize % WINDOW];
        if slot.second != second {
            *slot = Second { second, ..Second::default() };
        }
        let counter = if good { &mut slot.good } else { &mut slot.bad };
        *counter = counter.saturating_add(1);
    }

    /// Whether at least half of enough attempts failed.
    fn is_bad(&self, now: Moment) -> bool {
        let (now, length) = (now.as_secs(), WINDOW as u64);
        let recent = self.0.iter().filter(|slot| slot.second + length > now);
        let (good, bad) = recent.fold((0_u32, 0_u32), |(good, bad), slot| {
            (good.saturating_add(slot.good), bad.saturating_add(slot.bad))
        });
        good.saturating_add(bad) >= ENOUGH && bad >= good
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: u64) -> Moment {
        Moment::from_secs(seconds)
    }

    fn fail(breaker: &mut Breaker, now: Moment) -> Option<Change> {
        let (probe, _) = breaker.begin(now);
        breaker.failed(now, probe, true, None, 0.0)
    }

    #[test]
    fn five_failures_in_a_row_open_it_and_four_do_not() {
        let mut breaker = Breaker::default();
        for second in 0..4 {
            assert_eq!(fail(&mut breaker, at(second)), None);
        }
        breaker.succeeded(at(4), false);
        for second in 5..9 {
            assert_eq!(fail(&mut breaker, at(second)), None);
        }
        let opened = Change { from: BreakerState::Closed, to: BreakerState::Open };
        assert_eq!(fail(&mut breaker, at(9)), Some(opened));
        assert!(!breaker.admits(at(13)) && breaker.admits(at(14)));
    }

    #[test]
    fn half_of_ten_within_a_minute_open_it() {
        let mut breaker = Breaker::default();
        for second in 0..9 {
            if second % 2 == 0 {
                assert_eq!(fail(&mut breaker, at(second)), None, "{second}");
            } else {
                breaker.succeeded(at(second), false);
            }
        }
        breaker.succeeded(at(9), false);
        assert_eq!(breaker.state(), BreakerState::Closed, "a success opens nothing");
        assert!(fail(&mut breaker, at(10)).is_some(), "six of eleven have failed");
        let mut slow = Breaker::default();
        for second in 0..40 {
            if second % 2 == 0 {
                assert_eq!(fail(&mut slow, at(second * 7)), None, "fewer than ten in a minute");
            } else {
                slow.succeeded(at(second * 7), false);
            }
        }
    }

    #[test]
    fn it_stays_open_twice_as_long_each_time_up_to_five_minutes() {
        let mut breaker = Breaker::default();
        let mut now = at(0);
        (0..5).for_each(|_| {
            fail(&mut breaker, now);
        });
        let mut lengths = Vec::new();
        for _ in 0..8 {
            let until = breaker.open_until().unwrap();
            lengths.push((until - now).as_secs());
            now = until;
            assert!(breaker.admits(now));
            let (probe, _) = breaker.begin(now);
            assert!(probe && !breaker.admits(now), "one request at a time");
            breaker.failed(now, probe, true, None, 0.0);
        }
        assert_eq!(lengths, [5, 10, 20, 40, 80, 160, 300, 300]);
    }

    #[test]
    fn one_success_closes_it_and_a_client_that_leaves_decides_nothing() {
        let mut breaker = Breaker::default();
        (0..5).for_each(|_| {
            fail(&mut breaker, at(0));
        });
        let (probe, _) = breaker.begin(at(5));
        breaker.released(probe);
        assert_eq!(breaker.state(), BreakerState::HalfOpen);
        let (probe, _) = breaker.begin(at(6));
        breaker.succeeded(at(6), false);
        assert_eq!(breaker.state(), BreakerState::HalfOpen, "an old request has ended");
        let closed = Change { from: BreakerState::HalfOpen, to: BreakerState::Closed };
        assert_eq!(breaker.succeeded(at(7), probe), Some(closed));
        (0..4).for_each(|_| {
            assert_eq!(fail(&mut breaker, at(8)), None);
        });
        fail(&mut breaker, at(8));
        assert_eq!(breaker.open_until(), Some(at(13)), "it begins with five seconds again");
    }

    #[test]
    fn a_limited_rate_pauses_without_opening_and_retry_after_wins() {
        let mut breaker = Breaker::default();
        for _ in 0..20 {
            assert_eq!(breaker.limited(at(0), false, Some(Duration::from_secs(7))), None);
        }
        assert_eq!(breaker.state(), BreakerState::Closed);
        assert_eq!(breaker.paused_until(at(6)), Some(at(7)));
        assert_eq!(breaker.paused_until(at(7)), None);
        breaker.limited(at(10), false, Some(Duration::MAX));
        assert_eq!(
            breaker.paused_until(at(10)),
            Some(at(3610)),
            "nobody locks itself out for ever"
        );
        for _ in 0..5 {
            breaker.failed(at(20), false, true, Some(Duration::from_secs(90)), 0.5);
        }
        assert_eq!(breaker.open_until(), Some(at(110)));
    }

    #[test]
    fn refusals_open_it_for_five_minutes_and_a_sign_of_life_ends_only_outages() {
        let mut breaker = Breaker::default();
        breaker.denied(at(0), false, true);
        assert_eq!(breaker.open_until(), Some(at(300)));
        breaker.seen_alive();
        assert!(!breaker.admits(at(299)) && breaker.admits(at(300)));
        let mut away = Breaker::default();
        (0..5).for_each(|_| {
            fail(&mut away, at(0));
        });
        away.seen_alive();
        assert!(away.admits(at(1)));
        let mut last = Breaker::default();
        last.denied(at(0), false, false);
        assert_eq!(last.state(), BreakerState::Closed);
    }
}
