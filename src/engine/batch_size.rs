//! How many rows a device should decode together.
//!
//! On a CPU it is known: see docs/design/scheduling.md. GPUs differ by a factor of twenty in speed
//! and memory, so there it is measured while the engine is warmed up, and kept for the next start.

mod known;

use serde::{Deserialize, Serialize};

use super::Engine;
use super::bench::{Workload, measure_sized};
use super::local::LocalEngine;
use cutline_error::{Error, ErrorKind, Result};
pub use known::Known;

/// Rows on a CPU; with more, an image does not become noticeably cheaper.
pub const ON_CPU: usize = 8;

/// The most rows that are tried. More rows would not be cheaper, and images would wait longer.
const LARGEST: usize = 256;

/// The gain in throughput that makes a doubling worth its latency.
const LEAST_GAIN: f64 = 0.05;

/// Tokens of the captions that are timed, as many as in a short caption.
const NEW_TOKENS: usize = 10;

/// How often each size is timed; [`LEAST_GAIN`] would be lost in the noise of fewer.
const ITERATIONS: usize = 5;

/// The result of a search.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct BatchSize {
    /// Rows that should be decoded together.
    pub rows: usize,
    /// Images per second with this many rows.
    pub images_per_second: f64,
    /// Why the search stopped at this number.
    pub limit: Limit,
}

/// The reason why a search ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Limit {
    /// More rows were not faster.
    Throughput,
    /// More rows did not fit into the device's memory.
    Memory,
    /// More rows are never tried.
    Bound,
}

impl Limit {
    /// A description for the log.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Throughput => "more are not faster",
            Self::Memory => "more do not fit into its memory",
            Self::Bound => "more are never tried",
        }
    }
}

/// Finds the number of rows for `engine`, which has no jobs and gets images of `width` × `height`
/// pixels.
///
/// # Errors
/// Not even one image can be captioned, or captioning fails for a reason other than lack of memory.
pub fn find(engine: &mut LocalEngine, width: usize, height: usize) -> Result<BatchSize> {
    let found = search(LARGEST, |batch| run(engine, batch, ITERATIONS, [width, height]));
    // Otherwise the buffers stay as large as the last size that was tried.
    engine.reset();
    found
}

/// What was found at an earlier start, if `engine` can still caption that many images at once: others
/// may use the device's memory now.
pub fn recall(
    engine: &mut LocalEngine,
    known: &Known,
    width: usize,
    height: usize,
) -> Option<BatchSize> {
    let found = known.read()?;
    let ran = run(engine, found.rows, 1, [width, height]);
    engine.reset();
    ran.is_ok().then_some(found)
}

/// Images per second with this many rows.
fn run(engine: &mut LocalEngine, batch: usize, iterations: usize, size: [usize; 2]) -> Result<f64> {
    let new_tokens = NEW_TOKENS.min(engine.info().max_positions.saturating_sub(1)).max(1);
    let measured = measure_sized(engine, Workload { batch, new_tokens, iterations }, size);
    if measured.is_err() {
        engine.reset();
    }
    Ok(1.0 / measured?.end_to_end.as_secs_f64().max(1e-9))
}

