//! Throughput: how fast images are finished. Plain numbers; callers pass the time.

use std::time::{Duration, Instant};

/// Length of the measured window, in seconds.
const WINDOW: u64 = 60;

/// Finished images and busy time of the last minute, second by second.
#[derive(Debug)]
pub(super) struct Throughput {
    begin: Instant,
    /// A ring, indexed by the second's number.
    seconds: [Second; WINDOW as usize],
}

#[derive(Debug, Clone, Copy, Default)]
struct Second {
    /// Seconds since the beginning, counted from 1. A slot with an old number does not count.
    number: u64,
    finished: u64,
    busy: Duration,
}

impl Throughput {
    pub(super) fn new(now: Instant) -> Self {
        Self { begin: now, seconds: [Second::default(); WINDOW as usize] }
    }

    /// Counts a finished image.
    pub(super) fn record_finished(&mut self, now: Instant) {
        self.second(now).finished += 1;
    }

    /// Counts the time from `since` to `now` as busy.
    pub(super) fn record_work(&mut self, since: Instant, now: Instant) {
        self.second(now).busy += now.saturating_duration_since(since);
    }

    /// Images finished per second over the last minute, or since the beginning if that is shorter.
    pub(super) fn images_per_second(&self, now: Instant) -> f64 {
        let age = now.saturating_duration_since(self.begin).as_secs_f64();
        self.sum(now).0 as f64 / age.clamp(1.0, WINDOW as f64)
    }

    /// Estimated time that the model needs for this many images. It is based on busy time, because
    /// idle time says nothing about speed. `None` if the model was idle for the whole window.
    pub(super) fn time_for(&self, images: usize, now: Instant) -> Option<Duration> {
        let (finished, busy) = self.sum(now);
        // The first image takes at least as long as it has taken so far.
        let each = busy.as_secs_f64() / finished.max(1) as f64;
        let time = Duration::try_from_secs_f64(each * images as f64).unwrap_or(Duration::MAX);
        (!busy.is_zero()).then_some(time)
    }

    fn sum(&self, now: Instant) -> (u64, Duration) {
        let oldest = self.number(now).saturating_sub(WINDOW - 1);
        let recent = self.seconds.iter().filter(|second| second.number >= oldest.max(1));
        recent.fold((0, Duration::ZERO), |(finished, busy), second| {
            (finished + second.finished, busy + second.busy)
        })
    }

    fn second(&mut self, now: Instant) -> &mut Second {
        let number = self.number(now);
        let second = &mut self.seconds[(number % WINDOW) as usize];
        if second.number != number {
            *second = Second { number, ..Second::default() };
        }
        second
    }

    fn number(&self, now: Instant) -> u64 {
        1 + now.saturating_duration_since(self.begin).as_secs()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(begin: Instant, seconds: f64) -> Instant {
        begin + Duration::from_secs_f64(seconds)
    }

    #[test]
    fn the_rate_is_over_the_age_or_the_last_minute() {
        let begin = Instant::now();
        let mut throughput = Throughput::new(begin);
        (0..20).for_each(|i| throughput.record_finished(at(begin, f64::from(i) / 2.0)));
        assert_eq!(throughput.images_per_second(at(begin, 10.0)), 2.0);
        assert_eq!(throughput.images_per_second(at(begin, 40.0)), 0.5);
        (600..720).for_each(|i| throughput.record_finished(at(begin, f64::from(i))));
        assert_eq!(throughput.images_per_second(at(begin, 719.5)), 1.0);
    }

    #[test]
    fn events_older_than_a_minute_do_not_count() {
        let begin = Instant::now();
        let mut throughput = Throughput::new(begin);
        throughput.record_finished(at(begin, 1.5));
        throughput.record_work(begin, at(begin, 1.5));
        assert!(throughput.images_per_second(at(begin, 60.0)) > 0.0);
        assert_eq!(throughput.images_per_second(at(begin, 61.0)), 0.0);
        assert_eq!(throughput.time_for(1, at(begin, 61.0)), None);
    }

    #[test]
    fn idle_time_does_not_count_as_slow() {
        let begin = Instant::now();
        let mut throughput = Throughput::new(begin);
        assert_eq!(throughput.time_for(5, begin), None, "no work was recorded");
        // Four images in a second of work within half a minute.
        for i in [0.0, 7.0, 14.0, 29.0] {
            throughput.record_work(at(begin, i), at(begin, i + 0.25));
            throughput.record_finished(at(begin, i + 0.25));
        }
        let time = throughput.time_for(8, at(begin, 30.0)).unwrap();
        assert!((time.as_secs_f64() - 2.0).abs() < 1e-6, "{time:?}");
    }

    #[test]
    fn the_first_image_takes_at_least_as_long_as_it_has_taken_so_far() {
        let begin = Instant::now();
        let mut throughput = Throughput::new(begin);
        throughput.record_work(begin, at(begin, 3.0));
        assert_eq!(throughput.time_for(2, at(begin, 3.0)), Some(Duration::from_secs(6)));
    }
}
