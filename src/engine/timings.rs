//! Where an engine's time went.

use std::time::{Duration, Instant};

/// Time and work of the stages since the last look; see
/// [`LocalEngine::take_timings`](super::local::LocalEngine::take_timings).
///
/// Wall-clock time of the calls: a device that works on after a call has returned is waited for,
/// and counted, where its results are first read.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Timings {
    /// Pixels to the image's states.
    pub vision: Duration,
    /// The image's states to the keys and values of the decoder's cross-attention.
    pub cross_kv: Duration,
    /// Everything after that: prompts, steps, and choosing tokens.
    pub decode: Duration,
    /// Images that were encoded.
    pub images: u64,
    /// Tokens of which the logits were computed, one for each row and step.
    pub tokens: u64,
}

/// The result of `work`; the time it took is added to `total`.
pub(super) fn timed<T>(total: &mut Duration, work: impl FnOnce() -> T) -> T {
    let begin = Instant::now();
    let result = work();
    *total += begin.elapsed();
    result
}