/// Doubles the rows, starting with one, as long as `throughput` (images per second with this many
/// rows) grows and there is memory. One doubling without gain may be noise; after two the search
/// ends.
///
/// # Errors
/// Those of `throughput`, except lack of memory for more than one row.
fn search(most: usize, mut throughput: impl FnMut(usize) -> Result<f64>) -> Result<BatchSize> {
    let mut best: Option<BatchSize> = None;
    let (mut rows, mut without_gain) = (1, 0);
    let end = |best: Option<BatchSize>, limit| match best {
        Some(best) => Ok(BatchSize { limit, ..best }),
        None => Err(Error::internal("no batch size was tried")),
    };
    while rows <= most {
        match throughput(rows) {
            Ok(speed) => {
                let gained =
                    best.is_none_or(|best| speed > best.images_per_second * (1.0 + LEAST_GAIN));
                if gained {
                    without_gain = 0;
                    best = Some(BatchSize {
                        rows,
                        images_per_second: speed,
                        limit: Limit::Throughput,
                    });
                } else {
                    without_gain += 1;
                }
            }
            Err(error) if error.kind() == ErrorKind::OutOfMemory && best.is_some() => {
                return end(best, Limit::Memory);
            }
            Err(error) => return Err(error),
        }
        if without_gain == 2 {
            return end(best, Limit::Throughput);
        }
        rows *= 2;
    }
    let limit = if without_gain == 0 { Limit::Bound } else { Limit::Throughput };
    end(best, limit)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Searches with these images per second for 1, 2, 4, … rows; `None` means out of memory. Also
    /// returns the rows that were tried.
    fn searched(most: usize, speeds: &[Option<f64>]) -> (Result<BatchSize>, Vec<usize>) {
        let mut tried = Vec::new();
        let found = search(most, |rows| {
            let speed = speeds[tried.len()];
            tried.push(rows);
            speed.ok_or_else(|| Error::new(ErrorKind::OutOfMemory, "as planned"))
        });
        (found, tried)
    }

    fn found(rows: usize, images_per_second: f64, limit: Limit) -> BatchSize {
        BatchSize { rows, images_per_second, limit }
    }

    #[test]
    fn rows_are_doubled_while_the_throughput_grows() {
        let speeds = [100.0, 190.0, 350.0, 360.0, 365.0, 900.0].map(Some);
        let (result, tried) = searched(256, &speeds);
        assert_eq!(result.unwrap(), found(4, 350.0, Limit::Throughput));
        assert_eq!(tried, [1, 2, 4, 8, 16]);
    }

    #[test]
    fn one_doubling_without_gain_is_taken_for_noise() {
        let speeds = [100.0, 190.0, 150.0, 700.0, 710.0, 705.0].map(Some);
        assert_eq!(searched(256, &speeds).0.unwrap(), found(8, 700.0, Limit::Throughput));
    }

    #[test]
    fn small_gains_add_up() {
        // 4 % each: together they exceed the minimum gain, so the second one counts.
        let speeds = [100.0, 104.0, 108.2, 109.0, 110.0].map(Some);
        assert_eq!(searched(256, &speeds).0.unwrap(), found(4, 108.2, Limit::Throughput));
    }

    #[test]
    fn lack_of_memory_ends_the_search() {
        let speeds = [Some(100.0), Some(200.0), Some(400.0), None];
        let (result, tried) = searched(256, &speeds);
        assert_eq!(result.unwrap(), found(4, 400.0, Limit::Memory));
        assert_eq!(tried, [1, 2, 4, 8]);
        // The previous doubling gained nothing, so it is not used either.
        let speeds = [Some(100.0), Some(101.0), None];
        assert_eq!(searched(256, &speeds).0.unwrap(), found(1, 100.0, Limit::Memory));
    }

    #[test]
    fn the_search_ends_at_the_largest_size() {
        let speeds = [1.0, 2.0, 4.0, 8.0].map(Some);
        let (result, tried) = searched(8, &speeds);
        assert_eq!(result.unwrap(), found(8, 8.0, Limit::Bound));
        assert_eq!(tried, [1, 2, 4, 8]);
        let speeds = [1.0, 2.0, 4.0, 4.0].map(Some);
        assert_eq!(searched(8, &speeds).0.unwrap(), found(4, 4.0, Limit::Throughput));
    }

    #[test]
    fn other_failures_are_reported() {
        let (result, tried) = searched(256, &[None]);
        assert_eq!(result.unwrap_err().kind(), ErrorKind::OutOfMemory, "not even for one");
        assert_eq!(tried, [1]);
        let broken = search(256, |rows| match rows {
            1 => Ok(1.0),
            _ => Err(Error::internal("broken")),
        });
        assert_eq!(broken.unwrap_err().kind(), ErrorKind::Internal);
    }
}
