//! A number of things per minute.

use std::time::Duration;

use tokio::time::Instant;

/// What is left of a limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Standing {
    /// Per minute, and at once after a pause.
    pub limit: u64,
    /// What may be used now.
    pub remaining: u64,
    /// The time until all of it may be used.
    pub reset: Duration,
}

/// Allows `per_minute` things at once, and then as many evenly in each minute. In contrast to the limiter
/// for addresses, it is asked what is left.
#[derive(Debug, Clone, Copy)]
pub(super) struct Bucket {
    per_minute: u32,
    level: f64,
    at: Instant,
}

impl Bucket {
    pub(super) fn new(per_minute: u32, now: Instant) -> Self {
        Self { per_minute, level: f64::from(per_minute), at: now }
    }

    /// A bucket for another limit, in which as much is used.
    pub(super) fn adjusted(old: Option<Self>, limit: Option<u32>, now: Instant) -> Option<Self> {
        let mut new = Self::new(limit?, now);
        if let Some(mut old) = old {
            old.fill(now);
            new.level =
                (old.level + f64::from(new.per_minute) - f64::from(old.per_minute)).max(0.0);
        }
        Some(new)
    }

    fn per_second(&self) -> f64 {
        f64::from(self.per_minute) / 60.0
    }

    fn fill(&mut self, now: Instant) {
        let passed = now.saturating_duration_since(self.at).as_secs_f64();
        self.level = (self.level + passed * self.per_second()).min(f64::from(self.per_minute));
        self.at = now;
    }

    /// The time until `count` may be taken; `None` if they may be now.
    pub(super) fn wait(&mut self, count: u64, now: Instant) -> Option<Duration> {
        self.fill(now);
        // A count that never fits waits longest; numbers of images are small.
        let missing = count as f64 - self.level;
        // Less than a microsecond's share is a rounding error.
        (missing > 1e-6).then(|| Duration::from_secs_f64(missing / self.per_second()))
    }

    pub(super) fn take(&mut self, count: u64) {
        self.level = (self.level - count as f64).max(0.0);
    }

    pub(super) fn standing(&mut self, now: Instant) -> Standing {
        self.fill(now);
        let missing = f64::from(self.per_minute) - self.level;
        Standing {
            limit: self.per_minute.into(),
            // The level is never negative.
            remaining: (self.level + 1e-6) as u64,
            reset: Duration::from_secs_f64(missing / self.per_second()),
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::time::advance;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_minute_at_once_and_then_evenly() {
        let mut bucket = Bucket::new(6, Instant::now());
        for _ in 0..6 {
            assert_eq!(bucket.wait(1, Instant::now()), None);
            bucket.take(1);
        }
        assert_eq!(bucket.wait(1, Instant::now()), Some(Duration::from_secs(10)));
        assert_eq!(bucket.wait(2, Instant::now()), Some(Duration::from_secs(20)));
        let standing = bucket.standing(Instant::now());
        let expected = Standing { limit: 6, remaining: 0, reset: Duration::from_secs(60) };
        assert_eq!(standing, expected);
        advance(Duration::from_secs(25)).await;
        assert_eq!(bucket.standing(Instant::now()).remaining, 2);
        assert_eq!(bucket.wait(2, Instant::now()), None);
        advance(Duration::from_secs(3600)).await;
        assert_eq!(bucket.standing(Instant::now()).remaining, 6);
    }

    #[tokio::test(start_paused = true)]
    async fn another_limit_keeps_what_is_used() {
        let now = Instant::now();
        let mut bucket = Bucket::new(10, now);
        bucket.take(4);
        let mut larger = Bucket::adjusted(Some(bucket), Some(20), now).unwrap();
        assert_eq!(larger.standing(now).remaining, 16);
        let mut smaller = Bucket::adjusted(Some(bucket), Some(3), now).unwrap();
        assert_eq!(smaller.standing(now).remaining, 0);
        assert!(Bucket::adjusted(Some(bucket), None, now).is_none());
        assert_eq!(Bucket::adjusted(None, Some(3), now).unwrap().standing(now).remaining, 3);
    }
}
